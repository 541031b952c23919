"""gptcli encode, decode, count: filters between text and token ids."""

from __future__ import annotations

import sys
from typing import Any

import click

from gptcli.cli.commands import options

tokenizer = click.argument("tokenizer")
inputs = click.argument("inputs", nargs=-1, metavar="[INPUT]...")


@click.command(no_args_is_help=True)
@tokenizer
@inputs
@click.option("--lines", is_flag=True, help="Treat every line as a document, without its newline.")
@click.option("--json", "as_json", is_flag=True, help='Write a line {"ids": [...]} per document.')
@options.text_input
def encode(tokenizer: str, inputs: tuple[str, ...], lines: bool, as_json: bool, **how: Any) -> None:
    """Turn text into token ids, a line for each document.

    TOKENIZER is a tokenizer.json, or a directory (of a run, a checkpoint, prepared data) that holds one. Each file and
    each JSONL record is a document; stdin is read where no INPUT is named.

    \b
    Examples:
      echo -n "Hello world" | gptcli encode tok.json
      gptcli encode tok.json corpus.txt | gptcli decode tok.json | cmp - corpus.txt
    """
    from gptcli.api import tokens
    from gptcli.cli import console
    from gptcli.data.text import TextOptions
    from gptcli.data.tokenizer import Tokenizer

    loaded = Tokenizer.load(tokenizer)
    report = console.ConsoleReport("encode")
    for document in tokens.documents(inputs or ("-",), TextOptions(**how), report, lines=lines):
        ids = tokens.encode(loaded, document)
        if as_json:
            console.write_json({"ids": list(ids)})
        else:
            console.write_words(map(str, ids))


@click.command(no_args_is_help=True)
@tokenizer
@click.option("--json", "as_json", is_flag=True, help='Read {"ids": [...]} lines, write {"text": ...} lines.')
@click.option("--lines", is_flag=True, help="Write a newline after every document.")
def decode(tokenizer: str, as_json: bool, lines: bool) -> None:
    """Turn token ids on stdin, a line for each document, into text on stdout.

    Documents follow one another without a separator, so that a single one comes out byte for byte.

    \b
    Example:
      echo 464 1263 | gptcli decode tok.json
    """
    from gptcli.api import tokens
    from gptcli.cli import console
    from gptcli.data.tokenizer import Tokenizer

    loaded = Tokenizer.load(tokenizer)
    for number, (record, ids) in enumerate(tokens.read_ids(console.stdin_lines(), as_json=as_json), 1):
        content = tokens.decode(loaded, ids, number)
        if as_json:
            console.write_json({**record, "text": content.decode("utf-8", errors="replace")})
        elif sys.stdout.isatty():
            console.write(content.decode("utf-8", errors="replace") + "\n" * lines)
        else:
            console.write_bytes(content + b"\n" * lines)


@click.command(no_args_is_help=True)
@tokenizer
@inputs
@options.as_json
@options.text_input
def count(tokenizer: str, inputs: tuple[str, ...], as_json: bool, **how: Any) -> None:
    """Count documents, bytes and tokens.

    \b
    Example:
      gptcli count tok.json corpus/ --json | jq .bytes_per_token
    """
    from gptcli.api import tokens
    from gptcli.cli import console
    from gptcli.data.text import TextOptions
    from gptcli.data.tokenizer import Tokenizer

    report = console.ConsoleReport("count")
    found = tokens.count(Tokenizer.load(tokenizer), inputs or ("-",), TextOptions(**how), report)
    if as_json:
        console.write_json(found.as_dict())
    else:
        console.write_facts(found.lines())
