"""Conversations: what the model sees of them, scripts and records.

The model of most tests is a table, token -> next token, so that its answers are known; a path through the table that
never ends is an answer that never ends.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import RunCli, Tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from table_models import FORM, ONE_THREAD, messages, row, table_model

from gptcli.api.chat import Chat, Speaker
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.report import Report
from gptcli.cli.terminal import follow
from gptcli.config.generate import GenerateOptions
from gptcli.data.conversation import ASSISTANT, USER
from gptcli.data.messages import read_messages
from gptcli.data.tokenizer import Tokenizer, learn_merges

torch.set_num_threads(1)

GREEDY = GenerateOptions(temperature=0.0)


@pytest.fixture(scope="module")
def yes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers `Yes`."""
    return table_model(tmp_path_factory.mktemp("yes") / "model", ["Yes"])


@pytest.fixture(scope="module")
def speaker(yes: Path) -> Speaker:
    return Speaker(yes)


@pytest.fixture(scope="module")
def letter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers with a letter, at random."""
    return table_model(tmp_path_factory.mktemp("letter") / "model", list("abcdefghijklmnopqrstuvwxyz"))


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers `abcabcabc...`."""
    return table_model(tmp_path_factory.mktemp("endless") / "model", [["abc"]], context_length=50_000)


# ------------------------------------------------------------------------------------------------ what the model sees

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(str.strip) | st.sampled_from(
    ["<|end|>", "<|assistant|>No<|end|>", " a ", "\x1b[0m"]
)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return learn_merges(["the shop is open, the shop is closed"] * 3, vocab_size=280).with_specials(FORM.specials)


@given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), system=st.none() | TEXTS)
def test_what_chat_asks_with_is_what_training_saw_before_each_answer(
    turns: list[tuple[str, str]], system: str | None, trained: Tokenizer
) -> None:
    """And what is learnt after it is the answer and the token that ends it, nothing else."""
    whole = messages(*(text for turn in turns for text in turn), system=system)
    ids, learnt = FORM.example(whole, trained)
    wanted = [False] * len(ids)
    for number, message in enumerate(whole):
        if message.role != ASSISTANT:
            continue
        prompt = FORM.prompt(whole[:number], trained)
        answer = [*trained.encode(message.content), FORM.end_id(trained)]
        assert ids[: len(prompt) + len(answer)] == prompt + answer
        wanted[len(prompt) : len(prompt) + len(answer)] = [True] * len(answer)
    assert learnt == wanted
    controls = [index for index in ids if index in trained.specials.values()]
    assert len(controls) == 2 * len(whole)  # text never becomes one


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), max_size=6),
    system=st.none() | st.integers(1, 60),
    question=st.integers(1, 250),
    max_tokens=st.integers(1, 300),
)
def test_the_oldest_turns_that_do_not_fit_are_dropped_and_no_others(
    lengths: list[tuple[int, int]], system: int | None, question: int, max_tokens: int, speaker: Speaker
) -> None:
    turns = [letter * length for pair in lengths for letter, length in zip("qa", pair, strict=True)]
    whole = messages(*turns, "?" * question, system=None if system is None else "s" * system)
    head = 0 if system is None else 1
    room = 255 - min(max_tokens, 64)

    def size(dropped: int) -> int:
        return len(FORM.prompt(whole[:head] + whole[head + 2 * dropped :], speaker.tokenizer))

    if size(len(lengths)) > room:
        with pytest.raises(DataError, match="shorten it"):
            speaker.fit(whole, GenerateOptions(max_tokens=max_tokens))
        return
    ids, dropped = speaker.fit(whole, GenerateOptions(max_tokens=max_tokens))
    assert ids == FORM.prompt(whole[:head] + whole[head + 2 * dropped :], speaker.tokenizer)
    assert len(ids) <= room
    assert dropped == 0 or size(dropped - 1) > room


def test_a_full_context_is_said_each_time_that_it_costs_a_turn(yes: Path, run_cli: RunCli) -> None:
    result = run_cli("chat", yes, *ONE_THREAD, input=f"{'a' * 80}\n{'b' * 80}\n{'c' * 80}\n{'d' * 80}\nshort\n")
    assert (result.code, result.text) == (0, "Yes\n" * 5)
    result.error(0, "chat", "context of 256 tokens is full")
    assert result.err.count("\n") == 2
    assert "the oldest question and its answer" in result.err
    assert "the 2 oldest questions and answers" in result.err


# -------------------------------------------------------------------------------------------------- the conversation


def chat_with(model: Path | Speaker, options: GenerateOptions = GREEDY, system: str | None = None) -> Chat:
    return Chat(model if isinstance(model, Speaker) else Speaker(model), options, system=system, report=Report())


