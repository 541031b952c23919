"""Options of how the next token is drawn, as generate, chat and serve share them."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, TypeVar

import click

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.config.generate import GenerateOptions
from gptcli.config.schema import keys_of, keys_with

F = TypeVar("F", bound=Callable[..., Any])


def draw_option(name: str) -> Callable[[F], F]:
    """Make the flag of a field of GenerateOptions, with its type, help and default; its bounds are checked there."""
    key = keys_of(GenerateOptions)[name]
    kind, text, default = key.types[0], key.fact("doc"), key.declared.default
    choices = typing.get_args(kind)
    shown = "" if default is None else f"  [default: {default}]"
    return click.option(
        f"--{name.replace('_', '-')}",
        type=click.Choice(choices) if choices else kind,
        help=f"{text[0].upper()}{text[1:]}.{shown}",
    )


def drawing(command: F) -> F:
    """Add the options of how the next token is drawn, and how many are."""
    text = "Add BIAS to a token's logit; repeatable."
    command = click.option("--logit-bias", multiple=True, metavar="ID=BIAS", help=text)(command)
    for name in reversed(keys_with(GenerateOptions, "sampling")):
        command = draw_option(name)(command)
    return command


def take_given(how: dict[str, Any]) -> dict[str, Any]:
    """Take the options of drawing out of those that a command was given, by name, only those that were given."""
    given = {name: how.pop(name) for name in keys_of(GenerateOptions) if name in how}
    given["logit_bias"] = tuple(map(_token_bias, given.get("logit_bias", ())))
    return {name: value for name, value in given.items() if value not in (None, ())}


def _token_bias(given: str) -> tuple[float, float]:
    """Return the id and bias of ID=BIAS."""
    index, equals, bias = given.partition("=")
    try:
        if not equals:
            raise ValueError
        return float(int(index)), float(bias)
    except (ValueError, OverflowError):
        raise ConfigError(f"--logit-bias {escape(given)}: want ID=BIAS, as 50256=-100") from None
