"""Rows of a run file -> examples to train on and to hold out, and what is worth knowing about them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.report import Collected, Report
from gptcli.base.units import count
from gptcli.config.finetune import FinetuneConfig, RowsConfig
from gptcli.config.model import ModelConfig
from gptcli.data.batches import derived_seed
from gptcli.data.example import Example
from gptcli.data.packing import ExampleBatches
from gptcli.data.text import file_sha256, find_sources
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.processes import Together
from gptcli.device.runtime import Runtime
from gptcli.model.gpt import GPT
from gptcli.tasks.chat import chat
from gptcli.tasks.classify import classify
from gptcli.tasks.instruct import instruct
from gptcli.tasks.job import train_config, tuning_job
from gptcli.tasks.prefer import prefer
from gptcli.tasks.reward import reward
from gptcli.tasks.task import LoadBase, Task, load_examples, reading
from gptcli.tasks.text import write_sample
from gptcli.train.metadata import ModelMetadata
from gptcli.train.run import Job, Validation


@dataclass(frozen=True)
class ExampleSet:
    """The examples of a run and the task that they are for."""

    train: list[Example]
    validation: list[Example]
    task: Task
    bad_lines: tuple[str, ...]
    unlearnable: int  # rows left out, since a cut took all that there was to learn
    sha256: list[str]  # of the inputs
    told: tuple[str, ...] = ()  # of the inputs, and of what was mended in them

    def notes(self) -> list[str]:
        """Return what a person should know before training."""
        train, validation, labels_of_model = self.train, self.validation, self.task.metadata.labels
        repeated = len(train) - len({key(row) for row in train})
        shared = len({key(row) for row in train} & {key(row) for row in validation})
        truncated = sum(row.truncated for row in (*train, *validation))
        counts = Counter(labels_of_model[row.label] for row in train if row.label is not None)
        labels = ", ".join(f"{escape(name, 40)} {count:,}" for name, count in sorted(counts.items()))
        lost = [escape(name, 40) for name in labels_of_model if counts and name not in counts]
        held_out = {row.label for row in validation}
        unmeasured = [escape(name, 40) for number, name in enumerate(labels_of_model) if number not in held_out]
        tokens = sum(row.tokens for row in train)
        return [
            *self.told,
            f"{count(len(train), 'row')} to train on ({count(tokens, 'token')}), {len(validation):,} held out",
            *([f"labels: {labels}"] if counts else []),
            *([f"no row to train on has the label {', '.join(lost)}"] if lost else []),
            *(
                [f"no held-out row has the label {', '.join(unmeasured)}"]
                if counts and validation and unmeasured
                else []
            ),
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
    """Return what makes two examples the same to a model that reads them, whatever their labels."""
    return tuple(index for sequence in example.sequences for index in sequence.ids)


def read_examples(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    metadata: ModelMetadata,
    model: ModelConfig,
    load_base: LoadBase | None = None,
) -> ExampleSet:
    """Return all examples of a run file for a base with this tokenizer; DataError names the first row that is wrong.

    `load_base` gives the base to tasks that compare with it.
    """
    data, names = config.data, escape(", ".join(config.data.train))
    told = Collected()
    sha256 = _hashes(data, told)
    max_tokens = min(data.max_tokens or model.context_length, model.context_length)
    task = make_task(config, tokenizer, metadata, max_tokens, load_base)
    reader = task.read_row
    found = load_examples(data.train, reader, data)
    train, validation, bad = found.items, list[Example](), found.bad_lines
    if data.validation:
        held_out = load_examples(data.validation, reader, data)
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
    notes = (*told.messages, *(task.mended.notes() if task.mended else ()))
    return ExampleSet(train, validation, task, bad, unlearnable, sha256, notes)


def _hashes(data: RowsConfig, report: Report) -> list[str]:
    """Hash the inputs' content; ConfigError where one is a stream, since rows are read more than once."""
    paths = [source.path for source in find_sources([*data.train, *data.validation], reading(data), report, rows=True)]
    return [file_sha256(path) if path and path.is_file() else _refuse_stream() for path in paths]


