"""Watermarks: unbiased draws, exact p-values, the same text in any batch, found again from text alone."""

import json
import math
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from conftest import RunCli, Tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import randomized

from gptcli.base.errors import ConfigError, DataError
from gptcli.config.generate import GenerateOptions
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import Tokenizer, learn_merges
from gptcli.device.runtime import Runtime
from gptcli.generate.engine import Completion, Engine, Request
from gptcli.generate.keyed_draw import draw_by_key, vocabulary
from gptcli.generate.safeguards import Safeguards
from gptcli.generate.sampling import candidates
from gptcli.generate.watermark import (
    Marker,
    Watermark,
    check_tokenizer,
    log_gamma_tail,
    make_key,
    read_key,
    score,
    write_key,
)
from gptcli.model.gpt import GPT

torch.set_num_threads(1)
CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)
WORDS = "the cat sat on the mat and the dog lay under the table while it rained all day — ça va, naïve façade? ☃"
KEY = Watermark(bytes(range(32)), 4, "")
NUMBERS = [3120842552, 2181725195]


def key(number: int, context: int = 4) -> Watermark:
    return Watermark(number.to_bytes(32, "big"), context, "")


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return learn_merges([WORDS] * 3, vocab_size=300)


@pytest.fixture(scope="module")
def model(words: Tokenizer) -> GPT:
    shape = {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "hidden_size": 32, "context_length": 256}
    return randomized(GPT(ModelConfig(**shape, vocab_size=words.vocab_size + 6)), 0.05)


def write(model: GPT, words: Tokenizer, asked: list[Request], slots: int = 8, **measures: Any) -> list[Completion]:
    return list(Engine(model, words, CPU, slots=slots, safeguards=Safeguards(**measures)).run(asked))


def requests(count: int, **options: Any) -> list[Request]:
    given = {"max_tokens": 50, "temperature": 0.8, "stop_at_eos": False, **options}
    return [Request([number % 256], GenerateOptions(seed=number, **given)) for number in range(count)]


# ------------------------------------------------------------------------------------------------------------ numbers


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4), st.integers(1, 40))
def test_one_number_is_that_of_the_whole_vocabulary(context: list[int], count: int) -> None:
    numbers = Marker(KEY).numbers(context)
    assert [numbers.one(token) for token in range(count)] == numbers.all(vocabulary(count)).tolist()


def test_the_numbers_of_a_key_stay_what_they_are() -> None:
    """Texts that were marked with an older gptcli are found by a newer one."""
    assert Marker(KEY).numbers([1, 2, 3, 4]).all(vocabulary(2)).tolist() == NUMBERS


@pytest.mark.parametrize(("shape", "value"), [(1, 0.5), (3, 10.0), (46, 46.0), (46, 120.0), (500, 400.0)])
def test_the_tail_is_that_of_the_gamma_distribution(shape: int, value: float) -> None:
    exact = scipy.special.gammaincc(shape, value)
    assert math.exp(log_gamma_tail(shape, value)) == pytest.approx(exact, rel=1e-10)


def test_a_tail_far_out_does_not_vanish() -> None:
    assert log_gamma_tail(1, 5000.0) == pytest.approx(-5000.0)
    assert log_gamma_tail(0, 0.0) == 0.0


DRAWS = {
    "all": {"temperature": 1.0},
    "warm": {"temperature": 1.6},
    "top-k": {"temperature": 0.9, "top_k": 6},
    "top-k with ties": {"temperature": 0.9, "top_k": 2},
    "top-p": {"temperature": 1.0, "top_p": 0.8},
    "min-p": {"temperature": 1.2, "min_p": 0.1},
    "cold": {"temperature": 0.0005},
}
LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 2.0, -np.inf, 2.0, 1.99], np.float32)


def probabilities(logits: np.ndarray, options: GenerateOptions) -> np.ndarray:
    ids, weights = candidates(logits, options)
    all_of_them = np.zeros(len(logits))
    all_of_them[slice(None) if ids is None else ids] = weights / weights.sum()
    return all_of_them


@pytest.mark.parametrize("name", DRAWS)
def test_over_all_keys_a_token_comes_as_often_as_its_probability_says(name: str) -> None:
    options = GenerateOptions(**DRAWS[name])
    drawn, trials, marker = np.zeros(len(LOGITS)), 8000, Marker(key(7))
    for number in range(trials):
        drawn[draw_by_key(LOGITS, options, marker.numbers([number, 0, 0, 0]))] += 1
    wanted = probabilities(LOGITS, options) * trials
    possible = wanted > 0
    assert drawn[~possible].sum() == 0
    chi_squared = float(((drawn - wanted)[possible] ** 2 / wanted[possible]).sum())
    assert chi_squared < scipy.special.chdtri(max(possible.sum() - 1, 1), 1e-4)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(DRAWS)), st.integers(2, 3000), st.floats(0, 30))
