"""The sketch of a shard, kept to compare its documents with others': a directory of flat files, which group reads.

    sketch.json     how it was made, and the number of documents
    ids.jsonl       an id a document, id_ends (8 bytes) where each line ends
    texts           (documents, 16) hash of each text, byte by byte
    lengths         (documents,) characters
    signatures      (documents, HASHES) MinHash of the 5-word shingles (Broder 1997), for near duplicates
    lines           (lines,) hash, document and number of each line that counts, for repeated lines
    words, word_ends, prints    hash of each word, where each document's end, winnowed fingerprints: for passages

All numbers are little-endian; a document's number is its place in the shard.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gptcli.base import fsio
from gptcli.base.errors import DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.data.filters.documents import Document, document_blocks
from gptcli.data.filters.passages import fingerprints
from gptcli.data.filters.words import Hashes, Words, mixed, shingles, words_of
from gptcli.data.filters.workers import ordered_map

FORMAT = "gptcli sketch 1"
HASHES = 120  # divides into bands of 3, 4, 5, 6, 8, 10 and 12
SHINGLE_WORDS = 5
LINE_WORDS = 4  # a shorter line, such as a brace or "Yes", may be repeated
TEXT = np.dtype("V16")
SIGNATURE: np.dtype[Any] = np.dtype(("<u2", (HASHES,)))
LINE = np.dtype([("hash", "<u8"), ("document", "<u4"), ("line", "<u4")])
PRINT = np.dtype([("hash", "<u8"), ("word", "<u8")])
Documents = Literal["near", "exact", "off"]


@dataclass(frozen=True)
class SketchOptions:
    """The choice of what a shard must be able to compare of its documents."""

    documents: Documents = "near"
    lines: bool = False
    passages: int | None = None  # words of the shortest passage


class Signed(NamedTuple):
    """A sketch of some documents that follow each other, in arrays."""

    ids: list[str | int]
    texts: NDArray[Any]
    lengths: NDArray[np.uint32]
    signatures: NDArray[np.uint16]
    lines: NDArray[Any]
    words: NDArray[np.uint32]
    word_counts: NDArray[np.int64]
    prints: NDArray[Any]


def write_sketch(
    documents: Iterable[Document],
    path: Path,
    options: SketchOptions,
    report: Report,
    *,
    workers: int = 1,
    note: str = "",
) -> int:
    """Write the sketch of some documents as a directory, whole or not at all, and return their number.

    `note` is kept in it, for the caller to know again what was signed.
    """
    blocks = (_Block(list(block), options) for block in document_blocks(documents))
    count = id_bytes = word_total = 0
    with fsio.new_directory(path) as directory, ExitStack() as stack:
        files = {name: stack.enter_context(fsio.new_file(directory / name)) for name in _names(options)}
        for signed in ordered_map(_sign, blocks, workers):
            lines = [json.dumps(given, ensure_ascii=True).encode() + b"\n" for given in signed.ids]
            ends = id_bytes + np.cumsum([len(line) for line in lines])
            signed.lines["document"] += count
            signed.prints["word"] += word_total
            word_ends = word_total + np.cumsum(signed.word_counts)
            content: dict[str, bytes | NDArray[Any]] = {
                "ids.jsonl": b"".join(lines),
                "id_ends": ends.astype("<u8"),
                "texts": signed.texts,
                "lengths": signed.lengths,
                "signatures": signed.signatures,
                "lines": signed.lines,
                "words": signed.words,
                "word_ends": word_ends.astype("<u8"),
                "prints": signed.prints,
            }
            for name, file in files.items():
                part = content[name]
                file.write(part if isinstance(part, bytes) else part.tobytes())
            count, id_bytes, word_total = count + len(signed.ids), int(ends[-1]), int(word_ends[-1])
            report.progress("sign", count, None, path.name)
        facts = {
            "format": FORMAT,
            "documents": count,
            "documents_kind": options.documents,
            "lines": options.lines,
            "passages": options.passages,
            **_rules(),
            "note": note,
        }
        fsio.write_new_json(directory / "sketch.json", facts)
        for file in files.values():
            file.flush()
    return count


def _names(options: SketchOptions) -> list[str]:
    names = ["ids.jsonl", "id_ends", "texts", "lengths"]
    names += ["signatures"] if options.documents == "near" else []
    names += ["lines"] if options.lines else []
    return names + (["words", "word_ends", "prints"] if options.passages else [])


def _rules() -> dict[str, Any]:
    """Return what decides how texts are read: sketches that differ in it cannot be compared."""
    return {"hashes": HASHES, "shingle_words": SHINGLE_WORDS, "unicode": unicodedata.unidata_version}


class _Block(NamedTuple):
    documents: list[Document]
    options: SketchOptions


def _sign(block: _Block) -> Signed:
    """Return the sketch of a block of documents."""
    texts, options = [document.text for document in block.documents], block.options
    hashes = b"".join(text_hash(text) for text in texts)
    needs_words = options.documents == "near" or options.passages
    words = words_of(texts if needs_words else [])
    return Signed(
        [document.id for document in block.documents],
        np.frombuffer(hashes, TEXT),
        np.array([len(text) for text in texts], "<u4"),
        minhash(*shingles(words, SHINGLE_WORDS)) if options.documents == "near" else np.empty((0, HASHES), "<u2"),
        _line_records(texts) if options.lines else np.empty(0, LINE),
        (words.hashes >> np.uint64(32)).astype("<u4") if options.passages else np.empty(0, "<u4"),
        np.diff(words.offsets) if options.passages else np.zeros(len(texts), np.int64),
        _prints(words, options.passages) if options.passages else np.empty(0, PRINT),
    )


def text_hash(text: str) -> bytes:
    """Return 16 bytes that stand for a text, to the byte."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def minhash(hashes: Hashes, offsets: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Return (texts, HASHES): for each of HASHES orders of all shingles 16 bits of the text's first one.

    Two texts agree in each place with the probability of their Jaccard similarity. A text without words has all ones.
    """
    values = (hashes >> np.uint64(32)).astype(np.uint32)
    filled = np.flatnonzero(np.diff(offsets) > 0)
    signatures = np.full((len(offsets) - 1, HASHES), 0xFFFF, "<u2")
    if len(filled):
        starts = offsets[filled]
        for place, factor in enumerate(_FACTORS):
            signatures[filled, place] = np.minimum.reduceat(values * factor, starts) & np.uint32(0xFFFF)
    return signatures


# Odd, so that each is an order of all 2**32 values.
_FACTORS = (mixed(np.arange(1, HASHES + 1, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def lines_that_count(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number from 0, the line stripped and casefolded) of each line that is long enough to be a repetition."""
    for number, line in enumerate(text.split("\n")):
        if len(folded := line.split()) >= LINE_WORDS:
            yield number, " ".join(folded).casefold()


