"""The origin of a checkpoint, as hashes: lineage.json in the checkpoint itself.

Two runs of which one byte of the data, the recipe, the tokenizer, the base or the code differs have different lineages;
the same run again has the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import gptcli
from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.train.checkpoint import LINEAGE_FILE
from gptcli.train.checkpoint_paths import find_checkpoint

FORMAT = "gptcli lineage 1"
REPORT = "report.json"  # of gptcli corpus run, beside the corpus


def make_lineage(run_file: Mapping[str, Any], tokenizer_sha256: str, sources: Sequence[Mapping[str, Any]]) -> Any:
    """Return the document of a run: `run_file` with the hashes of what it reads, `sources` with name and sha256."""
    recipe = {name: value for name, value in run_file.items() if name not in ("content", "run_dir")}
    content = run_file.get("content", {})
    inputs = [dict(source) for source in sources] or [{"sha256": sha256} for sha256 in content.get("inputs", ())]
    document: dict[str, Any] = {
        "format": FORMAT,
        "gptcli": gptcli.__version__,
        "code_sha256": code_sha256(),
        "torch": torch.__version__,
        "recipe_sha256": _hash(recipe),
        "tokenizer_sha256": tokenizer_sha256,
        "inputs": inputs,
    }
    if dropped := [found for source in inputs if (found := _corpus_report(source)) is not None]:
        document["corpus"] = dropped
    if "base" in content:
        document["base"] = {"sha256": content["base"], "lineage": _lineage_of(str(run_file.get("base", "")))}
    if "teacher" in content:
        named = str(run_file["distill"]["teacher"])
        document["teacher"] = {"sha256": content["teacher"], "lineage": _lineage_of(named)}
    return document


def read_lineage(checkpoint: Path) -> dict[str, Any] | None:
    """Return the lineage of a checkpoint, None where it has none: it was imported, or made by an older gptcli."""
    path = checkpoint / LINEAGE_FILE
    document = fsio.read_json(path) if path.is_file() else None
    if document is not None and (not isinstance(document, dict) or document.get("format") != FORMAT):
        raise DataError(f"{path.name}: not a lineage of this gptcli; the checkpoint is damaged")
    return document


def known_inputs(lineage: Mapping[str, Any] | None) -> set[str]:
    """Return the hashes of all inputs of a checkpoint and of the bases that it comes from."""
    found = set[str]()
    while lineage is not None:
        found |= {str(source["sha256"]) for source in lineage["inputs"]}
        lineage = lineage.get("base", {}).get("lineage")
    return found


@functools.cache
def code_sha256() -> str:
    """Return the hash of gptcli's own source files, their names included."""
    root = Path(gptcli.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _hash(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()


def _lineage_of(run: str) -> dict[str, Any] | None:
    try:
        return read_lineage(find_checkpoint(run))
    except (ConfigError, DataError):
        return None


def _corpus_report(source: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what `gptcli corpus run` dropped to make a source, if its report lies beside it and is of these bytes."""
    path = Path(str(source.get("name", ""))).parent / REPORT
    try:
        report = fsio.read_json(path) if path.is_file() else None
    except (DataError, OSError):
        return None
    if not isinstance(report, dict) or report.get("sha256") != source.get("sha256") or "steps" not in report:
        return None
    return {"sha256": report["sha256"], "inputs": report.get("inputs"), "steps": report["steps"]}
