"""The GPT, whole: token ids (B, T) -> logits (B, T, V).

One class holds the families of interop.families by explicit options (config.ModelConfig).

    B batch   T tokens   C hidden_size   H query heads   K key/value heads   D head width   V vocabulary

Weights are kept in float32 while training; activations have the dtype that `forward` is asked for, and each matrix is
cast when it is used (autocast casts as often and keeps more tensors in float32).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.config.model import ModelConfig
from gptcli.model.attention import AttentionRule, causal_attention
from gptcli.model.bigrams import Bigrams, previous_tokens
from gptcli.model.dropout import dropout
from gptcli.model.functional import normalize_and_rotate, relu_squared, rms_normalize, rotate
from gptcli.model.layers import Embedding, Linear, Norm, Scale, softcap
from gptcli.model.recompute import recomputed
from gptcli.model.rotary import rotary_tables

Rotation = tuple[Tensor, Tensor] | None  # cos and signed sin, (T, D) or (B, T, D): the same for every head


class Layout(Protocol):
    """The relation of tokens to each other, where they are not whole windows that begin at position 0: new tokens of a
    KV cache (kv_cache.Prefill and Decode), or sequences end to end (attention.PackedSequences)."""

    @property
    def positions(self) -> Tensor:
        """Return the position of every token in its sequence, (B, T)."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: AttentionRule) -> Tensor:
        """Compute attention of a layer: q (B, H, T, D), k and v (B, K, T, D) -> (B, H, T, D)."""

    def previous(self, ids: Tensor) -> Tensor:
        """Return the token before each of ids (B, T) in its sequence, bigrams.NO_TOKEN at the beginning of one."""

    def commit(self) -> None:
        """Note that the tokens have passed all layers."""


