"""Generation: independent of batching, exact at stop strings and at the end of the context."""

import copy
import gc
import itertools
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from random_models import randomized
from test_text_buffer import cut

from gptcli.base.errors import DataError, NumericalError
from gptcli.config.generate import GenerateOptions
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import Tokenizer, learn_merges
from gptcli.device.runtime import Runtime
from gptcli.generate.engine import Completion, Engine, Request
from gptcli.model.gpt import GPT

torch.set_num_threads(1)  # shapes so small that threads only wait for each other

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)
WORDS = "the cat sat on the mat and the dog lay under the table while it rained all day — ça va, naïve façade? ☃"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_merges([WORDS] * 3, vocab_size=300)


@pytest.fixture(scope="module", params=[0, 700], ids=["modern", "bigrams"])
def model(tokenizer: Tokenizer, request: pytest.FixtureRequest) -> GPT:
    """Random weights so large that the next token depends on all before it; 6 more rows than tokens."""
    shape = {
        "bigram_rows": request.param,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "hidden_size": 32,
        "context_length": 48,
    }
    model = GPT(ModelConfig(**shape, vocab_size=tokenizer.vocab_size + 6))
    return randomized(model, 0.4)


def make_engine(model: GPT, tokenizer: Tokenizer, slots: int = 3) -> Engine:
    return Engine(model, tokenizer, CPU, slots=slots)


def requests(tokenizer: Tokenizer, count: int, **options: Any) -> list[Request]:
    """Prompts of mixed lengths and options, two samples of each."""
    texts = [WORDS[start : start + 1 + 7 * start % 40] for start in range(count)]
    return [
        Request(
            tokenizer.encode(text)[:30],
            GenerateOptions(**{"max_tokens": 3 + number % 5 * 6, "temperature": 1.0, "seed": number // 2, **options}),
            sample=number % 2,
        )
        for number, text in enumerate(texts)
    ]


def outcome(completion: Completion) -> tuple[list[int], str, str | None]:
    return completion.ids, completion.text, completion.finish_reason


# ------------------------------------------------------------------------------------------------------ batching


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.0}, {"top_k": 20, "top_p": 0.9}, {"repetition_penalty": 1.3, "min_p": 0.01}]
)
def test_the_same_seed_writes_the_same_text_in_any_batch(
    model: GPT, tokenizer: Tokenizer, options: dict[str, Any]
) -> None:
    asked = requests(tokenizer, 20, **options)
    alone = [outcome(c) for request in asked for c in make_engine(model, tokenizer, 1).run([request])]
    for slots in (1, 3, 8):
        assert [outcome(c) for c in make_engine(model, tokenizer, slots).run(asked)] == alone


def test_cached_generation_writes_what_whole_windows_predict(model: GPT, tokenizer: Tokenizer) -> None:
    asked = requests(tokenizer, 12, temperature=0.0)
    for completion in make_engine(model, tokenizer).run(asked):
        window = [tokenizer.end_of_text, *completion.request.prompt, *completion.ids]
        logits = model(torch.tensor([window[: model.config.context_length]]))[0, :, : tokenizer.vocab_size]
        begin = len(completion.request.prompt)
        assert completion.ids == logits.argmax(-1)[begin : begin + len(completion.ids)].tolist()


