"""Log-probabilities of continuations: as one forward pass for each would find them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import Tokenizer, learn_merges
from gptcli.device.runtime import Runtime
from gptcli.evaluate import scoring
from gptcli.evaluate.scoring import Sequence, encode_pair, score_sequences
from gptcli.model.gpt import GPT

torch.set_num_threads(1)

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)
CONTEXT = 12
IDS = st.lists(st.integers(0, 49), min_size=2, max_size=CONTEXT + 1)


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(ModelConfig(num_layers=2, num_heads=2, hidden_size=16, context_length=CONTEXT, vocab_size=50))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_merges(["the cat sat on the mat " * 4, "New York  and\n\nthe dog's"] * 3, vocab_size=290)


@torch.no_grad()
def alone(model: GPT, sequence: Sequence) -> tuple[torch.Tensor, bool]:
    """By the model's logits, one sequence at a time."""
    ids, first = sequence
    logprobs = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)[first - 1 :]
    wanted = torch.tensor(ids[first:])
    return -logprobs.gather(1, wanted[:, None])[:, 0], bool((logprobs.argmax(-1) == wanted).all())


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(IDS, st.integers(1, 12)), max_size=8), batch_tokens=st.sampled_from([1, 20, 10_000]))
def test_sequences_in_a_batch_are_scored_as_each_alone(
    model: GPT, rows: list[tuple[list[int], int]], batch_tokens: int
) -> None:
    sequences = [Sequence(ids, min(first, len(ids) - 1)) for ids, first in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "BATCH_TOKENS", batch_tokens)
        found = list(score_sequences(model, sequences, CPU, greedy=True))
    assert len(found) == len(sequences)
    for sequence, scored in zip(sequences, found, strict=True):
        nats, greedy = alone(model, sequence)
        torch.testing.assert_close(scored.nats.double(), nats, rtol=1e-4, atol=1e-5)
        assert scored.greedy == greedy


def test_answers_of_one_token_to_one_question_share_a_forward_pass(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, **how: passed.append(ids.numel()) or hidden(ids, **how))
    list(score_sequences(model, [Sequence([3, 4, 5, last], 3) for last in range(9)], CPU))
    assert passed == [3]


def test_a_sequence_with_nothing_to_score_has_no_nats(model: GPT) -> None:
    empty, other = score_sequences(model, [Sequence([1], 1), Sequence([1, 2], 1)], CPU, greedy=True)
    assert empty.nats.tolist() == []
    assert empty.greedy is True
    assert len(other.nats) == 1


def test_a_sequence_longer_than_the_context_is_refused(model: GPT) -> None:
    with pytest.raises(ValueError, match="13 tokens do not fit a context of 12"):
        list(score_sequences(model, [Sequence([1] * 14, 1)], CPU))


WORDS = st.lists(st.sampled_from(["the", " cat", " ", "\n", "New", " York", "é", "'s", "  sat"]), max_size=5).map(
    "".join
)


@given(context=WORDS, continuation=WORDS)
def test_a_pair_is_the_whole_text_cut_before_the_spaces(tokenizer: Tokenizer, context: str, continuation: str) -> None:
    before, after = encode_pair(tokenizer, context, continuation)
    assert tokenizer.decode(before + after) == context + continuation
    assert tokenizer.decode(before) == context.rstrip()
    whole = tokenizer.encode(context + continuation)
    if whole[: len(before)] == before:
        assert before + after == whole
