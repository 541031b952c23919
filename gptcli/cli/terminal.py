"""Hold a conversation by lines that a person types or a script pipes in: questions, and commands that begin with `/`.

Only answers go to stdout.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gptcli.api.chat import Chat
from gptcli.api.records import options_of
from gptcli.base.errors import ConfigError, DataError, GptcliError, NumericalError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.signals import interrupt_as_flag
from gptcli.base.units import count
from gptcli.cli import console
from gptcli.config.generate import GenerateOptions
from gptcli.config.schema import keys_with

SETTABLE = tuple(keys_with(GenerateOptions, "sampling"))
COMMANDS = {
    "/retry": "another answer to the last question",
    "/undo": "take back the last question and its answer",
    "/clear": "begin again; the system message stays",
    "/system TEXT": "set the system message; /system - removes it, /system shows it",
    "/set KEY=VALUE": f"{', '.join(SETTABLE)}; /set shows them",
    "/history": "show the conversation",
    "/save FILE": "append the conversation to FILE, as a row for gptcli finetune",
    "/help": "this",
    "/quit": "end, as Ctrl-D does",
}
HINT = "Ctrl-C stops an answer. A question that begins with / is written with //. A context that is full loses its \
oldest turns; it is said when that happens."


class Session:
    """A conversation to which lines are applied; `stop` ends an answer early."""

    def __init__(self, chat: Chat, report: Report, *, stop: Callable[[], bool] = lambda: False) -> None:
        self.chat, self.report, self.stop = chat, report, stop

    def take(self, line: str) -> bool:
        """Do what one line asks for; False where it asks to end. GptcliError leaves the conversation as it was."""
        if not line.startswith("/") or line.startswith("//"):
            self._write(self.chat.ask(line[1:] if line.startswith("//") else line, stop=self.stop))
            return True
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        if rest and name in ("/retry", "/undo", "/clear", "/history", "/help", "/quit"):
            raise ConfigError(f"{name} takes nothing after it")
        match name:
            case "/retry":
                self._retry()
            case "/undo":
                self.report.message(f"took back: {escape(self.chat.undo().question)}")
            case "/clear":
                self.chat.turns.clear()
                self.report.message("begun again")
            case "/system":
                self._system(rest)
            case "/set":
                self._set(rest)
            case "/history":
                self._history()
            case "/save":
                self._save(rest)
            case "/help":
                self.report.message("\n".join(f"{name:<16}{text}" for name, text in COMMANDS.items()) + f"\n{HINT}")
            case "/quit":
                return False
            case _:
                names = [command.split()[0] for command in COMMANDS]
                near = difflib.get_close_matches(name, names, 1)
                what = f"did you mean {near[0]}?" if near else "/help lists them"
                raise ConfigError(f"no command {escape(name)}; {what}")
        return True

    def _write(self, pieces: Iterator[str]) -> None:
        """Write an answer as it comes, and a line about one that did not end by itself."""
        for piece in pieces:
            console.write(piece)
        console.write("\n")
        turn = self.chat.turns[-1]
        if turn.finish_reason is None:
            self.report.message("(stopped)")
        elif not turn.answer.strip():
            self.report.message("(no answer; /retry asks again)")
        elif turn.finish_reason == "length":
            self.report.message("(cut: max_tokens or the context is used up; /set max_tokens=N changes the first)")

    def _retry(self) -> None:
        pieces = self.chat.retry(stop=self.stop)
        if self.chat.options.temperature == 0:
            self.report.message("temperature is 0, so the answer is the same; /set temperature=0.8")
        self._write(pieces)

    def _system(self, text: str) -> None:
        if text:
            self.chat.system = None if text == "-" else text
        self.report.message(f"system: {self.chat.system or '(none)'}")

    def _set(self, text: str) -> None:
        given = {}
        for item in text.split():
            name, equals, value = item.partition("=")
            if name not in SETTABLE or not equals:
                raise ConfigError(f"/set: {escape(item)}: want KEY=VALUE, the key one of {', '.join(SETTABLE)}")
            try:
                given[name] = json.loads(value, parse_constant=float)
            except (ValueError, RecursionError):
                raise DataError(f"/set: {escape(item)}: the value is no number") from None
        self.chat.options = options_of(self.chat.options, given, "/set")
        options = self.chat.options
        self.report.message("  ".join(f"{name}={json.dumps(getattr(options, name))}" for name in SETTABLE))

    def _history(self) -> None:
        lines = [] if self.chat.system is None else [f"system: {self.chat.system}"]
        for turn in self.chat.turns:
            lines += [f"> {turn.question}", turn.answer or "(no answer)"]
        self.report.message("\n".join(lines) or "nothing was said yet")

    def _save(self, name: str) -> None:
        if name in ("", "-"):
            raise ConfigError("/save: name a file, as in /save talk.jsonl")
        try:
            messages = self.chat.save(Path(name))
        except OSError as error:
            raise GptcliError(f"/save: {escape(name)}: {error.strerror or error}; name another file") from None
        self.report.message(f"appended {count(messages, 'message')} to {escape(name)}")


def talk(chat: Chat, report: Report) -> None:
    """Hold a conversation with a person, until Ctrl-D or /quit. A mistake costs a line, not the conversation."""
    while True:
        try:
            line = console.read_line("> ")
            if not line.strip():
                continue
            with interrupt_as_flag() as stop:
                if not Session(chat, report, stop=stop).take(line):
                    return
        except KeyboardInterrupt:
            report.message("\n(Ctrl-D or /quit ends)")
        except EOFError:
            report.message("")
            return
        except NumericalError:
            raise
        except GptcliError as error:
            for problem in error.problems:
                console.error_line("chat", problem)


def follow(lines: Iterable[bytes], chat: Chat, report: Report) -> None:
    """Take questions and commands from the lines of a script; the first mistake ends it, naming its line.

    All that a line says is data, so every mistake in one is a DataError.
    """
    session = Session(chat, report)
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"stdin:{number}: byte 0x{line[error.start]:02x} is not UTF-8; convert it, iconv -t utf-8"
            ) from None
        try:
            if text.strip() and not session.take(text):
                return
        except GptcliError as error:
            problems = [f"stdin:{number}: {problem}" for problem in error.problems]
            kind = DataError if isinstance(error, ConfigError) else type(error)
            raise kind(*problems) from None
