"""The report of a run while it works. This one says nothing; console.ConsoleReport speaks to a person."""

from __future__ import annotations


class Report:
    """The listener that runs/ functions take; every method may be called from one thread at any time."""

    def message(self, text: str) -> None:
        """Tell the user something worth reading once."""

    def warning(self, text: str) -> None:
        """Tell the user that something is not as wanted while the work goes on."""

    def progress(self, task: str, done: float, total: float | None, note: str = "", *, unit: str = "") -> None:
        """Show how far `task` has come; done == total ends it. `unit` "B" means bytes."""


class Collected(Report):
    """A listener that keeps the messages and warnings, to be told later."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warning(self, text: str) -> None:
        self.messages.append(text)
