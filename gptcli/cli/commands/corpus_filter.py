"""gptcli corpus filter"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptcli.base.errors import ConfigError
from gptcli.cli.commands import corpus_options, options


def words(_context: click.Context, _parameter: click.Parameter, given: str | None) -> tuple[str, ...]:
    """Return the words of a list with commas."""
    return tuple(word.strip() for word in (given or "").split(",") if word.strip())


@click.command()
@corpus_options.inputs
@corpus_options.output
@click.option("--language", callback=words, metavar="CODES", help="Keep documents in these languages, such as en,de.")
@click.option(
    "--rules",
    callback=words,
    metavar="NAMES",
    help="gopher, c4, fineweb or a YAML file of thresholds; separate several by commas.",
)
@click.option(
    "--pii",
    type=click.Choice(["mask", "drop", "annotate"]),
    help="E-mail, phone, IP, card, IBAN, identity numbers and keys: mask as <KIND>, drop the document, or list them.",
)
@click.option(
    "--phone-regions",
    callback=words,
    default="US",
    show_default=True,
    metavar="COUNTRIES",
    help="Countries whose national phone numbers are recognized; numbers with + always are.",
)
@click.option(
    "--sample",
    type=options.FiniteRange(0, 1, min_open=True),
    default=1.0,
    help="Share of documents to keep, chosen by a hash.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the sample.")
@click.option("--annotate", is_flag=True, help="Change nothing; add fields that say what would be dropped or masked.")
@click.option(
    "--dropped", type=options.Output(path_type=Path), help="File to list dropped documents in: id and reasons."
)
@click.option("--most-dropped", type=corpus_options.share, help="Fail if more than this share of documents is dropped.")
@corpus_options.reading
@options.force
@options.quiet
def filter(
    inputs: tuple[str, ...],
    output: Path | None,
    annotate: bool,
    dropped: Path | None,
    most_dropped: float | None,
    force: bool,
    quiet: bool,
    **how: Any,
) -> None:
    """Keep documents by language, rules and chance; mask personal data that has a form (names have none).

    No filter is on by default. Documents are judged one by one, so any part of a corpus gives its part of the result.

    \b
    Example:
      zcat raw/*.gz | gptcli corpus filter --language en --rules gopher,fineweb --pii mask > clean.jsonl
    """
    from gptcli.api.corpus.filter import filter_corpus
    from gptcli.cli import console
    from gptcli.config.corpus import FilterConfig

    report = console.ConsoleReport("corpus", quiet=quiet)
    how_read = corpus_options.take_reading(how)
    config = FilterConfig(**{**how, "pii": how["pii"] or "off"})
    if not (config.language or config.rules or config.pii != "off" or config.sample < 1):
        raise ConfigError("no filter is on; pass --language, --rules, --pii or --sample")
    inputs = corpus_options.given_inputs(inputs)
    try:
        with corpus_options.destination(inputs, output, dropped, force=force) as file:
            rest: dict[str, Any] = {"annotate": annotate, "dropped": dropped, "most_dropped": most_dropped}
            found = filter_corpus(inputs, file, config, how_read, report, **rest)
            report.message(found.text())
    finally:
        report.close()
