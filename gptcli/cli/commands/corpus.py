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
    """Clean a corpus before training: look at it, filter it, and drop what is repeated or in the test sets.

    Every step reads JSONL, text, gzip or - and writes JSONL, so that steps stand in a pipe, and shards of a corpus go
    through xargs, Slurm, Spark or Ray. An id names a record in lists of what was dropped: the field `id`, or FILE:LINE.

    \b
    Example:
      gptcli corpus filter raw/*.jsonl.gz --language en --rules gopher,c4 --pii mask |
        gptcli corpus dedup - --dropped dropped.jsonl | gptcli train-tokenizer - -o tok.json
    """


for command in (report_command, extract, filter_command, dedup, decontaminate, canaries, run):
    corpus.add_command(command)
