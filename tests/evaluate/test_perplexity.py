"""Scores of documents: every token once, as a loop over single tokens would find them."""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.base.errors import NumericalError
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import Tokenizer, learn_merges
from gptcli.device.runtime import Runtime
from gptcli.evaluate import scoring
from gptcli.evaluate.perplexity import TextScore, score_documents, spans
from gptcli.model.gpt import GPT

torch.set_num_threads(1)  # shapes so small that threads only wait for each other

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)
WINDOW = 12
TEXTS = ["a cat", "", "the cat sat on the mat, and then the cat sat on the naïve dog ☃", "x", "dogs and cats and dogs"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_merges(TEXTS * 2, vocab_size=264, specials=["<|user|>"])


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> GPT:
    shape = {"num_layers": 2, "num_heads": 2, "hidden_size": 16, "context_length": WINDOW}
    model = GPT(ModelConfig(**shape, vocab_size=tokenizer.vocab_size, logit_softcap=3.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.5, generator=generator)
    return model.eval()


def small_model(tokenizer: Tokenizer, **changes: Any) -> GPT:
    shape = {"num_layers": 1, "hidden_size": 16, "context_length": 8, "vocab_size": tokenizer.vocab_size}
    model = GPT(ModelConfig(**shape, **changes))
    model.initialize(torch.Generator().manual_seed(1))
    return model


def scores_of(
    model: GPT, tokenizer: Tokenizer, documents: Sequence[list[int]], stride: int | None = None
) -> list[TextScore]:
    return list(score_documents(model, tokenizer, documents, CPU, stride=stride))


@torch.no_grad()
def written_nats(model: GPT, tokenizer: Tokenizer, ids: list[int], stride: int) -> float:
    """One forward pass for every token, over the part of its window that lies before it."""
    total = 0.0
    for place, token in enumerate(ids):
        start = 0 if place < WINDOW else ((place - WINDOW) // stride + 1) * stride
        logits = model(torch.tensor([[tokenizer.end_of_text, *ids[start:place]]]))[0, -1]
        if token not in tokenizer.specials.values():
            total -= float(logits.double().log_softmax(-1)[token])
    return total


# --------------------------------------------------------------------------------------------------------- spans


@settings(deadline=None, max_examples=300)
@given(length=st.integers(0, 100), window=st.integers(1, 30), data=st.data())
def test_spans_score_every_token_once_with_the_promised_context(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    scored = []
    for number, span in enumerate(spans(3, list(range(length)), window=window, stride=stride)):
        assert span.document == 3
        assert bool(length) <= len(span.ids) <= window
        assert span.ids == list(range(length))[len(scored) - span.first :][: len(span.ids)]
        assert span.first == (0 if number == 0 else window - stride)
        scored += span.ids[span.first :]
    assert scored == list(range(length))


# -------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("stride", [1, 2, 5, 6, 11, 12])
def test_scores_equal_a_loop_over_single_tokens(model: GPT, tokenizer: Tokenizer, stride: int) -> None:
    documents = tokenizer.encode_batch(TEXTS)
    assert max(map(len, documents)) > 2 * WINDOW
    for ids, text, score in zip(documents, TEXTS, scores_of(model, tokenizer, documents, stride), strict=True):
        assert score.nats == pytest.approx(written_nats(model, tokenizer, ids, stride), rel=1e-5, abs=1e-6)
        assert (score.tokens, score.bytes) == (len(ids), len(text.encode()))


def test_the_default_stride_is_half_a_window_and_a_longer_one_is_a_window(model: GPT, tokenizer: Tokenizer) -> None:
    documents = tokenizer.encode_batch(TEXTS)
    assert scores_of(model, tokenizer, documents) == scores_of(model, tokenizer, documents, WINDOW // 2)
    assert scores_of(model, tokenizer, documents, 99) == scores_of(model, tokenizer, documents, WINDOW)


def test_specials_are_context_and_are_not_scored(model: GPT, tokenizer: Tokenizer) -> None:
    user = tokenizer.specials["<|user|>"]
    ids = [*tokenizer.encode("a cat"), user, *tokenizer.encode("a dog"), user]
    (score,) = scores_of(model, tokenizer, [ids])
    assert score.tokens == len(ids) - 2
    assert score.bytes == len(b"a cata dog")
    assert score.nats == pytest.approx(written_nats(model, tokenizer, ids, WINDOW // 2), rel=1e-5)
    (without,) = scores_of(model, tokenizer, [[index for index in ids if index != user]])
    assert score.nats != pytest.approx(without.nats, rel=1e-3)


@pytest.mark.parametrize("batch_tokens", [WINDOW, 3 * WINDOW, 1000])
def test_documents_in_a_batch_do_not_change_each_other(
    model: GPT, tokenizer: Tokenizer, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = tokenizer.encode_batch(TEXTS)
    alone = [score for ids in documents for score in scores_of(model, tokenizer, [ids])]
    monkeypatch.setattr(scoring, "BATCH_TOKENS", batch_tokens)
    for score, reference in zip(scores_of(model, tokenizer, documents), alone, strict=True):
        assert score.nats == pytest.approx(reference.nats, rel=1e-5)
        assert (score.tokens, score.bytes) == (reference.tokens, reference.bytes)


def test_scores_come_in_the_order_of_the_documents(model: GPT, tokenizer: Tokenizer) -> None:
    documents = tokenizer.encode_batch(["x" * (number * 7 % 40) for number in range(30)])
    assert [score.tokens for score in scores_of(model, tokenizer, documents)] == [len(ids) for ids in documents]


def test_a_model_without_knowledge_has_the_loss_of_the_uniform_distribution(tokenizer: Tokenizer) -> None:
    model = small_model(tokenizer)
    with torch.no_grad():
        model.head.weight.zero_()
    (score,) = scores_of(model, tokenizer, [tokenizer.encode(TEXTS[2])])
    assert score.perplexity == pytest.approx(tokenizer.vocab_size, rel=1e-5)


def test_progress_counts_scored_tokens(model: GPT, tokenizer: Tokenizer) -> None:
    documents, seen = tokenizer.encode_batch(TEXTS * 300), list[int]()
    list(score_documents(model, tokenizer, documents, CPU, progress=seen.append))
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == sum(map(len, documents))


def test_a_model_in_training_is_scored_without_dropout_and_goes_on_in_training(tokenizer: Tokenizer) -> None:
    model = small_model(tokenizer, dropout=0.5).train()
    documents = tokenizer.encode_batch(TEXTS)
    assert scores_of(model, tokenizer, documents) == scores_of(model, tokenizer, documents)
    assert model.training


def test_a_loss_that_is_not_finite_is_reported(model: GPT, tokenizer: Tokenizer) -> None:
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        damaged.embedding.weight.fill_(float("inf"))
    with pytest.raises(NumericalError, match="non-finite loss"):
        scores_of(damaged, tokenizer, [[1, 2]])


@given(st.floats(0, 1e6), st.integers(1, 10**6), st.integers(1, 10**6))
def test_means_follow_from_the_sums(nats: float, tokens: int, count: int) -> None:
    score = TextScore(nats, tokens, count)
    assert score.loss_nats == nats / tokens
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / count)
    assert score.perplexity == pytest.approx(math.exp(min(nats / tokens, 700)))


def test_a_document_is_read_no_further_than_its_next_window() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken) % 50)
            yield taken[-1]

    first, second = itertools.islice(spans(0, endless(), window=WINDOW, stride=5), 2)
    assert len(taken) == WINDOW + 5
    assert first.ids + second.ids[second.first :] == taken
