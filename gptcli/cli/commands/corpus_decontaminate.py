"""gptcli corpus decontaminate"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptcli.base.errors import ConfigError
from gptcli.cli.commands import corpus_options, options
from gptcli.cli.commands.corpus_filter import words


@click.command(no_args_is_help=True)
@corpus_options.inputs
@corpus_options.output
@click.option("--against", multiple=True, required=True, metavar="EVAL", help="An evaluation set; repeatable.")
@click.option(
    "--fields", callback=words, metavar="NAMES", help="Fields of an item to look for.  [default: all that hold text]"
)
@click.option(
    "--action",
    type=click.Choice(["report", "drop", "cut"]),
    default="report",
    show_default=True,
    help="Report what was found, drop such documents, or cut the item's sentences.",
)
@click.option(
    "--share",
    type=options.FiniteRange(0, 1, min_open=True),
    default=0.4,
    show_default=True,
    help="Share of an item's 5-word grams that must stand in one place; of an item of fewer than 13 words all.",
)
@click.option(
    "--hits", type=options.Output(path_type=Path), help="File to list what was found in: document, item, share, words."
)
@corpus_options.reading
@options.as_json
@options.force
@options.quiet
def decontaminate(
    inputs: tuple[str, ...],
    output: Path | None,
    hits: Path | None,
    as_json: bool,
    force: bool,
    quiet: bool,
    **how: Any,
) -> None:
    """Find the items of evaluation sets in a corpus, verbatim or edited, even across lines.

    A self-test comes first: items put into other text must be found.

    \b
    Examples:
      gptcli corpus decontaminate clean.jsonl --against test.jsonl --fields question,answer
      gptcli corpus decontaminate clean.jsonl --against test.jsonl --action drop -o train.jsonl --hits hits.jsonl
    """
    import dataclasses

    from gptcli.api.corpus.decontaminate import decontaminate as verb
    from gptcli.cli import console
    from gptcli.config.corpus import DecontaminateConfig

    report = console.ConsoleReport("corpus", quiet=quiet)
    how_read = corpus_options.take_reading(how)
    config = DecontaminateConfig(**how)
    writes = config.action != "report"
    if output is not None and not writes:
        raise ConfigError("--action report writes no documents; pass --action drop or cut, or --hits FILE")
    if as_json and writes and output is None:
        raise ConfigError("--json and the documents both go to stdout; name a file, -o FILE")
    inputs = corpus_options.given_inputs(inputs)
    try:
        with corpus_options.destination((*inputs, *config.against), output, hits, force=force) as file:
            found = verb(inputs, file if writes else None, config, how_read, report, hits=hits)
    finally:
        report.close()
    if as_json:
        console.write_json(dataclasses.asdict(found))
    elif writes:
        report.message("; ".join(f"{name}: {value}" for name, value in found.facts()))
    else:
        console.write_facts(found.facts())
