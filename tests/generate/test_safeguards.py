"""Output filters: nothing that is blocked or personal is let out, and texts are the same alone or in a batch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RunCli, Tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import randomized

from gptcli.config.generate import GenerateOptions
from gptcli.config.model import ModelConfig
from gptcli.data.filters.pii import find_pii
from gptcli.data.grams import run_hashes
from gptcli.data.tokenizer import Tokenizer, learn_merges
from gptcli.device.runtime import Runtime
from gptcli.generate.blocking import Blocked
from gptcli.generate.engine import Completion, Engine, Request
from gptcli.generate.masking import Mask
from gptcli.generate.safeguards import Safeguards
from gptcli.generate.watermark import Watermark
from gptcli.model.gpt import GPT

torch.set_num_threads(1)
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)
WORDS = "the cat sat on the mat and the dog lay under the table while it rained all day"
PRIVATE = ("anna.smith@mail.example.org", "+49 30 901820", "4111 1111 1111 1111", "DE89 3704 0044 0532 0130 00")


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return learn_merges([WORDS] * 3, vocab_size=280)


@pytest.fixture(scope="module")
def model(words: Tokenizer) -> GPT:
    shape = {"num_layers": 2, "num_heads": 4, "hidden_size": 32, "context_length": 128}
    return randomized(GPT(ModelConfig(**shape, vocab_size=words.vocab_size)), 0.05)


def write(model: GPT, words: Tokenizer, asked: list[Request], slots: int = 8, **measures: Any) -> list[Completion]:
    return list(Engine(model, words, CPU, slots=slots, safeguards=Safeguards(**measures)).run(asked))


def requests(count: int, **options: Any) -> list[Request]:
    given = {"max_tokens": 40, "temperature": 0.7, "top_k": 6, "stop_at_eos": False, **options}
    return [Request([number % 256], GenerateOptions(seed=number, **given)) for number in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*PRIVATE, "a word", "two\nlines", "x" * 90, "1.2.3.4"]), max_size=12), st.data())
def test_no_cut_of_a_text_lets_personal_data_out(parts: list[str], data: st.DataObject) -> None:
    text = " and ".join(parts)
    mask, out, at = Mask(), "", 0
    while at < len(text):
        step = data.draw(st.integers(1, 60))
        out += mask.add(text[at : at + step])
        at += step
    out += mask.add("", final=True)
    assert find_pii(out) == []
    assert not any(private in out for private in PRIVATE)
    if not find_pii(text):
        assert out == text


def test_blocked_phrases_are_never_written_in_any_case(model: GPT, words: Tokenizer) -> None:
    plain = write(model, words, requests(8))
    written = "".join(c.text for c in plain).casefold()
    commonest = max((letter for letter in set(written) if letter.isascii()), key=written.count)
    blocked = Blocked((commonest.upper(), "th"))
    asked = requests(8) + requests(2, temperature=0.0) + requests(2, lookup=3)
    alone = [write(model, words, [request], 1, blocked=blocked)[0].ids for request in asked]
    found = write(model, words, asked, blocked=blocked)
    assert [c.ids for c in found] == alone
    assert all(commonest not in c.text.casefold() and "th" not in c.text.casefold() for c in found)
    assert [c.ids for c in found[:8]] != [c.ids for c in plain]


@pytest.mark.parametrize("watermark", [None, Watermark(bytes(32), 4, "")])
def test_no_run_of_a_training_text_is_written(model: GPT, words: Tokenizer, watermark: Watermark | None) -> None:
    """Blocked are the texts that it would have written."""
    plain = write(model, words, requests(10), watermark=watermark)
    hashes = [run_hashes(np.array([*c.request.prompt, *c.ids]), 5) for c in plain]
    blocked = Blocked((), 5, np.unique(np.concatenate(hashes)))
    for completion in write(model, words, requests(10), blocked=blocked, watermark=watermark):
        ids = np.array([*completion.request.prompt, *completion.ids])
        assert not np.isin(run_hashes(ids, 5), blocked.runs).any()
        assert len(completion.ids) == 40


def test_where_everything_is_blocked_the_text_fails_alone(model: GPT, words: Tokenizer) -> None:
    asked = [Request([1], GenerateOptions(choices=("cat", "dog"))), *requests(2)]
    engine = Engine(model, words, CPU, safeguards=Safeguards(blocked=Blocked(("cat", "dog"))))
    found = list(engine.run(asked, keep_failed=True))
    assert "blocked" in str(found[0].error)
    assert [c.finish_reason for c in found[1:]] == ["length", "length"]


def test_the_flags_of_generate(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "list.txt").write_text("\ufeffe\nA\n")
    asked = ("generate", tiny.run, "The", "--max-tokens", 25, "--n", 3)
    found = run_cli(*asked, "--block-list", tmp_path / "list.txt")
    assert found.code == 0, found.err
    assert not set(found.text) & set("eEaA")
    secret = "--regex", "anna@mail\\.example\\.org", "--max-tokens", 60
    assert run_cli("generate", tiny.run, "The", *secret, "--mask-pii").text == "<EMAIL>"
    run_cli(*asked, "--mask-pii", "--logprobs", "--json").error(2, "generate", "--mask-pii")
    record = '{"prompt": "The", "logprobs": 1}\n'
    told = run_cli("generate", tiny.run, "--jsonl", "--mask-pii", input=record)
    assert "mask-pii" in json.loads(told.text)["error"]
    prepared = run_cli("prepare", tiny.corpus, "-t", tiny.tokenizer, "-o", tmp_path / "prepared", "-q")
    assert prepared.code == 0, prepared.err
    done = run_cli(*asked, "--block-training", tmp_path / "prepared", "--block-length", 2)
    assert done.code == 0, done.err
    (tmp_path / "empty.txt").write_text("\n")
    run_cli(*asked, "--block-list", tmp_path / "empty.txt").error(3, "generate", "no phrase")
