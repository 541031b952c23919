"""Options that say what a text may be, how long, and how fast: constraints, minimum, end of text, guesses, logprobs."""

import json
import random
import re
from typing import Any

import pytest
import torch
from random_models import randomized

from gptcli.api.records import completion_record
from gptcli.base.errors import ConfigError
from gptcli.config.generate import GenerateOptions
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import Tokenizer, learn_merges
from gptcli.device.runtime import Runtime
from gptcli.generate.constrain import Constraint, Constraints, TokenTable
from gptcli.generate.dfa import DEAD, Automaton
from gptcli.generate.engine import Completion, Engine, Request
from gptcli.generate.packed_weights import pack
from gptcli.generate.prompt_lookup import Lookup
from gptcli.model.gpt import GPT

torch.set_num_threads(1)

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)
WORDS = "the cat sat on the mat and the dog lay under the table while it rained all day — ça va, naïve façade? ☃ 1984"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_merges([WORDS] * 3, vocab_size=300)


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> Engine:
    shape = {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "hidden_size": 32, "context_length": 128}
    model = GPT(ModelConfig(**shape, vocab_size=tokenizer.vocab_size))
    pack(randomized(model, 0.4), CPU)
    return Engine(model, tokenizer, CPU, slots=4)


def fresh(engine: Engine) -> Engine:
    return Engine(engine.model, engine.tokenizer, CPU, slots=4)


def write(engine: Engine, count: int, prompt: str = "the cat", **options: Any) -> list[Completion]:
    chosen = GenerateOptions(**{"temperature": 1.0, "max_tokens": 40, **options})
    ids = engine.tokenizer.encode(prompt)
    return list(engine.run([Request(ids, chosen, sample) for sample in range(count)]))


# ------------------------------------------------------------------------------------------------------ constraints


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5, "min_p": 0.1}, {"repetition_penalty": 1.5}])
def test_a_text_is_one_of_the_choices(engine: Engine, options: dict[str, Any]) -> None:
    choices = ("yes", "no", "nobody", "ça va ☃", "the cat sat")
    found = write(engine, 40, choices=choices, **options)
    assert {c.text for c in found} <= set(choices)
    assert all(c.finish_reason == "stop" for c in found)


def test_every_choice_is_written(engine: Engine) -> None:
    assert {c.text for c in write(engine, 300, choices=("a", "b", "no", "not"), temperature=5.0)} == {
        "a",
        "b",
        "no",
        "not",
    }


@pytest.mark.parametrize("pattern", [r"\d{3}-\d{4}", "(the|a) (cat|dog)( sat)*!", "[à-ÿ]{5}", ".{1,12}", "[^a-z]+☃"])
def test_the_whole_text_matches_the_pattern(engine: Engine, pattern: str) -> None:
    for completion in write(engine, 30, regex=pattern, max_tokens=100):
        if completion.finish_reason == "stop":
            assert re.fullmatch(pattern, completion.text, re.ASCII), completion.text
        else:  # it had no more room
            assert pattern.endswith("☃") or "*" in pattern


def test_rows_under_a_pattern_leave_others_alone(engine: Engine, tokenizer: Tokenizer) -> None:
    free = GenerateOptions(temperature=1.0, max_tokens=20, seed=3)
    bound = GenerateOptions(temperature=1.0, max_tokens=20, regex="[a-z ]+")
    ids = tokenizer.encode("the dog")
    mixed = list(engine.run([Request(ids, bound if n % 2 else free, n) for n in range(8)]))
    for completion in mixed:
        (alone,) = engine.run([completion.request])
        assert alone.text == completion.text


def test_the_tokens_allowed_are_those_that_leave_a_way_to_a_match(tokenizer: Tokenizer) -> None:
    constraint = Constraint(Automaton("(the|this) [cd]at"), TokenTable(tokenizer.written_bytes))
    words = ["the cat", "the dat", "this cat", "this dat"]
    allowed = {index for index, no in enumerate(constraint.forbidden(0).tolist()) if not no}
    wanted = {
        index
        for index, content in enumerate(tokenizer.token_bytes)
        if content and index != tokenizer.end_of_text and any(word.encode().startswith(content) for word in words)
    }
    assert allowed == wanted


