"""The embedding of token pairs: the same however a text is cut up, kept by checkpoints, known to every command."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import RunCli, Tiny
from random_models import randomized
from safetensors.torch import load_file

from gptcli.api.open_model import load
from gptcli.config.model import ModelConfig
from gptcli.generate.kv_cache import KVCache, Prefill, decode_layout
from gptcli.model.attention import PackedSequences
from gptcli.model.bigrams import PATTERNS, Bigrams
from gptcli.model.gpt import GPT

CONFIG = ModelConfig(num_layers=2, hidden_size=32, num_heads=4, context_length=48, vocab_size=60, bigram_rows=90)
IDS = torch.randint(60, (1, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> GPT:
    return randomized(GPT(CONFIG), 0.4)


def test_a_pair_is_its_row_times_its_signs(model: GPT) -> None:
    assert isinstance(model.bigrams, Bigrams)
    found = model.bigrams(IDS, torch.cat((torch.tensor([[-1]]), IDS[:, :-1]), 1), torch.float32)
    for place in range(IDS.shape[1]):
        token, before = int(IDS[0, place]), int(IDS[0, place - 1]) if place else -1
        row = (token * 0x9E3779B1 ^ before * 0x85EBCA6B) % 90
        assert torch.equal(found[0, place], model.bigrams.table[row] * model.bigrams.signs[(token ^ before) % PATTERNS])
    assert set(model.bigrams.signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(model.bigrams.signs.mean())) < 0.02


@torch.no_grad()
def test_logits_are_the_same_however_a_text_is_cut(model: GPT) -> None:
    """Whole, packed among others, from a cache in pieces, one by one, and two at a time with wrong guesses between."""
    whole = model(IDS)
    packed = model.hidden(torch.cat((IDS, IDS[:, :7]), 1), layout=PackedSequences([40, 7]))
    torch.testing.assert_close(model.logits(packed[:, :40]), whole)
    torch.testing.assert_close(model.logits(packed[:, 40:]), whole[:, :7])
    cache = KVCache(CONFIG, 2, 48, dtype=torch.float32, device=torch.device("cpu"))
    pieces = [model.hidden(part, layout=Prefill(cache, [1], [part.shape[1]])) for part in IDS[:, :20].split(9, 1)]
    cache.swap(0, 1)
    cache = cache.grown(CONFIG, 60)
    cache.copy(0, 1, 13)
    cache.copy(1, 0, 13)
    pieces = [torch.cat(pieces, 1)[:, :13]]
    for place in range(13, 40):
        guess = torch.stack((IDS[0, place], (IDS[0, place] + 1) % 60))[None]  # the second is wrong
        pieces.append(model.hidden(guess, layout=decode_layout(cache, 1, 2))[:, :1])
        cache.lengths[0] -= 1
    torch.testing.assert_close(model.logits(torch.cat(pieces, 1)), whole)


def test_a_new_model_begins_as_one_without_and_learns_pairs() -> None:
    model, plain = GPT(CONFIG), GPT(dataclasses.replace(CONFIG, bigram_rows=0))
    for each in (model, plain):
        each.initialize(torch.Generator().manual_seed(1))
    assert torch.equal(model(IDS), plain(IDS))
    model.head.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    F.cross_entropy(model(IDS)[0, :-1], IDS[0, 1:]).backward()
    assert model.bigrams is not None
    assert model.bigrams.table.grad is not None
    assert int((model.bigrams.table.grad.abs().sum(1) > 0).sum()) > 20


def test_a_config_of_before_has_none(tiny: Tiny) -> None:
    document = json.loads((tiny.checkpoint / "config.json").read_text())["model"]
    del document["bigram_rows"]
    assert ModelConfig.from_json(document).bigram_rows == 0


@pytest.fixture(scope="module")
def trained(tiny: Tiny, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with pairs, in a directory beside what tests make of it."""
    home = tmp_path_factory.mktemp("bigrams")
    shutil.copy(tiny.run_file, home / "run.yaml")
    how = ("-s", "run_dir=run", "-s", "model.bigram_rows=1500", "-s", "train.steps=40")
    result = run_cli("pretrain", tiny.run / "run.yaml", "-q", *how, cwd=home)
    assert result.code == 0, result.err
    return home


def test_a_checkpoint_holds_the_pairs(trained: Path, run_cli: RunCli) -> None:
    model, _ = load(trained / "run")
    assert model.bigrams is not None
    assert float(model.bigrams.table.detach().abs().max()) > 0
    assert load_file(trained / "run/latest/model.safetensors").keys() >= {"bigrams.table", "bigrams.factors"}
    for how in ((), ("--quantize", "int8")):
        result = run_cli("generate", "run", "the", "--max-tokens", 8, *how, cwd=trained)
        assert result.code == 0, result.err
    result = run_cli("plan", trained / "run/run.yaml", "--json", cwd=trained)
    assert json.loads(result.out)["parameters"]["total"] == model.num_parameters()


def test_it_is_resumed_tuned_and_adapted(trained: Path, run_cli: RunCli) -> None:
    (trained / "more.txt").write_text("a grey cat hid by the river. " * 200)
    how = ("-q", "-s", "run_dir=whole", "-s", "train.steps=60")
    assert run_cli("pretrain", trained / "run/run.yaml", *how, cwd=trained).code == 0
    for name in ("tuned", "adapted"):
        (trained / f"{name}.yaml").write_text(
            f"run_dir: {name}\nbase: run\ntask: text\ndata: {{train: [more.txt]}}\n"
            f"train: {{epochs: 1}}\nruntime: {{device: cpu, threads: 1}}\n{'lora: {rank: 2}' * (name == 'adapted')}\n"
        )
        result = run_cli("finetune", f"{name}.yaml", "-q", cwd=trained)
        assert result.code == 0, result.err
        assert run_cli("generate", name, "a grey", "--max-tokens", 3, cwd=trained).code == 0
    before, after = (load_file(trained / name / "latest/model.safetensors") for name in ("run", "tuned"))
    assert not torch.equal(before["bigrams.table"], after["bigrams.table"])


def test_no_class_of_another_library_holds_it(trained: Path, run_cli: RunCli) -> None:
    for form in (("--to", "hf"), ("--to", "gguf")):
        result = run_cli("export", "run", *form, "-o", "exported", cwd=trained)
        assert result.code != 0
        assert "bigram_rows" in result.err, result.err
