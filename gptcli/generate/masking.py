"""Personal data is masked before a text is let out: what may still become a match is held back."""

from __future__ import annotations

from collections.abc import Sequence

from gptcli.data.filters.pii import Span, find_pii, masked

HELD_CHARACTERS = 128  # longer than any number, address or IBAN; of a long key what stands before it is let out


class Mask:
    """Text in pieces -> the same with <EMAIL>, <PHONE> and others in place of what they name."""

    def __init__(self) -> None:
        self.waiting = ""

    def add(self, text: str, *, final: bool = False) -> str:
        """Add text and return what is certain of it: cut at a space, and never inside of personal data."""
        self.waiting += text
        if not final and len(self.waiting) <= HELD_CHARACTERS:
            return ""
        spans = find_pii(self.waiting)
        border = len(self.waiting) if final else self._border(spans)
        certain = masked(self.waiting[:border], [span for span in spans if span.end <= border])
        self.waiting = self.waiting[border:]
        return certain

    def _border(self, spans: Sequence[Span]) -> int:
        """Return where text can be cut: after the last white space before what is held back, outside of any span."""
        border = len(self.waiting) - HELD_CHARACTERS
        while border > 0:
            inside = next((span for span in spans if span.start < border < span.end), None)
            if inside is not None:
                border = inside.start
            elif self.waiting[border - 1].isspace():
                return border
            else:
                border -= 1
        return 0
