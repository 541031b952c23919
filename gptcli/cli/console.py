"""The only module that prints. Results go to stdout, byte-exact in a pipe; everything else goes to stderr."""

from __future__ import annotations

import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape, escape_lines
from gptcli.base.report import Report
from gptcli.cli.lines import Lines
from gptcli.cli.stderr import Stderr

if TYPE_CHECKING:
    from tqdm import tqdm

_FIELD_END = re.compile(r"[\t\n\r]")
STDERR = Stderr()
PLAIN_LINE_SECONDS = 10.0  # between progress lines where there is no terminal


def is_terminal(stream: IO[Any] | None) -> bool:
    """Return whether a person watches the stream and cursor movement is wanted."""
    try:
        watched = stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
    return watched and os.environ.get("TERM") != "dumb" and not os.environ.get("CI")


def write(text: str) -> None:
    """Put text on stdout: its exact bytes in a pipe, without raw control characters on a terminal."""
    write_bytes((escape_lines(text) if sys.stdout.isatty() else text).encode("utf-8", errors="surrogatepass"))


def write_bytes(content: bytes) -> None:
    """Put bytes on stdout and flush them, so that whoever reads the pipe sees them now. An OSError names stdout."""
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except OSError as error:
        error.filename = "stdout"
        raise


def write_line(text: str) -> None:
    write(text + "\n")


def write_json(document: Any) -> None:
    """Write one line of strict JSON to stdout."""
    line = json.dumps(document, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        content = line.encode()
    except UnicodeEncodeError:  # a record's lone surrogate, which is passed on as the escape that it came in
        content = (json.dumps(document, allow_nan=False) + "\n").encode()
    write_bytes(content)


def write_fields(fields: Iterable[str]) -> None:
    """Write a line of tab-separated fields to stdout; what would end a field or the line becomes a visible escape."""
    write("\t".join(_FIELD_END.sub(lambda end: escape(end[0]), field) for field in fields) + "\n")


def write_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Write names and values to stdout: a table on a terminal, tab-separated lines in a pipe."""
    if not is_terminal(sys.stdout):
        for fact in facts:
            write_fields(fact)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in facts:
        table.add_row(Text(escape(name), style="bold"), Text(escape(value, 400)))
    Console(color_system=None if os.environ.get("NO_COLOR") else "auto").print(table)


def write_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows to stdout under a header: a table on a terminal, tab-separated lines in a pipe. No cell is ever
    cut."""
    if not is_terminal(sys.stdout):
        write("".join("\t".join(map(_whole, row)) + "\n" for row in (header, *rows)))
        return
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in header:
        table.add_column(Text(escape(name), style="bold"), no_wrap=True)
    for row in rows:
        table.add_row(*(Text(_whole(cell)) for cell in row))
    console = Console(color_system=None if os.environ.get("NO_COLOR") else "auto")
    # Wider than the terminal where it must be: there the lines wrap, and nothing is lost.
    whole = Measurement.get(console, console.options.update_width(1 << 16), table).maximum
    console.width = max(console.width, whole)
    console.print(table)


def _whole(cell: str) -> str:
    return escape(cell, 1 << 16)


def size() -> tuple[int, int]:
    """Return the columns and lines of the terminal that stdout is, 80 and 24 elsewhere."""
    if not is_terminal(sys.stdout):
        return 80, 24
    import shutil  # and with it the libraries of three compressions

    columns, lines = shutil.get_terminal_size()
    return columns, lines


def stdout_has_colours() -> bool:
    """Return whether a person sees stdout and wants colours."""
    return is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")


def write_styled(lines: Sequence[Sequence[tuple[str, str]]]) -> None:
    """Write lines of (text, style) segments to stdout; the styles show where there are colours."""
    if not stdout_has_colours():
        write("".join("".join(text for text, _ in line).rstrip() + "\n" for line in lines))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for line in lines:
        console.print(Text.assemble(*((escape(text, 400), style) for text, style in line)), no_wrap=True, crop=True)


def error_line(command: str, problem: str, kind: str = "error: ") -> None:
    """Write an error to stderr in the one form: `gptcli COMMAND: error: PLACE: what is wrong; what to do`."""
    STDERR.write(f"gptcli{' ' if command else ''}{command}: {kind}{escape_lines(problem)}\n")


class ConsoleReport(Report):
    """Messages and progress for a person: bars on a terminal, a plain line now and then elsewhere."""

    def __init__(self, command: str, *, quiet: bool = False) -> None:
        self.command, self.quiet = command, quiet
        self.live = is_terminal(sys.stderr)
        self.bars: dict[str, tqdm[Any]] = {}
        self.started: dict[str, tuple[float, float]] = {}  # task -> (time, amount done) at its first report
        self.last_line = time.monotonic()

    def message(self, text: str) -> None:
        if not self.quiet:
            self._line(escape_lines(text))

    def warning(self, text: str) -> None:
        self._line(f"gptcli {self.command}: warning: {escape_lines(text)}")

    def _line(self, text: str) -> None:
        if self.bars:
            from tqdm import tqdm

            with tqdm.external_write_mode(file=STDERR):
                STDERR.write(text + "\n")
        else:
            STDERR.write(text + "\n")

    def progress(self, task: str, done: float, total: float | None, note: str = "", *, unit: str = "") -> None:
        if self.quiet:
            return
        if self.live:
            self._bar(task, done, total, note, unit)
        else:
            self._plain(task, done, total, note, unit)

    def _bar(self, task: str, done: float, total: float | None, note: str, unit: str) -> None:
        from tqdm import tqdm

        bar = self.bars.get(task)
        if bar is None:
            if total is not None and done >= total:
                return
            bar = self.bars[task] = tqdm(
                total=total,
                initial=done,
                desc=task,
                unit=unit or "it",
                unit_scale=unit == "B",
                leave=False,
                dynamic_ncols=True,
                file=STDERR,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}] {postfix}",
            )
        bar.set_postfix_str(escape(note), refresh=False)
        bar.update(done - bar.n)
        if total is not None and done >= total:
            self.bars.pop(task).close()

    def _plain(self, task: str, done: float, total: float | None, note: str, unit: str) -> None:
        now = time.monotonic()
        start, first = self.started.setdefault(task, (now, done))
        ended = total is not None and done >= total
        if ended:
            self.started.pop(task)
        if now - self.last_line < PLAIN_LINE_SECONDS and not (ended and now - start > 1):
            return
        self.last_line = now
        scale, name = (1e3, "kB") if (total or done) < 1e6 else (1e6, "MB")
        amount = f"{done / scale:.1f} {name}" if unit == "B" else f"{done:,.0f}"
        if total:
            amount += f" of {total / scale:.1f} {name}" if unit == "B" else f"/{total:,.0f}"
            if done > first and not ended:
                amount += f", {(now - start) * (total - done) / (done - first):.0f} s left"
        self._line("  ".join(part for part in (f"{task}: {amount}", escape(note)) if part))

    def close(self) -> None:
        """Take every bar off the terminal and show its cursor."""
        for bar in self.bars.values():
            bar.close()
        self.bars.clear()