@pytest.mark.parametrize("pattern", ["yes|no", " yes", " ?the cat"])
def test_a_turn_matches_its_pattern_as_its_text_is_shown(engine: Engine, pattern: str) -> None:
    """Of a tokenizer that puts a space before every text, which the text of a turn leaves out."""
    document = json.loads(engine.tokenizer.plain_content)
    document["pre_tokenizer"]["add_prefix_space"] = True
    tokenizer = Tokenizer(json.dumps(document).encode())
    assert tokenizer.prefix == b" "
    spaced = Engine(engine.model, tokenizer, CPU, slots=4)
    for how in ({"regex": pattern}, {"choices": tuple(pattern.split("|"))}):
        for seed in range(8):
            options = GenerateOptions(max_tokens=12, seed=seed, temperature=1.5, **how)
            for first in (None, ()):
                (completion,) = spaced.run([Request([5], options, first=first)])
                assert completion.finish_reason == "stop"
                wanted = r"(?:" + pattern + ")" if "regex" in how else "|".join(map(re.escape, options.choices))
                assert re.fullmatch(wanted, completion.text), (how, first, completion.text)
    allowed = ~Constraints(tokenizer).of(GenerateOptions(regex="yes")).forbidden(0, first=True)
    assert {tokenizer.token_bytes[index] for index in allowed.nonzero().flatten()} >= {b" ", b"y"}


@pytest.fixture(scope="module")
def lacking(engine: Engine) -> Engine:
    """Without a token for the byte q."""
    document = json.loads(engine.tokenizer.plain_content)
    del document["model"]["vocab"]["q"]
    return Engine(engine.model, Tokenizer(json.dumps(document).encode()), CPU, slots=4)


