"""gptcli corpus dedup"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptcli.base.errors import ConfigError
from gptcli.cli.commands import corpus_options, options


@click.command()
@corpus_options.inputs
@corpus_options.output
@click.option(
    "--documents",
    type=click.Choice(["near", "exact", "off"]),
    default="near",
    show_default=True,
    help="Drop near duplicates, only exact ones, or none.",
)
@click.option(
    "--similarity",
    type=options.FiniteRange(0.3, 1),
    default=0.7,
    show_default=True,
    help="Jaccard similarity of 5-word shingles from which documents are near duplicates.",
)
@click.option(
    "--lines",
    type=click.IntRange(min=1),
    help="Cut a line of 4 words or more from all but the first document where more than N have it.",
)
@click.option(
    "--passages",
    type=click.IntRange(min=8),
    metavar="WORDS",
    help="Cut passages of at least this many words that occurred before.",
)
@click.option(
    "--against",
    multiple=True,
    metavar="INPUT",
    help="Also drop what is in this input (with --group: this sketch); repeatable.",
)
@click.option(
    "--keep",
    type=click.Choice(["first", "longest"]),
    default="first",
    show_default=True,
    help="Which of several near duplicates to keep.",
)
@click.option(
    "--dropped",
    type=options.Output(path_type=Path),
    help="File to list dropped documents in: id, kept id, similarity, reason.",
)
@click.option(
    "--most-dropped",
    type=corpus_options.share,
    default=0.5,
    show_default=True,
    help="Fail if more than this share of documents would be dropped.",
)
@click.option(
    "--memory",
    type=corpus_options.Bytes(),
    default="1G",
    show_default=True,
    help="Memory for comparing; with less memory it takes more passes.",
)
@click.option(
    "--work",
    type=options.Output(path_type=Path),
    help="Directory for sketches, from which a killed command continues.",
)
@click.option("--sign", is_flag=True, help="In shards, step 1: INPUTS of one shard -> a sketch, -o DIR.")
@click.option("--group", is_flag=True, help="In shards, step 2: SKETCHES -> a drop list for each, -o DIR.")
@click.option(
    "--apply",
    type=click.Path(path_type=Path),
    metavar="LIST",
    help="In shards, step 3: INPUTS of one shard, without what its drop list names.",
)
@corpus_options.reading
@options.force
@options.quiet
def dedup(inputs: tuple[str, ...], output: Path | None, force: bool, quiet: bool, **how: Any) -> None:
    """Drop documents that repeat others, and cut repeated lines and passages.

    A document is dropped only for one that is kept and that it was itself compared with. The result is the same for any
    number of shards, workers and passes.

    \b
    Example:
      gptcli corpus dedup raw/*.jsonl -o clean.jsonl --passages 50 --dropped dropped.jsonl
    \b
    In shards:
      for part in 1 2 3; do gptcli corpus dedup --sign raw-$part.jsonl -o sketch-$part; done
      gptcli corpus dedup --group sketch-* -o drops
      gptcli corpus dedup --apply drops/sketch-1.jsonl raw-1.jsonl -o clean-1.jsonl
    """
    from gptcli.api.corpus import dedup as verb
    from gptcli.cli import console
    from gptcli.data.filters.group import GroupOptions
    from gptcli.data.filters.sketch import SketchOptions

    report = console.ConsoleReport("corpus", quiet=quiet)
    how_read = corpus_options.take_reading(how)
    stages = [name for name in ("sign", "group", "apply") if how[name]]
    if len(stages) > 1:
        raise ConfigError(f"--{stages[0]} and --{stages[1]}: one step at a time")
    sketching = SketchOptions(how["documents"], how["lines"] is not None, how["passages"])
    grouping = GroupOptions(how["similarity"], how["keep"], how["lines"], how["memory"], how["most_dropped"])
    try:
        match stages:
            case ["sign"]:
                verb.sign(corpus_options.given_inputs(inputs), _directory(output, force), sketching, how_read, report)
            case ["group"]:
                against = [Path(given) for given in how["against"]]
                paths = [Path(given) for given in inputs]
                found = verb.group_sketches(paths, _directory(output, force), grouping, report, against=against)
                console.write_facts(found.facts())
            case ["apply"]:
                inputs = corpus_options.given_inputs(inputs)
                with corpus_options.destination(inputs, output, force=force) as file:
                    verb.apply(inputs, how["apply"], file, how_read)
            case _:
                inputs = corpus_options.given_inputs(inputs)
                with corpus_options.destination(
                    (*inputs, *how["against"]), output, how["dropped"], force=force
                ) as file:
                    rest = {name: how[name] for name in ("against", "dropped", "work")}
                    found = verb.dedup(inputs, file, sketching, grouping, how_read, report, **rest)
                    report.message("; ".join(f"{name}: {value}" for name, value in found.facts()))
    finally:
        report.close()


def _directory(output: Path | None, force: bool) -> Path:
    """Return the directory to make, checked."""
    from gptcli.base import fsio

    if output is None:
        raise ConfigError("name the directory to make, -o DIR")
    fsio.check_replaceable(output, force=force)
    return output