def test_the_race_draws_what_all_tokens_compared_exactly_draw(seed: int, name: str, count: int, spread: float) -> None:
    options, numbers = GenerateOptions(**DRAWS[name]), Marker(KEY).numbers([seed, 0, 0, 0])
    logits = (np.random.default_rng(seed).normal(size=count) * spread).astype(np.float32)
    probable = probabilities(logits, options)
    u = 1 - (numbers.all(vocabulary(count)) + 0.5) / 2**32
    with np.errstate(divide="ignore"):
        costs = -np.log(u) / probable
    assert costs[draw_by_key(logits, options, numbers)] <= costs.min() * (1 + 1e-5)


@pytest.mark.parametrize("pair", [(0, 1), (0, 1024), (5, 7), (0, 65536), (1000, 99_999)])
def test_the_numbers_of_two_tokens_have_nothing_to_do_with_each_other(pair: tuple[int, int]) -> None:
    marker, cells, trials = Marker(KEY), np.zeros((8, 8)), 20_000
    for number in range(trials):
        one, other = (marker.numbers([number, 1, 2, 3]).one(token) >> 29 for token in pair)
        cells[one, other] += 1
    assert ((cells - trials / 64) ** 2 / (trials / 64)).sum() < scipy.special.chdtri(63, 1e-4)


# -------------------------------------------------------------------------------------------------------------- texts


def test_the_same_seed_writes_the_same_marked_text_in_any_batch(model: GPT, words: Tokenizer) -> None:
    asked = requests(12, max_tokens=30) + requests(4, max_tokens=30, lookup=4)
    alone = [write(model, words, [request], 1, watermark=KEY)[0].ids for request in asked]
    for slots in (1, 5, 16):
        assert [c.ids for c in write(model, words, asked, slots, watermark=KEY)] == alone
    assert alone != [c.ids for c in write(model, words, asked)]


def test_seeds_and_samples_differ_although_the_key_is_one(model: GPT, words: Tokenizer) -> None:
    asked = [Request([3], GenerateOptions(seed=seed, temperature=1.0), sample) for seed in (0, 1) for sample in (0, 1)]
    assert len({tuple(c.ids) for c in write(model, words, asked, watermark=KEY)}) == 4


def test_texts_of_50_tokens_are_found_and_by_their_key_alone(model: GPT, words: Tokenizer) -> None:
    found = write(model, words, requests(60), watermark=KEY)
    assert all(c.watermarked == 46 for c in found)
    marked = [score(KEY, c.ids).log_p for c in found]
    assert np.mean(np.array(marked) < math.log(1e-5)) >= 0.98
    others = np.array([score(key(5), c.ids).log_p for c in found])
    assert others.min() > math.log(1e-4)


def test_greedy_text_has_no_mark_and_can_be_refused(model: GPT, words: Tokenizer) -> None:
    asked = requests(3, temperature=0.0)
    assert [c.ids for c in write(model, words, asked, watermark=KEY)] == [c.ids for c in write(model, words, asked)]
    assert [c.watermarked for c in write(model, words, asked, watermark=KEY)] == [0, 0, 0]
    engine = Engine(model, words, CPU, safeguards=Safeguards(watermark=KEY, require_watermark=True))
    with pytest.raises(DataError, match="temperature 0"):
        engine.fit([1], GenerateOptions(temperature=0.0))


def test_text_without_the_key_is_called_marked_at_the_nominal_rate() -> None:
    """Also where it repeats itself: each context counts once."""
    draw = np.random.default_rng(1)
    texts = [draw.integers(0, 40, 40).tolist() for _ in range(20)]
    texts += [(draw.integers(0, 40, 12).tolist() * 4)[:40] for _ in range(20)]
    p = np.exp([score(key(number), ids).log_p for ids in texts for number in range(100)])
    assert len(p) == 4000
    for rate in (0.1, 0.01):
        spread = math.sqrt(rate * (1 - rate) / len(p))
        assert abs(np.mean(p < rate) - rate) < 3.5 * spread


def test_contexts_count_once() -> None:
    assert score(KEY, [1, 2, 3, 4, 5] * 10).tokens == 5
    assert score(KEY, [1, 2, 3, 4]).tokens == 0
    assert score(KEY, []).log_p == 0.0


# --------------------------------------------------------------------------------------------------------- key files


def test_a_key_is_read_as_it_was_written_and_by_its_owner_alone(tmp_path: Path) -> None:
    made = make_key("0" * 64, context=3)
    write_key(tmp_path / "key.json", made)
    assert read_key(tmp_path / "key.json") == made
    assert stat.S_IMODE((tmp_path / "key.json").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="another tokenizer"):
        check_tokenizer(made, "1" * 64, "key.json")


@pytest.mark.parametrize(
    "content",
    ["{}", "[]", '{"watermark": "kgw"}', '{"watermark": "gumbel"}', "no",
     '{"watermark": "gumbel", "key": "00", "context": 4, "tokenizer_sha256": ""}'],
)  # fmt: skip
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "key.json").write_text(content)
    with pytest.raises(DataError, match=r"key\.json"):
        read_key(tmp_path / "key.json")