@pytest.mark.parametrize("drawing", [{"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.9}, {}])
def test_where_no_token_goes_on_the_text_fails_alone(lacking: Engine, drawing: dict[str, Any]) -> None:
    bound = GenerateOptions(regex="a(q|qq)b", max_tokens=9, **drawing)
    free = GenerateOptions(max_tokens=9, stop_at_eos=False)
    found = list(lacking.run([Request([5], bound), Request([5], free)], keep_failed=True))
    assert [completion.finish_reason for completion in found] == ["error", "length"]
    assert "leaves the pattern" in str(found[0].error)
    assert found[0].text == "a"


def test_a_text_that_may_end_does_so_where_no_token_goes_on(lacking: Engine) -> None:
    for options in ({"stop_at_eos": False}, {"temperature": 0.0}):
        (completion,) = lacking.run([Request([5], GenerateOptions(regex="a(q|qq)*", max_tokens=9, **options))])
        assert (completion.text, completion.finish_reason) == ("a", "stop")


def test_no_text_ends_in_a_state_that_is_none() -> None:
    automaton = Automaton("a")
    assert automaton.after(0, b"ax") == DEAD
    assert not automaton.accepts(DEAD)
    assert automaton.ended(DEAD)


def test_a_pattern_that_failed_is_made_anew(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptcli.generate.dfa.MAX_STATES", 50)
    constraints = Constraints(tokenizer)
    options = GenerateOptions(regex="(a|b)*a(a|b){9}c")
    first = constraints.of(options)
    assert first is not None
    assert constraints.of(options) is first
    with pytest.raises(ConfigError, match="more than 50 states"):
        first.automaton.after(0, bytes(random.Random(1).choices(b"ab", k=999)))
    assert constraints.of(options) is not first
    assert len(constraints.made) == 1


# ------------------------------------------------------------------------------------------------- length and end


def test_no_text_is_shorter_than_the_minimum(engine: Engine) -> None:
    lengths = [len(c.ids) for c in write(engine, 60, temperature=4.0, min_tokens=25)]
    assert min(lengths) >= 25
    assert min(len(c.ids) for c in write(engine, 60, temperature=4.0)) < 25


def test_without_stop_at_eos_the_end_of_text_is_never_drawn(engine: Engine) -> None:
    found = write(engine, 60, temperature=4.0, stop_at_eos=False)
    assert all((len(c.ids), c.finish_reason) == (40, "length") for c in found)
    assert not any(engine.tokenizer.end_of_text in c.ids for c in found)


def test_drawing_under_a_minimum_follows_the_distribution_without_the_end(engine: Engine, tokenizer: Tokenizer) -> None:
    """A chi-square test of the first token against the model's own probabilities, renormalised."""
    found = [c.ids[0] for c in write(engine, 1500, max_tokens=1, min_tokens=1, temperature=2.0)]
    ids = torch.tensor([[tokenizer.end_of_text, *tokenizer.encode("the cat")]])
    logits = engine.model(ids)[0, -1].detach().double() / 2.0
    logits[tokenizer.end_of_text] = -torch.inf
    expected = logits.softmax(-1) * len(found)
    common = [index for index in range(len(expected)) if expected[index] > 5]
    counts = [found.count(index) for index in common] + [sum(index not in common for index in found)]
    wanted = [float(expected[index]) for index in common]
    wanted.append(len(found) - sum(wanted))
    statistic = sum((count - mean) ** 2 / mean for count, mean in zip(counts, wanted, strict=True))
    freedom = len(common)
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


# --------------------------------------------------------------------------------------------------------- logprobs


@torch.no_grad()
def test_alternatives_are_the_likeliest_tokens_of_the_model(engine: Engine, tokenizer: Tokenizer) -> None:
    (completion,) = write(engine, 1, logprobs=3, max_tokens=5, choices=("the cat sat on",))
    window = [tokenizer.end_of_text, *completion.request.prompt, *completion.ids]
    logprobs = engine.model(torch.tensor([window]))[0].double().log_softmax(-1)[len(completion.request.prompt) :]
    assert len(completion.alternatives) == len(completion.ids)
    for place, (index, best) in enumerate(zip(completion.ids, completion.alternatives, strict=True)):
        assert completion.logprobs[place] == pytest.approx(float(logprobs[place, index]), abs=1e-4)
        wanted = logprobs[place].topk(3)
        assert [index for index, _ in best] == wanted.indices.tolist()
        assert [value for _, value in best] == pytest.approx(wanted.values.tolist(), abs=1e-4)


def test_a_record_has_the_likeliest_tokens_at_each_place(engine: Engine, tokenizer: Tokenizer) -> None:
    (completion,) = write(engine, 1, logprobs=3, max_tokens=5)
    for token, likeliest in zip(
        completion_record(completion, tokenizer)["logprobs"], completion.alternatives, strict=True
    ):
        assert [(top["id"], top["logprob"]) for top in token["top"]] == [*likeliest]
        assert token["top"][0]["token"] == tokenizer.decode([likeliest[0][0]])
    (completion,) = write(engine, 1, logprobs=1, max_tokens=5)
    assert all("top" not in token for token in completion_record(completion, tokenizer)["logprobs"])


# ---------------------------------------------------------------------------------------------------------- lookup


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"temperature": 0.7, "top_k": 5}, {"repetition_penalty": 1.2}]
)
def test_guesses_change_no_text(engine: Engine, options: dict[str, Any]) -> None:
    """To the bit; an engine each, since one that goes on from an earlier run may round otherwise."""
    for prompt in ("the cat sat on the mat and the cat sat on the", WORDS):
        plain, guessed = (
            [(c.ids, c.text, c.logprobs) for c in write(fresh(engine), 6, prompt, logprobs=1, lookup=n, **options)]
            for n in (0, 4)
        )
        assert guessed == plain


def test_right_guesses_save_passes_through_the_model(engine: Engine) -> None:
    """A pattern that only repeats leaves no doubt what comes, once it was there."""
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    hook = engine.model.embedding.register_forward_pre_hook(count)
    taken = {}
    for lookup in (0, 8):
        passes = 0
        (completion,) = write(engine, 1, regex="(cat ){24}", lookup=lookup, temperature=0.0, max_tokens=96)
        assert completion.text == "cat " * 24
        taken[lookup] = passes
    hook.remove()
    assert taken[8] < taken[0] / 2


def test_a_guess_is_what_came_after_the_same_three_tokens_the_last_time() -> None:
    chance = random.Random(1)
    ids = [chance.randrange(3) for _ in range(300)]
    lookup = Lookup(ids[:10])
    for place in range(10, 300):
        earlier = [p for p in range(3, place) if ids[p - 3 : p] == ids[place - 3 : place]]
        assert lookup.guess(4) == (ids[earlier[-1] : place][:4] if earlier else [])
        lookup.add(ids[place])
