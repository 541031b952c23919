"""Flags of what whoever runs a model holds its texts to, for generate, chat and serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gptcli.base.errors import ConfigError
from gptcli.base.report import Report
from gptcli.cli.commands.options import F
from gptcli.config.generate import GenerateOptions

if TYPE_CHECKING:
    from gptcli.api.safeguards import SafeguardOptions

FLAGS = (
    click.option(
        "--watermark",
        metavar="KEYFILE",
        envvar="GPTCLI_WATERMARK",
        help="Draw tokens by a key of watermark-key, so that gptcli detect finds the text; default GPTCLI_WATERMARK.",
    ),
    click.option("--require-watermark", is_flag=True, help="Refuse what cannot be marked: temperature 0."),
    click.option("--mask-pii", is_flag=True, help="Write <EMAIL>, <PHONE>, ... for personal data, but names."),
    click.option("--block-list", metavar="FILE", help="Never write a phrase of FILE, one a line, in any case."),
    click.option("--block-training", metavar="PREPARED", help="Never write --block-length of its tokens in a row."),
    click.option(
        "--block-length", type=click.IntRange(2, 1024), default=25, show_default=True, help="Tokens in a row."
    ),
)


def safeguarded(command: F) -> F:
    """Return a command with the flags."""
    for option in reversed(FLAGS):
        command = option(command)
    return command


def take_safeguards(how: dict[str, Any], chosen: GenerateOptions, report: Report) -> SafeguardOptions:
    """Return the safeguards, taken out of what a command was given; the report is told of what they cannot do."""
    taken: SafeguardOptions = {
        "watermark": how.pop("watermark") or None,
        "require_watermark": how.pop("require_watermark"),
        "mask_pii": how.pop("mask_pii"),
        "block_list": how.pop("block_list"),
        "block_training": how.pop("block_training"),
        "block_length": how.pop("block_length"),
    }
    if taken["mask_pii"] and (chosen.logprobs or chosen.prompt_logprobs):
        raise ConfigError("--mask-pii: logprobs show the tokens that it hides; leave out the one or the other")
    if taken["watermark"] is None:
        if taken["require_watermark"]:
            raise ConfigError("--require-watermark: no key; name one with --watermark")
    elif chosen.temperature == 0:
        if taken["require_watermark"]:
            raise ConfigError("--temperature 0 draws nothing, so that no watermark can be put in; raise it")
        report.warning("temperature 0 draws nothing, so that the text has no watermark; raise it for one")
    return taken
