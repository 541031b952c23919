"""The engine as a service: texts come, go and fail while others are written, and none is any other for it."""

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import randomized

from gptcli.base.errors import DataError, NumericalError
from gptcli.config.generate import GenerateOptions
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import Tokenizer, learn_merges
from gptcli.device.runtime import Runtime
from gptcli.generate import engine as engine_module
from gptcli.generate.engine import CHUNK_TOKENS, Completion, Engine, Request
from gptcli.generate.packed_weights import pack
from gptcli.model.gpt import GPT

torch.set_num_threads(1)
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)
WORDS = "the cat sat on the mat and the dog lay under the table while it rained all day"
CONTEXT = 640


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_merges([WORDS] * 3, vocab_size=300)


def make_model(tokenizer: Tokenizer, preset: str = "modern", context: int = CONTEXT) -> GPT:
    shape = {"num_layers": 2, "num_heads": 4, "hidden_size": 32, "context_length": context}
    return randomized(GPT(ModelConfig.from_preset(preset, **shape, vocab_size=tokenizer.vocab_size)), 0.4)


@pytest.fixture(scope="module", params=[None, "int8"])
def packed(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> tuple[GPT, Runtime]:
    model = make_model(tokenizer)
    return model, pack(model, CPU, quantize=request.param)


class Passes:
    """The numbers of tokens that passed through the model, one for each pass."""

    def __init__(self, model: GPT) -> None:
        self.tokens: list[int] = []
        self.hook = model.embedding.register_forward_pre_hook(lambda _, inputs: self.tokens.append(inputs[0].numel()))

    def taken(self) -> list[int]:
        tokens, self.tokens = self.tokens, []
        return tokens


@pytest.fixture
def passes(packed: tuple[GPT, Runtime]) -> Iterator[Passes]:
    counted = Passes(packed[0])
    yield counted
    counted.hook.remove()


def ids(seed: int, count: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(256) for _ in range(count)]


def outcome(completion: Completion) -> tuple[list[int], str, str | None, list[float]]:
    return completion.ids, completion.text, completion.finish_reason, completion.logprobs


def drain(engine: Engine) -> None:
    while engine.busy:
        engine.step()


def alone(model: GPT, tokenizer: Tokenizer, runtime: Runtime, request: Request) -> Any:
    (completion,) = Engine(model, tokenizer, runtime, slots=1).run([request])
    return outcome(completion)


# --------------------------------------------------------------------------------------------------- bits, any way


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000))
def test_a_text_has_the_same_bits_whatever_comes_and_goes_beside_it(
    packed: tuple[GPT, Runtime], tokenizer: Tokenizer, seed: int
) -> None:
    """Requests of every length, added and given up at random moments: log-probabilities are equal to the bit."""
    model, runtime = packed
    chance = random.Random(seed)
    requests = [
        Request(
            ids(chance.randrange(3), chance.choice([1, 20, 31, 32, 33, 100, 300, 600])),
            GenerateOptions(
                max_tokens=chance.randint(1, 12), temperature=1.0, seed=number, logprobs=2, stop_at_eos=False,
                frequency_penalty=chance.choice([0.0, 0.5]), lookup=chance.choice([0, 3]),
            ),
        )
        for number in range(8)
    ]  # fmt: skip
    engine = Engine(model, tokenizer, runtime, slots=3)
    waiting, texts = list(requests), list[Completion]()
    given_up: set[Completion] = set()
    while waiting or engine.busy:
        engine.rest()
        for _ in range(min(chance.randrange(3), len(waiting))):
            texts.append(engine.add(waiting.pop(0)))
        engine.step(prompts_first=chance.random() < 0.2)
        if texts and chance.random() < 0.1:
            victim = chance.choice(texts)
            engine.cancel(victim)
            given_up |= {victim} if victim.finish_reason == "cancelled" else set()
    for completion in texts:
        wanted = alone(model, tokenizer, runtime, completion.request)
        if completion in given_up:
            assert completion.ids == wanted[0][: len(completion.ids)]
            assert completion.logprobs == wanted[3][: len(completion.ids)]
        else:
            assert outcome(completion) == wanted


