"""Describe a corpus by source: sizes, repetition, languages, personal data, and what each rule would drop."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptcli.api.corpus.reading import Reading
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.report import Report
from gptcli.base.units import amount
from gptcli.config.corpus import Rules
from gptcli.data.filters.documents import Document, source_documents
from gptcli.data.filters.drops import drop_entries
from gptcli.data.filters.group import GroupOptions, group
from gptcli.data.filters.languages import language_of
from gptcli.data.filters.pii import find_pii
from gptcli.data.filters.rules import broken_rules
from gptcli.data.filters.sketch import Sketch, SketchOptions, lines_that_count, write_sketch
from gptcli.data.text import find_sources

SAMPLE_BYTES = 200_000_000
PRESETS = ("gopher", "c4", "fineweb")
LINES_COUNTED = 1 << 20  # different lines whose number is kept


@dataclass
class SourceFacts:
    """The counts of one source, as far as it was read."""

    name: str
    documents: int = 0
    bytes: int = 0
    lengths: Counter[int] = field(default_factory=Counter)  # documents by the power of two above their bytes
    exact: int = 0
    near: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    pii: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # by each preset
    rules: Counter[str] = field(default_factory=Counter)  # by each threshold
    whole: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as plain JSON, the commonest first."""
        counters = {name: dict(getattr(self, name).most_common()) for name in ("languages", "pii", "dropped", "rules")}
        lengths = {str(1 << bits): number for bits, number in sorted(self.lengths.items())}
        plain = {name: getattr(self, name) for name in ("name", "documents", "bytes", "exact", "near", "whole")}
        return {**plain, "lengths": lengths, **counters}


def report_corpus(
    inputs: Sequence[str], reading: Reading, report: Report, *, everything: bool = False
) -> dict[str, Any]:
    """Return what is in the first 200 MB of a corpus, or in all of it: facts by source and its commonest lines.

    Languages and personal data are left out, with a message, where their libraries are not installed.
    """
    looks = _Looks(report)
    lines: Counter[str] = Counter()
    found: list[SourceFacts] = []
    left = None if everything else SAMPLE_BYTES
    with tempfile.TemporaryDirectory(prefix="gptcli-report-") as directory:
        sketches = []
        for number, source in enumerate(find_sources(inputs, reading.text)):
            facts = SourceFacts(source.name)
            found.append(facts)
            documents = source_documents(source, reading.text)
            path = Path(directory) / f"{number:06d}"
            write_sketch(_looked_at(documents, facts, looks, lines, left), path, SketchOptions(), report)
            sketches.append(Sketch(path))
            left = None if left is None else max(0, left - facts.bytes)
        drops = Path(directory) / "drops"
        group(sketches, drops, GroupOptions(most_dropped=1), report)
        for facts, sketch in zip(found, sketches, strict=True):
            for entry in drop_entries(drops / f"{sketch.name}.jsonl"):
                facts.exact += entry["reason"] == "exact"
                facts.near += entry["reason"] == "near"
    if not any(facts.documents for facts in found):
        raise DataError(f"{', '.join(inputs)}: no documents")
    commonest = [{"line": line, "documents": number} for line, number in lines.most_common(10) if number > 1]
    return {"sources": [facts.as_dict() for facts in found], "commonest_lines": commonest}


class _Looks:
    """The checks made on each document; a library that is missing is reported once."""

    def __init__(self, report: Report) -> None:
        self.rules = [(name, Rules.from_preset(name)) for name in PRESETS]
        self.language = self.pii = True
        for name, probe in (("language", lambda: language_of("a")), ("pii", lambda: find_pii("+49 30 901820"))):
            try:
                probe()
            except ConfigError as error:
                setattr(self, name, False)
                report.message(f"left out: {error}")


def _looked_at(
    documents: Iterator[Document], facts: SourceFacts, looks: _Looks, lines: Counter[str], most_bytes: int | None
) -> Iterator[Document]:
    """Yield documents, each counted, until so many bytes have been read."""
    for document in documents:
        if most_bytes is not None and facts.bytes >= most_bytes:
            facts.whole = False
            return
        text = document.text
        size = len(text.encode())
        facts.documents += 1
        facts.bytes += size
        facts.lengths[size.bit_length()] += 1
        for line in {line for _, line in lines_that_count(text)}:
            if line in lines or len(lines) < LINES_COUNTED:
                lines[line] += 1
        if looks.language:
            facts.languages[language_of(text)[0]] += 1
        if looks.pii:
            facts.pii.update(span.kind for span in find_pii(text))
        for preset, rules in looks.rules:
            broken = [reason.partition(":")[0] for reason in broken_rules(text, rules)]
            facts.rules.update(broken)
            facts.dropped[preset] += bool(broken)
        yield document


def rows(document: dict[str, Any]) -> list[list[str]]:
    """Return a row for each source: what a person looks at first."""
    found = []
    for facts in document["sources"]:
        number = max(1, facts["documents"])
        shares = [f"{facts[name] / number:.1%}" for name in ("exact", "near")]
        languages = " ".join(f"{code} {count / number:.0%}" for code, count in list(facts["languages"].items())[:3])
        pii = " ".join(f"{kind} {count:,}" for kind, count in facts["pii"].items())
        dropped = [f"{facts['dropped'].get(preset, 0) / number:.0%}" for preset in PRESETS]
        size = amount(facts["bytes"], "B") + ("" if facts["whole"] else " read")
        found.append([facts["name"], f"{facts['documents']:,}", size, *shares, languages, pii, *dropped])
    return found


HEADER = [
    "source",
    "documents",
    "size",
    "exact",
    "near",
    "languages",
    "personal data",
    *(f"-{name}" for name in PRESETS),
]


def line_rows(document: dict[str, Any]) -> list[list[str]]:
    """Return the commonest lines with the number of documents that have them."""
    return [
        [f"{found['documents']:,}", json.dumps(found["line"], ensure_ascii=False)]
        for found in document["commonest_lines"]
    ]