def test_an_answer_comes_in_whole_characters(tmp_path: Path) -> None:
    chat = chat_with(table_model(tmp_path / "model", ["é ☃ab👍!"]))
    pieces = list(chat.ask("?"))
    assert "".join(pieces) == chat.turns[-1].answer == "é ☃ab👍!"
    assert pieces == list("é ☃ab👍!")


def test_a_stopped_answer_keeps_what_was_said(endless: Path) -> None:
    chat = chat_with(endless)
    count = 0

    def stop() -> bool:
        nonlocal count
        count += 1
        return count == 5

    assert "".join(chat.ask("?", stop=stop)) == "abcab"
    assert chat.messages() == messages("?", "abcab")
    assert chat.turns[-1].finish_reason is None


def test_the_turns_before_a_question_are_not_computed_again(yes: Path) -> None:
    chat = chat_with(yes, system="s" * 100)
    computed = 0

    def count(_module: torch.nn.Module, inputs: tuple[torch.Tensor], _output: torch.Tensor) -> None:
        nonlocal computed
        computed += inputs[0].numel()

    chat.speaker.engine.model.embedding.register_forward_hook(count)
    spent = []
    for question in ("one?", "two?", "three?"):
        computed = 0
        assert "".join(chat.ask(question)) == "Yes"
        spent.append(computed)
    assert spent[0] > 100
    assert max(spent[1:]) < 30


def test_a_question_without_an_answer_is_not_part_of_the_conversation(tmp_path: Path) -> None:
    chat = chat_with(table_model(tmp_path / "model", [""]))
    assert list(chat.ask("?")) == []
    assert chat.messages() == []
    with pytest.raises(ConfigError, match="no answer to save"):
        chat.save(tmp_path / "talk.jsonl")


def test_retry_replaces_the_last_answer_and_undo_takes_it_back(letter: Path) -> None:
    chat = chat_with(letter, GenerateOptions(seed=3))
    answers = ["".join(chat.ask("?"))] + ["".join(chat.retry()) for _ in range(9)]
    assert len(set(answers)) > 3
    assert chat.messages() == messages("?", answers[-1])
    chat.undo()
    assert chat.messages() == []
    with pytest.raises(ConfigError, match="nothing was said"):
        chat.undo()


