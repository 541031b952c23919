"""Where the findings of `gptcli audit` lie: beside the checkpoint, whose own files do not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptcli.base import fsio
from gptcli.base.errors import DataError


def audit_path(checkpoint: Path) -> Path:
    """Return the file of a checkpoint's audit: in its run, else in a checkpoint that stands alone."""
    checkpoint = checkpoint.resolve()
    if checkpoint.parent.name == "checkpoints":
        return checkpoint.parent.parent / f"audit-{checkpoint.name}.json"
    return checkpoint / "audit.json"


def read_audit(checkpoint: Path) -> dict[str, Any] | None:
    """Return the findings of a checkpoint's audit, None where there is none that can be read."""
    path = audit_path(checkpoint)
    try:
        document = fsio.read_json(path) if path.is_file() else None
    except DataError:
        return None
    return document if isinstance(document, dict) and isinstance(document.get("figures"), dict) else None
