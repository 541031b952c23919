"""Multi-step decoding: on CUDA each token is drawn on the device and fed to the next step there.

A step of a small model is many short kernels, which the CPU starts more slowly than the device runs them; then it waits
for the token. Here STEPS steps are captured in one CUDA graph for every bucket of batch size and context, and one
replay, with one transfer, gives STEPS tokens of every row. Tokens behind the end of a text are dropped afterwards.

The same steps run on a CPU without a graph, where tests hold them to the engine's own; nobody has run them on CUDA yet.

    B rows   T = 1   H query heads   K key/value heads   D head width   N keys   V vocabulary
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from gptcli.config.generate import GenerateOptions
from gptcli.device.cuda_graphs import Record, Work, record, recorded
from gptcli.generate.kv_cache import DeviceDecode, KVCache
from gptcli.generate.sampling import draw_on_device
from gptcli.generate.sequence import ActiveSequence
from gptcli.model.gpt import GPT

STEPS = 8
CONTEXT_BUCKET = 256
MOST_GRAPHS = 64  # what they compute in is shared


class _Steps(DeviceDecode):
    """The steps of a bucket, and between model and cache the layout of their tokens."""

    def __init__(
        self, model: GPT, cache: KVCache, options: GenerateOptions, *, batch: int, end: int, count: int, vocab_size: int
    ) -> None:
        super().__init__(cache, batch, 1, end=end)
        self.model, self.options, self.vocab_size = model, options, vocab_size
        device = cache.keys.device
        self.ids = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.uniforms = torch.zeros(batch, count, dtype=torch.float64, device=device)
        self.drawn = torch.zeros(batch, count, dtype=torch.long, device=device)
        self.finite = torch.zeros(batch, count, dtype=torch.bool, device=device)

    def commit(self) -> None:
        """Leave it to the engine to count what a row holds."""

    def __call__(self) -> None:
        for step in range(self.drawn.shape[1]):
            self.look()
            hidden = self.model.hidden(self.ids, dtype=self.cache.keys.dtype, layout=self)
            logits = self.model.logits(hidden[:, 0])[:, : self.vocab_size]
            self.finite[:, step] = torch.isfinite(logits.sum(-1))
            self.drawn[:, step] = draw_on_device(logits, self.options, self.uniforms[:, step])
            self.ids.copy_(self.drawn[:, step : step + 1])
            self.positions.add_(1)


def _kept(steps: _Steps, record: Record) -> Work:
    """Record the steps, with the cache left as it is; return the steps themselves where they cannot be recorded."""
    begin = slice(steps.drawn.shape[1])
    steps.positions.zero_()
    held = [part[:, :, :, begin] for part in (steps.cache.keys, steps.cache.values)]
    held += [] if steps.cache.ids is None else [steps.cache.ids[:, begin]]
    contents = [part.clone() for part in held]
    changed = [*held, steps.ids, steps.positions, steps.drawn, steps.finite]
    replay = recorded(steps, changed, record=record)
    for part, content in zip(held, contents, strict=True):
        part.copy_(content)
    return replay


class MultiStepDecoder:
    """A decoder of several steps at once over one cache, which keeps the graphs of the buckets that came up."""

    def __init__(self, model: GPT, cache: KVCache, *, count: int, vocab_size: int) -> None:
        self.model, self.cache, self.count, self.vocab_size = model, cache, count, vocab_size
        self.capture = cache.keys.device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.capture else None
        self.made: dict[Any, tuple[_Steps, Work]] = {}

    def fits(self, rows: Sequence[ActiveSequence]) -> bool:
        """Return whether the rows need no processors, draw alike and have room for `count` tokens."""
        context = self.model.config.context_length
        longest = max(self.cache.lengths[: len(rows)])
        return (
            longest + self.count <= min(context, self.cache.capacity)
            and all(row.needs_no_processors for row in rows)
            and len({row.sampling_key for row in rows}) == 1
        )

    def batch(self, rows: int) -> int:
        """Return the batch size of the bucket: the next power of two, or all rows of the cache."""
        return min(1 << (rows - 1).bit_length(), len(self.cache.lengths))

    def run(self, rows: Sequence[ActiveSequence]) -> tuple[list[list[int]], list[list[bool]]]:
        """Draw the next `count` tokens of each row, and tell of each whether its logits were finite.

        Rows of the cache beyond these, up to the bucket's, are written to behind what they hold.
        """
        batch, count = self.batch(len(rows)), self.count
        options = rows[0].options
        N = self.cache.keys.shape[3]
        longest = max(self.cache.lengths[: len(rows)]) + count
        end = min(-(-longest // CONTEXT_BUCKET) * CONTEXT_BUCKET, N)
        key = (batch, end, rows[0].sampling_key)
        if key not in self.made:
            if len(self.made) >= MOST_GRAPHS:
                del self.made[next(iter(self.made))]
            steps = _Steps(
                self.model, self.cache, options, batch=batch, end=end, count=count, vocab_size=self.vocab_size
            )
            self.made[key] = steps, self._replay(steps)
        steps, replay = self.made[key]
        others = batch - len(rows)
        uniforms = [[row.random.random() for _ in range(count)] for row in rows] if options.temperature else []
        steps.ids.copy_(torch.tensor([*(row.last_token for row in rows), *[0] * others])[:, None])
        steps.positions.copy_(torch.tensor(self.cache.lengths[:batch])[:, None])
        if uniforms:
            steps.uniforms[: len(rows)] = torch.tensor(uniforms, dtype=torch.float64)
        replay()
        found = torch.stack((steps.drawn, steps.finite.long()))[:, : len(rows)].tolist()
        return found[0], [[bool(value) for value in row] for row in found[1]]

    def _replay(self, steps: _Steps) -> Work:
        """Return a CUDA-graph replay, or the eager steps. After one capture fails, no other is attempted."""
        if not self.capture:
            return steps
        replay = _kept(steps, functools.partial(record, pool=self.pool))
        self.capture = replay is not steps
        return replay
