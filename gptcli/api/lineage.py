"""The lineage of a checkpoint, and what an audit found in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.base.escape import escape
from gptcli.data.tokenizer import Tokenizer
from gptcli.train.audits import read_audit
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.lineage import read_lineage
from gptcli.train.metadata import read_metadata
from gptcli.train.weights import weights_sha256


@dataclass(frozen=True)
class Lineage:
    """The result of `gptcli lineage`."""

    checkpoint: str
    weights_sha256: str
    tokenizer_sha256: str
    lineage: dict[str, Any] | None
    audit: dict[str, Any] | None

    def as_dict(self) -> dict[str, Any]:
        figures = None if self.audit is None else self.audit["figures"]
        return {**vars(self), "audit": figures}

    def lines(self) -> list[tuple[str, str]]:
        """Format the lineage for a person."""
        facts = [("checkpoint", self.checkpoint), ("weights", self.weights_sha256)]
        if self.lineage is None:
            facts += [("tokenizer", self.tokenizer_sha256), ("lineage", "none: imported, or made by an older gptcli")]
        else:
            facts += _lines(self.lineage)
        figures = {} if self.audit is None else self.audit["figures"]
        return facts + [(f"audit: {name}", f"{value:.4g}") for name, value in figures.items()]


def _lines(found: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    facts = [
        (f"{prefix}recipe", found["recipe_sha256"]),
        (f"{prefix}tokenizer", found["tokenizer_sha256"]),
        (f"{prefix}code", f"{found['code_sha256']}, gptcli {found['gptcli']}, torch {found['torch']}"),
    ]
    for source in found["inputs"]:
        name = f" {escape(str(source['name']))}" if "name" in source else ""
        facts.append((f"{prefix}input{name}", str(source["sha256"])))
    for corpus in found.get("corpus", ()):
        for step, counts in corpus["steps"].items():
            told = [f"{name} {value}" for name, value in counts.items() if isinstance(value, int | float)]
            facts.append((f"{prefix}corpus {step}", ", ".join(told)))
    for name in ("base", "teacher"):
        if model := found.get(name):
            facts.append((f"{prefix}{name}", ", ".join(model["sha256"])))
            facts += _lines(model["lineage"], f"{prefix}{name}: ") if model["lineage"] else []
    return facts


def lineage(run: str | Path) -> Lineage:
    """Return where a checkpoint comes from; its weights are hashed as the manifest states them."""
    directory = find_checkpoint(run)
    adapter = read_metadata(directory).adapter
    weights = weights_sha256(directory) if adapter is None else adapter.base_sha256
    tokenizer = Tokenizer.load(directory).sha256
    return Lineage(str(directory), weights, tokenizer, read_lineage(directory), read_audit(directory))
