"""Keys of watermarks, texts -> whether they have one, and how often a key finds itself where it is not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.api.tokens import documents, encode
from gptcli.base import fsio
from gptcli.base.report import Report
from gptcli.data.jsonl import answered, read_records
from gptcli.data.text import TextOptions
from gptcli.data.tokenizer import Tokenizer
from gptcli.data.tokenizer_file import encoding_sha256
from gptcli.evaluate.intervals import wilson
from gptcli.generate.watermark import (
    ENOUGH_TOKENS,
    Watermark,
    check_tokenizer,
    log_gamma_tail,
    make_key,
    read_key,
    score,
    write_key,
)

RATES = (0.05, 0.01, 0.001)  # at which a calibration looks


@dataclass(frozen=True)
class Detection:
    """The verdict of the keys on one text."""

    key: str  # that fits best
    tokens: int  # scored, each context once
    score: float  # sum of -log(1 - u); `tokens` on average where there is no mark
    log_p: float  # natural logarithm of the p-value, multiplied by the number of keys
    false_positives: float

    @property
    def verdict(self) -> str:
        if self.log_p < math.log(self.false_positives):
            return "marked"
        return "too short to say" if self.tokens < ENOUGH_TOKENS else "no mark found"

    def as_dict(self) -> dict[str, Any]:
        p = math.exp(self.log_p)
        log10 = self.log_p / math.log(10)
        return {"verdict": self.verdict, "p": p, "log10_p": log10, "tokens_scored": self.tokens, "key": self.key}

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for a person."""
        log10 = self.log_p / math.log(10)
        p = f"{math.exp(self.log_p):.3g}" if log10 > -300 else f"1e{log10:.0f}"
        return [
            ("verdict", f"{self.verdict}, at a false positive rate of {self.false_positives:g}"),
            ("p", p),
            ("tokens scored", f"{self.tokens:,}, each context once"),
            ("score per token", f"{self.score / self.tokens:.3f}, 1 without a mark" if self.tokens else "-"),
            ("key", self.key),
        ]


class Detector:
    """A tokenizer and keys that fit it."""

    def __init__(self, tokenizer: str | Path, keys: Sequence[str], false_positives: float = 1e-5) -> None:
        self.tokenizer = Tokenizer.load(tokenizer)
        self.keys = [_fitting(path, self.tokenizer) for path in keys]
        self.false_positives = false_positives

    def text(self, text: str) -> Detection:
        """Look for the keys in one text; of several keys the p-value is multiplied by their number (Bonferroni)."""
        ids = self.tokenizer.encode(text)
        scores = [(score(key, ids), key.name) for key in self.keys]
        best, name = min(scores, key=lambda found: found[0].log_p)
        log_p = min(0.0, best.log_p + math.log(len(self.keys)))
        return Detection(name, best.tokens, best.total, log_p, self.false_positives)

    def records(self, lines: Iterable[bytes], field: str) -> Iterator[dict[str, Any]]:
        """Yield each record with what was found in its text."""
        for record in read_records(lines, jsonl=True, field=field):
            yield answered(record, self.text(record[field]).as_dict())


@dataclass(frozen=True)
class Calibration:
    """The share of windows of text that nobody marked which look marked to the keys."""

    windows: int
    window_tokens: int
    found: dict[float, int]  # windows with a p-value below each rate
    least_log_p: float

    def as_dict(self) -> dict[str, Any]:
        rates = [
            {"false_positives": rate, "windows": count, "observed": count / self.windows if self.windows else None,
             "interval": wilson(count, self.windows)}
            for rate, count in self.found.items()
        ]  # fmt: skip
        least = math.exp(self.least_log_p)
        return {"windows": self.windows, "window_tokens": self.window_tokens, "least_p": least, "rates": rates}

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for a person."""
        facts = [("windows", f"{self.windows:,} of {self.window_tokens} tokens")]
        for rate, count in self.found.items():
            low, high = wilson(count, self.windows)
            share = count / self.windows if self.windows else 0.0
            facts.append((f"p < {rate:g}", f"{count:,}, {share:.4%} (95 % interval {low:.4%} to {high:.4%})"))
        return [*facts, ("least p", f"{math.exp(self.least_log_p):.3g}")]


def calibrate(
    detector: Detector, inputs: Sequence[str], options: TextOptions, *, window_tokens: int, report: Report
) -> Calibration:
    """Look for the keys in windows of texts that were written without them."""
    found = dict.fromkeys((*RATES, detector.false_positives), 0)
    windows, least = 0, 0.0
    for document in documents(inputs, options, report):
        ids = list(encode(detector.tokenizer, document))
        for start in range(0, len(ids) - window_tokens + 1, window_tokens):
            for key in detector.keys:
                scored = score(key, ids[start : start + window_tokens])
                log_p = log_gamma_tail(scored.tokens, scored.total)
                windows, least = windows + 1, min(least, log_p)
                for rate in found:
                    found[rate] += log_p < math.log(rate)
            report.progress("calibrated", windows, None)
    return Calibration(windows, window_tokens, dict(sorted(found.items(), reverse=True)), least)


def new_key(tokenizer: str | Path, output: Path, *, context: int, force: bool) -> Watermark:
    """Write a new key for texts of a tokenizer."""
    fsio.check_writable(output, force=force)
    key = make_key(encoding_sha256(Tokenizer.load(tokenizer).plain_content), context=context)
    write_key(output, key)
    return key


def _fitting(path: str, tokenizer: Tokenizer) -> Watermark:
    key = read_key(path)
    check_tokenizer(key, encoding_sha256(tokenizer.plain_content), path)
    return key
