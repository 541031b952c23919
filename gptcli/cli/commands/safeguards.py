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
    }
    if taken["watermark"] is None:
        if taken["require_watermark"]:
            raise ConfigError("--require-watermark: no key; name one with --watermark")
    elif chosen.temperature == 0:
        if taken["require_watermark"]:
            raise ConfigError("--temperature 0 draws nothing, so that no watermark can be put in; raise it")
        report.warning("temperature 0 draws nothing, so that the text has no watermark; raise it for one")
    return taken