# ----------------------------------------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def key_file(tiny: Tiny, run_cli: RunCli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key.json"
    made = run_cli("watermark-key", tiny.run, "-o", path)
    assert made.code == 0, made.err
    assert json.loads(path.read_text())["key"] not in made.text
    run_cli("watermark-key", tiny.run, "-o", path).error(5, "watermark-key", "--force")
    return path


def test_what_generate_marks_detect_finds(tiny: Tiny, key_file: Path, run_cli: RunCli) -> None:
    prompts = "".join(f'{{"prompt": "The", "id": {n}, "seed": {n}, "max_tokens": 28}}\n' for n in range(6))
    asked = ("generate", tiny.run, "--jsonl", "--temperature", 1, "--regex", "[A-Z]{26}")  # one token each
    marked = run_cli(*asked, "--watermark", key_file, input=prompts)
    assert all(json.loads(line)["watermarked_tokens"] > 15 for line in marked.text.splitlines())
    plain = run_cli(*asked, input=prompts)
    assert "watermarked_tokens" not in plain.text

    def verdict(text: str) -> str:
        found = run_cli("detect", tiny.tokenizer, "--key", key_file, "--json", input=text)
        assert found.code == 0, found.err
        return json.loads(found.text)["verdict"]

    assert verdict("".join(json.loads(line)["text"] for line in marked.text.splitlines())) == "marked"
    assert verdict("".join(json.loads(line)["text"] for line in plain.text.splitlines())) == "no mark found"
    assert verdict("The end.") == "too short to say"
    found = run_cli("detect", tiny.tokenizer, "--key", key_file, "--jsonl", input=marked.text)
    assert [json.loads(line)["id"] for line in found.text.splitlines()] == list(range(6))
    assert all(0 < json.loads(line)["p"] <= 1 for line in found.text.splitlines())


def test_a_file_s_name_given_as_the_text_is_told(tiny: Tiny, key_file: Path, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "answer.txt").write_text("It was a long answer.")
    found = run_cli("detect", tiny.tokenizer, tmp_path / "answer.txt", "--key", key_file)
    assert found.code == 0
    assert "detect: warning: TEXT is tested as it stands; for what the file holds: < " in found.err
    assert run_cli("detect", tiny.tokenizer, "answer", "--key", key_file).err == ""


def test_the_key_of_the_environment_holds_and_its_mark_is_the_flag_s(
    tiny: Tiny, key_file: Path, run_cli: RunCli
) -> None:
    asked = ("generate", tiny.run, "The", "--temperature", 1)
    by_flag = run_cli(*asked, "--watermark", key_file)
    assert run_cli(*asked, env={"GPTCLI_WATERMARK": str(key_file)}).out == by_flag.out != run_cli(*asked).out


def test_greedy_text_is_said_to_have_no_mark(tiny: Tiny, key_file: Path, run_cli: RunCli) -> None:
    asked = ("generate", tiny.run, "The", "--max-tokens", 3, "--temperature", 0)
    assert "no watermark" in run_cli(*asked, "--watermark", key_file).err
    run_cli(*asked, "--watermark", key_file, "--require-watermark").error(2, "generate", "temperature 0")
    run_cli(*asked, "--require-watermark").error(2, "generate", "--watermark")
    records = run_cli(
        "generate", tiny.run, "--jsonl", "--watermark", key_file, "--require-watermark",
        input='{"prompt": "The", "temperature": 0}\n',
    )  # fmt: skip
    assert records.code == 3
    assert "temperature 0" in json.loads(records.text)["error"]


def test_calibration_counts_the_windows_of_human_text(
    tiny: Tiny, key_file: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    # one key and a text that does not repeat itself: the interval is that of independent windows
    fixed = Watermark(bytes(range(32)), 4, read_key(key_file).tokenizer_sha256)
    write_key(tmp_path / "key.json", fixed)
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz "), 20_000)
    (tmp_path / "human.txt").write_text("".join(letters))
    asked = ("detect", tiny.run, "--key", tmp_path / "key.json", "--calibrate", tmp_path / "human.txt")
    found = run_cli(*asked, "--window", 50, "--json")
    assert found.code == 0, found.err
    document = json.loads(found.text)
    assert document["windows"] > 100
    assert document["rates"][0]["false_positives"] == 0.05
    assert document["rates"][0]["interval"][0] <= 0.05
    shown = run_cli(*asked)
    assert "p < 1e-05\t0" in shown.text


def test_a_key_of_another_tokenizer_is_refused(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    write_key(tmp_path / "key.json", make_key("0" * 64))
    run_cli("detect", tiny.run, "The", "--key", tmp_path / "key.json").error(2, "detect", "another tokenizer")
    asked = ("generate", tiny.run, "The", "--watermark", tmp_path / "key.json")
    run_cli(*asked).error(2, "generate", "another tokenizer")