def test_samples_and_seeds_differ(model: GPT, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("the cat")
    asked = [
        Request(prompt, GenerateOptions(seed=seed, max_tokens=12, temperature=1.0), sample)
        for seed, sample in itertools.product(range(3), range(3))
    ]
    assert len({tuple(c.ids) for c in make_engine(model, tokenizer).run(asked)}) == 9


def test_the_repetition_penalty_counts_prompt_and_new_tokens(model: GPT, tokenizer: Tokenizer) -> None:
    """So large a penalty leaves a seen token no logit above zero, and others have one."""
    asked = requests(tokenizer, 10, max_tokens=15, temperature=0.0, repetition_penalty=100.0)
    for completion in make_engine(model, tokenizer).run(asked):
        assert len(set(completion.ids)) == len(completion.ids)
        assert not set(completion.ids) & set(completion.request.prompt)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_results_come_in_the_order_of_the_requests(model: GPT, tokenizer: Tokenizer, slots: int) -> None:
    asked = requests(tokenizer, 20)
    found = list(make_engine(model, tokenizer, slots).run(asked))
    assert [c.number for c in found] == list(range(20))
    assert [c.request for c in found] == asked


def test_no_request_gives_no_completion(model: GPT, tokenizer: Tokenizer) -> None:
    assert list(make_engine(model, tokenizer).run([])) == []


def test_an_endless_stream_of_requests_is_read_no_further_than_needed(model: GPT, tokenizer: Tokenizer) -> None:
    """The first of every 64 texts is long: those behind it are done long before and have to wait for it."""
    read = 0

    def endless() -> Iterator[Request]:
        nonlocal read
        for number in itertools.count():
            read += 1
            yield Request([number % 256], GenerateOptions(max_tokens=1 if number % 64 else 46, seed=number))

    slots, furthest = 2, 0
    for done, _ in enumerate(itertools.islice(make_engine(model, tokenizer, slots).run(endless()), 50)):
        furthest = max(furthest, read - done)
    assert furthest <= 8 * slots + 1


def test_memory_stays_level_over_an_endless_stream(model: GPT, tokenizer: Tokenizer) -> None:
    endless = (Request([n % 256], GenerateOptions(max_tokens=4, seed=n)) for n in itertools.count())
    results = make_engine(model, tokenizer, 4).run(endless)
    tracemalloc.start()
    try:
        held = []
        for _ in range(4):  # torch keeps something of the first calls
            for _ in itertools.islice(results, 100):
                pass
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[3] - held[2] < 20_000


# ----------------------------------------------------------------------------------------------- ends of a text


def test_max_tokens_ends_a_text(model: GPT, tokenizer: Tokenizer) -> None:
    for completion in make_engine(model, tokenizer).run(requests(tokenizer, 8, max_tokens=5, temperature=0.0)):
        assert completion.finish_reason == "length"
        assert len(completion.ids) == 5
        assert completion.logprobs == []  # nobody asked for them
        whole = tokenizer.decode(completion.ids)
        assert completion.text in (whole, whole.removesuffix("\ufffd"))  # half a character at the end is left out


def test_the_end_of_the_context_ends_a_text(model: GPT, tokenizer: Tokenizer) -> None:
    """The last token drawn needs no place in the window: 48 = 1 + 10 + 37."""
    options = GenerateOptions(max_tokens=1000, temperature=0.0)
    (completion,) = make_engine(model, tokenizer).run([Request(tokenizer.encode(WORDS)[:10], options)])
    assert completion.finish_reason == "length"
    assert len(completion.ids) == 48 - 1 - 10 + 1


def test_a_prompt_that_fills_the_context_gets_one_token(model: GPT, tokenizer: Tokenizer) -> None:
    engine = make_engine(model, tokenizer)
    options = GenerateOptions(max_tokens=9, temperature=0.0)
    (completion,) = engine.run([Request(engine.fit(list(range(47)), options), options)])
    assert (len(completion.ids), completion.finish_reason) == (1, "length")


def test_the_end_of_text_token_ends_a_text_and_is_not_part_of_it(model: GPT, tokenizer: Tokenizer) -> None:
    asked = requests(tokenizer, 200, max_tokens=40, temperature=3.0)
    stopped = [c for c in make_engine(model, tokenizer, 16).run(asked) if c.finish_reason == "stop"]
    assert stopped
    for completion in stopped:
        assert tokenizer.end_of_text not in completion.ids
        whole = tokenizer.decode(completion.ids)
        assert completion.text in (whole, whole.removesuffix("\ufffd"))  # half a character at the end is left out


def test_padding_rows_of_the_embedding_are_never_drawn(model: GPT, tokenizer: Tokenizer) -> None:
    asked = requests(tokenizer, 40, max_tokens=20, temperature=100.0)
    assert all(max(c.ids, default=0) < tokenizer.vocab_size for c in make_engine(model, tokenizer, 8).run(asked))


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(model: GPT, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="has 60 tokens and the context holds 47"):
        make_engine(model, tokenizer).fit(list(range(60)), GenerateOptions())


def test_truncate_left_keeps_the_end_of_the_prompt(model: GPT, tokenizer: Tokenizer) -> None:
    engine = make_engine(model, tokenizer)
    assert engine.fit(list(range(60)), GenerateOptions(truncate="left")) == list(range(13, 60))
    assert engine.fit(list(range(47)), GenerateOptions(truncate="left")) == list(range(47))


def test_logprobs_are_those_of_the_model_whatever_the_temperature(model: GPT, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("the dog")
    options = GenerateOptions(max_tokens=6, temperature=2.0, logprobs=1)
    (completion,) = make_engine(model, tokenizer).run([Request(prompt, options)])
    logits = model(torch.tensor([[tokenizer.end_of_text, *prompt, *completion.ids]]))[0, :, : tokenizer.vocab_size]
    wanted = logits.log_softmax(-1)[len(prompt) :].gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
    assert completion.logprobs == pytest.approx(wanted.tolist(), abs=1e-4)


def test_weights_that_are_not_finite_are_reported(model: GPT, tokenizer: Tokenizer) -> None:
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        damaged.embedding.weight.fill_(float("nan"))
    with pytest.raises(NumericalError, match="non-finite logits at position 2"):
        list(make_engine(damaged, tokenizer).run([Request([1, 2], GenerateOptions())]))


# -------------------------------------------------------------------------------------------------- stop strings


def test_stop_strings_across_tokens_never_leak(model: GPT, tokenizer: Tokenizer) -> None:
    """Stops are taken from inside of the text that the model writes without them."""
    asked = requests(tokenizer, 30, max_tokens=30)
    stopped = 0
    for request, free in zip(asked, make_engine(model, tokenizer).run(asked), strict=True):
        middle = len(free.text) // 2
        stops = (free.text[middle : middle + 3], "\x00never") if len(free.text) > 6 else ("\x00never",)
        options = GenerateOptions(seed=request.options.seed, max_tokens=30, temperature=1.0, stop=stops)
        shown = ""
        for completion in make_engine(model, tokenizer).steps([Request(request.prompt, options, request.sample)]):
            assert completion.text.startswith(shown)
            shown = completion.text
            assert stops[0] not in shown
        assert (shown, completion.finish_reason == "stop") == (
            cut(free.text, stops)[0],
            cut(free.text, stops)[1] or free.finish_reason == "stop",
        )
        assert free.ids[: len(completion.ids)] == completion.ids
        stopped += cut(free.text, stops)[1]
    assert stopped > 20


# ----------------------------------------------------------------------------------------- beginnings held before


class Counting:
    """How many tokens pass through the model."""

    def __init__(self, model: GPT, request: pytest.FixtureRequest) -> None:
        self.tokens = 0
        hook = model.embedding.register_forward_pre_hook(self.count)
        request.addfinalizer(hook.remove)

    def count(self, _: Any, inputs: tuple[torch.Tensor]) -> None:
        self.tokens += inputs[0].numel()

    def since(self) -> int:
        tokens, self.tokens = self.tokens, 0
        return tokens


def test_a_conversation_computes_only_what_is_new(
    model: GPT, tokenizer: Tokenizer, request: pytest.FixtureRequest
) -> None:
    engine, counting = make_engine(model, tokenizer, 2), Counting(model, request)
    options = GenerateOptions(max_tokens=5, temperature=0.0)
    window, held = tokenizer.encode("the cat sat"), 0
    for _ in range(3):
        (completion,) = engine.run([Request(window, options)])
        fed = 1 + len(window) + 4  # <|endoftext|>, the prompt, and all but the last of the new tokens
        assert counting.since() == fed - held
        (fresh,) = make_engine(model, tokenizer, 1).run([Request(window, options)])
        assert completion.ids == fresh.ids
        counting.since()
        window, held = [*window, *completion.ids, *tokenizer.encode(" on")], fed


def test_a_prompt_that_leaves_an_earlier_one_is_computed_from_there(
    model: GPT, tokenizer: Tokenizer, request: pytest.FixtureRequest
) -> None:
    engine, counting = make_engine(model, tokenizer, 3), Counting(model, request)
    options = GenerateOptions(max_tokens=1, temperature=0.0)
    for prompt, computed in [
        (range(40), 41),
        (range(30), 1),
        ([*range(20), 99, 98], 2),
        (range(40), 0),
        ([*range(20), 99, 97], 1),
        ([5, 6], 2),
    ]:
        (completion,) = engine.run([Request(list(prompt), options)])
        assert counting.since() == computed
        (fresh,) = make_engine(model, tokenizer, 1).run([Request(list(prompt), options)])
        assert completion.ids == fresh.ids
        counting.since()


@pytest.mark.parametrize("slots", [1, 4])
def test_samples_of_a_prompt_share_it(
    model: GPT, tokenizer: Tokenizer, request: pytest.FixtureRequest, slots: int
) -> None:
    counting, prompt = Counting(model, request), list(range(20))
    asked = [Request(prompt, GenerateOptions(max_tokens=1, temperature=1.0, seed=3), sample) for sample in range(9)]
    found = [c.ids for c in make_engine(model, tokenizer, slots).run(asked)]
    assert counting.since() == 21
    assert found == [c.ids for one in asked for c in make_engine(model, tokenizer).run([one])]


def test_prompts_that_begin_alike_share_whole_blocks(
    model: GPT, tokenizer: Tokenizer, request: pytest.FixtureRequest
) -> None:
    counting, options = Counting(model, request), GenerateOptions(max_tokens=1, temperature=0.0)
    asked = [Request([*range(35), 100 + number], options) for number in range(6)]
    found = [c.ids for c in make_engine(model, tokenizer, 3).run(asked)]
    assert counting.since() == 37 + 5 * (37 - 32)
    assert found == [c.ids for request in asked for c in make_engine(model, tokenizer).run([request])]


def test_a_run_that_was_left_in_the_middle_does_the_next_no_harm(model: GPT, tokenizer: Tokenizer) -> None:
    engine, asked = make_engine(model, tokenizer), requests(tokenizer, 12, temperature=0.0)
    for left_after in (1, 5, 20):
        for _ in itertools.islice(engine.steps(asked), left_after):
            pass
        found = [outcome(c) for c in engine.run(asked)]
        assert found == [outcome(c) for c in make_engine(model, tokenizer).run(asked)]


@pytest.mark.slow
def test_ten_thousand_prompts_take_no_more_memory_than_a_thousand(model: GPT, tokenizer: Tokenizer) -> None:
    asked = (Request([n % 256, n // 256], GenerateOptions(max_tokens=2, seed=n)) for n in range(10_000))
    results = make_engine(model, tokenizer, 32).run(asked)
    tracemalloc.start()
    try:
        for _ in itertools.islice(results, 1000):
            pass
        held = tracemalloc.get_traced_memory()[0]
        assert sum(1 for _ in results) == 9000
        assert tracemalloc.get_traced_memory()[1] < held + 1_000_000
    finally:
        tracemalloc.stop()
