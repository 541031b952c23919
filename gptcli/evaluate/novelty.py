"""The share of texts that is in a training text word for word, in runs of so many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptcli.data.grams import run_hashes
from gptcli.data.shards import TokenArray

SIZES = (8, 13, 25, 50)
BLOCK_TOKENS = 1 << 20


def copied(texts: Sequence[Sequence[int]], training: TokenArray) -> list[dict[str, Any]]:
    """Return for each size of run how many texts hold one of the training text, and the share of their runs.

    The training text is read once, in blocks; memory holds the texts' runs alone.
    """
    arrays = [np.array(ids, dtype=np.int64) for ids in texts]
    hashes = {size: [run_hashes(ids, size) for ids in arrays] for size in SIZES}
    known = {size: np.unique(np.concatenate([*parts, parts[0][:0]])) for size, parts in hashes.items()}
    seen = {size: np.zeros(len(values), dtype=bool) for size, values in known.items()}
    for start in range(0, len(training), BLOCK_TOKENS):
        block = training.read(start, BLOCK_TOKENS + max(SIZES) - 1)
        for size, values in known.items():
            if len(values):
                found = run_hashes(block, size)
                places = values.searchsorted(found).clip(max=len(values) - 1)
                seen[size][places[values[places] == found]] = True
    report = []
    for size in SIZES:
        hits = [seen[size][known[size].searchsorted(part)] for part in hashes[size]]
        long_enough = [part for part in hits if len(part)]
        report.append(
            {
                "tokens": size,
                "texts": len(long_enough),
                "texts_with_a_run": sum(bool(part.any()) for part in long_enough),
                "share_of_runs": float(np.concatenate(long_enough).mean()) if long_enough else None,
            }
        )
    return report
