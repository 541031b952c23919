"""The reading of inputs as documents, by one process or several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gptcli.data.filters.documents import Document, read_documents
from gptcli.data.text import TextOptions


@dataclass(frozen=True)
class Reading:
    """The way in which inputs become documents, and the number of processes that read them."""

    text: TextOptions = field(default_factory=TextOptions)
    workers: int = 1

    def documents(self, inputs: Sequence[str]) -> Iterator[Document]:
        """Yield the documents of inputs, in order."""
        return read_documents(inputs, self.text)