def _refuse_stream() -> str:
    raise ConfigError("data.train: rows are read more than once; save them to a file")


def make_task(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    metadata: ModelMetadata,
    max_tokens: int,
    load_base: LoadBase | None,
) -> Task:
    """Make the task that a run file names, for a base with this tokenizer and metadata."""
    match config.task:
        case "classify":
            return classify(config, tokenizer, metadata, max_tokens)
        case "instruct":
            return instruct(config, tokenizer, metadata, max_tokens)
        case "chat":
            return chat(config, tokenizer, metadata, max_tokens)
        case "prefer":
            return prefer(config, tokenizer, metadata, max_tokens, load_base)
        case "reward":
            return reward(config, tokenizer, metadata, max_tokens, load_base)
    raise AssertionError(config.task)


def _split(examples: list[Example], fraction: float) -> tuple[list[Example], list[Example]]:
    """Hold out rows drawn by a hash of their number; repetitions of a text fall on the same side.

    Of rows with labels the same share of each label is held out, so that a rare one is not missing on one side.
    """
    first: dict[tuple[int, ...], int] = {}
    for number, example in enumerate(examples):
        first.setdefault(key(example), number)
    draws = {number: derived_seed("validation", number) for number in first.values()}
    if all(example.label is None for example in examples):
        held_out = {number for number, draw in draws.items() if draw < fraction * 2**63}
    else:
        labelled = {number: (examples[number].label or 0, draw) for number, draw in draws.items()}
        held_out = _stratified(labelled, fraction)
    train = [example for example in examples if first[key(example)] not in held_out]
    return train, [example for example in examples if first[key(example)] in held_out]


def _stratified(draws: dict[int, tuple[int, int]], fraction: float) -> set[int]:
    """Choose numbers so that of each label its share is held out, one more or less; one of each stays.

    `draws`: (label, draw) of each number. In the order of labels and draws every 1/fraction-th is taken, which spreads
    what the labels' shares leave over, too.
    """
    order = sorted(draws, key=lambda number: (draws[number], number))
    start = derived_seed("validation", "start") / 2**63
    taken = [int(place * fraction + start) for place in range(len(order) + 1)]
    chosen = {number for place, number in enumerate(order) if taken[place + 1] > taken[place]}
    sizes = Counter(label for label, _ in draws.values())
    held_out = Counter(draws[number][0] for number in chosen)
    for number in reversed(order):
        label = draws[number][0]
        if number in chosen and held_out[label] == sizes[label]:
            chosen.remove(number)
            held_out[label] -= 1
    return chosen


def rows_job(
    config: FinetuneConfig,
    examples: ExampleSet,
    model: GPT,
    metadata: ModelMetadata,
    identity: list[str],
    runtime: Runtime,
    together: Together,
) -> Job:
    """Make the job of learning from rows, in processes that do it `together`. `model` learns; `identity` are the hashes
    of its base."""
    task, tokenizer = examples.task, examples.task.tokenizer
    rows, held_out = (task.prepare(part, runtime, together) for part in (examples.train, examples.validation))
    train = train_config(config, len(rows), samples=task.writes)

    def validate(model: GPT, together: Together) -> Validation | None:
        return task.validate(model, held_out, runtime, together) if held_out else None

    written = task.begin(model, rows, train.batch_size, runtime, together) if task.begin else None
    return tuning_job(
        config,
        tokenizer,
        train,
        batches=written
        or ExampleBatches(
            rows,
            batch_size=train.batch_size,
            micro_batch_tokens=config.train.micro_batch_tokens,
            seed=config.runtime.seed,
            token_dropout=task.token_dropout,
            blank=tokenizer.end_of_text or 0,
            by_example=task.by_example,
            goldfish=config.loss.goldfish,
        ),
        written=written,
        objective=task.objective(rows),
        validate=validate,
        data=(count(len(rows), "row"), "row"),
        content={"base": identity, "tokenizer": tokenizer.sha256, "inputs": examples.sha256, **task.content},
        metadata=metadata,
        sample=lambda model: write_sample(model, tokenizer, runtime, train, seed=config.runtime.seed),
    )
