"""gptcli generate"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.units import count
from gptcli.cli.commands import drawing, options
from gptcli.cli.commands.safeguards import safeguarded, take_safeguards
from gptcli.cli.lines import waiting_bytes
from gptcli.config.generate import GenerateOptions

if TYPE_CHECKING:
    from gptcli.api.generate import Writer
    from gptcli.base.report import Report


@click.command(no_args_is_help=True)
@click.argument("run")
@click.argument("prompt", required=False)
@drawing.drawing
@drawing.draw_option("n")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; repeatable.")
@drawing.draw_option("truncate")
@drawing.draw_option("min_tokens")
@click.option(
    "--stop-at-eos/--no-stop-at-eos",
    default=None,
    help="<|endoftext|> ends the text, or is never drawn.  [default: ends]",
)
@click.option("--choices", metavar="A,B,...", help="Write exactly one of these.")
@click.option(
    "--regex", metavar="PATTERN", help="Write a text that matches as a whole: . [...] \\d \\w \\s (...) | * + ? {m,n}."
)
@click.option(
    "--json-schema",
    metavar="FILE",
    help="Write JSON that is valid under this JSON Schema (- reads it from stdin; {} allows any JSON).",
)
@drawing.draw_option("lookup")
@click.option(
    "--logprobs",
    metavar="[K]",
    type=int,
    is_flag=False,
    flag_value=1,
    help="With --json or --jsonl: the log-probability of each token and, from K = 2 on, of the K most likely ones.",
)
@click.option(
    "--prompt-logprobs", metavar="[K]", type=int, is_flag=False, flag_value=1, help="The same for the prompt's tokens."
)
@click.option(
    "--chat", is_flag=True, help="The prompt is a question to a model that was tuned to chat; write its answer."
)
@click.option("--jsonl", is_flag=True, help='Read {"prompt": ...} or {"messages": [...]} records from stdin.')
@click.option(
    "--json", "as_json", is_flag=True, help="Write a JSON document for the prompt, with ids and finish reason."
)
@click.option("--stream", is_flag=True, help="Write text as it comes; a single sample is always written so.")
@safeguarded
@options.batch_size("Texts")
@options.on_device
@options.quantize
def generate(run: str, prompt: str | None, jsonl: bool, as_json: bool, stream: bool, **how: Any) -> int:
    """Write text that continues a prompt.

    The prompt is PROMPT, else stdin without its final newline. Only the new text is written to stdout. With --jsonl
    every line of stdin is a record with a prompt and "options" of its own, {"max_tokens": 20}; the records come back in
    order with the text, their id and their other fields. A record with "messages", as in OpenAI's API, is a
    conversation to answer.

    \b
    Examples:
      echo "Once upon a time" | gptcli generate runs/demo --max-tokens 100
      gptcli generate runs/demo "The sea" --n 3 --temperature 1 --top-p 0.9 --seed 7
      gptcli generate runs/demo --jsonl < prompts.jsonl | jq -r .text
      gptcli generate runs/shop --chat "When are you open?" --temperature 0
      gptcli generate runs/demo "Good or bad? " --choices good,bad --temperature 0
      gptcli generate runs/demo "The order: " --json-schema order.json
    """
    from gptcli.cli import console

    schema_file = how["json_schema"]
    if schema_file == "-" and (jsonl or prompt in (None, "-")):
        raise ConfigError("--json-schema - reads stdin; give PROMPT, or name a file")
    if how["choices"] is not None:
        how["choices"] = tuple(how["choices"].split(","))
    if how["json_schema"] is not None:
        how["json_schema"] = read_schema(how["json_schema"])
    given = drawing.take_given(how)
    chosen = GenerateOptions(**given)
    check_usage(prompt, chosen, jsonl=jsonl, as_json=as_json, stream=stream)
    report = console.ConsoleReport("generate")
    how["safeguards"] = take_safeguards(how, chosen, report)
    text = "" if jsonl else console.prompt_text(prompt)
    if prompt not in (None, "-") and schema_file != "-" and waiting_bytes(0):
        report.warning("stdin is not read beside PROMPT; leave PROMPT out, or pass - for it, to continue what it holds")
    options.ask_for_huge_pages()
    from gptcli.api import generate as runs
    from gptcli.api.records import completion_record
    from gptcli.api.sampling_defaults import with_makers_defaults

    chosen = with_makers_defaults(run, given, report)
    writer = runs.Writer(run, most=None if jsonl else chosen.n, **how)
    if jsonl:
        write_records(writer, chosen, report)
        return 0
    if stream or (chosen.n == 1 and not as_json):
        for piece in writer.stream(text, chosen):
            console.write(piece)
        console.end_of_text()
        return 0
    completions = []
    for completion in writer.samples(text, chosen):
        if as_json:
            console.write_json({"prompt": text, **completion_record(completion, writer.tokenizer)})
        else:
            console.write_line(completion.text)
            completions.append(completion)
    for completion in completions:
        runs.check_match(completion)
    return 0


def write_records(writer: Writer, chosen: GenerateOptions, report: Report) -> None:
    """Write a record for each record of stdin; DataError, at the end, where one could not be written."""
    from gptcli.cli import console

    failed = 0
    lines = console.stdin_lines(blank=False)
    for record in writer.records(lines, chosen, report, lines.ready):
        console.write_json(record)
        failed += "error" in record
    if failed:
        raise DataError(f"{count(failed, 'record')} could not be written; the error field says why")


def check_usage(prompt: str | None, chosen: GenerateOptions, *, jsonl: bool, as_json: bool, stream: bool) -> None:
    """Raise ConfigError for options that do not go together."""
    if jsonl and prompt is not None:
        raise ConfigError("--jsonl reads prompts from stdin; leave out PROMPT")
    if stream and (jsonl or as_json or chosen.n > 1):
        raise ConfigError("--stream writes one text; leave out --jsonl, --json and --n")
    if (chosen.logprobs or chosen.prompt_logprobs) and not (jsonl or as_json):
        raise ConfigError(f"--{'' if chosen.logprobs else 'prompt-'}logprobs needs --json or --jsonl")
    if chosen.regex is not None:
        from gptcli.generate.dfa import Automaton

        Automaton(chosen.regex)
    if chosen.json_schema is not None:
        from gptcli.generate.json_schema import parse_schema

        parse_schema(chosen.json_schema)


def read_schema(name: str) -> str:
    """Return the text of a JSON Schema in a file, or of stdin."""
    from gptcli.cli import console

    if name == "-":
        return console.prompt_text(None)
    try:
        return Path(name).read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{escape(name)}: not UTF-8; convert it, iconv -t utf-8") from None
