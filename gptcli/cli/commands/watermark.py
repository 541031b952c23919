"""gptcli watermark-key, detect"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.cli.commands import options

tokenizer = click.argument("tokenizer", metavar="RUN")


@click.command("watermark-key", no_args_is_help=True)
@tokenizer
@click.option("-o", "--output", required=True, type=options.Output(path_type=Path), help="The key file to write.")
@click.option(
    "--context",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Tokens before each that the key hashes; fewer survive more edits and repeat themselves more.",
)
@options.force
def watermark_key(tokenizer: str, output: Path, context: int, force: bool) -> None:
    """Make a secret key for generate, chat and serve --watermark, which only you may read.

    RUN is a run, a checkpoint or a tokenizer.json: a key finds texts of that tokenizer, and of models fine-tuned with
    it. Who has the key can find the mark, and can write text that has it.

    \b
    Examples:
      gptcli watermark-key runs/demo -o key.json
      gptcli generate runs/demo "The sea" --watermark key.json | gptcli detect runs/demo --key key.json
    """
    from gptcli.api.watermark import new_key
    from gptcli.cli import console

    key = new_key(tokenizer, output, context=context, force=force)
    console.write_facts([("key", str(output)), ("name", key.name), ("context", f"{context} tokens")])


@click.command(no_args_is_help=True)
@tokenizer
@click.argument("text", required=False, metavar="[TEXT]")
@click.option(
    "--key", "keys", multiple=True, required=True, metavar="KEYFILE", help="A key of gptcli watermark-key; repeatable."
)
@click.option("--false-positives", type=options.FiniteRange(0, 1, min_open=True, max_open=True), default=1e-5,
              show_default=True, help="Share of unmarked texts that may be called marked.")  # fmt: skip
@click.option("--jsonl", is_flag=True, help="Read JSON records from stdin; they come back with what was found.")
@click.option(
    "--calibrate", multiple=True, metavar="HUMAN", help="Count false positives in this human text; repeatable."
)
@click.option(
    "--window", type=click.IntRange(8), default=200, show_default=True, help="Tokens of each text of a calibration."
)
@options.as_json
@options.text_input
def detect(
    tokenizer: str,
    text: str | None,
    keys: tuple[str, ...],
    false_positives: float,
    jsonl: bool,
    calibrate: tuple[str, ...],
    window: int,
    as_json: bool,
    **how: Any,
) -> None:
    """Test whether a text has the watermark of a key, with an exact p-value.

    The text is TEXT, else stdin. p is the probability that text written without the key scores as high; each context
    of a key counts once, and several keys multiply p by their number. Text of temperature 0 has no mark; text that is
    bound (--choices, --regex), nearly certain, short, translated or rewritten has little of one, so that "no mark
    found" does not mean that a person wrote it. --calibrate measures, on your own human text, how often the key finds
    itself where it is not; its interval takes windows for independent, so repeated passages make it too narrow.

    \b
    Examples:
      gptcli detect runs/demo --key key.json < answer.txt
      gptcli detect runs/demo --key key.json --jsonl < answers.jsonl | jq .verdict
      gptcli detect runs/demo --key key.json --calibrate books/
    """
    from gptcli.api import watermark
    from gptcli.cli import console
    from gptcli.data.text import TextOptions

    if bool(text is not None) + jsonl + bool(calibrate) > 1:
        raise ConfigError("TEXT, --jsonl and --calibrate exclude each other; leave out all but one")
    detector = watermark.Detector(tokenizer, keys, false_positives)
    found: watermark.Calibration | watermark.Detection
    if calibrate:
        report = console.ConsoleReport("detect")
        found = watermark.calibrate(detector, calibrate, TextOptions(**how), window_tokens=window, report=report)
    elif jsonl:
        for record in detector.records(console.stdin_lines(blank=False), how["field"]):
            console.write_json(record)
        return
    else:
        if text is not None and os.path.isfile(text):
            name = escape(text, 200)
            console.ConsoleReport("detect").warning(f"TEXT is tested as it stands; for what the file holds: < {name}")
        found = detector.text(console.prompt_text(text))
    if as_json:
        console.write_json(found.as_dict())
    else:
        console.write_facts(found.lines())
