"""The GPT, whole: token ids (B, T) -> logits (B, T, V).

One class holds the families GPT-2, GPT-3, Llama and nanochat by explicit options (config.ModelConfig).

    B batch   T tokens   C hidden_size   H query heads   K key/value heads   D head width   V vocabulary

Weights are kept in float32 while training; activations have the dtype that `forward` is asked for, and each matrix is
cast when it is used (on a CPU under 1 % of a step; autocast casts as often and keeps more tensors in float32).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.config.model import ModelConfig
from gptcli.model.attention import causal_attention
from gptcli.model.dropout import dropout
from gptcli.model.functional import normalize_and_rotate, relu_squared, rms_normalize, rotate

ROTARY_BLOCK = 1 << 14  # positions whose angles are computed at once


class Linear(nn.Linear):
    """y = x W^T + b in the dtype of x."""

    def reset_parameters(self) -> None:
        """Weights come from GPT.initialize or from a file; drawing them here, on the meta device, would import
        torch._dynamo, which takes a second."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Embedding(nn.Embedding):
    """A row of the weight for each id."""

    def reset_parameters(self) -> None:
        """As in Linear."""


class Norm(nn.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last dimension."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kind, self.eps, self.size = config.norm, config.norm_eps, config.hidden_size
        has_weight = config.norm == "layernorm" or config.norm_weight
        self.weight = nn.Parameter(torch.ones(self.size)) if has_weight else None
        self.bias = nn.Parameter(torch.zeros(self.size)) if config.norm == "layernorm" and config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        if self.kind == "rmsnorm":
            y = rms_normalize(x, self.eps)
            return y if weight is None else y * weight
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return torch.layer_norm(x, (self.size,), weight, bias, self.eps)


class Scale(nn.Module):
    """The learned weight (D,) of an RMSNorm that is computed elsewhere."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class Layout(Protocol):
    """What the tokens of a forward pass are to each other, where they are not whole windows that begin at position 0:
    new tokens of a KV cache (cache.Prefill and cache.Decode), or sequences packed end to end (attention.Packed)."""

    @property
    def positions(self) -> Tensor:
        """The position of every token in its sequence, (B, T)."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of a layer: q (B, H, T, D), k and v (B, K, T, D) -> (B, H, T, D)."""

    def commit(self) -> None:
        """The tokens have passed all layers."""


class Attention(nn.Module):
    """Multi-head causal self-attention (Vaswani et al. 2017), key/value heads in groups (Ainslie et al. 2023)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        H, K, D = config.num_heads, config.kv_heads, config.head_size
        self.qkv = Linear(config.hidden_size, (H + 2 * K) * D, bias=config.bias)
        self.projection = Linear(H * D, config.hidden_size, bias=config.bias)
        if config.qk_norm_weight:
            self.query_norm, self.key_norm = Scale(D), Scale(D)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, layout: Layout | None) -> Tensor:
        config = self.config
        B, T, _ = x.shape
        H, K, D = config.num_heads, config.kv_heads, config.head_size
        heads = self.qkv(x).view(B, T, H + 2 * K, D).permute(2, 0, 1, 3)  # (H+2K, B, T, D), as attention works on them
        q_and_k, v = heads.split_with_sizes((H + K, K))
        if config.qk_norm and not config.qk_norm_weight and rotation is not None:  # Henry et al. 2020
            q_and_k = normalize_and_rotate(q_and_k, config.norm_eps, *rotation)
        else:
            if config.qk_norm:
                q_and_k = rms_normalize(q_and_k, config.norm_eps)
            if config.qk_norm_weight:  # (H+K, 1, 1, D)
                scales = torch.cat((self.query_norm.weight.expand(H, D), self.key_norm.weight.expand(K, D)))
                q_and_k = q_and_k * scales[:, None, None].to(x.dtype)
            if rotation is not None:
                q_and_k = rotate(q_and_k, *rotation)
        q, k, v = (part.transpose(0, 1) for part in (*q_and_k.split_with_sizes((H, K)), v))  # each (B, heads, T, D)
        if layout is None:
            y = causal_attention(q, k, v, dropout=config.dropout if self.training else 0.0)
        else:
            y = layout.attend(self.layer, q, k, v)
        return self.projection(y.transpose(1, 2).reshape(B, T, H * D))


class MLP(nn.Module):
    """Position-wise feed-forward network; `swiglu` is Shazeer 2020, `relu2` is So et al. 2021."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation: str | None = config.activation  # None: part of `up`, as weights.py lays it out
        self.size = config.mlp_size
        gates = 2 if config.activation == "swiglu" else 1
        self.up = Linear(config.hidden_size, gates * self.size, bias=config.bias)  # swiglu: gate, then up
        self.projection = Linear(self.size, config.hidden_size, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        match self.activation:
            case "relu2":
                x = relu_squared(x)
            case "gelu":
                x = F.gelu(x, approximate="tanh")
            case "gelu_erf":
                x = F.gelu(x)
            case "swiglu":
                gate, up = x.chunk(2, dim=-1)
                x = F.silu(gate) * up
        return self.projection(x)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = Norm(config), Attention(config, layer)
        self.mlp_norm, self.mlp = Norm(config), MLP(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None, layout: Layout | None) -> Tensor:
        x = x + self.drop(self.attention(self.attention_norm(x), rotation, layout))
        return x + self.drop(self.mlp(self.mlp_norm(x)))

    def drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout) if self.dropout and self.training else x


class GPT(nn.Module):
    """A decoder-only transformer language model.

    A new one has weights of no meaning: call `initialize` or load them.
    Raises nothing on ids outside of the vocabulary beyond what indexing does: check data before training on it.
    """

    rotary_cos: Tensor
    rotary_sin: Tensor
    compiled_blocks: Sequence[Callable[..., Tensor]] = ()  # for training on whole windows (hardware.compiler)

    def __init__(self, config: ModelConfig, *, labels: int = 0) -> None:
        """`labels`: rows of a classification head beside the language model's, which reads the last token."""
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("a model needs config.vocab_size")
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        if config.position == "learned":
            self.position_embedding = Embedding(config.context_length, config.hidden_size)
        self.embedding_norm = Norm(config) if config.embedding_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = Norm(config)
        self.head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.label_head = Linear(config.hidden_size, labels, bias=False) if labels else None
        self._make_rotary_tables()

    def _make_rotary_tables(self) -> None:
        empty = (torch.empty(0), torch.empty(0))
        cos, sin = rotary_tables(self.config) if self.config.position == "rope" else empty
        self.register_buffer("rotary_cos", cos, persistent=False)
        self.register_buffer("rotary_sin", sin, persistent=False)

    def take(self, weights: dict[str, Tensor]) -> None:
        """Make the tensors the weights of a model that was built on the meta device, where it costs no memory."""
        self.load_state_dict(weights, assign=True, strict=False)
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self._make_rotary_tables()

    def hidden(self, ids: Tensor, *, dtype: torch.dtype | None = None, layout: Layout | None = None) -> Tensor:
        """Ids (B, T) -> the head's input (B, T, C) in `dtype` (default: the embedding's)."""
        config = self.config
        T = ids.shape[1]
        if layout is None and config.context_length < T:
            raise ValueError(f"{T} tokens do not fit a context of {config.context_length}")
        positions = slice(T) if layout is None else layout.positions
        x = self.embedding(ids).to(dtype or self.embedding.weight.dtype)
        if config.position == "learned":
            x = x + self.position_embedding.weight[positions].to(x.dtype)
        rotation = None
        if config.position == "rope":  # (T, D) or (B, T, D): the same for every head
            rotation = self.rotary_cos[positions].to(x.dtype), self.rotary_sin[positions].to(x.dtype)
        x = self.embedding_norm(x)
        if config.dropout and self.training:
            x = dropout(x, config.dropout)
        compiled = self.training and layout is None  # else each shape would be compiled anew
        for block in (compiled and self.compiled_blocks) or self.blocks:
            x = block(x, rotation, layout)
        if layout is not None:
            layout.commit()
        return self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Head input (..., C) -> logits (..., V) in float32, soft-capped where the config says so."""
        return softcap(self.head(hidden).float(), self.config.logit_softcap)

    def label_logits(self, hidden: Tensor) -> Tensor:
        """Return the classification head's logits (N, labels), float32, of hidden states (N, C)."""
        assert self.label_head is not None
        rate = self.config.dropout if self.training else 0.0
        logits: Tensor = self.label_head(dropout(hidden, rate) if rate else hidden)
        return logits.float()

    def forward(self, ids: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Ids (B, T) -> logits (B, T, V), float32."""
        return self.logits(self.hidden(ids, dtype=dtype))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw initial weights from `generator`, in a fixed order.

        With `init_std`, N(0, std), projections into the residual stream N(0, std / sqrt(2 layers)) (Radford et al.
        2019); without it, uniform with std 1/sqrt(fan-in), embeddings N(0, 1) and a head near zero, so that the first
        loss is ln V.
        """
        std = self.config.init_std
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                weight.fill_(1.0 if name.endswith("norm.weight") else 0.0)
            elif name.endswith("projection.weight") and self.config.zero_init_projections:
                weight.zero_()
            elif std is not None:
                scale = std / math.sqrt(2 * self.config.num_layers) if name.endswith("projection.weight") else std
                weight.normal_(0.0, scale, generator=generator)
            elif name == "head.weight":
                weight.normal_(0.0, 1e-3, generator=generator)
            elif "embedding" in name:
                weight.normal_(0.0, 1.0, generator=generator)
            else:
                bound = math.sqrt(3.0 / weight.shape[1])
                weight.uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def grow(self, vocab_size: int) -> None:
        """Make room for new tokens: each begins as the mean of those there are, as likely as an average one."""
        have = self.config.vocab_size
        assert have is not None
        if vocab_size <= have:
            return
        self.config = dataclasses.replace(self.config, vocab_size=vocab_size)
        for layer in (self.embedding, self.head):
            rows = layer.weight.mean(0, keepdim=True).expand(vocab_size - have, -1)
            layer.weight = nn.Parameter(torch.cat((layer.weight, rows)))
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.embedding.num_embeddings = self.head.out_features = vocab_size

    def add_label_head(self, labels: int, generator: torch.Generator) -> None:
        """A new classification head, small at first so that every label is about as likely."""
        weight = torch.empty(labels, self.config.hidden_size).normal_(0.0, 0.02, generator=generator)
        self.label_head = Linear(self.config.hidden_size, labels, bias=False)
        self.label_head.weight = nn.Parameter(weight.to(self.embedding.weight.device))

    @torch.no_grad()
    def level_embedding(self) -> None:
        """Give every row of the embedding a mean square of 1 where a norm follows: to the model it is the same.

        Pretraining makes rows long (three times as long in 200 steps), and under a norm a long row turns slowly.
        """
        if self.config.embedding_norm and not self.config.tie_embeddings and self.config.position == "rope":
            weight = self.embedding.weight
            weight.mul_(weight.square().mean(1, keepdim=True).clamp_min(1e-12).rsqrt())

    @property
    def dropout_rate(self) -> float:
        """The rate of dropout: the config's while training, else 0."""
        return self.config.dropout if self.training else 0.0

    def set_dropout(self, dropout: float) -> None:
        """Another rate of dropout, everywhere."""
        self.config = dataclasses.replace(self.config, dropout=dropout)
        for module in self.modules():
            if isinstance(module, Block):
                module.dropout = dropout
            elif isinstance(module, Attention):
                module.config = self.config

    def num_parameters(self) -> int:
        """Parameters, a tied head counted once."""
        return sum(weight.numel() for weight in self.parameters())

    def train_flops_per_token(self, context_length: int) -> float:
        """FLOPs of forward and backward: 6 a weight in a matrix product and 12 L H D T of attention, not halved for
        causality (Chowdhery et al. 2022, appendix B)."""
        config = self.config
        weights = sum(m.weight.numel() for m in self.modules() if isinstance(m, Linear))
        return 6.0 * weights + 12.0 * config.num_layers * config.num_heads * config.head_size * context_length

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the matrices inside the blocks; of one head's query, key or value where all are stacked
        in one weight."""
        return {
            name: (self.config.head_size if name.endswith("qkv.weight") else weight.shape[0], weight.shape[1])
            for name, weight in self.named_parameters()
            if weight.ndim == 2 and name.startswith("blocks.")
        }


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """The model without dropout within the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def softcap(logits: Tensor, cap: float) -> Tensor:
    """cap x tanh(logits / cap), which bounds logits smoothly (Gemma team 2024); cap 0 leaves them alone."""
    return cap * torch.tanh(logits / cap) if cap else logits


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and signed sin (T, D) of every position, in the half-split layout of Llama (Su et al. 2021)."""
    T, D = config.context_length, config.head_size
    cos, sin = torch.empty(T, D), torch.empty(T, D)
    if cos.is_meta:  # without values; computing them there would import torch._dynamo, which takes a second
        return cos, sin
    frequencies = config.rope_theta ** (-torch.arange(0, D, 2, dtype=torch.float64) / D)
    for start in range(0, T, ROTARY_BLOCK):  # so that only the tables themselves need memory
        block = slice(start, min(start + ROTARY_BLOCK, T))
        angles = torch.outer(torch.arange(block.start, block.stop, dtype=torch.float64), frequencies)  # (block, D/2)
        cos[block] = angles.cos().repeat(1, 2)
        sin[block] = torch.cat((-angles.sin(), angles.sin()), 1)
    return cos, sin
