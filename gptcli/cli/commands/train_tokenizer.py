"""gptcli train-tokenizer"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptcli.cli.commands import options


@click.command("train-tokenizer", no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", required=True, type=options.Output(path_type=Path), help="The tokenizer.json to write.")
@click.option(
    "--vocab-size", type=int, default=8192, show_default=True, help="Number of tokens, control tokens included."
)
@click.option("--pattern", type=click.Choice(["gpt2", "llama3", "qwen2"]), default="gpt2", show_default=True,
              help="How text is split into words before merging.")  # fmt: skip
@click.option("--special", "specials", multiple=True, metavar="TOKEN", help="Add a control token; repeatable.")
@click.option("--max-bytes", type=click.IntRange(min=1), default=200_000_000, show_default=True,
              help="Train on at most this many bytes, sampled evenly over the input, which bounds memory. Bytes in "
              "words of 24 or more count 16-fold, since text without spaces takes that much more memory.")  # fmt: skip
@options.text_input
@options.as_json
@options.force
@options.quiet
def train_tokenizer(inputs: tuple[str, ...], output: Path, as_json: bool, force: bool, quiet: bool, **how: Any) -> None:
    """Train a byte-level BPE tokenizer.

    INPUT is a text file, JSONL, either of them gzipped, a directory, a glob pattern or - for stdin.

    \b
    Examples:
      gptcli train-tokenizer corpus.txt -o tok.json
      zcat *.gz | gptcli train-tokenizer - -o tok.json --vocab-size 16384
      gptcli train-tokenizer data/ --special '<|user|>' --special '<|assistant|>' -o tok.json
    """
    from gptcli.api.train_tokenizer import train_tokenizer as run
    from gptcli.cli import console

    report = console.ConsoleReport("train-tokenizer", quiet=quiet)
    facts = run(inputs, output, force=force, report=report, **how)
    if as_json:
        console.write_json(facts.as_dict())
    else:
        console.write_facts(facts.lines())