@given(turns=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), system=st.none() | TEXTS)
@settings(max_examples=20, deadline=None)
def test_a_saved_conversation_loads_again(
    turns: list[tuple[str, str]], system: str | None, speaker: Speaker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    path.write_text('{"messages": []}')  # whose last line has no newline
    loaded = chat_with(speaker)
    with path.open("a") as file:
        file.write("\n" + row(*(text for turn in turns for text in turn), system=system).rstrip("\n"))
    loaded.load(str(path))
    loaded.save(path)
    lines = path.read_text().split("\n")
    assert len(lines) == 4
    assert json.loads(lines[1]) == json.loads(lines[2])
    again = chat_with(speaker)
    again.load(str(path))
    assert again.messages() == loaded.messages() == read_messages(json.loads(lines[2])["messages"], "here")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no conversation in it"),
        ("{}\n", "talk.jsonl:1: messages must be a list"),
        (row("one", "two") + row("one", "two", "three"), "talk.jsonl:2: ends with a question"),
        (row("one", "two").replace("two", "\\ud800"), "lone surrogate"),
        ("nothing\n", "talk.jsonl:1: not JSON"),
    ],
)
def test_a_file_that_holds_no_conversation_is_named(content: str, words: str, speaker: Speaker, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        chat_with(speaker).load(str(path))


# ------------------------------------------------------------------------------------------------ scripts and records


def test_a_script_gets_an_answer_a_question_and_nothing_else_on_stdout(
    yes: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    script = (
        "Open?\n\n//quit\n/set temperature=0 top_k=5\n/system Be brief.\n/undo\n/history\n/save talk.jsonl\n/quit\nno\n"
    )
    result = run_cli("chat", yes, *ONE_THREAD, input=script, cwd=tmp_path)
    assert (result.code, result.out) == (0, b"Yes\nYes\n")
    assert "top_k=5" in result.err
    assert "took back: /quit" in result.err
    assert "system: Be brief.\n> Open?\nYes\n" in result.err
    assert (tmp_path / "talk.jsonl").read_text() == row("Open?", "Yes", system="Be brief.")
    more = run_cli(
        "chat", yes, *ONE_THREAD, "--load", "talk.jsonl", "-q", input="And now?\n/save talk.jsonl\n", cwd=tmp_path
    )
    assert (more.code, more.out, more.err) == (0, b"Yes\n", "")
    last = (tmp_path / "talk.jsonl").read_text().splitlines(keepends=True)[1]
    assert last == row("Open?", "Yes", "And now?", "Yes", system="Be brief.")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/retri", "no command /retri; did you mean /retry?"),
        ("/xyzzy", "no command /xyzzy; /help lists them"),
        ("/undo now", "/undo takes nothing after it"),
        ("/retry", "nothing was said yet"),
        ("/save", "name a file"),
        ("/save -", "name a file"),
        ("/save talk.jsonl", "no answer to save yet"),
        ("/set n=3", "want KEY=VALUE"),
        ("/set temperature=-1", "temperature: must be >= 0"),
        ("/set temperature=NaN", "must be a finite number"),
        ("/set top_k=0.5", "top_k: must be an integer or null, got 0.5"),
        ("/set top_k=many", "no number"),
        ("a" * 300, "shorten it"),
        ("a\udcff", "byte 0xff is not UTF-8"),
    ],
)
def test_a_mistake_in_a_script_is_bad_data_told_with_its_line(
    line: str, words: str, speaker: Speaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [b"\n", line.encode(errors="surrogateescape") + b"\n"]
    with pytest.raises(DataError) as caught:
        follow(lines, chat_with(speaker), Report())
    (problem,) = caught.value.problems
    assert problem.startswith("stdin:2: ")
    assert words in problem


def test_a_place_that_takes_no_file_is_told(yes: Path, tmp_path: Path, run_cli: RunCli) -> None:
    result = run_cli("chat", yes, *ONE_THREAD, input="Open?\n/save none/talk.jsonl\n", cwd=tmp_path)
    result.error(1, "chat", "stdin:2: /save: none/talk.jsonl: No such file or directory")


def test_records_come_back_with_answers_in_order(yes: Path, run_cli: RunCli) -> None:
    records = [
        {"content": "Open?", "id": 1, "max_tokens": 2},
        {"messages": [{"role": USER, "content": "Open?"}], "id": 2},
        {"messages": [{"role": ASSISTANT, "content": "Open?"}], "id": 3},
        {"content": "Open?", "id": 4, "n": 2, "logprobs": True},
        {"id": 5},
        {"content": "", "id": 6},
        {"content": "\ud800", "id": 7},
        {"content": "a" * 300, "id": 8},
        json.loads(row(*(["b" * 40] * 8), "Open?")) | {"id": 9, "temperature": 0},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    result = run_cli("chat", yes, *ONE_THREAD, "--jsonl", input=lines)
    result.error(3, "chat", "5 records could not be answered")
    found = [json.loads(line) for line in result.text.splitlines()]
    assert [record["id"] for record in found] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 9]
    assert [record.get("text") for record in found] == ["Ye", "Yes", None, "Yes", "Yes", None, None, None, None, "Yes"]
    assert found[0] == {
        "content": "Open?", "id": 1, "text": "Ye", "finish_reason": "length", "prompt_tokens": 8, "tokens": 2,
        "dropped_turns": 0,
    }  # fmt: skip
    assert found[1]["messages"] == json.loads(row("Open?", "Yes"))["messages"]
    assert "stdin:3: message 1 is the assistant's" in found[2]["error"]
    assert [(record["sample"], len(record["logprobs"])) for record in found[3:5]] == [(0, 3), (1, 3)]
    assert 'want either "messages" or "content"' in found[5]["error"]
    assert "lone surrogate" in found[7]["error"]
    assert (found[9]["dropped_turns"], len(found[9]["messages"])) == (2, 10)


def test_a_model_of_text_is_no_model_to_talk_with(tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("chat", tiny.run, *ONE_THREAD, input="Hello\n")
    result.error(3, "chat", "was not trained on conversations", "gptcli finetune", "gptcli generate")
    assert result.out == b""


def test_options_that_do_not_go_together_are_told(yes: Path, run_cli: RunCli) -> None:
    run_cli("chat", yes, *ONE_THREAD, "--jsonl", "--system", "x").error(2, "chat", "leave out --system")
    run_cli("chat", yes, *ONE_THREAD, "--system", " ").error(2, "chat", "the text is empty")
    run_cli("chat", yes, *ONE_THREAD, "--temperature", "-1").error(2, "chat", "temperature")


def test_a_bias_turns_an_answer(tmp_path: Path, run_cli: RunCli) -> None:
    model = table_model(tmp_path / "model", ["Yes", "no"])
    flags = ("--temperature", "0", "-q", *ONE_THREAD)
    for answer in ("Yes", "no"):
        (first,) = learn_merges(["-"], vocab_size=257).encode(answer[0])
        result = run_cli("chat", model, "--logit-bias", f"{first}=5", *flags, input="Hello\n")
        assert (result.code, result.text) == (0, f"{answer}\n"), result.err
    run_cli("chat", model, "--logit-bias", "99999=1", *flags, input="Hello\n").error(3, "chat", "no token 99999")