def write_words(words: Iterable[str]) -> None:
    """Write words on one line of stdout, in blocks as they come, so that a line of any length fits in memory."""
    separator = ""
    words = iter(words)
    while block := list(itertools.islice(words, 1 << 16)):
        write(separator + " ".join(block))
        separator = " "
    write("\n")


def stdin_lines(*, blank: bool = True) -> Lines:
    """Return lines of standard input as they come; ConfigError where a person would have to type them. `blank` as in
    Lines."""
    if sys.stdin is None or sys.stdin.closed:
        raise ConfigError("stdin is closed; pipe lines in")
    if sys.stdin.isatty():
        raise ConfigError("stdin is a terminal; pipe lines in, or redirect a file: < lines.jsonl")
    return Lines(sys.stdin.fileno(), blank=blank)


def stdin_is_terminal() -> bool:
    """Return whether a person types on stdin."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def read_line(prompt: str) -> str:
    """Return a line that a person types, without its newline; EOFError where input ends, DataError where it is not
    text.

    With editing and the history of this process (readline) where the terminal and this Python have it.
    """
    with suppress(ImportError):  # some builds of Python have none
        import readline  # noqa: F401  # importing it is what makes input() use it
    try:
        if sys.stdout.isatty():
            line = input(prompt)
        else:  # input() would put the prompt into the result
            STDERR.write(prompt)
            line = sys.stdin.readline()
            if not line:
                raise EOFError
        line.encode()
    except UnicodeError:
        raise DataError("the line is not UTF-8; type it again, or set a UTF-8 locale") from None
    return line.removesuffix("\n")


def prompt_text(argument: str | None) -> str:
    """Return the prompt that was given as an argument, else all of stdin without one newline at its end."""
    if argument is not None and argument != "-":
        return argument
    content = b"".join(stdin_lines())
    try:
        return content.decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"stdin:{line}: byte 0x{content[error.start]:02x} is not UTF-8; convert it, iconv -t utf-8"
        ) from None


def end_of_text() -> None:
    """Write a newline after a text on a terminal, for the prompt to begin on; nothing in a pipe."""
    if sys.stdout.isatty():
        write("\n")
