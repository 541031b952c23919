"""Import a model of another program as a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.api.open_model import load
from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.data.template import Form, Template, check_template
from gptcli.data.tokenizer import Tokenizer
from gptcli.interop.chat_template import conversation_of
from gptcli.interop.configs import architecture_of, labels_of
from gptcli.interop.gguf_read import read_gguf
from gptcli.interop.hf_pretrained import read_hf
from gptcli.interop.hf_tokenizer import read_tokenizer
from gptcli.interop.peft_read import is_adapter, merge_foreign
from gptcli.interop.pretrained import Pretrained
from gptcli.model.gpt import GPT
from gptcli.train import checkpoint
from gptcli.train.checkpoint_paths import find_checkpoint
from gptcli.train.metadata import ModelMetadata, read_metadata


@dataclass(frozen=True)
class Imported:
    """The model that was imported, and how large it is."""

    output: Path
    architecture: str
    parameters: int
    layers: int
    context_length: int
    vocab_size: int

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "output": str(self.output)}

    def lines(self) -> list[tuple[str, str]]:
        return [
            ("architecture", self.architecture),
            ("parameters", f"{self.parameters:,}"),
            ("layers", str(self.layers)),
            ("context", f"{self.context_length:,} tokens"),
            ("vocabulary", f"{self.vocab_size:,} tokens"),
        ]


def import_model(
    source: Path, output: Path, *, base: str | Path | None = None, force: bool = False, report: Report
) -> Imported:
    """Make `output` a checkpoint with the model, the tokenizer and the form of conversations of `source`: a directory
    of transformers, a GGUF file, or with `base` a directory of a PEFT adapter, which is merged into that checkpoint."""
    fsio.check_replaceable(output, force=force)
    fsio.check_apart(output, [source])
    if is_adapter(source):
        return _import_adapter(source, base, output, report)
    if base is not None:
        raise ConfigError(f"--base: {escape(str(source))} is a whole model; leave it out")
    found = read_gguf(source) if source.is_file() else read_hf(source)
    for left in found.left_behind:
        report.warning(left)
    model, tokenizer = found.read_model(), found.tokenizer
    config = model.config
    assert config.vocab_size is not None
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"{escape(str(source))}: the tokenizer has {tokenizer.vocab_size} tokens and the model {config.vocab_size};"
            " it is another model's tokenizer"
        )
    for said in _notes(tokenizer):
        report.warning(said)
    metadata = ModelMetadata(
        labels_of(found.config, escape(str(source))), _conversation(found, report), origin=found.origin
    )
    with fsio.new_directory(output) as directory:
        checkpoint.save_model(model, tokenizer, directory, step=0, metadata=metadata)
    return _imported(output, architecture_of(found.config), model)


def _imported(output: Path, architecture: str, model: GPT) -> Imported:
    config = model.config
    return Imported(
        output, architecture, model.num_parameters(), config.num_layers, config.context_length, config.vocab_size or 0
    )


def _notes(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield what a person should know of a tokenizer."""
    if tokenizer.lossy:
        yield f"the tokenizer does not give back every text: it {', '.join(tokenizer.lossy)}"
    if not tokenizer.ends:
        yield "no token that ends a text: the model writes until --max-tokens, and rows of fine-tuning have no end"


def _conversation(found: Pretrained, report: Report) -> Form | None:
    """Return the form of the model's conversations; a template of gptcli's own is the form it was written for."""
    if found.template is None:
        return None
    if own := conversation_of(found.template, found.tokenizer):
        return own
    if problem := check_template(found.template):
        report.warning(f"the chat template is left behind: {problem}")
        return None
    return Template(found.template, found.token_names)


def _import_adapter(source: Path, base: str | Path | None, output: Path, report: Report) -> Imported:
    """Merge a PEFT adapter into a checkpoint."""
    if base is None:
        raise ConfigError(f"{escape(str(source))}: a PEFT adapter, which changes a model; name the checkpoint of that "
                          "model: --base RUN")  # fmt: skip
    directory = find_checkpoint(base)
    model, tokenizer = load(directory)
    metadata = read_metadata(directory)
    if any((source / name).is_file() for name in ("tokenizer.json", "vocab.json", "tokenizer.model")):
        given = read_tokenizer(source)
        if given.vocab_size > tokenizer.vocab_size:
            tokenizer = given.with_marks(tokenizer.marks.begin, tokenizer.marks.ends)
    merge_foreign(model, source)
    for said in _notes(tokenizer):
        report.warning(said)
    metadata = dataclasses.replace(metadata, adapter=None)
    with fsio.new_directory(output) as made:
        checkpoint.save_model(model, tokenizer, made, step=0, metadata=metadata)
    return _imported(output, "PEFT adapter, merged", model)
