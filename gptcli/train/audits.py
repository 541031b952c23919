"""The place of the findings of `gptcli audit`: beside the checkpoint, whose own files do not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.model.lora import WEIGHTS as ADAPTER_WEIGHTS
from gptcli.train.metadata import read_metadata
from gptcli.train.weights import weights_sha256

(NAME,) = fsio.ADDED
FORMAT = fsio.ADDED[NAME]


def audit_path(checkpoint: Path) -> Path:
    """Return the file of a checkpoint's audit: in its run, else in a checkpoint that stands alone."""
    checkpoint = checkpoint.resolve()
    if checkpoint.parent.name == "checkpoints":
        return checkpoint.parent.parent / f"audit-{checkpoint.name}.json"
    return checkpoint / NAME


def audited_sha256(checkpoint: Path) -> str:
    """Return what says which weights an audit is of: their hash, or that of the adapter that was trained."""
    if read_metadata(checkpoint).adapter is None:
        return weights_sha256(checkpoint)
    return fsio.sha256(checkpoint / ADAPTER_WEIGHTS)


def read_audit(checkpoint: Path) -> dict[str, Any] | None:
    """Return the findings of a checkpoint's audit, None where there is none that can be read, or of other weights."""
    path = audit_path(checkpoint)
    try:
        document = fsio.read_json(path) if path.is_file() else None
    except DataError:
        return None
    if not isinstance(document, dict) or not isinstance(document.get("figures"), dict):
        return None
    return document if document.get("weights_sha256") == audited_sha256(checkpoint) else None
