"""Rows of a run file -> examples to train on and to hold out, and what is worth knowing about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import shown
from gptcli.base.units import count
from gptcli.config.finetune import FinetuneConfig, RowsConfig
from gptcli.config.model import ModelConfig
from gptcli.data.batches import derived_seed
from gptcli.data.conversation import Conversation
from gptcli.data.example import Example, Reader, chat_reader, classify_reader, instruct_reader, label_of
from gptcli.data.rows import load_rows
from gptcli.data.text import TextOptions, file_sha256, find_sources
from gptcli.data.tokenizer import Tokenizer
from gptcli.train.metadata import ModelMetadata


@dataclass(frozen=True)
class ExampleSet:
    """The examples of a run, the tokenizer they are made with and what the tuned model is for."""

    train: list[Example]
    validation: list[Example]
    tokenizer: Tokenizer
    metadata: ModelMetadata
    bad_lines: tuple[str, ...]
    unlearnable: int  # rows left out, since a cut took all that there was to learn
    sha256: list[str]  # of the inputs

    def notes(self) -> list[str]:
        """What a person should know before training."""
        train, validation = self.train, self.validation
        repeated = len(train) - len({key(row) for row in train})
        shared = len({key(row) for row in train} & {key(row) for row in validation})
        truncated = sum(row.truncated for row in (*train, *validation))
        counts = Counter(self.metadata.labels[row.label] for row in train if row.label is not None)
        labels = ", ".join(f"{shown(name, 40)} {count:,}" for name, count in sorted(counts.items()))
        lost = [shown(name, 40) for name in self.metadata.labels if counts and name not in counts]
        tokens = sum(len(row.ids) for row in train)
        return [
            f"{count(len(train), 'row')} to train on ({count(tokens, 'token')}), {len(validation):,} held out",
            *([f"labels: {labels}"] if counts else []),
            *([f"no row to train on has the label {', '.join(lost)}"] if lost else []),
            *([f"{count(truncated, 'row')} cut at the end: longer than allowed"] if truncated else []),
            *(
                [f"{count(self.unlearnable, 'row')} left out: cut before what there is to learn"]
                if self.unlearnable
                else []
            ),
            *([f"{count(repeated, 'repeated row')} to train on"] if repeated else []),
            *([f"{count(shared, 'held-out row')} also in the training rows: validation flatters"] if shared else []),
            *(
                [f"{count(len(self.bad_lines), 'bad line')} skipped, the first: {self.bad_lines[0]}"]
                if self.bad_lines
                else []
            ),
        ]


def key(example: Example) -> tuple[int, ...]:
    """What makes two examples the same to a model that reads them, whatever their labels."""
    return tuple(example.ids)


def read_examples(
    config: FinetuneConfig, tokenizer: Tokenizer, metadata: ModelMetadata, model: ModelConfig
) -> ExampleSet:
    """All examples of a run file for a base with this tokenizer; DataError names the first row that is wrong."""
    data, names = config.data, shown(", ".join(config.data.train))
    sha256 = _hashes(data)
    form = metadata.conversation or Conversation()
    if config.task == "chat":
        tokenizer = tokenizer.with_specials(form.specials)
    labels: tuple[str, ...] = ()
    if config.task == "classify":
        rows = load_rows(data.train, lambda row: label_of(row, data.label_field), on_bad_line=data.on_bad_line)
        labels = tuple(sorted(set(rows.items)))
        if len(labels) < 2:
            raise DataError(f"{names}: every row has the label {shown(repr(labels[0]))}; give two labels or more")
    max_tokens = min(data.max_tokens or model.context_length, model.context_length)
    reader = _reader(config, tokenizer, labels, form, max_tokens)
    found = load_rows(data.train, reader, on_bad_line=data.on_bad_line)
    train, validation, bad = found.items, list[Example](), found.bad_lines
    if data.validation:
        held_out = load_rows(data.validation, reader, on_bad_line=data.on_bad_line)
        validation, bad = held_out.items, bad + held_out.bad_lines
    elif data.validation_fraction:
        train, validation = _split(train, data.validation_fraction)
    unlearnable = sum(row.unlearnable for row in (*train, *validation))
    train = [row for row in train if not row.unlearnable]
    if not train:
        raise DataError(
            f"{names}: nothing to learn: each row is cut to {max_tokens} tokens before what it "
            "should teach; shorten the rows, raise data.max_tokens, or take a base with a longer context"
        )
    validation = [row for row in validation if not row.unlearnable]
    return ExampleSet(train, validation, tokenizer, _metadata(config, labels, form, metadata), bad, unlearnable, sha256)


def _hashes(data: RowsConfig) -> list[str]:
    """Of the inputs' content; ConfigError where one is a stream, since rows are read more than once."""
    paths = [source.path for source in find_sources([*data.train, *data.validation], TextOptions())]
    return [file_sha256(path) if path and path.is_file() else _refuse_stream() for path in paths]


def _refuse_stream() -> str:
    raise ConfigError("data.train: rows are read more than once; save them to a file")


def _metadata(
    config: FinetuneConfig, labels: tuple[str, ...], form: Conversation, base: ModelMetadata
) -> ModelMetadata:
    """What the tuned model is for: its new task, beside a form of conversation that the base has."""
    conversation = form if config.task == "chat" else base.conversation
    return ModelMetadata(labels, conversation, pooling=config.classify.pooling)


def _reader(
    config: FinetuneConfig, tokenizer: Tokenizer, labels: Sequence[str], form: Conversation, max_tokens: int
) -> Reader:
    match config.task:
        case "classify":
            return classify_reader(config.data, tokenizer, labels, max_tokens)
        case "instruct":
            return instruct_reader(config.data, tokenizer, max_tokens)
        case "chat":
            return chat_reader(config.data, tokenizer, form, max_tokens)
    raise AssertionError(config.task)


def _split(examples: list[Example], fraction: float) -> tuple[list[Example], list[Example]]:
    """Rows drawn by a hash of their number are held out; repetitions of a text fall on the same side."""
    first: dict[tuple[int, ...], int] = {}
    for number, example in enumerate(examples):
        first.setdefault(key(example), number)
    held_out = {number for number in set(first.values()) if derived_seed("validation", number) < fraction * 2**63}
    train = [example for example in examples if first[key(example)] not in held_out]
    return train, [example for example in examples if first[key(example)] in held_out]
