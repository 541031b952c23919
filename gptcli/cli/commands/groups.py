"""Groups of commands."""

from __future__ import annotations

from typing import Any

import click


class Ordered(click.Group):
    """A group that lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


class DefaultGroup(Ordered):
    """A group of which one command, `default`, need not be named: `bench RUN.yaml` is `bench all RUN.yaml`.

    With `bare` the group's name alone means the default, too.
    """

    def __init__(self, *arguments: Any, default: str, bare: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.default, self.bare = default, bare

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if self.bare if not args else args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [self.default, *args]
        return super().parse_args(ctx, args)
