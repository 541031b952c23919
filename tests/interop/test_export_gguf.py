"""`gptcli export --to gguf`: llama.cpp loads it and writes the same greedy text.

Needs llama-cpp-python, which compiles llama.cpp when it is installed: pip install -e '.[test,test-gguf]'. Without it
only the errors are tested.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODEL, RunCli, english, tiny_run_file
from random_models import scrambled

from gptcli.api.export_model import export_gguf
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.report import Report
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import Tokenizer, learn_merges
from gptcli.interop.gguf_write import TYPES
from gptcli.model.gpt import GPT
from gptcli.train import checkpoint
from gptcli.train.metadata import ModelMetadata

SHAPE: dict[str, Any] = {"num_layers": 2, "hidden_size": 64, "num_heads": 4, "context_length": 64, "vocab_size": 400}
OURS = {
    "gpt2": ModelConfig.from_preset("gpt2", **SHAPE),
    "gpt2-untied-no-bias": ModelConfig.from_preset("gpt2", **SHAPE, tie_embeddings=False, bias=False),
    "llama": ModelConfig.from_preset("llama", **SHAPE, num_kv_heads=2, rope_theta=777.0),
    "llama-bias-tied-head-dim": ModelConfig.from_preset("llama", **SHAPE, bias=True, tie_embeddings=True, head_dim=32),
    "qwen3": ModelConfig.from_preset("llama", **SHAPE, qk_norm=True, qk_norm_weight=True, norm_weight=False),
}
TEXTS = [*english(300).splitlines(), "  two  spaces\n\n", "it's 12345 km, 日本 🙂!", "a\tb\r\nc", "\u00a0x"]


def our_tokenizer(pattern: str = "gpt2") -> Tokenizer:
    return learn_merges([english(400)], vocab_size=390, pattern=pattern)


def save(config: ModelConfig, path: Path, tokenizer: Tokenizer | None = None) -> tuple[GPT, Tokenizer]:
    """A checkpoint with random weights, far from their initial values."""
    torch.manual_seed(1)
    model = scrambled(GPT(config))
    tokenizer = tokenizer or our_tokenizer()
    path.mkdir()
    checkpoint.save_model(model, tokenizer, path, step=0)
    return model, tokenizer


def llama(path: Path, **how: Any) -> Any:
    """The exported model in llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(str(path / "model.gguf"), n_ctx=64, n_threads=1, verbose=False, **how)


@pytest.mark.parametrize("name", OURS)
def test_llama_cpp_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model, tokenizer = save(OURS[name], tmp_path / "ours")
    export_gguf(tmp_path / "ours", tmp_path / "gguf", dtype="float32", report=Report())
    theirs = llama(tmp_path / "gguf", logits_all=True)
    ids = theirs.tokenize(TEXTS[0].encode())
    assert ids == [tokenizer.end_of_text, *tokenizer.encode(TEXTS[0])]
    theirs.eval(ids)
    with torch.no_grad():
        ours = model(torch.tensor([ids]))[0]
    assert float((torch.tensor(theirs.scores[: len(ids)]) - ours).abs().max()) < 2e-3 * float(ours.abs().max())


@pytest.fixture(scope="module")
def trained(corpus: Path, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small Llama that has learnt some words, and its greedy text."""
    pytest.importorskip("llama_cpp")
    root = tmp_path_factory.mktemp("trained")
    shape = "{preset: llama, num_layers: 2, hidden_size: 64, num_heads: 4, num_kv_heads: 2, context_length: 64}"
    (root / "run.yaml").write_text(tiny_run_file(corpus, root / "run", steps=80).replace(TINY_MODEL, shape))
    result = run_cli("pretrain", root / "run.yaml", "-q")
    assert result.code == 0, result.err
    ours = run_cli("generate", root / "run", "--max-tokens", 16, "--temperature", 0, input="The miller")
    assert ours.code == 0, ours.err
    return root / "run", ours.text.removesuffix("\n")


@pytest.mark.parametrize("dtype", TYPES)
def test_llama_cpp_writes_the_same_greedy_text(dtype: str, trained: tuple[Path, str], tmp_path: Path) -> None:
    run, text = trained
    export_gguf(run, tmp_path / "gguf", dtype=dtype, report=Report())
    theirs = llama(tmp_path / "gguf")("The miller", max_tokens=16, temperature=0.0)
    assert theirs["choices"][0]["text"] == text


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2"])
def test_llama_cpp_gives_the_same_ids(pattern: str, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    _, tokenizer = save(OURS["gpt2"], tmp_path / "ours", our_tokenizer(pattern))
    export_gguf(tmp_path / "ours", tmp_path / "gguf", report=Report())
    theirs = llama(tmp_path / "gguf", vocab_only=True)
    for text in TEXTS:
        assert theirs.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text)
    assert theirs.detokenize(tokenizer.encode("日本 🙂")) == "日本 🙂".encode()


def test_sizes_follow_the_type(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    save(OURS["gpt2"], tmp_path / "ours")
    sizes = [export_gguf(tmp_path / "ours", tmp_path / dtype, dtype=dtype, report=Report()).bytes for dtype in TYPES]
    assert sizes[0] > 1.5 * sizes[1] > 1.5 * sizes[3]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"qk_norm": True}, "model.qk_norm"),
        ({"activation": "gelu_erf"}, "model.activation"),
        ({"logit_softcap": 9.0}, "logit_softcap"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_named(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    save(dataclasses.replace(OURS["gpt2"], **change), tmp_path / "ours")
    with pytest.raises(DataError, match=word):
        export_gguf(tmp_path / "ours", tmp_path / "gguf", report=Report())
    assert not (tmp_path / "gguf").exists()


def test_of_the_default_model_all_that_llama_cpp_cannot_hold_is_named(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    save(ModelConfig(**SHAPE), tmp_path / "ours")
    with pytest.raises(DataError) as raised:
        export_gguf(tmp_path / "ours", tmp_path / "gguf", report=Report())
    for word in ("model.embedding_norm: True", "model.activation: relu2"):
        assert word in str(raised.value)


def test_the_command_writes_a_file_with_a_card(trained: tuple[Path, str], tmp_path: Path, run_cli: RunCli) -> None:
    result = run_cli("export", trained[0], "-o", tmp_path / "gguf", "--to", "gguf", "--json")
    assert result.code == 0, result.err
    assert (tmp_path / "gguf" / "model.gguf").read_bytes()[:4] == b"GGUF"
    assert "add_bos_token" in (tmp_path / "gguf" / "README.md").read_text()


def test_a_classifier_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "ours").mkdir()
    model = GPT(OURS["gpt2"], labels=2)
    model.initialize(torch.Generator().manual_seed(1))
    metadata = ModelMetadata(labels=("no", "yes"))
    checkpoint.save_model(model, our_tokenizer(), tmp_path / "ours", step=0, metadata=metadata)
    with pytest.raises(DataError, match="classifier"):
        export_gguf(tmp_path / "ours", tmp_path / "gguf", report=Report())


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'gptcli\[gguf\]'"):
        export_gguf(tmp_path, tmp_path / "gguf", report=Report())
