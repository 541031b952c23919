"""Attention of single queries to a KV cache on a CPU, as embedding bags: no query reads the keys of longer rows.

Rows of a batch have texts of different lengths; a batched product reads them all up to the longest. A bag is the sum of
some rows of a table, each by a weight of its own, so a weighted mean of values is the bag of a query's own tokens; and
with keys stored the other way around, D numbers of PAGE tokens each, the scores of a page are the bag of the D rows
that hold it, with the query as weights. Every bag is summed alone and in order: a query has the same bits in any batch.

    Q queries   D head width   N pages of all queries   P pages of the longest   C pages of a row of the cache
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.device.private_torch import embedding_bag

PAGE = 64  # tokens


class Bags:
    """The rows of the tables that each query reads: the same in every layer, and as long as `pages` are the same."""

    def __init__(self, keys: Tensor, values: Tensor, rows: list[int], pages: list[int]) -> None:
        """Index the pages of the cache that each query reads.

        Keys (layers, ..., capacity, D) lie in memory as (layers, ..., D, capacity), values as (layers, ..., capacity,
        D). Query i attends to `rows[i]`, a row among all dimensions before capacity, whose first `pages[i]` pages hold
        tokens it sees.
        """
        self.tables = [(k.mT.view(-1, PAGE), v.view(-1, v.shape[-1])) for k, v in zip(keys, values, strict=True)]
        Q, D, C, P = len(rows), keys.shape[-1], keys.shape[-2] // PAGE, max(pages)
        there = torch.arange(P) < torch.tensor(pages)[:, None]  # (Q, P)
        owner, page = there.nonzero(as_tuple=True)  # (N,) each
        row = torch.tensor(rows)[owner]
        self.key_index = ((row * D * C + page)[:, None] + torch.arange(D) * C).view(-1)
        self.key_offsets = torch.arange(0, len(self.key_index), D)
        self.value_index = ((row * C + page)[:, None] * PAGE + torch.arange(PAGE)).view(-1)
        self.value_offsets = torch.tensor([0, *pages[:-1]]).cumsum(0) * PAGE
        self.even = len(owner) == Q * P
        self.scale = torch.full((P, 1), D**-0.5)
        self.owner, self.place = owner, owner * P + page

    def attend(self, layer: int, q: Tensor, bias: Tensor, *, cap: float = 0.0) -> Tensor:
        """Compute attention of q (Q, D) -> (Q, D), both float32, whatever the dtype of the cache.

        `bias` (Q, P * PAGE), or one row for all, float32, is -inf where a query does not see a token of its row.
        Scores are soft-capped before it is added where there is a cap.
        """
        Q, D = q.shape
        keys, values = self.tables[layer]
        weights = (q[:, None] * self.scale).to(keys.dtype) if self.even else (q * D**-0.5).to(keys.dtype)[self.owner]
        scores = _bags(keys, self.key_index, self.key_offsets, weights.view(-1))
        if cap:
            scores = cap * torch.tanh(scores / cap)
        if self.even:
            weights = (scores.view(Q, -1) + bias).softmax(-1)
        else:
            weights = bias.view(-1, PAGE).index_add(0, self.place, scores.float()).view(Q, -1).softmax(-1)
            weights = weights.view(-1, PAGE)[self.place]
        return _bags(values, self.value_index, self.value_offsets, weights.view(-1).to(values.dtype)).float()


def _bags(table: Tensor, index: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Return weighted sums of rows of the table (rows, width), one for each offset: (offsets, width)."""
    sums: Tensor = embedding_bag(table, index, offsets, False, 0, False, weights)[0]
    return sums