def _line_records(texts: list[str]) -> NDArray[Any]:
    """Return a record for each line that counts, once a document and line text."""
    records = []
    for document, text in enumerate(texts):
        for number, line in lines_that_count(text):
            digest = hashlib.blake2b(line.encode(), digest_size=8).digest()
            records.append((int.from_bytes(digest, "little"), document, number))
    return np.array(records, LINE)


def _prints(words: Words, passage_words: int) -> NDArray[Any]:
    hashes, places = fingerprints(words, passage_words)
    records = np.empty(len(hashes), PRINT)
    records["hash"], records["word"] = hashes, places
    return records


class Sketch:
    """A sketch on disk, its files read where they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        document = fsio.read_json(path / "sketch.json") if (path / "sketch.json").is_file() else None
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise DataError(f"{escape(str(path))}: not a sketch; make one with gptcli corpus dedup --sign")
        if {name: document.get(name) for name in _rules()} != _rules():
            what = f"made with {escape(json.dumps({name: document.get(name) for name in _rules()}))}"
            raise DataError(f"{escape(str(path))}: {what}, here it is {json.dumps(_rules())}; sign again")
        self.options = SketchOptions(document["documents_kind"], document["lines"], document["passages"])
        self.count, self.note = int(document["documents"]), document.get("note")

    def array(self, name: str) -> NDArray[Any]:
        """Return a file as an array that is read from disk as it is used."""
        kinds: dict[str, Any] = {
            "texts": TEXT,
            "lengths": "<u4",
            "signatures": "<u2",
            "lines": LINE,
            "words": "<u4",
            "prints": PRINT,
        }
        path, kind = self.path / name, np.dtype(kinds.get(name, "<u8"))
        if not path.stat().st_size:
            return np.empty((0, HASHES) if name == "signatures" else 0, kind)
        found = np.memmap(path, kind, "r")
        return found.reshape(-1, HASHES) if name == "signatures" else found

    def chunks(self, name: str, records: int) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (number of the first record, records in memory) through a file, at most so many at once."""
        kind = SIGNATURE if name == "signatures" else self.array(name).dtype
        first = 0
        with (self.path / name).open("rb") as file:
            while len(content := file.read(records * kind.itemsize)):
                found = np.frombuffer(content, kind.base).reshape(-1, *kind.shape)
                yield first, found
                first += len(found)

    def id(self, document: int) -> str | int:
        """Return the id of a document."""
        ends = self.array("id_ends")
        start = int(ends[document - 1]) if document else 0
        with (self.path / "ids.jsonl").open("rb") as file:
            file.seek(start)
            found = json.loads(file.read(int(ends[document]) - start))
        return found if isinstance(found, (str, int)) else str(found)
