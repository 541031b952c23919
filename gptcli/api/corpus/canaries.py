"""Make canaries and their key file, and a corpus with the canaries in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from gptcli.api.corpus.output import write_documents
from gptcli.api.corpus.reading import Reading
from gptcli.base import fsio
from gptcli.data.filters.canaries import Canary, copies_before, key_document, make_canaries, places
from gptcli.data.filters.documents import Document


def write_canaries(
    inputs: Sequence[str], output: Path, reading: Reading, *, seed: int = 0, each: int = 8, repeats: Sequence[int] = ()
) -> list[Canary]:
    """Write a directory with key.json and corpus.jsonl, the inputs' documents with the canaries' copies among them.

    Without inputs the corpus is of the copies alone, in drawn order, to be mixed with a corpus of any size.
    """
    canaries = make_canaries(seed, each, sorted({0, *repeats}))
    field = reading.text.field
    with fsio.new_directory(output) as directory:
        if inputs:
            with tempfile.NamedTemporaryFile(prefix="gptcli-canaries-", suffix=".jsonl") as spool:
                given = Path(spool.name)
                write_documents(reading.documents(inputs), given)
                with given.open("rb") as file:
                    documents = sum(1 for _ in file)
                planned = places(canaries, documents, seed)
                same = Reading(type(reading.text)(field=field))
                write_documents(
                    _mixed(same.documents([str(given)]), canaries, planned, field), directory / "corpus.jsonl"
                )
        else:
            documents = None
            planned = places(canaries, 1 << 40, seed)
            write_documents(_mixed(iter(()), canaries, planned, field), directory / "corpus.jsonl")
        fsio.write_new_json(directory / "key.json", key_document(canaries, seed, documents))
    return canaries


def _mixed(
    documents: Iterator[Document], canaries: Sequence[Canary], planned: Sequence[tuple[int, int]], field: str
) -> Iterator[Document]:
    """Yield the documents with the copies before those that they are planned for."""
    at = 0
    for before, group in copies_before(planned):
        while at < before and (document := next(documents, None)) is not None:
            yield document
            at += 1
        for number in group:
            canary = canaries[number]
            yield Document(canary.id, field, {"id": canary.id, field: canary.text})
    yield from documents
