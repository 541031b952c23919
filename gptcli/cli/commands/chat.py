"""gptcli chat"""

from __future__ import annotations

from typing import Any

import click

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.units import count
from gptcli.cli.commands import drawing, options
from gptcli.cli.commands.safeguards import safeguarded, take_safeguards
from gptcli.config.generate import GenerateOptions


@click.command(no_args_is_help=True)
@click.argument("run")
@click.option("--system", metavar="TEXT", help="The system message.")
@click.option("--load", metavar="FILE", help="Continue the last conversation of a JSONL file, as written by /save.")
@drawing.drawing
@click.option("--jsonl", is_flag=True, help='Answer {"messages": [...]} or {"content": ...} records from stdin.')
@safeguarded
@options.batch_size("With --jsonl: answers")
@options.quiet
@options.on_device
@options.quantize
def chat(
    run: str, system: str | None, load: str | None, jsonl: bool, batch_size: int | None, quiet: bool, **how: Any
) -> None:
    """Talk to a model that was fine-tuned on conversations.

    On a terminal, type a question or a command; /help lists the commands. Ctrl-C stops an answer, Ctrl-D ends the
    conversation. In a pipe, every line of stdin is a question or a command, and stdout has the answers, one after the
    other. With --jsonl every line is a conversation of its own, {"messages": [...]} as in OpenAI's API, with options of
    its own; the records come back in order, each with its answer.

    Where a conversation outgrows the context, the model no longer sees the oldest questions and answers, and a message
    says so; the system message always stays.

    \b
    Examples:
      gptcli chat runs/shop --system "You answer briefly."
      printf 'When are you open?\\nAnd on Sunday?\\n' | gptcli chat runs/shop --temperature 0
      gptcli chat runs/shop --jsonl < questions.jsonl | jq -r .text
    """
    options.ask_for_huge_pages()
    from gptcli.cli import console

    given = drawing.take_given(how)
    chosen = GenerateOptions(**given)
    if jsonl and (system is not None or load is not None):
        raise ConfigError("--jsonl records hold whole conversations; leave out --system and --load")
    if system is not None and not system.strip():
        raise ConfigError("--system: the text is empty; write it or leave it out")
    lines = None if not jsonl and console.stdin_is_terminal() else console.stdin_lines(blank=not jsonl)
    from gptcli.api.chat import Chat, Speaker
    from gptcli.api.sampling_defaults import with_makers_defaults
    from gptcli.cli import terminal

    report = console.ConsoleReport("chat", quiet=quiet)
    how["safeguards"] = take_safeguards(how, chosen, report)
    chosen = with_makers_defaults(run, given, report)
    speaker = Speaker(run, batch_size=batch_size if jsonl else 1, **how)
    if jsonl and lines is not None:
        failed = 0
        for record in speaker.records(lines, chosen, report, lines.ready):
            console.write_json(record)
            failed += "error" in record
        if failed:
            raise DataError(f"{count(failed, 'record')} could not be answered; the error field says why")
        return
    conversation = Chat(speaker, chosen, system=system, report=report)
    if load is not None:
        conversation.load(load)
    if lines is None:
        report.message(speaker.description() + "; /help lists commands, Ctrl-D ends")
        terminal.talk(conversation, report)
    else:
        terminal.follow(lines, conversation, report)
