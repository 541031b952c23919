"""A watermark for text: a key takes the place of chance in drawing tokens, and finds its own choices again.

After the last `context` new tokens, the key gives each token v of the vocabulary a number u(v) in (0, 1). The v with
the least -log u(v) / p(v) is drawn, which over all keys has exactly the probability p(v) (Aaronson 2022; the Gumbel
trick). So a marked text has tokens with large u. In a text that was written without the key -log(1 - u) of a token is
exponential, and the sum of n of them a gamma variable of shape n, of which the tail is the exact p-value. The numbers
are of 32 bits: u is 1 less the middle of one of 2**32 parts of (0, 1), and the finder counts the part's upper end, so
that no p-value is too small.

A context counts once, in writing and in finding: where it comes again in a text, chance draws as without a key, since
repeated choices would bias the text and look like a mark in text that only repeats itself. The first tokens of a text
have no whole context and are drawn by the seed, so that seeds give different texts.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape

CONTEXT = 4  # tokens; fewer repeat themselves more, more are lost by fewer edits
SCHEME, SECRET_BYTES, MAX_CONTEXT = "gumbel", 32, 64
ENOUGH_TOKENS = 30  # below, a text that is not found marked is too short to say anything of
_SIXTEEN, _FIFTEEN, _WORD = np.uint32(16), np.uint32(15), 2**32 - 1
_WORDS = struct.Struct("<3I")


@dataclass(frozen=True)
class Watermark:
    """A key, and all that writer and finder must agree on."""

    secret: bytes
    context: int
    tokenizer_sha256: str  # of what turns text into ids

    @property
    def name(self) -> str:
        """Tell keys apart without giving the secret away."""
        return hashlib.sha256(b"gptcli watermark" + self.secret).hexdigest()[:12]


class Numbers:
    """A number of 32 bits for each token after one context: a hash of the token by three words that the key gives it.

    It is that of Wellons (lowbias32) with keyed multipliers, in seven operations of NumPy on 32 bits, so that those of
    a whole vocabulary cost as little as a sum of its probabilities.
    """

    __slots__ = ("words",)

    def __init__(self, words: tuple[int, int, int]) -> None:
        self.words = words

    def all(self, tokens: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Return the numbers (N,) of tokens (N,)."""
        added, first, last = self.words
        mixed = tokens ^ np.uint32(added)
        shifted = mixed >> _SIXTEEN
        mixed ^= shifted
        mixed *= np.uint32(first | 1)
        np.right_shift(mixed, _FIFTEEN, out=shifted)
        mixed ^= shifted
        mixed *= np.uint32(last | 1)
        return mixed

    def one(self, token: int) -> int:
        """Return the number of one token."""
        added, first, last = self.words
        mixed = token ^ added
        mixed = (mixed ^ (mixed >> 16)) * (first | 1) & _WORD
        return (mixed ^ (mixed >> 15)) * (last | 1) & _WORD


@dataclass(frozen=True)
class Score:
    """The fit of a text to a key."""

    tokens: int  # that have a whole context, each context once
    total: float  # sum of -log(1 - u), `tokens` on average without the mark

    @property
    def log_p(self) -> float:
        """Return the natural logarithm of the p-value: of a sum so large in text that was written without the key."""
        return log_gamma_tail(self.tokens, self.total)


class Marker:
    """The contexts of one text in the making."""

    def __init__(self, watermark: Watermark) -> None:
        self.watermark = watermark
        self.met = set[tuple[int, ...]]()
        self._keyed = hashlib.blake2b(key=watermark.secret, digest_size=12)
        self._context = struct.Struct(f"<{watermark.context}I")

    def fresh(self, ids: Sequence[int]) -> tuple[int, ...] | None:
        """Return the context after a text's ids, None where there is no whole one, or it came before."""
        context = tuple(ids[-self.watermark.context :])
        if len(context) < self.watermark.context or context in self.met:
            return None
        self.met.add(context)
        return context

    def numbers(self, context: Sequence[int]) -> Numbers:
        """Return the numbers of the tokens after a context."""
        keyed = self._keyed.copy()
        keyed.update(self._context.pack(*context))
        return Numbers(_WORDS.unpack(keyed.digest()))


def score(watermark: Watermark, ids: Sequence[int]) -> Score:
    """Score the ids of a text."""
    marker, tokens, total = Marker(watermark), 0, 0.0
    for place in range(watermark.context, len(ids)):
        context = marker.fresh(ids[place - watermark.context : place])
        if context is not None:
            tokens += 1
            total -= math.log((marker.numbers(context).one(ids[place]) + 1) / 2**32)
    return Score(tokens, total)


def log_gamma_tail(shape: int, value: float) -> float:
    """Return the logarithm of the probability that a gamma variable of whole shape exceeds a value.

    It is that of fewer than `shape` events of a Poisson variable with mean `value`.
    """
    if shape == 0 or value <= 0:
        return 0.0
    events = np.arange(1, shape)
    terms = np.concatenate(([0.0], events * math.log(value) - np.log(events).cumsum())) - value
    most = terms.max()
    return min(0.0, float(most + np.log(np.exp(terms - most).sum())))


def make_key(tokenizer_sha256: str, *, context: int = CONTEXT) -> Watermark:
    """Draw a new key for texts of a tokenizer."""
    return Watermark(secrets.token_bytes(SECRET_BYTES), context, tokenizer_sha256)


def write_key(path: Path, watermark: Watermark) -> None:
    """Write a key, which only its owner may read."""
    document = {
        "watermark": SCHEME,
        "context": watermark.context,
        "key": watermark.secret.hex(),
        "tokenizer_sha256": watermark.tokenizer_sha256,
    }
    with fsio.replacing(path) as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(fsio.strict_json(document).encode())


def read_key(path: str | Path) -> Watermark:
    """Read a key; DataError where the file is none."""
    found = fsio.read_json(Path(path))
    problem = f"{escape(str(path))}: no watermark key"
    if not isinstance(found, dict) or "watermark" not in found:
        raise DataError(f"{problem}; gptcli watermark-key makes one")
    if found["watermark"] != SCHEME:
        raise DataError(f"{problem} that this gptcli knows, but of scheme {escape(str(found['watermark']))}")
    try:
        return _key_of(found)
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{problem}, but a damaged one; take the file that gptcli watermark-key made") from None


def _key_of(found: dict[str, Any]) -> Watermark:
    key = Watermark(bytes.fromhex(found["key"]), int(found["context"]), str(found["tokenizer_sha256"]))
    if len(key.secret) != SECRET_BYTES or not 1 <= key.context <= MAX_CONTEXT:
        raise ValueError
    return key


def check_tokenizer(watermark: Watermark, sha256: str, name: str) -> None:
    """Raise ConfigError where a key was made for texts of another tokenizer, whose ids it would not find."""
    if watermark.tokenizer_sha256 != sha256:
        raise ConfigError(
            f"{escape(name)}: a key for another tokenizer; name the one that it was made with, or make another key "
            "with gptcli watermark-key"
        )
