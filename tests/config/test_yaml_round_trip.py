"""Run files: writing and reading are inverse, and whatever is refused is refused in lines."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import yaml
from example_run import GOOD, NAME, Adapter, Data, Rates, Run, Shape, problems
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.base.errors import ConfigError
from gptcli.base.escape import escape
from gptcli.config import yaml_nodes, yaml_write
from gptcli.config.finetune import FinetuneConfig
from gptcli.config.schema import Section, keys_of
from gptcli.config.train import PretrainConfig
from gptcli.config.yaml_file import Loaded, parse
from gptcli.config.yaml_write import dump, show

texts = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["1e-4", "1:30", "010", "yes", "null", "~", "true", "0x1", "-", "a: b", "#", " a", "=", "<<", ".5", "!x", "'", "@"]
)
floats = st.floats(allow_nan=False, allow_infinity=False)
shapes = st.builds(
    lambda layers, heads, times, **rest: Shape(layers=layers, heads=heads, width=heads * times, **rest),
    layers=st.integers(1, 100),
    heads=st.integers(1, 1 << 62),
    times=st.integers(1, 9),
    preset=st.sampled_from(["small", "large"]),
    head_width=st.none() | st.integers(1),
    norm=st.sampled_from(["rmsnorm", "layernorm"]),
    bias=st.booleans(),
    dropout=st.floats(0, 1, exclude_max=True),
    scale=st.none() | st.floats(0, exclude_min=True, allow_infinity=False),
)
datas = st.builds(
    Data,
    train=st.lists(texts, max_size=4).map(tuple),
    weights=st.lists(floats | st.sampled_from([float("inf"), float("-inf")]), max_size=4).map(tuple),
    lengths=st.none() | st.lists(st.integers(-(10**70), 10**70), max_size=4).map(tuple),
    cache_dir=st.none() | texts,
    errors=st.sampled_from([None, "strict", "ignore"]),
)
runs = st.builds(
    Run,
    title=texts,
    steps=st.integers(1000, 10**78),
    data=datas,
    shape=shapes,
    big=shapes,
    rates=st.builds(
        Rates, peak=st.floats(0, exclude_min=True, allow_infinity=False), warmup_steps=st.integers(0, 1000)
    ),
    adapter=st.none() | st.builds(Adapter, rank=st.integers(1, 10**9), name=texts),
)


def plain(config: Any) -> Any:
    """A section as mappings and lists."""
    if isinstance(config, Section):
        return {name: plain(getattr(config, name)) for name in keys_of(type(config))}
    return [*map(plain, config)] if isinstance(config, tuple) else config


@settings(max_examples=100, deadline=None)
@given(run=runs)
def test_dump_is_the_inverse_of_parse(run: Run) -> None:
    text = dump(run)
    loaded = parse(Run, text, name=NAME)
    assert loaded.value == run
    assert dump(loaded.value) == text
    assert all(re.fullmatch(r"run\.yaml:\d+", origin) for origin in loaded.origins.values())
    assert parse(Run, show(loaded), name=NAME) == loaded
    # A reader that knows no types and follows YAML 1.1 agrees: what looks like a number or a bool was quoted.
    assert yaml.load(text, Loader=yaml_nodes.LOADER) == plain(run)


def test_show_aligns_origins() -> None:
    loaded: Loaded[Rates] = parse(Rates, "peak: 1e-5", name=NAME, overrides=["warmup_steps=3"])
    assert dump(loaded.value) == "peak: 1.0e-05\nwarmup_steps: 3\n"
    assert show(loaded) == "peak: 1.0e-05    # run.yaml:1\nwarmup_steps: 3  # -s warmup_steps=3\n"


def test_strings_that_look_like_something_else_are_quoted() -> None:
    for text in ["1e-4", "1", "yes", "On", "n", "NULL", "true", "1:30", "0o7", ".5", ".inf", "", "-", "--- a", "a: b"]:
        assert f'title: "{text}"\n' in dump(Run(title=text, data=Data(train=())))
    assert "train: [./a-1/b_*.txt]\n" in dump(Run(data=Data(train=("./a-1/b_*.txt",))))


def check_refusals_are_lines(text: str, overrides: Sequence[str], cls: type[Section] = Run) -> None:
    try:
        parse(cls, text, name=NAME, overrides=overrides)
        return
    except ConfigError as error:
        found = error.problems
    assert found
    for problem in found:
        assert re.match(r"(run\.yaml(:\d+)?|-s .*): ", problem), problem
        assert problem == escape(problem, 1 << 20)


pieces = st.sampled_from(
    [*GOOD.split(), "\n", " ", "  ", ": ", "[", "]", "{", "}", "- ", '"', "\t", "&a", "*a", "|", ">"]
)


@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.lists(pieces, max_size=30).map("".join), overrides=st.lists(st.text(), max_size=2))
def test_any_text_is_read_or_refused(text: str, overrides: list[str]) -> None:
    check_refusals_are_lines(text, overrides)
    check_refusals_are_lines("", [f"title={text}", f"data.lengths={text}", f"rates.peak={text}", *overrides])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_mutation_is_read_or_refused(draw: st.DataObject) -> None:
    text = GOOD
    for _ in range(draw.draw(st.integers(1, 4))):
        start = draw.draw(st.integers(0, len(text)))
        end = min(len(text), start + draw.draw(st.integers(0, 8)))
        text = text[:start] + draw.draw(st.text(max_size=3) | pieces) + text[end:]
    check_refusals_are_lines(text, ["steps=5"])


# ------------------------------------------------------------------------------------------------- typing errors


def typos(word: str, source: random.Random) -> Iterator[str]:
    """The word with one letter deleted, inserted, doubled, replaced, or swapped with the next."""
    i, letter = source.randrange(len(word)), source.choice(string.ascii_lowercase)
    yield word[:i] + word[i + 1 :]
    yield word[:i] + letter + word[i:]
    yield word[:i] + word[i] + word[i:]
    yield word[:i] + letter + word[i + 1 :]
    i = source.randrange(len(word) - 1)
    yield word[:i] + word[i + 1] + word[i] + word[i + 2 :]


def test_typing_errors_in_keys_are_refused_with_line_and_suggestion() -> None:
    good = parse(PretrainConfig, "run_dir: out\ndata: {train: a.txt}\n", name=NAME).value
    lines = dump(good).splitlines()
    dotted = [key for _, key in yaml_write.lines(good)]
    source, tried, suggested = random.Random(1), 0, 0
    for line_number, key in enumerate(dotted, 1):
        name = key.rpartition(".")[2]
        for typo in set(typos(name, source)) - {other.rpartition(".")[2] for other in dotted} - {""}:
            text = "\n".join(
                [*lines[: line_number - 1], lines[line_number - 1].replace(name, typo, 1), *lines[line_number:]]
            )
            found = problems(text, cls=PretrainConfig)
            wrong = key.removesuffix(name) + typo
            (problem,) = (line for line in found if line.startswith(f"{NAME}:{line_number}: unknown key '{wrong}'"))
            tried += 1
            suggested += problem.endswith(f"did you mean '{key}'?")
    assert tried >= 300
    assert suggested >= 0.9 * tried


@pytest.mark.parametrize("section", [PretrainConfig, FinetuneConfig])
def test_every_key_has_a_meaning_and_a_default_that_may_be_written_out(section: type[Section]) -> None:
    known = list(yaml_write.describe_keys(section))
    assert all(meaning for _, _, meaning in known)
    wanted = {"run_dir": "r", "base": "b", "task": "text", "data.train": "[t]"}
    document: dict[str, Any] = {}
    for dotted, default, _ in known:
        if not dotted.startswith(("lora.", "loss.goldfish.", "distill.")):  # null, unless one of them is given
            *sections, name = dotted.split(".")
            place = document
            for part in sections:
                place = place.setdefault(part, {})
            place[name] = yaml.safe_load(default or wanted[dotted])
    bare = parse(section, "{run_dir: r, base: b, task: text, data: {train: [t]}}" if "base" in document else
                 "{run_dir: r, data: {train: [t]}}", name=NAME).value  # fmt: skip
    assert parse(section, yaml.safe_dump(document), name=NAME).value == bare


@pytest.mark.parametrize(
    ("setting", "task", "reads"),
    [
        ("prefer.beta=0.3", "classify", "prefer"),
        ("classify.pooling=last", "chat", "classify"),
        ("data.label_field=stars", "instruct", "classify"),
        ("data.turns=mend", "prefer", "chat"),
        ("data.completion_field=reply", "prefer", "chat"),
        ("reward.group_size=3", "instruct", "reward"),
        ("train.sample_prompt=Once", "classify", "text"),
    ],
)
def test_a_setting_of_another_task_is_refused(setting: str, task: str, reads: str) -> None:
    text = "run_dir: run\nbase: base\ndata: {train: [rows.jsonl]}\n"
    (problem,) = problems(text, f"task={task}", setting, cls=FinetuneConfig)
    assert f"not for task {task}; leave it out" in problem
    complete = dump(parse(FinetuneConfig, text, name="run.yaml", overrides=[f"task={reads}", setting]).value)
    parse(FinetuneConfig, complete, name="run.yaml")
    (problem,) = problems(text, "task=prefer", "prefer.simpo_margin=0.5", cls=FinetuneConfig)
    assert problem.endswith("is for simpo; loss is dpo; remove it")
