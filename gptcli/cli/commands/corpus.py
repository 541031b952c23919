"""gptcli corpus report|filter|dedup|decontaminate|extract|canaries|run"""

from __future__ import annotations

import click

from gptcli.cli.commands.corpus_decontaminate import decontaminate
from gptcli.cli.commands.corpus_dedup import dedup
from gptcli.cli.commands.corpus_filter import filter as filter_command
from gptcli.cli.commands.corpus_more import canaries, extract, report_command, run
from gptcli.cli.commands.groups import Ordered


@click.group(cls=Ordered)
def corpus() -> None:
    """Clean a corpus: inspect, filter, deduplicate and decontaminate it.

    Every step reads JSONL, text, gzip or - and writes JSONL, so that steps can be joined by pipes, and the shards of a
    corpus can be spread by xargs, Slurm, Spark or Ray. In lists of dropped records an id names each: its field `id`, or
    FILE:LINE.

    \b
    Example:
      gptcli corpus filter raw/*.jsonl.gz --language en --rules gopher,c4 --pii mask |
        gptcli corpus dedup - --dropped dropped.jsonl | gptcli train-tokenizer - -o tok.json
    """


for command in (report_command, extract, filter_command, dedup, decontaminate, canaries, run):
    corpus.add_command(command)
