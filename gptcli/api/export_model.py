"""Export a checkpoint to the files of another program."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptcli.api.open_model import load
from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import Tokenizer
from gptcli.interop.configs import family_for, problems
from gptcli.interop.families import FAMILIES
from gptcli.interop.family import Document
from gptcli.interop.gguf_names import ARCHITECTURES, Architecture
from gptcli.interop.gguf_shape import unwritten
from gptcli.interop.gguf_write import gguf_package, unsupported_tokenizer_feature, write_gguf
from gptcli.interop.hf_write import write_directory
from gptcli.interop.model_card import model_card
from gptcli.model.gpt import GPT
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.metadata import ModelMetadata, read_metadata

GGUF_FILE = "model.gguf"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Exported:
    """The files that were written."""

    output: Path
    architecture: str
    dtype: str
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "output": str(self.output)}

    def lines(self) -> list[tuple[str, str]]:
        return [
            ("architecture", self.architecture),
            ("weights", self.dtype),
            ("size", f"{self.bytes / 1e6:,.1f} MB"),
        ]


def export_hf(
    run: str | Path, output: Path, *, dtype: str = "float32", force: bool = False, report: Report
) -> Exported:
    """Make `output` a directory that transformers loads; DataError names what no class of it can hold."""
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: is for --to gguf; choose {', '.join(DTYPES)}")
    fsio.check_replaceable(output, force=force)
    directory, model, tokenizer, metadata = _load(run, output)
    form = "{} of transformers, the nearest class, cannot hold it"
    came = json.loads(metadata.origin.get("config.json", "{}"))
    family = family_for(model.config, list(FAMILIES.values()), form, came=came)
    if metadata.labels and not family.classifier:
        raise DataError(
            f"{escape(str(directory))}: a classifier, and transformers has no class for one of the shape of "
            f"{family.architecture}; fine-tune a model of the preset llama or gpt2 for export"
        )
    if model.config.dropout and "dropout" not in family.keys:
        report.warning(f"model.dropout {model.config.dropout} is not written: {family.architecture} has no such key")
    architecture = family.classifier if metadata.labels and family.classifier else family.architecture
    if metadata.labels and metadata.pooling != "last":
        report.warning(
            f"pooling {metadata.pooling} is not written: in {architecture} the last token alone names the label; "
            "for the same probabilities fine-tune with classify.pooling=last"
        )
    with fsio.new_directory(output) as temporary:
        write_directory(temporary, model, tokenizer, metadata, family, DTYPES[dtype])
        card = model_card(output.name, directory, model, tokenizer, metadata, architecture=architecture, dtype=dtype)
        fsio.write_file(temporary / "README.md", card)
    return Exported(output, architecture, dtype, _bytes(output))


def export_gguf(
    run: str | Path, output: Path, *, dtype: str = "float16", force: bool = False, report: Report
) -> Exported:
    """Make `output` a directory with model.gguf; DataError names what no architecture of llama.cpp can hold."""
    gguf_package()
    fsio.check_replaceable(output, force=force)
    directory, model, tokenizer, metadata = _load(run, output)
    if metadata.labels:
        raise DataError(f"{escape(str(directory))}: a classifier, which llama.cpp cannot run; export with --to hf")
    architecture = _architecture_for(model.config, json.loads(metadata.origin.get("config.json", "{}")))
    if feature := unsupported_tokenizer_feature(tokenizer):
        report.warning(feature)
    if model.config.activation == architecture.approximated:
        report.warning(f"llama.cpp computes GELU by its tanh formula in a {architecture.name}: logits differ by 1e-3")
    with fsio.new_directory(output) as temporary:
        write_gguf(temporary / GGUF_FILE, model, tokenizer, metadata, architecture, dtype)
        card = model_card(
            output.name,
            directory,
            model,
            tokenizer,
            metadata,
            architecture=architecture.name,
            dtype=dtype,
            gguf=GGUF_FILE,
        )
        fsio.write_file(temporary / "README.md", card)
    return Exported(output, architecture.name, dtype, _bytes(output))


def _architecture_for(config: ModelConfig, came: Document) -> Architecture:
    """Return the architecture of llama.cpp that computes the model; DataError with what the nearest one does not."""
    held = [architecture.family for architecture in ARCHITECTURES.values()
            if not any(problems(config, architecture.family)) and not any(unwritten(config, architecture))]  # fmt: skip
    families = held or [architecture.family for architecture in ARCHITECTURES.values()]
    form = "{} as llama.cpp runs it, the nearest, cannot hold it; use --to hf"
    architecture = ARCHITECTURES[family_for(config, families, form, came=came).architecture]
    if not held:
        raise DataError(*unwritten(config, architecture))
    return architecture


def _bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.iterdir())


def _load(run: str | Path, output: Path) -> tuple[Path, GPT, Tokenizer, ModelMetadata]:
    directory = find_checkpoint(run)
    fsio.check_apart(output, [directory])
    model, tokenizer = load(directory)
    return directory, model, tokenizer, read_metadata(directory)
