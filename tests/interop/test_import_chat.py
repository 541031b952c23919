"""An imported model with what makes it one to talk with: its chat template, its begin and end tokens, its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli
from tokenizers import AddedToken

pytest.importorskip("transformers")
pytest.importorskip("jinja2")
import transformers
from hugging_face import CONFIGS, edit_config, hf_directory, made_tokenizer, random_model

import gptcli
from gptcli.api.export_model import export_hf
from gptcli.api.import_model import import_model
from gptcli.base.errors import DataError
from gptcli.base.report import Report
from gptcli.data.conversation import Message
from gptcli.data.template import Template
from gptcli.train.metadata import read_metadata

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{% generation %}<|im_start|>{{ message.role }}\n\n"
    "{{ message.content | trim }}{{ eos_token }}{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
MESSAGES = [
    Message("system", "You are brief."),
    Message("user", "  Open on\nSunday? "),
    Message("assistant", "No.\n"),
    Message("user", "日本 {{ 'x' }} \"quoted\""),
]


def chat_directory(path: Path, template: str, **changes: Any) -> Any:
    """A small Llama as an instruct model comes: the end token is not <|endoftext|>; returns its tokenizer."""
    model = random_model(CONFIGS["llama"])
    model.resize_token_embeddings(390)
    tokenizer = made_tokenizer()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    model.save_pretrained(path)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=template
    )
    fast.save_pretrained(path)
    end = tokenizer.token_to_id("<|im_end|>")
    edit_config(path, eos_token_id=end, bos_token_id=end - 1, **changes)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [end], "bos_token_id": end - 1}))
    return fast


@pytest.fixture(scope="module", params=[CHATML, LLAMA3], ids=["chatml", "llama3"])
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("chat")
    theirs = chat_directory(path / "hf", request.param)
    import_model(path / "hf", path / "ours", report=Report())
    return path, theirs


def ids_of(theirs: Any, messages: list[Message], *, answer: bool) -> list[int]:
    rows = [message._asdict() for message in messages]
    found: list[int] = theirs.apply_chat_template(rows, add_generation_prompt=answer, return_dict=False)
    return found


@pytest.mark.parametrize("turns", [2, 4])
def test_a_prompt_has_the_ids_of_the_models_own_template(turns: int, chat: tuple[Path, Any]) -> None:
    path, theirs = chat
    form = read_metadata(path / "ours").conversation
    assert isinstance(form, Template)
    _, tokenizer = gptcli.load(path / "ours")
    assert form.prompt(MESSAGES[:turns], tokenizer) == ids_of(theirs, MESSAGES[:turns], answer=True)
    assert form.stop_ids(tokenizer) == {theirs.eos_token_id, 0}


def test_what_is_learnt_is_each_answer_and_its_end(chat: tuple[Path, Any]) -> None:
    path, theirs = chat
    form, (_, tokenizer) = read_metadata(path / "ours").conversation, gptcli.load(path / "ours")
    assert form is not None
    messages = [*MESSAGES, Message("assistant", "Yes <think>!")]
    ids, learnt = form.example(messages, tokenizer)
    assert ids == ids_of(theirs, messages, answer=False)
    taught = tokenizer.decode([index for index, is_learnt in zip(ids, learnt, strict=True) if is_learnt])
    assert taught in ("No.\n<|im_end|>Yes <think>!<|im_end|>", "No.<|im_end|>Yes <think>!<|im_end|>")


def test_text_that_spells_a_control_token_stays_text(chat: tuple[Path, Any]) -> None:
    path, _ = chat
    form, (_, tokenizer) = read_metadata(path / "ours").conversation, gptcli.load(path / "ours")
    assert form is not None
    plain, spelt = (
        form.prompt([Message("user", text)], tokenizer) for text in ("a", "a<|im_end|><|im_start|>b<|endoftext|>")
    )
    controls = set(tokenizer.specials.values())
    assert [i for i in plain if i in controls] == [i for i in spelt if i in controls]
    assert "a<|im_end|><|im_start|>b<|endoftext|>" in tokenizer.decode(spelt)
    ids, learnt = form.example([Message("user", "a"), Message("assistant", "<|im_end|>")], tokenizer)
    taught = [index for index, is_learnt in zip(ids, learnt, strict=True) if is_learnt]
    assert (tokenizer.decode(taught), taught[-1]) == ("<|im_end|><|im_end|>", tokenizer.end)


def test_an_untouched_model_goes_out_as_it_came(chat: tuple[Path, Any], tmp_path: Path) -> None:
    path, _ = chat
    export_hf(path / "ours", tmp_path / "out", report=Report())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (path / "hf" / name).read_bytes()
    before, after = (json.loads((p / "config.json").read_text()) for p in (path / "hf", tmp_path / "out"))
    assert {key for key in before | after if before.get(key) != after.get(key)} <= {"pad_token_id"}


def test_the_command_talks_and_tunes_with_it(chat: tuple[Path, Any], tmp_path: Path, run_cli: RunCli) -> None:
    path, _ = chat
    said = run_cli("chat", path / "ours", "--temperature", 0, "--max-tokens", 8, input="Hi\n")
    assert said.code == 0, said.err
    assert b"<|" not in said.out
    rows = [{"messages": [m._asdict() for m in (Message("user", "Hi"), Message("assistant", "Hello you."))]}] * 8
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(
        f"run_dir: tuned\nbase: {path / 'ours'}\ntask: chat\ndata: {{train: [rows.jsonl], validation_fraction: 0}}\n"
        "train: {epochs: 2, batch_size: 8}\noptim: {learning_rate: 0.01}\nlora: {rank: 8}\n"
    )
    tuned = run_cli("finetune", "run.yaml", cwd=tmp_path)
    assert tuned.code == 0, tuned.err
    assert read_metadata(tmp_path / "tuned" / "latest").conversation == read_metadata(path / "ours").conversation
    said = run_cli("chat", "tuned", "--temperature", 0, "--max-tokens", 20, input="Hi\n", cwd=tmp_path)
    assert (said.code, b"<|" in said.out) == (0, False), said.err


def test_the_end_token_has_the_name_that_the_files_say(tmp_path: Path) -> None:
    chat_directory(tmp_path / "hf", CHATML)
    import_model(tmp_path / "hf", tmp_path / "ours", report=Report())
    _, tokenizer = gptcli.load(tmp_path / "ours")
    assert tokenizer.eos_ids == [tokenizer.specials["<|im_end|>"]]


def test_words_that_were_added_are_words(chat: tuple[Path, Any]) -> None:
    path, theirs = chat
    _, tokenizer = gptcli.load(path / "ours")
    text = "<think>ok</think> the"
    assert tokenizer.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert "<think>" not in tokenizer.specials


def test_a_template_that_tells_turns_otherwise_later_is_refused_for_learning(tmp_path: Path) -> None:
    source = "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}{% endfor %}"
    chat_directory(tmp_path / "hf", source)
    import_model(tmp_path / "hf", tmp_path / "ours", report=Report())
    form, (_, tokenizer) = read_metadata(tmp_path / "ours").conversation, gptcli.load(tmp_path / "ours")
    assert form is not None
    with pytest.raises(DataError, match="a row of its own"):
        form.example([*MESSAGES, Message("assistant", "b")], tokenizer)


@pytest.mark.parametrize(
    "source", ["{{ x.__class__.__mro__ }}", "{{ ().__class__.__bases__[0].__subclasses__() }}", "{% include 'x' %}"]
)
def test_a_template_cannot_leave_its_sandbox(source: str, tmp_path: Path) -> None:
    chat_directory(tmp_path / "hf", source)
    import_model(tmp_path / "hf", tmp_path / "ours", report=Report())
    assert read_metadata(tmp_path / "ours").conversation is None


def test_generate_answers_as_chat_does(chat: tuple[Path, Any], run_cli: RunCli) -> None:
    run = chat[0] / "ours"
    greedy = ("--temperature", 0, "--max-tokens", 8)
    spoken = run_cli("chat", run, *greedy, input="Hi\n")
    written = run_cli("generate", run, "Hi", "--chat", *greedy)
    assert (written.code, written.text.strip("\n")) == (0, spoken.text.strip("\n")), written.err
    row = json.dumps({"id": 7, "messages": [{"role": "user", "content": "Hi"}], "gold": "x"})
    (answer,) = map(json.loads, run_cli("generate", run, "--jsonl", *greedy, input=row).out.splitlines())
    (wanted,) = map(json.loads, run_cli("chat", run, "--jsonl", *greedy, input=row).out.splitlines())
    assert answer["text"] == wanted["text"] == spoken.text.removesuffix("\n")
    assert (answer["id"], answer["gold"], answer["messages"]) == (7, "x", [{"role": "user", "content": "Hi"}])
    prompt = run_cli("generate", run, "--jsonl", "--chat", *greedy, input='{"prompt": "Hi"}')
    assert json.loads(prompt.out)["text"] == wanted["text"]
    both = run_cli("generate", run, "--jsonl", input='{"prompt": "a", "messages": []}')
    assert (both.code, json.loads(both.out)["error"]) == (3, 'stdin:1: want either "prompt" or "messages"')


def test_only_a_model_of_conversations_answers(tmp_path: Path, run_cli: RunCli) -> None:
    hf_directory(tmp_path / "hf", CONFIGS["gpt2"])
    import_model(tmp_path / "hf", tmp_path / "ours", report=Report())
    run_cli("generate", tmp_path / "ours", "Hi", "--chat").error(3, "generate", "was not trained on conversations")
    row = '{"messages": [{"role": "user", "content": "Hi"}]}'
    result = run_cli("generate", tmp_path / "ours", "--jsonl", input=row)
    assert (result.code, "was not trained on conversations" in json.loads(result.out)["error"]) == (3, True)


def test_the_makers_way_of_drawing_holds_where_nothing_else_is_said(tmp_path: Path, run_cli: RunCli) -> None:
    chat_directory(tmp_path / "hf", CHATML)
    generation = {"do_sample": True, "temperature": 1e-3, "top_k": 1, "top_p": 7.0, "min_p": "a"}
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps(generation))
    import_model(tmp_path / "hf", tmp_path / "ours", report=Report())
    ask = ("generate", tmp_path / "ours", "Hi", "--max-tokens", 8)
    greedy, drawn = run_cli(*ask, "--temperature", 0), run_cli(*ask, "--seed", 3)
    assert (drawn.text, greedy.err) == (greedy.text, "")
    assert "generation_config.json): temperature 0.001, top_k 1; an option of yours wins" in drawn.err
    given = run_cli(*ask, "--top-k", 50, "--temperature", 1.5, "--seed", 3)
    assert (given.err, given.text != greedy.text) == ("", True)
    generation["do_sample"] = False
    (tmp_path / "hf" / "generation_config.json").write_text(json.dumps(generation))
    import_model(tmp_path / "hf", tmp_path / "other", report=Report())
    assert run_cli("generate", tmp_path / "other", "Hi", "--max-tokens", 1).err == ""
