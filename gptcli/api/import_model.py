"""A directory of transformers -> a checkpoint of gptcli."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.base.escape import shown
from gptcli.base.report import Report
from gptcli.data.tokenizer import DOCUMENT_MARKS
from gptcli.interop.chat_template import conversation_of
from gptcli.interop.configs import unsaid
from gptcli.interop.hf_read import read_document, read_model
from gptcli.interop.vocabulary import read_chat_template, read_tokenizer
from gptcli.train import checkpoint
from gptcli.train.metadata import ModelMetadata


@dataclass(frozen=True)
class Imported:
    """What was imported, and how large it is."""

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


def import_model(source: Path, output: Path, *, force: bool = False, report: Report) -> Imported:
    """Make `output` a checkpoint with the model and the tokenizer of `source`."""
    fsio.check_replaceable(output, force=force)
    fsio.check_apart(output, [source])
    document = read_document(source)
    for left in unsaid(document):
        report.warning(f"{shown(str(source / 'config.json'))}: {left}")
    tokenizer = read_tokenizer(source)
    model = read_model(source, document)
    config = model.config
    assert config.vocab_size is not None
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"{shown(str(source))}: the tokenizer has {tokenizer.vocab_size} tokens and the model {config.vocab_size}; "
            "it is another model's tokenizer"
        )
    if tokenizer.end_of_text is None:
        report.warning(f"no token {' or '.join(DOCUMENT_MARKS)}: texts begin with nothing before them, and do not end")
    template = read_chat_template(source)
    conversation = conversation_of(template, tokenizer) if template else None
    if template and conversation is None:
        report.warning("the chat template is of another form than gptcli's and is left behind; fine-tune to chat")
    with fsio.new_directory(output) as directory:
        checkpoint.save_model(model, tokenizer, directory, step=0, metadata=ModelMetadata(conversation=conversation))
    return Imported(
        output,
        document["architectures"][0] if document.get("architectures") else str(document.get("model_type")),
        model.num_parameters(),
        config.num_layers,
        config.context_length,
        config.vocab_size,
    )
