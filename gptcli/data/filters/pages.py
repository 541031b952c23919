"""The main text of HTML pages and PDF files, each in a process of its own with limits of time and memory.

What a page does to its reader is not known before: one that takes too long, or too much, costs that page alone.
"""

from __future__ import annotations

import functools
import multiprocessing
import re
import resource
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.data.compression import MAGIC_BYTES, compression_of, decompressed
from gptcli.data.filters.extra import extra

PAGE_SUFFIXES = (".html", ".htm", ".xhtml", ".pdf", ".warc", ".warc.gz")
BLOCK_BYTES = 1 << 20


class Page(NamedTuple):
    """A page as it came."""

    place: str
    content: bytes
    kind: str  # html or pdf
    url: str | None = None


class Extracted(NamedTuple):
    """The text of a page, or why there is none."""

    page: Page
    text: str | None
    problem: str | None


def read_pages(paths: Iterable[Path], damaged: list[str]) -> Iterator[Page]:
    """Yield the pages of HTML, PDF and WARC files; `damaged` gets what is wrong with a WARC file, whose pages before
    the damage are read."""
    for path in paths:
        name = escape(str(path))
        if path.name.lower().endswith((".warc", ".warc.gz")):
            try:
                yield from _warc_pages(path, name)
            except DataError as error:
                damaged.append(str(error))
        else:
            yield Page(name, path.read_bytes(), "pdf" if path.suffix.lower() == ".pdf" else "html")


def _warc_pages(path: Path, name: str) -> Iterator[Page]:
    library = extra("fastwarc.warc", "corpus", "read WARC files")
    number = last = 0
    try:
        with path.open("rb") as file:
            records = library.ArchiveIterator(file, record_types=library.WarcRecordType.response)
            for number, record in enumerate(records, 1):
                last, kind = record.stream_pos, record.http_content_type or ""
                if "html" in kind or "pdf" in kind:
                    url, length = record.headers.get("WARC-Target-URI"), record.content_length
                    content = record.reader.read()
                    if len(content) < length:
                        break
                    yield Page(f"{name}:{number}", content, "pdf" if "pdf" in kind else "html", url)
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(f"{name}:{number + 1}: not a WARC record ({escape(str(error))}); leave the file out") from None
    _check_end(path, name, last)


def _check_end(path: Path, name: str, start: int) -> None:
    """Raise DataError where the record that begins at a byte, the last, is not whole: the library does not tell."""
    with path.open("rb") as file:
        file.seek(start)
        blocks = iter(functools.partial(file.read, BLOCK_BYTES), b"")
        head = next(blocks, b"")
        blocks = chain([head], blocks)
        if compression := compression_of(head[:MAGIC_BYTES]):
            blocks = decompressed(blocks, name, compression, BLOCK_BYTES)
            head = next(blocks, b"")
            blocks = chain([head], blocks)
        size = sum(map(len, blocks))
    fields = re.match(rb"(.*?)\r?\n\r?\n", head, re.DOTALL)
    length = fields and re.search(rb"^content-length:\s*(\d+)", fields[1], re.IGNORECASE | re.MULTILINE)
    if fields is None or length is None or size < fields.end() + int(length[1]):
        raise DataError(
            f"{name}: ends early after {path.stat().st_size} bytes; the WARC file is cut short, copy it again"
        )


def extract_pages(pages: Iterable[Page], *, main: bool, seconds: float, memory_bytes: int) -> Iterator[Extracted]:
    """Yield the text of each page, in order; one that takes more than `seconds` or `memory_bytes` has none."""
    extra("resiliparse.extract.html2text", "corpus", "extract text from HTML")
    worker: tuple[Any, Connection] | None = None
    try:
        for page in pages:
            worker = worker or _start(memory_bytes, main)
            process, pipe = worker
            try:
                pipe.send(page)
                if pipe.poll(seconds):
                    text, problem = pipe.recv()
                else:
                    text, problem = None, f"took more than {seconds:g} s"
            except (EOFError, BrokenPipeError, ConnectionResetError):
                text, problem = None, f"took more than {memory_bytes / 1e6:.0f} MB, or ended its process"
            if isinstance(problem, ConfigError):
                raise problem
            if problem and problem.startswith("took"):
                process.kill()
                process.join()
                pipe.close()
                worker = None
            yield Extracted(page, text, problem)
    finally:
        if worker:
            worker[1].close()
            worker[0].terminate()
            worker[0].join()


def _start(memory_bytes: int, main: bool) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, ours, memory_bytes, main), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _serve(pipe: Connection, other: Connection, memory_bytes: int, main: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    other.close()
    try:
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        held = 1 << 30
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (held + memory_bytes, held + memory_bytes))
    with suppress(EOFError, BrokenPipeError, ConnectionResetError, MemoryError):
        while True:
            pipe.send(_answer(pipe.recv(), memory_bytes, main=main))


def _answer(page: Page, memory_bytes: int, *, main: bool) -> tuple[str | None, str | ConfigError | None]:
    """Return the text of a page, or what is wrong with it; ConfigError with this machine."""
    try:
        return page_text(page, main=main), None
    except MemoryError:
        return None, f"took more than {memory_bytes / 1e6:.0f} MB"
    except DataError as error:
        return None, str(error)
    except ConfigError as error:
        return None, error
    except Exception as error:  # whatever a parser raises costs this page alone
        return None, f"cannot be read ({escape(str(error) or type(error).__name__, 100)})"


def page_text(page: Page, *, main: bool) -> str:
    """Return the text of a page, with `main` without navigation, advertisement and the like."""
    if page.kind == "pdf":
        return _pdf_text(page)
    encoding = extra("resiliparse.parse.encoding", "corpus", "extract text from HTML")
    html = extra("resiliparse.extract.html2text", "corpus", "extract text from HTML")
    source = encoding.bytes_to_str(page.content, encoding.detect_encoding(page.content))
    return str(html.extract_plain_text(source, main_content=main, alt_texts=False)).strip()


def _pdf_text(page: Page) -> str:
    library = extra("pypdfium2", "corpus", "extract text from PDF")
    try:
        document = library.PdfDocument(page.content)
        return (
            "\n\n".join(str(part.get_textpage().get_text_bounded()) for part in document).replace("\r\n", "\n").strip()
        )
    except library.PdfiumError as error:
        raise DataError(f"not a PDF that can be read ({escape(str(error))})") from None
