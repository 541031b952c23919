"""Canaries: made-up documents that a corpus is given, to measure afterwards what a model learnt by heart.

Two kinds, each in groups by how often they are repeated; the group of 0 repeats is the control: of the same form, drawn
in the same way, and never put into the corpus. What a model says of it is chance (Carlini et al. 2019).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

FORMAT = "gptcli canaries 1"
KINDS: tuple[Literal["code", "passage"], ...] = ("code", "passage")
PASSAGE_WORDS, PROMPT_WORDS, CODE_DIGITS = 50, 25, 9


@dataclass(frozen=True)
class Canary:
    """One canary: the text is the prompt and the secret after it."""

    id: str
    kind: str
    repeats: int  # 0: the control group
    prompt: str
    secret: str

    @property
    def text(self) -> str:
        return self.prompt + self.secret + (".\n" if self.kind == "code" else "\n")


def make_canaries(seed: int, each: int, repeats: Sequence[int]) -> list[Canary]:
    """Return `each` canaries of each kind and number of repeats; the same seed makes the same ones."""
    draw = random.Random(f"gptcli canaries {seed}")
    found: list[Canary] = []
    for kind in KINDS:
        names = set[str]()
        for times in repeats:
            for number in range(each):
                name = f"{_word(draw).capitalize()} {_word(draw).capitalize()}"
                while name in names:
                    name = f"{_word(draw).capitalize()} {_word(draw).capitalize()}"
                names.add(name)
                if kind == "code":
                    prompt, secret = (
                        f"The access code of {name} is ",
                        "".join(draw.choices("0123456789", k=CODE_DIGITS)),
                    )
                else:
                    words = [name, "wrote:", *(_word(draw) for _ in range(PASSAGE_WORDS - 2))]
                    prompt = " ".join(words[:PROMPT_WORDS]) + " "
                    secret = " ".join(words[PROMPT_WORDS:])
                found.append(Canary(f"canary-{kind}-{times}-{number}", kind, times, prompt, secret))
    return found


def _word(draw: random.Random) -> str:
    return "".join(draw.choice("bdfghklmnprstvz") + draw.choice("aeiou") for _ in range(draw.randint(2, 3)))


def key_document(canaries: Sequence[Canary], seed: int, documents: int | None) -> dict[str, Any]:
    """Return what a key file holds: whoever has it can tell what was planted, and how often."""
    listed = [{**asdict(canary), "text": canary.text} for canary in canaries]
    return {"format": FORMAT, "seed": seed, "corpus_documents": documents, "canaries": listed}


def places(canaries: Sequence[Canary], documents: int, seed: int) -> list[tuple[int, int]]:
    """Return (document that a copy goes before, canary) for every copy, in order of the documents."""
    draw = random.Random(f"gptcli canary places {seed}")
    copies = [number for number, canary in enumerate(canaries) for _ in range(canary.repeats)]
    return sorted((draw.randint(0, documents), number) for number in copies)


def copies_before(planned: Sequence[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """Yield (document, canaries that go before it) from the places, in order."""
    at = 0
    while at < len(planned):
        document, group = planned[at][0], []
        while at < len(planned) and planned[at][0] == document:
            group.append(planned[at][1])
            at += 1
        yield document, group