def test_a_text_is_the_same_whatever_the_chunks(
    packed: tuple[GPT, Runtime], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, runtime = packed
    request = Request(ids(5, 500), GenerateOptions(max_tokens=9, temperature=1.0, logprobs=1, prompt_logprobs=2))
    found = []
    for size in (32, 96, 1024):
        monkeypatch.setattr(engine_module, "PREFILL_TOKENS", size)
        (completion,) = Engine(model, tokenizer, runtime, slots=1).run([request])
        found.append((outcome(completion), completion.prompt_logprobs, completion.prompt_alternatives))
    assert found[0] == found[1] == found[2]


# ------------------------------------------------------------------------------------------------- add, step, cancel


def test_a_running_text_waits_for_one_chunk_of_prompts_at_most(
    packed: tuple[GPT, Runtime], tokenizer: Tokenizer, passes: Passes
) -> None:
    """63 prompts of 200 tokens come while a text is written: every step gives it a token and computes one chunk."""
    engine = Engine(packed[0], tokenizer, packed[1], slots=64)
    options = GenerateOptions(max_tokens=400, temperature=1.0, stop_at_eos=False)
    running = engine.add(Request(ids(1, 5), options))
    engine.step()
    for number in range(63):
        engine.add(Request(ids(100 + number, 200), GenerateOptions(max_tokens=30, stop_at_eos=False)))
    passes.taken()
    while engine.waiting or engine.prefilling:
        written = len(running.ids)
        assert running in engine.step()
        assert len(running.ids) == written + 1
        prompt, *decoding = passes.taken()
        assert prompt <= CHUNK_TOKENS
        assert len(decoding) == 1
    assert len(running.ids) > 40


def test_a_first_token_is_told_before_the_next_is_computed(
    packed: tuple[GPT, Runtime], tokenizer: Tokenizer, passes: Passes
) -> None:
    engine = Engine(packed[0], tokenizer, packed[1], slots=4)
    texts = [engine.add(Request(ids(n, 20), GenerateOptions(max_tokens=9, stop_at_eos=False))) for n in range(3)]
    passes.taken()
    for count in (1, 2, 3):
        assert engine.step() == texts
        assert [len(text.ids) for text in texts] == [count] * 3
        assert len(passes.taken()) == 1


def test_an_engine_at_rest_keeps_its_texts_and_has_a_row_for_the_next(
    packed: tuple[GPT, Runtime], tokenizer: Tokenizer
) -> None:
    engine, options = Engine(packed[0], tokenizer, packed[1], slots=3), GenerateOptions(max_tokens=2)
    for number in range(3):
        engine.add(Request(ids(number, 40), options))
        drain(engine)
        engine.rest()
        assert bool(engine.prefixes.rows[0].ids) == (number == 2)
    assert engine.prefixes.rows[0].ids[1:41] == ids(0, 40)  # the oldest, where none is empty
    again = [engine.add(Request(ids(number, 40), options)) for number in (2, 1)]
    drain(engine)
    assert [completion.cached_tokens for completion in again] == [40, 40]


def test_a_text_that_is_given_up_frees_its_row_for_the_next(packed: tuple[GPT, Runtime], tokenizer: Tokenizer) -> None:
    """In every state: waiting, with half of its prompt computed, and in the making."""
    engine = Engine(packed[0], tokenizer, packed[1], slots=2)
    options = GenerateOptions(max_tokens=50, temperature=1.0, stop_at_eos=False)
    first = engine.add(Request(ids(1, 10), options))
    engine.step()
    long = engine.add(Request(ids(2, 600), options))
    last = engine.add(Request(ids(3, 10), options))
    engine.step()
    assert engine.prefilling is not None
    assert engine.free_rows == 0
    engine.cancel(long)
    assert (long.finish_reason, long.ids, engine.free_rows) == ("cancelled", [], 1)
    engine.step()
    assert len(last.ids) == 2
    engine.cancel(first, "timeout")
    assert (first.finish_reason, engine.free_rows) == ("timeout", 1)
    assert first.text == alone(packed[0], tokenizer, packed[1], first.request)[1][: len(first.text)]
    waiting = [engine.add(Request(ids(4 + n, 5), options)) for n in range(2)]
    engine.cancel(waiting[1])
    drain(engine)
    assert [text.finish_reason for text in (last, *waiting)] == ["length", "length", "cancelled"]
    engine.cancel(last)
    assert last.finish_reason == "length"
    assert outcome(last) == alone(packed[0], tokenizer, packed[1], last.request)


def test_a_short_text_never_waits_for_a_long_one_before_it(packed: tuple[GPT, Runtime], tokenizer: Tokenizer) -> None:
    """`steps` tells each as it ends; only `run` keeps the order."""
    engine = Engine(packed[0], tokenizer, packed[1], slots=2)
    asked = [Request([1], GenerateOptions(max_tokens=230, stop_at_eos=False))]
    asked += [Request([number % 250], GenerateOptions(max_tokens=2, stop_at_eos=False)) for number in range(200)]
    ended = [completion.number for completion in engine.steps(asked) if completion.finish_reason]
    assert ended.index(0) > 190


def test_the_cached_part_of_a_prompt_is_told(packed: tuple[GPT, Runtime], tokenizer: Tokenizer) -> None:
    engine = Engine(packed[0], tokenizer, packed[1], slots=3)
    options = GenerateOptions(max_tokens=1)
    one, other = ids(1, 100), [*ids(1, 90), 7, 7, 7]
    found = []
    for prompt in (one, other, one, [5]):
        found.append(engine.add(Request(prompt, options)))
        drain(engine)
    assert [completion.cached_tokens for completion in found] == [0, 63, 100, 0]  # 64 with <|endoftext|> before it


def test_owners_share_nothing_with_each_other(
    packed: tuple[GPT, Runtime], tokenizer: Tokenizer, passes: Passes
) -> None:
    engine = Engine(packed[0], tokenizer, packed[1], slots=3)
    for owner, computed in [("a", 101), ("b", 101), ("a", 0), ("b", 0)]:
        engine.add(Request(ids(1, 100), GenerateOptions(max_tokens=1), owner=owner))
        drain(engine)
        assert sum(passes.taken()) == computed


# --------------------------------------------------------------------------------------------------------- failures


def damaged(tokenizer: Tokenizer, position: int) -> GPT:
    model = copy.deepcopy(make_model(tokenizer, "gpt2", 128))
    with torch.no_grad():
        model.position_embedding.weight[position] = float("nan")
    return model


@pytest.mark.parametrize("slots", [2, 4])
@pytest.mark.parametrize("ahead", [0, 4])
def test_a_text_whose_logits_are_not_finite_ends_alone(tokenizer: Tokenizer, slots: int, ahead: int) -> None:
    """One position is poisoned: texts that reach it fail, the others, in the same rows later on too, are whole."""
    model, sound = damaged(tokenizer, 40), make_model(tokenizer, "gpt2", 128)
    asked = [
        Request(ids(number, 1 + number % 5 * 12), GenerateOptions(max_tokens=6, seed=number, lookup=number % 2 * 3))
        for number in range(30)
    ]
    found = list(Engine(model, tokenizer, CPU, slots=slots, ahead=ahead).run(asked, keep_failed=True))
    failed = 0
    for completion in found:
        wanted = alone(sound, tokenizer, CPU, completion.request)
        if len(completion.request.prompt) + len(wanted[0]) + (wanted[2] == "stop") > 40:
            assert completion.finish_reason == "error"
            assert isinstance(completion.error, NumericalError)
            assert completion.ids == wanted[0][: len(completion.ids)]
            failed += 1
        else:
            assert outcome(completion) == wanted
    assert 0 < failed < 30


def test_an_automaton_that_grows_too_large_ends_its_text_alone(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.generate.dfa.MAX_STATES", 100)
    engine = Engine(make_model(tokenizer), tokenizer, CPU, slots=2)
    never_c = ((float(tokenizer.encode("c")[0]), -100.0),)
    pattern = GenerateOptions(regex="(a|b)*a(a|b){12}c", max_tokens=300, temperature=5.0, logit_bias=never_c)
    bound = engine.add(Request([5], pattern))
    free = engine.add(Request([5], GenerateOptions(max_tokens=300, stop_at_eos=False)))
    drain(engine)
    assert bound.finish_reason == "error"
    assert "more than 100 states" in str(bound.error)
    assert free.finish_reason == "length"


def test_prompts_without_memory_for_them_fail_and_the_engine_goes_on(
    tokenizer: Tokenizer,
) -> None:
    model = make_model(tokenizer)
    engine = Engine(model, tokenizer, CPU, slots=3)
    options = GenerateOptions(max_tokens=20, stop_at_eos=False)
    running = engine.add(Request([5], options))
    engine.step()

    def exhausted(_: Any, inputs: tuple[torch.Tensor]) -> None:
        if inputs[0].numel() > 100:
            raise MemoryError

    hook = model.embedding.register_forward_pre_hook(exhausted)
    large = engine.add(Request(ids(1, 200), options))
    engine.step()
    hook.remove()
    later = engine.add(Request(ids(1, 200), options))
    drain(engine)
    assert (large.finish_reason, str(large.error).split(";")[0]) == ("error", "out of memory while reading the prompt")
    for completion in (running, later):
        assert outcome(completion) == alone(model, tokenizer, CPU, completion.request)


# ---------------------------------------------------------------------------------------- penalties, biases, prompts


def test_presence_and_frequency_penalties_count_what_was_written(tokenizer: Tokenizer) -> None:
    """Greedy, against a loop over whole windows: the prompt's tokens do not count."""
    model = make_model(tokenizer)
    prompt = tokenizer.encode("the cat sat on the")
    for presence, frequency in [(2.0, 0.0), (0.0, 1.5), (-1.0, 0.7)]:
        options = GenerateOptions(
            max_tokens=30, temperature=0.0, presence_penalty=presence, frequency_penalty=frequency, stop_at_eos=False
        )
        (completion,) = Engine(model, tokenizer, CPU, slots=1).run([Request(prompt, options)])
        written: list[int] = []
        for _ in range(30):
            logits = model(torch.tensor([[tokenizer.end_of_text, *prompt, *written]]))[0, -1].detach().double()
            for token in set(written):
                logits[token] -= presence + frequency * written.count(token)
            logits[tokenizer.end_of_text] = -torch.inf
            written.append(int(logits.argmax()))
        assert completion.ids == written


def test_a_bias_makes_tokens_certain_or_impossible(tokenizer: Tokenizer) -> None:
    model = make_model(tokenizer)
    letters = {tokenizer.encode(letter)[0] for letter in "xyz"}
    wanted = GenerateOptions(
        max_tokens=40, temperature=1.0, logit_bias=tuple((float(i), 100.0) for i in letters), logprobs=1
    )
    (completion,) = Engine(model, tokenizer, CPU, slots=1).run([Request([5], wanted)])
    assert set(completion.ids) <= letters
    assert min(completion.logprobs) < -1  # of the model, whatever the bias
    never = GenerateOptions(max_tokens=300, temperature=2.0, logit_bias=tuple((float(i), -100.0) for i in letters))
    (completion,) = Engine(model, tokenizer, CPU, slots=1).run([Request([5], never)])
    assert not letters & set(completion.ids)
    with pytest.raises(DataError, match="no token 900"):
        Engine(model, tokenizer, CPU, slots=1).fit([5], GenerateOptions(logit_bias=((900.0, 1.0),)))


@pytest.mark.parametrize("length", [0, 1, 70, 600])
@torch.no_grad()
def test_log_probabilities_of_a_prompt_are_those_of_the_model(tokenizer: Tokenizer, length: int) -> None:
    model, prompt = make_model(tokenizer), ids(1, length)
    engine = Engine(model, tokenizer, CPU, slots=2)
    for max_tokens in (3, 0):  # the second time over a prompt that is held
        options = GenerateOptions(max_tokens=max_tokens, prompt_logprobs=3, temperature=0.0, stop_at_eos=False)
        completion = engine.add(Request(prompt, options))
        drain(engine)
        assert (len(completion.ids), completion.finish_reason) == (max_tokens, "length")
        window = torch.tensor([[tokenizer.end_of_text, *prompt]])
        wanted = model(window)[0].double().log_softmax(-1)[:-1]
        assert completion.prompt_logprobs == pytest.approx(
            [float(row[token]) for row, token in zip(wanted, prompt, strict=True)], abs=1e-4
        )
        for likeliest, row in zip(completion.prompt_alternatives, wanted, strict=True):
            assert [index for index, _ in likeliest] == row.topk(3).indices.tolist()
