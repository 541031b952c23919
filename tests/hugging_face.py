"""Small models with random weights, and tokenizers, as transformers writes them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from random_models import scrambled
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from gptcli.data.tokenizer import NANOCHAT_PATTERN, PATTERNS, Tokenizer, learn_merges

VOCABULARY = 384
SHAPE: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
GPT2_SHAPE = {"n_layer": 2, "n_embd": 48, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}

CONFIGS = {
    "gpt2": transformers.GPT2Config(**GPT2_SHAPE),
    "gpt2-erf-untied": transformers.GPT2Config(
        **GPT2_SHAPE, activation_function="gelu", n_inner=100, tie_word_embeddings=False, layer_norm_epsilon=1e-3
    ),
    "llama": transformers.LlamaConfig(**SHAPE, rms_norm_eps=1e-5),
    "llama-gqa-tied-theta": transformers.LlamaConfig(
        **SHAPE,
        num_key_value_heads=2,
        head_dim=20,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    ),
    "llama-attention-bias": transformers.LlamaConfig(**SHAPE, attention_bias=True),
    "llama-biases": transformers.LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "qwen2": transformers.Qwen2Config(**SHAPE, num_key_value_heads=1),
    "qwen3": transformers.Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True),
    "nanochat": transformers.NanoChatConfig(**SHAPE, num_key_value_heads=2),
    "nanochat-no-softcap": transformers.NanoChatConfig(**SHAPE, final_logit_softcapping=None, hidden_act="gelu"),
}


def _rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 500.0, **values}


_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=16)
_HALF = {"rope_type": "default", "partial_rotary_factor": 1 / 3}  # four of twelve
_SLIDING = ["sliding_attention", "full_attention"]
_GEMMA = {**SHAPE, "num_key_value_heads": 2, "head_dim": 16}
_NEO_SHAPE = {"num_layers": 2, "hidden_size": 48, "num_heads": 4, "max_position_embeddings": 64,
              "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
_T = transformers

MORE = {
    "gpt2-variants": _T.GPT2Config(
        **GPT2_SHAPE, scale_attn_by_inverse_layer_idx=True, activation_function="silu", n_inner=70
    ),
    "gpt2-unscaled-relu": _T.GPT2Config(**GPT2_SHAPE, scale_attn_weights=False, activation_function="relu"),
    "gpt2-quick-gelu": _T.GPT2Config(**GPT2_SHAPE, activation_function="quick_gelu"),
    "gpt2-gelu-fast": _T.GPT2Config(**GPT2_SHAPE, activation_function="gelu_fast"),
    "llama-llama3": _T.LlamaConfig(**SHAPE, rope_parameters=_LLAMA3),
    "llama-linear": _T.LlamaConfig(**SHAPE, rope_parameters=_rope("linear", factor=4.0)),
    "llama-dynamic": _T.LlamaConfig(**SHAPE, rope_parameters=_rope("dynamic", factor=4.0)),
    "llama-yarn": _T.LlamaConfig(**SHAPE, rope_parameters=_YARN),
    "llama-mlp-bias": _T.LlamaConfig(**SHAPE, mlp_bias=True),
    "mistral": _T.MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=None),
    "mistral-window": _T.MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=7),
    "qwen2-window": _T.Qwen2Config(
        **SHAPE, num_key_value_heads=2, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
    "qwen2-yarn": _T.Qwen2Config(**SHAPE, num_key_value_heads=2, rope_parameters=_YARN),
    "qwen3-yarn": _T.Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=16, rope_parameters=_YARN),
    "smollm3": _T.SmolLM3Config(**SHAPE, num_key_value_heads=2, no_rope_layer_interval=2),
    "smollm3-window": _T.SmolLM3Config(
        **SHAPE, num_key_value_heads=2, no_rope_layers=[0, 1], use_sliding_window=True, sliding_window=8
    ),
    "gemma": _T.GemmaConfig(**_GEMMA),
    "gemma2": _T.Gemma2Config(**_GEMMA, sliding_window=9, query_pre_attn_scalar=24, attn_logit_softcapping=5.0),
    "gemma3": _T.Gemma3TextConfig(**_GEMMA, sliding_window=9, query_pre_attn_scalar=24, layer_types=_SLIDING),
    "gemma3-scaled": _T.Gemma3TextConfig(
        **_GEMMA,
        sliding_window=9,
        layer_types=_SLIDING,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "phi3": _T.Phi3Config(**SHAPE, num_key_value_heads=2),
    "phi3-window-partial": _T.Phi3Config(
        **SHAPE, sliding_window=6, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}
    ),
    "olmo": _T.OlmoConfig(**SHAPE, num_key_value_heads=2),
    "olmo2": _T.Olmo2Config(**SHAPE, num_key_value_heads=2),
    "granite": _T.GraniteConfig(
        **SHAPE, embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, attention_multiplier=0.05
    ),
    "stablelm": _T.StableLmConfig(**SHAPE, num_key_value_heads=2, use_qkv_bias=True, rope_parameters=_HALF),
    "stablelm-parallel": _T.StableLmConfig(
        **SHAPE, num_key_value_heads=4, use_parallel_residual=True, rope_parameters=_HALF
    ),
    "starcoder2": _T.Starcoder2Config(**SHAPE, num_key_value_heads=2, sliding_window=10),
    "gpt-neox": _T.GPTNeoXConfig(**SHAPE, rope_parameters=_HALF),
    "gpt-neox-serial": _T.GPTNeoXConfig(
        **SHAPE, use_parallel_residual=False, rope_parameters={"rope_type": "default", "partial_rotary_factor": 1.0}
    ),
    "gpt-neo": _T.GPTNeoConfig(**_NEO_SHAPE, attention_types=[[["global", "local"], 1]], window_size=7),
    "gpt-neo-global": _T.GPTNeoConfig(**_NEO_SHAPE, attention_types=[[["global"], 2]]),
    "gptj": _T.GPTJConfig(**GPT2_SHAPE, rotary_dim=8),
    "opt": _T.OPTConfig(
        num_hidden_layers=2, hidden_size=48, num_attention_heads=4, ffn_dim=96, max_position_embeddings=64,
        vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    ),
    "phi": _T.PhiConfig(**SHAPE, num_key_value_heads=2),
    "bloom": _T.BloomConfig(hidden_size=48, n_layer=2, n_head=4, vocab_size=VOCABULARY, bos_token_id=0,
                            eos_token_id=0, seq_length=64),
    "bloom-six-heads": _T.BloomConfig(hidden_size=48, n_layer=2, n_head=6, vocab_size=VOCABULARY, bos_token_id=0,
                                      eos_token_id=0, seq_length=64),
}  # fmt: skip
CONFIGS |= MORE


def random_model(config: Any) -> Any:
    """Weights far from their initial values, norms and biases too, so that a swapped one shows."""
    torch.manual_seed(1)
    return scrambled(transformers.AutoModelForCausalLM.from_config(config))


def made_up_text(count: int, seed: int) -> list[str]:
    """Strings of words, digits, spaces, marks and characters of many scripts."""
    draw = random.Random(seed)
    pieces = [
        "the",
        "The",
        " lazy",
        " dog's",
        "n't",
        "  ",
        "\n",
        "\n\n  ",
        "\t",
        "12",
        "3456",
        "7",
        "...",
        "!?",
        " $",
        "_",
    ]
    pieces += [
        "é",
        "e\u0301",
        "ß",
        "日本",
        "語",
        "🙂",
        "👩‍👩‍👧",
        "Ж",
        "ж",
        "\u00a0",
        "\u200b",
        "ﬁ",
        "Ⅷ",
        "½",
        "\x00",
        "#",
        "'S",
        "'re",
    ]
    return ["".join(draw.choice(pieces) for _ in range(draw.randint(0, 12))) for _ in range(count)]


def made_tokenizer(pattern: str = "gpt2", *, normalizer: Any = None) -> tokenizers.Tokenizer:
    """Byte-level BPE with <|endoftext|> as id 0, made by the tokenizers library alone."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern in ("gpt2", "digits"))
    if pattern == "digits":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    elif regex := {**PATTERNS, "nanochat": NANOCHAT_PATTERN}[pattern]:
        split = pre_tokenizers.Split(Regex(regex), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|bos|>" if pattern == "nanochat" else "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(made_up_text(2000, seed=1), trainer=trainer)
    return tokenizer


def hf_directory(path: Path, config: Any, tokenizer: tokenizers.Tokenizer | None = None, **how: Any) -> Any:
    """Write a model and a tokenizer as transformers does; returns the model."""
    model = random_model(config)
    model.save_pretrained(path, **how)
    tokenizer = tokenizer or made_tokenizer()
    mark = tokenizer.id_to_token(0)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=mark, eos_token=mark)
    fast.save_pretrained(path)
    return model


def edit_config(path: Path, **changes: Any) -> None:
    """Change keys of a config.json; None removes one."""
    document = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def some_ids(count: int = 64) -> torch.Tensor:
    return torch.randint(VOCABULARY, (2, count), generator=torch.Generator().manual_seed(2))


def made_text_tokenizer(pattern: str = "gpt2") -> Tokenizer:
    """One of ours, learnt from made-up text, a little smaller than VOCABULARY."""
    return learn_merges(made_up_text(2000, seed=1), vocab_size=VOCABULARY - 5, pattern=pattern)
