"""gptcli prepare"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptcli.cli.commands import options

if TYPE_CHECKING:
    from gptcli.config.data import DataConfig
    from gptcli.data.tokenizer import Tokenizer


class Part(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2
    """One of several parts, counted from 1: 3/64."""

    name = "K/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", str(value))
        if not match or int(match[1]) > int(match[2]):
            self.fail(f"{value!r} is no part; write 1/4 to 4/4", param, ctx)
        return int(match[1]), int(match[2])


@click.command(no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-t", "--tokenizer", help="A tokenizer.json, or a directory that holds one.")
@click.option("-o", "--output", required=True, type=options.Output(path_type=Path), help="The directory to make.")
@click.option("--validation", multiple=True, metavar="INPUT", help="Held-out input; repeatable.")
@click.option("--validation-fraction", type=float, help="Share of the text to hold out, if --validation is not given.")
@click.option("--validation-split", type=click.Choice(["tail", "document"]),
              help="Hold out the last bytes, or documents drawn by a hash.")  # fmt: skip
@click.option("--part", type=Part(), help="Encode only this part of the inputs, as 3/64, for --merge.")
@click.option("--merge", is_flag=True, help="Join all parts, INPUTs, to what one process makes, byte for byte.")
@options.text_input
@options.as_json
@options.force
@options.quiet
def prepare(
    inputs: tuple[str, ...], output: Path, as_json: bool, force: bool, quiet: bool, merge: bool, **how: Any
) -> None:
    """Encode text into token shards for pretraining.

    Optional: `pretrain` prepares raw text by itself. Useful where text is prepared on one machine and used on another,
    or by many runs. The same command continues a preparation that was killed.

    \b
    Examples:
      gptcli prepare corpus/*.jsonl.gz -t tok.json -o data/corpus --validation-fraction 0.01
      gptcli pretrain run.yaml -s data.train=data/corpus
    \b
    In parts:
      for k in 1 2 3; do gptcli prepare corpus/ -t tok.json --part $k/3 -o parts/$k; done
      gptcli prepare --merge parts/* -o data/corpus
    """
    from gptcli.api.prepare import facts, index_document, merge_parts, prepare_part
    from gptcli.api.prepare import prepare as run
    from gptcli.cli import console

    report = console.ConsoleReport("prepare", quiet=quiet)
    if merge:
        _check_merge()
        index = merge_parts([Path(name) for name in inputs], output, report=report, force=force)
    else:
        data, tokenizer, part = _wanted(inputs, how)
        if part is not None:
            prepare_part(data, tokenizer, output, *part, report=report, force=force)
            return
        index = run(data, tokenizer, output, report=report, force=force)
    if as_json:
        console.write_json(index_document(index))
    else:
        console.write_facts(facts(index))


def _check_merge() -> None:
    """Refuse options that a merge has from its parts."""
    context = click.get_current_context()
    allowed = {"inputs", "output", "as_json", "force", "quiet", "merge"}
    for option in context.command.params:
        name = option.name or ""
        if name not in allowed and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option.opts[-1]} is decided by the parts; leave it out with --merge")


def _wanted(inputs: tuple[str, ...], how: dict[str, Any]) -> tuple[DataConfig, Tokenizer, tuple[int, int] | None]:
    from gptcli.config.data import DataConfig
    from gptcli.data.tokenizer import Tokenizer

    tokenizer, part = how.pop("tokenizer"), how.pop("part")
    if tokenizer is None:
        raise click.UsageError("Missing option '-t' / '--tokenizer'.")
    given = {name: value for name, value in how.items() if value not in (None, ())}
    return DataConfig(train=inputs, **given), Tokenizer.load(tokenizer), part
