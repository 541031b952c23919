"""gptcli corpus report|extract|canaries|run"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gptcli.base.errors import ConfigError, DataError
from gptcli.cli.commands import corpus_options, options


@click.command("report")
@corpus_options.inputs
@click.option("--all", "everything", is_flag=True, help="Read everything, not just the first 200 MB.")
@corpus_options.reading
@options.as_json
@options.quiet
def report_command(inputs: tuple[str, ...], everything: bool, as_json: bool, quiet: bool, **how: Any) -> None:
    """Report on a corpus: sizes, repetition, languages, personal data, and what each rule would drop.

    \b
    Example:
      gptcli corpus report raw/*.jsonl.gz
    """
    from gptcli.api.corpus import report as verb
    from gptcli.cli import console

    report = console.ConsoleReport("corpus", quiet=quiet)
    reading = corpus_options.take_reading(how)
    try:
        found = verb.report_corpus(corpus_options.given_inputs(inputs), reading, report, everything=everything)
    finally:
        report.close()
    if as_json:
        console.write_json(found)
        return
    console.write_table(verb.HEADER, verb.rows(found))
    if found["commonest_lines"]:
        console.write_table(["documents", "line"], verb.line_rows(found))


@click.command(no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@corpus_options.output
@click.option("--all-text", is_flag=True, help="Keep all text of a page, navigation included.")
@click.option(
    "--seconds",
    type=options.FiniteRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Time limit for a page.",
)
@click.option("--memory", type=corpus_options.Bytes(), default="1G", show_default=True, help="Memory limit for a page.")
@click.option(
    "--dropped", type=options.Output(path_type=Path), help="File to list pages without text in: id and reason."
)
@options.force
@options.quiet
def extract(
    inputs: tuple[str, ...],
    output: Path | None,
    all_text: bool,
    seconds: float,
    memory: int,
    dropped: Path | None,
    force: bool,
    quiet: bool,
) -> None:
    """Extract the main text of HTML, WARC and PDF files as JSONL.

    Pages are read in a separate process: one that takes too much time or memory costs only that page. Of a WARC file
    that is cut short the pages before the cut are kept, and the exit code is 3.

    \b
    Example:
      gptcli corpus extract crawl/*.warc.gz | gptcli corpus filter --language en --rules fineweb > pages.jsonl
    """
    from gptcli.api.corpus.extract import extract as verb
    from gptcli.cli import console

    report = console.ConsoleReport("corpus", quiet=quiet)
    try:
        with corpus_options.destination(inputs, output, dropped, force=force) as file:
            limits: dict[str, Any] = {"seconds": seconds, "memory_bytes": memory}
            found = verb(inputs, file, report, main=not all_text, dropped=dropped, **limits)
            report.message(found.text())
    finally:
        report.close()
    if found.damaged:
        raise DataError("; ".join(found.damaged))


def numbers(_context: click.Context, _parameter: click.Parameter, given: str) -> tuple[int, ...]:
    """Return the numbers of a list with commas."""
    try:
        found = tuple(int(word) for word in given.split(","))
    except ValueError:
        found = (-1,)
    if any(number < 0 or number > 1 << 16 for number in found):
        raise click.BadParameter(f"{given!r} is not a list of numbers; write 1,4,16,64")
    return found


@click.command(no_args_is_help=True)
@corpus_options.inputs
@click.option("-o", "--output", required=True, type=options.Output(path_type=Path), help="The directory to make.")
@click.option(
    "--repeats",
    callback=numbers,
    default="1,4,16,64",
    show_default=True,
    help="How many copies of the canaries of each group to plant.",
)
@click.option(
    "--each",
    type=click.IntRange(1, 1000),
    default=8,
    show_default=True,
    help="Number of canaries of each kind in each group.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same canaries.")
@corpus_options.reading
@options.force
def canaries(
    inputs: tuple[str, ...],
    output: Path,
    repeats: tuple[int, ...],
    each: int,
    seed: int,
    force: bool,
    **how: Any,
) -> None:
    """Plant canaries, made-up documents, in a corpus to measure what a model memorizes.

    DIR/corpus.jsonl holds the inputs with the copies among them, or the copies alone; DIR/key.json says what was
    planted and how often, and holds a control group of the same form that was not planted.

    \b
    Example:
      gptcli corpus canaries clean.jsonl -o planted
    """
    from gptcli.api.corpus.canaries import write_canaries
    from gptcli.base import fsio
    from gptcli.cli import console

    fsio.check_replaceable(output, force=force)
    fsio.check_apart(output, [Path(given) for given in inputs if given != "-" and Path(given).exists()])
    reading = corpus_options.take_reading(how)
    found = write_canaries(inputs, output, reading, seed=seed, each=each, repeats=repeats)
    copies = sum(canary.repeats for canary in found)
    control = sum(not canary.repeats for canary in found)
    console.write_facts(
        [
            ("canaries", f"{len(found) - control:,} in {copies:,} copies, {control:,} of the control group"),
            ("corpus", str(output / "corpus.jsonl")),
            ("key", str(output / "key.json")),
        ]
    )


@click.command(no_args_is_help=True)
@click.argument("recipe", metavar="RECIPE.yaml")
@click.option("-o", "--output", required=True, type=options.Output(path_type=Path), help="The directory to write.")
@click.option("--memory", type=corpus_options.Bytes(), default="1G", show_default=True, help="Memory for comparing.")
@corpus_options.workers
@options.overrides
@options.as_json
@options.force
@options.quiet
def run(
    recipe: str,
    output: Path,
    memory: int,
    workers: int,
    overrides: tuple[str, ...],
    as_json: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Filter, dedup and decontaminate as a recipe says; the same command continues one that was killed.

    DIR gets corpus.jsonl, a list of what each step dropped, and report.json: the recipe, the sha256 of inputs and
    output, and the counts of every step.

    \b
    Example:
      gptcli corpus run examples/corpus/recipe.yaml -o clean
    """
    from gptcli.api.corpus.recipe import run_recipe
    from gptcli.cli import console
    from gptcli.config import yaml_file
    from gptcli.config.corpus import CorpusRecipe

    loaded = yaml_file.load(CorpusRecipe, recipe, overrides).value
    report = console.ConsoleReport("corpus", quiet=quiet)
    if output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: is a file; name a directory")
    try:
        found = run_recipe(loaded, output, report, workers=workers, memory_bytes=memory, force=force)
    finally:
        report.close()
    if as_json:
        console.write_json(found)
        return
    for name, counts in found["steps"].items():
        told = {key: value for key, value in counts.items() if isinstance(value, int)}
        console.write_facts([(name, ", ".join(f"{key} {value:,}" for key, value in told.items()))])
    console.write_facts([("corpus", str(output / "corpus.jsonl")), ("sha256", found["sha256"])])
