"""Filter documents by language, rules, personal data and chance."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gptcli.api.corpus.output import output_file
from gptcli.api.corpus.reading import Reading
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.base.units import count
from gptcli.config import yaml_file
from gptcli.config.corpus import FilterConfig, Rules
from gptcli.data.filters.documents import Document, document_blocks
from gptcli.data.filters.languages import check_languages, language_of
from gptcli.data.filters.pii import find_pii, known_regions, masked
from gptcli.data.filters.rules import broken_rules, without_c4_lines
from gptcli.data.filters.workers import ordered_map

BLOCK_CHARACTERS = 1 << 18


class Passed(NamedTuple):
    """A document after the filters, and the reasons for what becomes of it."""

    document: Document
    reasons: tuple[str, ...]
    masked: Counter[str]  # personal data by kind


@dataclass(frozen=True)
class Filtered:
    """The counts of what was read and of what became of it."""

    documents: int = 0
    dropped: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # by rule; a document may break several
    masked: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as plain JSON."""
        counts = {"documents": self.documents, "dropped": self.dropped}
        return {**counts, "reasons": dict(self.reasons), "masked": dict(self.masked)}

    def text(self) -> str:
        """Return the counts on one line."""
        share = self.dropped / max(1, self.documents)
        parts = [f"{count(self.documents, 'document')}, {self.dropped:,} dropped ({share:.2%})"]
        parts += [f"{name} {number:,}" for name, number in self.reasons.most_common()]
        parts += [f"<{name}> {number:,}" for name, number in self.masked.most_common()]
        return "; ".join(parts)


def filter_corpus(
    inputs: Sequence[str],
    output: Path | BinaryIO,
    config: FilterConfig,
    reading: Reading,
    report: Report,
    *,
    annotate: bool = False,
    dropped: Path | None = None,
    most_dropped: float | None = None,
) -> Filtered:
    """Write the documents that pass, in order, and return what was dropped and masked.

    With `annotate` all are written, with the fields `language`, `rules` and `pii`. Raises ConfigError for an unknown
    language, rule or region; DataError at the end, where a greater share than `most_dropped` went.
    """
    check = partial(_checked, config=config, rules=load_rules(config.rules), annotate=annotate)
    check_languages(config.language)
    if config.pii != "off":
        _check_regions(config.phone_regions)
    blocks = document_blocks(reading.documents(inputs), BLOCK_CHARACTERS)
    documents = gone = 0
    reasons: Counter[str] = Counter()
    found: Counter[str] = Counter()
    with output_file(output) as file, output_file(dropped) if dropped else nullcontext() as log:
        for block in ordered_map(check, blocks, reading.workers):
            kept = [passed.document.line() for passed in block if annotate or not passed.reasons]
            file.write(b"".join(kept))
            out = [passed for passed in block if passed.reasons]
            if log is not None:
                log.write(b"".join(map(_entry, out)))
            documents, gone = documents + len(block), gone + len(out)
            for passed in block:
                reasons.update({reason.partition(":")[0] for reason in passed.reasons})
                found.update(passed.masked)
            report.progress("filter", documents, None)
        result = Filtered(documents, gone, reasons, found)
        _check_share(result, most_dropped, report)
    return result


def _check_share(result: Filtered, most_dropped: float | None, report: Report) -> None:
    share = result.dropped / max(1, result.documents)
    if most_dropped is not None and share > most_dropped:
        what = f"{share:.1%} of {count(result.documents, 'document')} were dropped, more than {most_dropped:g}"
        raise DataError(f"{what}; look at why: {result.text()}")
    if most_dropped is None and share > 0.5:
        report.warning(f"more than half of the documents were dropped: {result.text()}")


def _entry(passed: Passed) -> bytes:
    entry = {"id": passed.document.id, "place": passed.document.place, "reasons": passed.reasons}
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


def _checked(block: list[Document], *, config: FilterConfig, rules: Sequence[Rules], annotate: bool) -> list[Passed]:
    return [_check(document, config, rules, annotate=annotate) for document in block]


def _check(document: Document, config: FilterConfig, rules: Sequence[Rules], *, annotate: bool) -> Passed:
    """Return a document after every filter; the cheap ones come first, and one that is dropped goes no further."""
    text, notes = document.text, dict[str, Any]()
    reasons: list[str] = []
    kinds: Counter[str] = Counter()
    if config.sample < 1 and not _is_drawn(text, config.sample, config.seed):
        reasons.append("sample: not drawn")
    if config.language and (annotate or not reasons):
        code, probability = language_of(text)
        notes["language"] = code
        notes["language_probability"] = round(probability, 4)
        reasons += [] if code in config.language else [f"language: {code}"]
    if rules and (annotate or not reasons):
        broken: list[str] = []
        for thresholds in rules:
            text = without_c4_lines(text) if thresholds.c4_lines and not annotate else text
            broken += broken_rules(text, thresholds)
        notes["rules"] = list(dict.fromkeys(broken))
        reasons += notes["rules"]
    if config.pii != "off" and (annotate or not reasons):
        spans = find_pii(text, config.phone_regions)
        kinds.update(span.kind for span in spans)
        notes["pii"] = [{"kind": span.kind, "start": span.start, "end": span.end} for span in spans]
        if config.pii == "mask" and not annotate:
            text = masked(text, spans)
        if config.pii == "drop" and spans:
            reasons.append(f"pii: {', '.join(sorted(kinds))}")
    if not annotate:
        notes = {"pii": notes["pii"]} if config.pii == "annotate" and "pii" in notes else {}
    return Passed(document.with_text(text, **notes), tuple(reasons), kinds)


def _is_drawn(text: str, share: float, seed: int) -> bool:
    """Return whether a text belongs to a sample: a function of the text and the seed alone, so that shards agree."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def load_rules(names: Sequence[str]) -> list[Rules]:
    """Return the thresholds of presets and YAML files. ConfigError for a name that is neither."""
    presets = [name for name in Rules.presets if name != "none"]
    found: list[Rules] = []
    for name in names:
        if name in presets:
            found.append(Rules.from_preset(name))
        elif Path(name).suffix in (".yaml", ".yml"):
            found.append(yaml_file.load(Rules, name).value)
        else:
            near = difflib.get_close_matches(name, presets, 1)
            hint = f"did you mean {near[0]}?" if near else f"name {', '.join(presets)} or a YAML file"
            raise ConfigError(f"--rules: unknown rules {escape(repr(name))}; {hint}")
    return found


def _check_regions(regions: Sequence[str]) -> None:
    for region in regions:
        if region not in known_regions():
            near = difflib.get_close_matches(region.upper(), known_regions(), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"--phone-regions: no country {escape(repr(region))}{hint}")
