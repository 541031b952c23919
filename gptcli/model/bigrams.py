"""A second embedding, of each token together with the one before it, in a table that pairs share by hashing."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.config.model import ModelConfig
from gptcli.data.batches import splitmix64

NO_TOKEN = -1  # what stands before the first token of a sequence
FIRST_FACTOR = 0.1
FACTORS = 0x9E3779B1, 0x85EBCA6B  # large odd numbers, of the token and the one before
PATTERNS = 1024  # of signs


class Bigrams(nn.Module):
    """An embedding of pairs of tokens: a row of the table, which several pairs share, times signs, which few of those
    share.

    Hash embeddings (Tito Svenstrup et al. 2017) of bigrams. The table begins as zero; each layer has a learned factor.
    """

    signs: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(config.bigram_rows, config.hidden_size))
        self.factors = nn.Parameter(torch.empty(config.num_layers))
        self.make_signs()

    def make_signs(self) -> None:
        """Make the table of signs (PATTERNS, C), which is no part of a checkpoint, on the device of the weights."""
        size = self.table.shape[1]
        bits = splitmix64(np.arange(1, PATTERNS * size + 1, dtype=np.uint64)) >> np.uint64(63)
        signs = torch.from_numpy(1.0 - 2.0 * bits.astype(np.float32)).view(PATTERNS, size)
        self.register_buffer("signs", signs.to(self.table.device, self.table.dtype), persistent=False)

    def draw(self, name: str, weight: Tensor) -> None:
        """Fill a tensor with what the weight of that name is in a new model: pairs mean nothing yet."""
        weight.fill_(FIRST_FACTOR if name.endswith("factors") else 0.0)

    def forward(self, ids: Tensor, previous: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the embeddings (B, T, C) of tokens (B, T) and those before them (B, T), NO_TOKEN at a beginning."""
        hashed = ids * FACTORS[0] ^ previous * FACTORS[1]
        rows = F.embedding(hashed.remainder(self.table.shape[0]), self.table).to(dtype)
        return rows * F.embedding((ids ^ previous).remainder(PATTERNS), self.signs).to(dtype)


def previous_tokens(ids: Tensor) -> Tensor:
    """Return the token before each of ids (B, T), whole sequences."""
    return F.pad(ids[:, :-1], (1, 0), value=NO_TOKEN)