class Attention(nn.Module):
    """Multi-head causal self-attention (Vaswani et al. 2017), key/value heads in groups (Ainslie et al. 2023)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        H, K, D = config.num_heads, config.kv_heads, config.head_size
        self.rule = AttentionRule(
            window=config.window(layer), softcap=config.attention_softcap, alibi=config.position == "alibi"
        )
        # Kernels divide by sqrt(D); whatever else there is goes into the queries.
        self.query_scale = 1.0 if config.attention_scale is None else config.attention_scale * D**0.5
        if config.attention_scale_by_layer:
            self.query_scale /= layer + 1
        self.qkv = Linear(config.hidden_size, (H + 2 * K) * D, bias=config.biased("qkv"))
        self.projection = Linear(H * D, config.hidden_size, bias=config.biased("projection"))
        if config.qk_norm_weight:
            whole = config.qk_norm_width == "all"
            self.query_norm, self.key_norm = Scale(H * D if whole else D), Scale(K * D if whole else D)

    def forward(self, x: Tensor, rotation: Rotation, layout: Layout | None) -> Tensor:
        config = self.config
        B, T, _ = x.shape
        H, K, D = config.num_heads, config.kv_heads, config.head_size
        heads = self.qkv(x).view(B, T, H + 2 * K, D).permute(2, 0, 1, 3)  # (H+2K, B, T, D), as attention works on them
        q_and_k, v = heads.split_with_sizes((H + K, K))
        q_and_k = self.normalize_and_rotate(q_and_k, rotation)
        q, k, v = (part.transpose(0, 1) for part in (*q_and_k.split_with_sizes((H, K)), v))  # each (B, heads, T, D)
        if self.query_scale != 1.0:
            q = q * self.query_scale
        if layout is None:
            y = causal_attention(q, k, v, rule=self.rule, dropout=config.dropout if self.training else 0.0)
        else:
            y = layout.attend(self.layer, q, k, v, self.rule)
        return self.projection(y.transpose(1, 2).reshape(B, T, H * D))

    def normalize_and_rotate(self, q_and_k: Tensor, rotation: Rotation) -> Tensor:
        """Normalize queries and keys (H+K, B, T, D) as the config says (Henry et al. 2020) and rotate them."""
        config = self.config
        if not config.qk_norm:
            return q_and_k if rotation is None else rotate(q_and_k, *rotation)
        plain = not config.qk_norm_weight and config.qk_norm_width == "head"
        if plain and rotation is not None and config.rope_scaling.kind != "yarn":  # yarn's rotation changes norms
            return normalize_and_rotate(q_and_k, config.norm_eps, *rotation)
        H, K, D = config.num_heads, config.kv_heads, config.head_size
        if config.qk_norm_width == "head":
            q_and_k = rms_normalize(q_and_k, config.norm_eps)
        else:
            parts = (part.permute(1, 2, 0, 3) for part in q_and_k.split_with_sizes((H, K)))  # (B, T, heads, D) each
            normed = [rms_normalize(part.flatten(2), config.norm_eps).view_as(part) for part in parts]
            q_and_k = torch.cat(normed, 2).permute(2, 0, 1, 3)
        if config.qk_norm_weight:  # (H+K, 1, 1, D)
            scales = torch.cat((self.query_norm.weight.view(-1, D).expand(H, D),
                                self.key_norm.weight.view(-1, D).expand(K, D)))  # fmt: skip
            q_and_k = q_and_k * scales[:, None, None].to(q_and_k.dtype)
        return q_and_k if rotation is None else rotate(q_and_k, *rotation)


class MLP(nn.Module):
    """Position-wise feed-forward network; gated ones are Shazeer 2020, `relu2` is So et al. 2021."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation: str | None = config.activation  # None: part of `up`, as packed_weights lays it out
        self.size = config.mlp_size
        bias, gates = config.biased("mlp"), 2 if config.gated else 1
        self.up = Linear(config.hidden_size, gates * self.size, bias=bias)  # gated: gate, then up
        self.projection = Linear(self.size, config.hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        match self.activation:
            case "relu2":
                x = relu_squared(x)
            case "relu":
                x = F.relu(x)
            case "silu":
                x = F.silu(x)
            case "gelu":
                x = F.gelu(x, approximate="tanh")
            case "gelu_erf":
                x = F.gelu(x)
            case "gelu_sigmoid":
                x = x * torch.sigmoid(1.702 * x)
            case "swiglu" | "geglu" | "geglu_erf":
                gate, up = x.chunk(2, dim=-1)
                if self.activation == "swiglu":
                    x = F.silu(gate) * up
                else:
                    x = F.gelu(gate, approximate="tanh" if self.activation == "geglu" else "none") * up
        return self.projection(x)


class Block(nn.Module):
    """Transformer block: attention and MLP, one after the other or beside each other, and norms around them."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        before, after = (config.norm_placement in (place, "both") for place in ("before", "after"))
        self.attention_norm = Norm(config) if before else nn.Identity()
        self.attention = Attention(config, layer)
        self.attention_post_norm = Norm(config) if after else None
        self.mlp_norm = Norm(config) if before and not config.shared_norm else nn.Identity()
        self.mlp = MLP(config)
        self.mlp_post_norm = Norm(config) if after else None
        self.parallel, self.shared_norm = config.parallel_block, config.shared_norm
        self.scale, self.dropout = config.residual_scale, config.dropout

    def forward(self, x: Tensor, rotation: Rotation, layout: Layout | None) -> Tensor:
        normed = self.attention_norm(x)
        attended = self.finish(self.attention(normed, rotation, layout), self.attention_post_norm)
        if self.parallel:  # Wang and Komatsuzaki 2021
            normed = normed if self.shared_norm else self.mlp_norm(x)
            return x + attended + self.finish(self.mlp(normed), None)
        x = x + attended
        return x + self.finish(self.mlp(self.mlp_norm(x)), self.mlp_post_norm)

    def finish(self, x: Tensor, norm: Norm | None) -> Tensor:
        """Return what a sub-layer adds to the stream."""
        if norm is not None:
            x = norm(x)
        if self.scale != 1.0:
            x = x * self.scale
        return dropout(x, self.dropout) if self.dropout and self.training else x


class GPT(nn.Module):
    """A decoder-only transformer language model.

    A new one has weights of no meaning: call `initialize` or load them.
    Raises nothing on ids outside of the vocabulary beyond what indexing does: check data before training on it.
    """

    rotary_cos: Tensor
    rotary_sin: Tensor
    local_cos: Tensor  # of layers of sliding attention, where rope_local_theta is set
    local_sin: Tensor
    activation_checkpointing = False  # training stores only the input of each block
    compiled_blocks: Sequence[Callable[..., Tensor]] = ()  # for training on whole windows (train.compile)

    def __init__(self, config: ModelConfig, *, labels: int = 0) -> None:
        """Make an uninitialized model; `labels` rows give it a classification head too, which reads the last token."""
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("a model needs config.vocab_size")
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.hidden_size)
        if config.position == "learned":
            self.position_embedding = Embedding(config.context_length, config.hidden_size)
        self.embedding_norm = Norm(config) if config.embedding_norm else nn.Identity()
        self.bigrams = Bigrams(config) if config.bigram_rows else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = Norm(config)
        self.head = Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.label_head = Linear(config.hidden_size, labels, bias=False) if labels else None
        self._make_rotary_tables()

    def make_tables(self) -> None:
        """Make what is no weight, of a model that was built on the meta device."""
        self._make_rotary_tables()
        if self.bigrams is not None:
            self.bigrams.make_signs()

    def _make_rotary_tables(self) -> None:
        wanted = {self.config.rotation(layer) for layer in range(self.config.num_layers)}
        for kind, prefix in (("rope", "rotary"), ("local", "local")):
            tables = rotary_tables(self.config, local=kind == "local") if kind in wanted else (torch.empty(0),) * 2
            for name, table in zip(("cos", "sin"), tables, strict=True):
                self.register_buffer(f"{prefix}_{name}", table, persistent=False)

    def take(self, weights: dict[str, Tensor]) -> None:
        """Make the tensors the weights of a model that was built on the meta device, where it costs no memory."""
        self.load_state_dict(weights, assign=True, strict=False)
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.make_tables()

    def hidden(self, ids: Tensor, *, dtype: torch.dtype | None = None, layout: Layout | None = None) -> Tensor:
        """Map ids (B, T) -> the head's input (B, T, C) in `dtype` (default: the embedding's)."""
        config = self.config
        T = ids.shape[1]
        if layout is None and config.context_length < T:
            raise ValueError(f"{T} tokens do not fit a context of {config.context_length}")
        positions = slice(T) if layout is None else layout.positions
        x = self.embedding(ids).to(dtype or self.embedding.weight.dtype)
        if config.embedding_scale != 1.0:
            x = x * config.embedding_scale
        if config.position == "learned":
            x = x + self.position_embedding.weight[positions].to(x.dtype)
        rotations: dict[str, Rotation] = {"none": None}
        for kind, cos, sin in (("rope", self.rotary_cos, self.rotary_sin), ("local", self.local_cos, self.local_sin)):
            if cos.numel():
                rotations[kind] = cos[positions].to(x.dtype), sin[positions].to(x.dtype)
        x = self.embedding_norm(x)
        if config.dropout and self.training:
            x = dropout(x, config.dropout)
        compiled = self.training and layout is None  # else each shape would be compiled anew
        blocks: Iterable[Callable[..., Tensor]] = (compiled and self.compiled_blocks) or self.blocks
        pairs = None
        if self.bigrams is not None:
            before = previous_tokens(ids) if layout is None else layout.previous(ids)
            pairs = self.bigrams(ids, before, x.dtype)
        for layer, block in enumerate(blocks):
            if pairs is not None and self.bigrams is not None:
                x = torch.addcmul(x, pairs, self.bigrams.factors[layer].to(x.dtype))
            rotation = rotations[config.rotation(layer)]
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                weights = list(self.blocks[layer].parameters())
                x = recomputed(block, x, (rotation, layout), weights, drops=config.dropout > 0)
            else:
                x = block(x, rotation, layout)
        if layout is not None:
            layout.commit()
        x = self.final_norm(x)
        return x * config.logit_scale if config.logit_scale != 1.0 else x  # here, so that every head has it

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) in float32 of the head's input (..., C), soft-capped where the config says so."""
        return softcap(self.head(hidden).float(), self.config.logit_softcap)

    def label_logits(self, hidden: Tensor) -> Tensor:
        """Return the classification head's logits (N, labels), float32, of hidden states (N, C)."""
        assert self.label_head is not None
        rate = self.config.dropout if self.training else 0.0
        logits: Tensor = self.label_head(dropout(hidden, rate) if rate else hidden)
        return logits.float()

    def forward(self, ids: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Map ids (B, T) -> logits (B, T, V), float32."""
        return self.logits(self.hidden(ids, dtype=dtype))

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Draw initial weights from `generator`, in a fixed order.

        With `init_std`, N(0, std), projections into the residual stream N(0, std / sqrt(2 layers)) (Radford et al.
        2019); without it, uniform with std 1/sqrt(fan-in), embeddings N(0, 1) and a head near zero, so that the first
        loss is ln V.
        """
        for name, weight in self.named_parameters():
            self.draw(name, weight, generator)

    @torch.no_grad()
    def draw(self, name: str, weight: Tensor, generator: torch.Generator) -> None:
        """Fill a tensor with the initial values of the weight of that name, as `initialize` does one after another."""
        std = self.config.init_std
        if self.bigrams is not None and name.startswith("bigrams."):
            self.bigrams.draw(name, weight)
        elif weight.ndim < 2:
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
        """Add rows for new tokens, each the mean of the existing rows; does nothing where there is room already."""
        have = self.config.vocab_size
        assert have is not None
        if vocab_size <= have:
            return
        self.config = dataclasses.replace(self.config, vocab_size=vocab_size)
        for layer in (self.embedding, self.head):
            rows = layer.weight.mean(0, keepdim=True).expand(vocab_size - have, -1)
            layer.weight = nn.Parameter(torch.cat((layer.weight, rows)))
        if self.head.bias is not None:
            self.head.bias = nn.Parameter(
                F.pad(self.head.bias, (0, vocab_size - have), value=float(self.head.bias.mean()))
            )
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.embedding.num_embeddings = self.head.out_features = vocab_size

    def add_label_head(self, labels: int, generator: torch.Generator) -> None:
        """Add a new classification head, small at first so that every label is about as likely."""
        weight = torch.empty(labels, self.config.hidden_size).normal_(0.0, 0.02, generator=generator)
        self.label_head = Linear(self.config.hidden_size, labels, bias=False)
        self.label_head.weight = nn.Parameter(weight.to(self.embedding.weight.device))

    @torch.no_grad()
    def level_embedding(self) -> None:
        """Give every row of the embedding a mean square of 1 where a norm follows: to the model it is the same.

        Pretraining makes rows long, and under a norm a long row turns slowly.
        """
        if self.config.embedding_norm and not self.config.tie_embeddings and self.config.position == "rope":
            weight = self.embedding.weight
            weight.mul_(weight.square().mean(1, keepdim=True).clamp_min(1e-12).rsqrt())

    @property
    def dropout_rate(self) -> float:
        """Return the rate of dropout: the config's while training, else 0."""
        return self.config.dropout if self.training else 0.0

    def set_dropout(self, dropout: float) -> None:
        """Set the rate of dropout everywhere."""
        self.config = dataclasses.replace(self.config, dropout=dropout)
        for module in self.modules():
            if isinstance(module, Block):
                module.dropout = dropout
            elif isinstance(module, Attention):
                module.config = self.config

    def num_parameters(self) -> int:
        """Count the parameters, a tied head once."""
        return sum(weight.numel() for weight in self.parameters())

    def train_flops_per_token(self, context_length: int) -> float:
        """Return the FLOPs of forward and backward per token (Chowdhery et al. 2022, appendix B).

        That is 6 a weight in a matrix product and 12 H D T of attention a layer, not halved for causality; in sliding
        attention its window takes the place of T.
        """
        config = self.config
        weights = sum(m.weight.numel() for m in self.modules() if isinstance(m, Linear))
        seen = sum(min(config.window(layer) or context_length, context_length) for layer in range(config.num_layers))
        return 6.0 * weights + 12.0 * config.num_heads * config.head_size * seen

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """Return rows and columns of the matrices inside the blocks; of one head's query, key or value where all are
        stacked in one weight."""
        return {
            name: (self.config.head_size if name.endswith("qkv.weight") else weight.shape[0], weight.shape[1])
            for name, weight in self.named_parameters()
            if weight.ndim == 2 and name.startswith("blocks.")
        }


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Hold the model in eval mode, without dropout, inside the `with` statement."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
