"""A watermark for text: a key takes the place of chance in drawing tokens, and finds its own choices again.

After the last `context` new tokens, the key gives each token v of the vocabulary a number u(v) in (0, 1). The v with
the least -log u(v) / p(v) is drawn, which over all keys has exactly the probability p(v) (Aaronson 2022; the Gumbel
trick). So a marked text has tokens with large u. In a text that was written without the key -log(1 - u) of a token is
exponential, and the sum of n of them a gamma variable of shape n, of which the tail is the exact p-value.

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
DRAW_BITS = 52  # (0, 1) is cut into 2 to the power of so many parts; u is the middle of one, never 0 or 1


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


def unit(numbers: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return u in (0, 1) for numbers of 64 bits."""
    bits = numbers >> np.uint64(64 - DRAW_BITS)
    bits |= _ONE
    return bits.view(np.float64) - (1 - 2.0 ** -(DRAW_BITS + 1))


@dataclass(frozen=True)
class Score:
    """The fit of a text to a key."""

    tokens: int  # that have a whole context, each context once
    total: float  # sum of -log(1 - u), `tokens` on average without the mark

    @property
    def log_p(self) -> float:
        """Return the natural logarithm of the p-value: of a sum so large in text that was written without the key."""
        return log_gamma_tail(self.tokens, self.total)


_ONE = np.float64(1).view(np.uint64)  # whose significand takes the DRAW_BITS: a number in [1, 2)


class Marker:
    """The contexts of one text in the making."""

    def __init__(self, watermark: Watermark) -> None:
        self.watermark = watermark
        self.met = set[tuple[int, ...]]()
        self._philox = np.random.Philox(key=0)
        self._state = self._philox.state

    def fresh(self, ids: Sequence[int]) -> tuple[int, ...] | None:
        """Return the context after a text's ids, None where there is no whole one, or it came before."""
        context = tuple(ids[-self.watermark.context :])
        if len(context) < self.watermark.context or context in self.met:
            return None
        self.met.add(context)
        return context

    def numbers(self, context: Sequence[int], count: int) -> NDArray[np.uint64]:
        """Return numbers (count,) of the first tokens of the vocabulary after a context: `unit` makes u of them."""
        return self._keyed(context).random_raw(count)

    def uniform(self, context: Sequence[int], token: int) -> float:
        """Return u of one token after a context."""
        philox = self._keyed(context)
        philox.advance(token // 4)  # Philox gives four numbers for each count
        return float(unit(philox.random_raw(4))[token % 4])

    def _keyed(self, context: Sequence[int]) -> np.random.Philox:
        """Return the generator at the start of a context's numbers; to make a new one takes twice as long."""
        packed = struct.pack(f"<{len(context)}I", *context)
        digest = hashlib.blake2b(packed, key=self.watermark.secret, digest_size=16).digest()
        self._state["state"]["key"][:] = np.frombuffer(digest, "<u8")
        self._philox.state = self._state
        return self._philox


def score(watermark: Watermark, ids: Sequence[int]) -> Score:
    """Score the ids of a text."""
    marker, tokens, total = Marker(watermark), 0, 0.0
    for place in range(watermark.context, len(ids)):
        context = marker.fresh(ids[place - watermark.context : place])
        if context is not None:
            tokens += 1
            total -= math.log1p(-marker.uniform(context, ids[place]))
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
