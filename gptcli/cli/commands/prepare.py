"""gptcli prepare"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptcli.cli.commands import options


@click.command(no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-t", "--tokenizer", required=True, help="A tokenizer.json, or a directory that holds one.")
@click.option("-o", "--output", required=True, type=options.Output(path_type=Path), help="The directory to make.")
@click.option("--validation", multiple=True, metavar="INPUT", help="Held-out input; repeatable.")
@click.option("--validation-fraction", type=float, help="Share of the text to hold out, if --validation is not given.")
@click.option("--validation-split", type=click.Choice(["tail", "document"]),
              help="Hold out the last bytes, or documents drawn by a hash.")  # fmt: skip
@options.text_input
@options.as_json
@options.force
@options.quiet
def prepare(
    inputs: tuple[str, ...], tokenizer: str, output: Path, as_json: bool, force: bool, quiet: bool, **data: Any
) -> None:
    """Encode text into token shards for pretraining.

    Optional: `pretrain` prepares raw text by itself. Useful where text is prepared on one machine and used on another,
    or by many runs. The same command continues a preparation that was killed.

    \b
    Examples:
      gptcli prepare corpus/*.jsonl.gz -t tok.json -o data/corpus --validation-fraction 0.01
      gptcli pretrain run.yaml -s data.train=data/corpus
    """
    from gptcli.api.prepare import facts, index_document
    from gptcli.api.prepare import prepare as run
    from gptcli.cli import console
    from gptcli.config.data import DataConfig
    from gptcli.data.tokenizer import Tokenizer

    given = {name: value for name, value in data.items() if value not in (None, ())}
    report = console.ConsoleReport("prepare", quiet=quiet)
    index = run(DataConfig(train=inputs, **given), Tokenizer.load(tokenizer), output, report=report, force=force)
    if as_json:
        console.write_json(index_document(index))
    else:
        console.write_facts(facts(index))
