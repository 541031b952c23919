"""Report, drop or cut the documents that hold items of evaluation sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gptcli.api.corpus.output import output_file
from gptcli.api.corpus.reading import Reading
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.config.corpus import DecontaminateConfig
from gptcli.data.filters.documents import Document, document_blocks, source_documents
from gptcli.data.filters.drops import sentences, without_stretches
from gptcli.data.filters.overlap import Hit, Index, Item, build_index, find_items, merged_stretches, self_test
from gptcli.data.filters.words import words_of
from gptcli.data.filters.workers import ordered_map
from gptcli.data.rows import read_rows
from gptcli.data.text import TextOptions, find_sources


class Checked(NamedTuple):
    """A document with the items that it holds; None where it is dropped."""

    document: Document
    kept: Document | None
    hits: list[Hit]


@dataclass(frozen=True)
class Overlap:
    """The number of items that were found, and of the documents that hold them."""

    items: int
    too_short: int
    met: int
    documents: int
    with_items: int

    def facts(self) -> list[tuple[str, str]]:
        """Return the counts, for a person."""
        return [
            ("items", f"{self.items:,}, {self.too_short:,} too short to be looked for"),
            ("items met", f"{self.met:,} ({self.met / max(1, self.items):.2%})"),
            ("documents", f"{self.documents:,}"),
            ("with items", f"{self.with_items:,} ({self.with_items / max(1, self.documents):.3%})"),
        ]


def decontaminate(
    inputs: Sequence[str],
    output: Path | BinaryIO | None,
    config: DecontaminateConfig,
    reading: Reading,
    report: Report,
    *,
    hits: Path | None = None,
) -> Overlap:
    """Write the documents without those that hold an item, or without the item; return who was met.

    With the action `report` nothing is written. Begins with a self-test. `hits` names a file for each item and document
    that met. Raises DataError where no item can be looked for.
    """
    index = build_index(list(read_items(config.against, config.fields)))
    if index.too_short == len(index.items):
        raise DataError(
            f"{escape(', '.join(config.against))}: no item has 5 words or more; name --fields that hold text"
        )
    report.message(f"self-test: {count(self_test(index, config.share), 'item')} put into other text, all found")
    check = partial(_checked, index=index, config=config)
    met: set[int] = set()
    documents = with_items = 0
    with (
        output_file(output) if output is not None and config.action != "report" else nullcontext() as file,
        output_file(hits) if hits else nullcontext() as log,
    ):
        for block in ordered_map(check, document_blocks(reading.documents(inputs)), reading.workers):
            documents += len(block)
            with_items += sum(bool(checked.hits) for checked in block)
            met.update(hit.item for checked in block for hit in checked.hits)
            if file is not None:
                file.write(b"".join(checked.kept.line() for checked in block if checked.kept is not None))
            if log is not None:
                log.write(b"".join(_entries(block, index)))
            report.progress("decontaminate", documents, None)
    return Overlap(len(index.items), index.too_short, len(met), documents, with_items)


def _checked(block: list[Document], *, index: Index, config: DecontaminateConfig) -> list[Checked]:
    found = find_items([document.text for document in block], index, config.share)
    return [_acted(document, hits, config.action) for document, hits in zip(block, found, strict=True)]


def _acted(document: Document, hits: list[Hit], action: str) -> Checked:
    if not hits or action == "report":
        return Checked(document, document, hits)
    if action == "drop":
        return Checked(document, None, hits)
    words = words_of([document.text])
    starts, ends = words.starts.tolist(), words.ends.tolist()
    stretches = [sentences(document.text, starts, ends, *stretch) for stretch in merged_stretches(hits)]
    text = without_stretches(document.text, stretches)
    return Checked(document, document.with_text(text) if text.strip() else None, hits)


def _entries(block: list[Checked], index: Index) -> Iterator[bytes]:
    for checked in block:
        for hit in checked.hits:
            about = {"item": index.items[hit.item].name, "share": round(hit.share, 4), "words": [hit.start, hit.end]}
            yield json.dumps({"id": checked.document.id, "place": checked.document.place, **about}).encode() + b"\n"


def read_items(inputs: Sequence[str], fields: Sequence[str]) -> Iterator[Item]:
    """Yield the items of evaluation sets: rows of JSONL, CSV and TSV, paragraphs of text."""
    if "-" in inputs:
        raise ConfigError("--against: -: name files; stdin is for the corpus")
    options = TextOptions(separator="blank")
    for source in find_sources(inputs, options):
        if source.kind == "text" and source.path is not None and source.path.suffix.lower() not in (".csv", ".tsv"):
            for document in source_documents(source, options):
                yield Item(document.place, (document.text,))
            continue
        for row in read_rows([str(source.path)], options):
            if isinstance(row, DataError):
                raise row
            given = row.fields.get("id")
            name = f"{row.place}" if given is None else f"{row.place} ({escape(str(given))})"
            yield Item(name, _texts({field: row.text(field) for field in fields} if fields else row.fields))


def _texts(value: Any) -> tuple[str, ...]:
    """Return all text in a value of JSON."""
    match value:
        case str():
            return (value,)
        case dict():
            return tuple(text for part in value.values() for text in _texts(part))
        case list():
            return tuple(text for part in value for text in _texts(part))
    return ()
