"""Extract the main text of each page of HTML, WARC and PDF files as JSONL."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from gptcli.api.corpus.output import output_file
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.data.filters.pages import PAGE_SUFFIXES, Extracted, extract_pages, read_pages


@dataclass
class Extraction:
    """The number of pages, and why some have no text."""

    pages: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)  # WARC files of which not all pages were read, and why

    def text(self) -> str:
        """Return the counts on one line."""
        parts = [
            count(self.pages, "page"),
            *(f"{number:,} {problem}" for problem, number in self.problems.most_common()),
        ]
        return "; ".join(parts)


def extract(
    inputs: Sequence[str],
    output: Path | BinaryIO,
    report: Report,
    *,
    main: bool = True,
    seconds: float = 10.0,
    memory_bytes: int = 1 << 30,
    dropped: Path | None = None,
) -> Extraction:
    """Write a record {id, url, text} for each page that has text, in order; `dropped` names a file for the others."""
    found = Extraction()
    paths = page_files(inputs)
    with output_file(output) as file, output_file(dropped) if dropped else nullcontext() as log:
        limits = {"seconds": seconds, "memory_bytes": memory_bytes}
        for extracted in extract_pages(read_pages(paths, found.damaged), main=main, **limits):  # type: ignore[arg-type]
            found.pages += 1
            problem = extracted.problem or (None if extracted.text else "without text")
            if problem:
                found.problems[problem] += 1
                if log is not None:
                    log.write(_line({"id": extracted.page.place, "reason": problem}))
            else:
                file.write(_record(extracted))
            report.progress("extract", found.pages, None, extracted.page.place)
    return found


def _record(extracted: Extracted) -> bytes:
    url = {"url": extracted.page.url} if extracted.page.url else {}
    return _line({"id": extracted.page.place, **url, "text": extracted.text})


def _line(record: dict[str, str | None]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def page_files(inputs: Sequence[str]) -> list[Path]:
    """Return the HTML, PDF and WARC files that inputs stand for, those below directories sorted."""
    found: list[Path] = []
    for given in map(Path, inputs):
        if given.is_dir():
            below = sorted(
                path for path in given.rglob("*") if path.name.lower().endswith(PAGE_SUFFIXES) and path.is_file()
            )
            if not below:
                raise DataError(f"{escape(str(given))}: no pages below; want {' '.join(PAGE_SUFFIXES)}")
            found += below
        elif given.is_file():
            found.append(given)
        else:
            raise ConfigError(f"{escape(str(given))}: no such file")
    if not found:
        raise ConfigError("no input; name HTML, WARC or PDF files")
    return found
