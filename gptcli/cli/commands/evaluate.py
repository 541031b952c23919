"""gptcli evaluate"""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from gptcli.base.errors import ConfigError
from gptcli.cli.commands import options
from gptcli.data.blocks import Reading, TextOptions
from gptcli.evaluate.options import RowOptions

DEFAULT = RowOptions()
OTHER_FLAGS = ("compare", "records", "force", "also")
ROW_FLAGS = {field.name for field in dataclasses.fields(RowOptions)} - {"task"} | {*OTHER_FLAGS}


@click.command(no_args_is_help=True)
@click.argument("run")
@click.argument("inputs", nargs=-1, metavar="[DATA]...")
@click.option(
    "--task", type=click.Choice(["text", "classify", "choice", "generate", "pairs"]), default="text", show_default=True
)
@click.option("--stride", type=click.IntRange(min=1), help="text: new tokens per window.  [default: half a context]")
@click.option(
    "--template", metavar="TEXT", help=r"How a row becomes a prompt: {field} stands for a field, \n for a new line."
)
@click.option("--label-word", "label_words", multiple=True, metavar="LABEL=WORDS",
              help="classify: the words that stand for a label in the text; repeatable.")  # fmt: skip
@click.option("--shots", type=click.IntRange(min=0), help="Examples before each prompt.  [default: 0]")
@click.option("--shots-file", metavar="FILE", help="Labelled rows to draw the examples from.")
@click.option("--max-tokens", type=click.IntRange(min=1),
              help=f"generate: write at most this many tokens.  [default: {DEFAULT.max_tokens}]")  # fmt: skip
@click.option("--temperature", type=options.FiniteRange(min=0, max=100),
              help="generate: divide the logits by this; 0 takes the most likely token.  [default: 0]")  # fmt: skip
@click.option("--stop", multiple=True, metavar="TEXT",
              help="generate: end before this text; repeatable.  [default with shots: an empty line]")  # fmt: skip
@click.option("--truncate", type=click.Choice(["error", "left"]),
              help="A prompt longer than the context: refuse it, or keep its end.  [default: error]")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), help="Seed of examples, resamples and sampling.  [default: 0]")
@click.option("--resamples", type=click.IntRange(min=100, max=1_000_000),
              help=f"Number of resamples for intervals and tests.  [default: {DEFAULT.resamples}]")  # fmt: skip
@click.option(
    "--records",
    metavar="FILE",
    type=options.Output(),
    help="Write the answer to each row to this file, a JSON record a line.",
)
@click.option(
    "--compare", metavar="RUN2", help="Evaluate another model on the same rows, and test whether the two differ."
)
@options.also
@options.text_input
@options.on_device
@options.quantize
@options.as_json
@options.force
@options.quiet
def evaluate(
    run: str, inputs: tuple[str, ...], task: str, stride: int | None, as_json: bool, quiet: bool, **how: Any
) -> None:
    """Evaluate a model on text or on labelled rows.

    RUN is a run directory or a checkpoint. DATA are files; stdin where none is named.

    \b
    text      Loss, perplexity and bits per byte. Every byte is scored once, in windows that overlap so that a
              token sees at least half a context before it.
    classify  Rows with text and label: accuracy, F1, confusion matrix, calibration; by the model's
              classification head, else by the log-probability of each label's words after the prompt.
    choice    Rows with question, choices and answer (number from 0, or text): by log-probability.
    generate  Rows with prompt or question, and answer, answers, reference, references or completion: the model
              writes the answer; exact match and token F1 as SQuAD defines them.
    pairs     Rows of two texts, more and less, that differ in a group of people, and that group: how often the
              first is the likelier, overall and by group. A model without that bias gives 0.5.

    Rows are JSONL, CSV or TSV. Every metric of rows has a 95 % interval (bootstrap over rows); --compare adds
    McNemar's exact test for shares of right answers, a paired randomisation test for others.

    \b
    Examples:
      gptcli evaluate runs/demo held-out.txt --json | jq .bits_per_byte
      gptcli evaluate runs/sentiment dev.jsonl --task classify --compare runs/base
      gptcli evaluate runs/gpt2 dev.jsonl --task classify --shots 5 --shots-file train.jsonl \\
        --template 'Review: {text}\\nSentiment:'
    """
    from gptcli.cli import console

    given = {name: how.pop(name) for name in ROW_FLAGS}
    given = {name: value for name, value in given.items() if value not in (None, (), False)}
    report = console.ConsoleReport("evaluate", quiet=quiet)
    if task == "text":
        if given:
            name = {"label_words": "label_word", "also": "with"}.get(min(given), min(given))
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag}: is of labelled rows; add --task classify, choice, generate or pairs")
        from gptcli.api.evaluate import evaluate as evaluate_text

        reading = TextOptions(**{name: how.pop(name) for name in Reading.__annotations__})
        result: Any = evaluate_text(run, inputs or ("-",), stride=stride, reading=reading, report=report, **how)
    else:
        if stride is not None:
            raise ConfigError("--stride: is of the task text; leave it out")
        from gptcli.api.evaluate_rows import evaluate_rows

        outputs = {name: given.pop(name) for name in OTHER_FLAGS if name in given}
        text = TextOptions(encoding=how.pop("encoding"), errors=how.pop("errors"))
        if how.pop("separator") is not None or how.pop("on_bad_row") != "error":
            raise ConfigError("--separator, --on-bad-row: are of the task text; leave them out")
        if how.pop("field") != "text":
            raise ConfigError("--field: is of the task text; name the fields of a row in --template")
        rows = RowOptions(task=task, **prepared(given))  # type: ignore[arg-type]
        result = evaluate_rows(run, inputs or ("-",), rows, text=text, report=report, **outputs, **how)
    if as_json:
        console.write_json(result.as_dict())
    else:
        console.write_facts(result.lines())


def prepared(given: dict[str, Any]) -> dict[str, Any]:
    r"""Return the values of flags as RowOptions takes them: \n in a template is a new line, LABEL=WORDS a pair."""
    changed = dict(given)
    if "template" in given:
        changed["template"] = given["template"].replace("\\n", "\n")
    if "label_words" in given:
        pairs = [word.partition("=") for word in given["label_words"]]
        if wrong := [label for label, _, words in pairs if not label or not words.strip()]:
            raise ConfigError(f"--label-word: {wrong[0]!r} has no words; want LABEL=WORDS")
        changed["label_words"] = tuple((label, words) for label, _, words in pairs)
        if len({words for _, _, words in pairs}) < len(pairs):
            raise ConfigError("--label-word: two labels have the same words; give each its own")
        if len(pairs) < 2 or len({label for label, _, _ in pairs}) < len(pairs):
            raise ConfigError("--label-word: name two labels or more, each once")
    return changed
