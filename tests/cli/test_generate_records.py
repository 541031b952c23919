"""Records of `generate --jsonl`: what is an option, what is data, and what is told; options that take files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunCli, Tiny

from gptcli.config.model import ModelConfig
from gptcli.data.conversation import Conversation
from gptcli.data.tokenizer import learn_merges
from gptcli.model.gpt import GPT
from gptcli.train import checkpoint
from gptcli.train.metadata import ModelMetadata

SHORT = ("--max-tokens", "3", "--threads", "1")


def one(run_cli: RunCli, tiny: Tiny, record: dict[str, Any], *flags: str, code: int = 0) -> tuple[list[Any], str]:
    result = run_cli("generate", tiny.run, "--jsonl", *(flags or SHORT), input=json.dumps(record) + "\n")
    assert result.code == code, result.err
    return [json.loads(line) for line in result.text.splitlines()], result.err


def test_options_stand_under_options_and_all_else_is_data(tiny: Tiny, run_cli: RunCli) -> None:
    record = {"prompt": "The", "n": "three", "seed": [1], "max_new_tokens": 9, "Temperature": 0, "stop": 4}
    options = {"max_tokens": 2, "n": 2, "stop": "q", "logit_bias": {"299": -5}}
    found, said = one(run_cli, tiny, {**record, "options": options}, "--threads", "1")
    assert [answer["sample"] for answer in found] == [0, 1]
    del record["prompt"]
    for answer in found:
        assert answer["tokens"] == 2
        assert {name: answer[name] for name in record} == record
        assert "options" not in answer
    assert said == ""


def test_a_row_of_a_multiple_choice_test_is_not_bound_by_its_choices(tiny: Tiny, run_cli: RunCli) -> None:
    data = {"choices": ["three", "four"], "n": 2, "answer": 1}
    (answer,), said = one(run_cli, tiny, {"prompt": "2 + 2 =", **data, "temperature": 0})
    assert {name: answer[name] for name in data} == data
    assert "temperature" not in answer
    assert answer["tokens"] == 3
    assert said.count("\n") == 1
    assert "stdin:1: choices, n: passed on as data, like 'answer' beside it" in said


def test_a_record_that_only_asks_has_its_options_beside_the_prompt(tiny: Tiny, run_cli: RunCli) -> None:
    found, said = one(run_cli, tiny, {"prompt": "The", "id": 7, "choices": ["old", "new"], "n": 3, "seed": 5})
    assert [(answer["id"], answer["sample"]) for answer in found] == [(7, 0), (7, 1), (7, 2)]
    assert {answer["text"] for answer in found} <= {"old", "new"}
    assert said == ""


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"max_new_tokens": 3, "Temperature": 0}, "write "),
        ({"max_new_tokens": 3}, "no option 'max_new_tokens'; write max_tokens"),
        ({"Temperature": 0}, "no option 'Temperature'; write temperature"),
        ({"topK": 3}, "no option 'topK'; write top_k"),
        ({"stop_sequences": ["a"]}, "no option 'stop_sequences'; write stop"),
        ({"options": {"max_token": 3}}, "options: no option 'max_token'; did you mean max_tokens?"),
        ({"options": {"zzz": 3}}, "options: no option 'zzz'; there are choices, "),
        ({"options": {"max_tokens": "3"}}, "max_tokens: must be an integer, got"),
        ({"options": {"logit_bias": {"a": 1}}}, 'logit_bias: want {"ID": BIAS}'),
        ({"options": {"logit_bias": {"99999": 1}}}, "logit_bias: no token 99999"),
        ({"json_schema": {"oneOf": []}}, "JSON schema: #: oneOf is not supported"),
    ],
)
def test_an_option_that_there_is_not_is_refused_with_the_one_that_is_meant(
    record: dict[str, Any], told: str, tiny: Tiny, run_cli: RunCli
) -> None:
    (answer,), _ = one(run_cli, tiny, {"prompt": "The", "id": 1, **record}, code=3)
    assert answer["id"] == 1
    assert told in answer["error"]
    assert "text" not in answer


def test_a_field_that_may_be_a_misspelt_option_is_passed_on_and_told(tiny: Tiny, run_cli: RunCli) -> None:
    (answer,), said = one(run_cli, tiny, {"prompt": "The", "temprature": 0})
    assert answer["temprature"] == 0
    assert "field 'temprature' is passed on; the option is temperature" in said


def test_a_field_with_a_name_of_the_answers_is_not_lost(tiny: Tiny, run_cli: RunCli) -> None:
    (answer,), said = one(run_cli, tiny, {"prompt": "The", "text": "gold", "tokens": 99})
    assert (answer["input_text"], answer["input_tokens"], answer["tokens"]) == ("gold", 99, 3)
    assert "fields text, tokens are the answer's; yours come back as input_text, input_tokens" in said


def test_stdin_beside_a_prompt_is_told(tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("generate", tiny.run, "The", *SHORT, input="a document\n")
    assert result.code == 0
    assert "warning: stdin is not read beside PROMPT" in result.err
    assert run_cli("generate", tiny.run, "The", *SHORT, input="").err == ""


def test_text_is_json_by_a_schema_in_a_file(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    file = tmp_path / "schema.json"
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    file.write_text(json.dumps(schema))
    result = run_cli("generate", tiny.run, "The", "--json-schema", file, "--max-tokens", "25", "--threads", "1")
    assert result.code == 0, result.err
    assert json.loads(result.text)["ok"] in (True, False)
    bound = run_cli("generate", tiny.run, "The", "--json-schema", "-", input='{"type": "null"}')
    assert (bound.code, bound.text) == (0, "null")
    file.write_text('{"not": {}}')
    run_cli("generate", tiny.run, "The", "--json-schema", file).error(2, "generate", "not is not supported")
    run_cli("generate", tiny.run, "The", "--json-schema", tmp_path / "none").error(1, "generate", "none")
    run_cli("generate", tiny.run, "--json-schema", "-").error(2, "generate", "reads stdin")


def test_log_probabilities_of_the_prompt_come_with_the_record(tiny: Tiny, run_cli: RunCli) -> None:
    record = {"prompt": "The old", "options": {"prompt_logprobs": 2, "max_tokens": 0}}
    (answer,), _ = one(run_cli, tiny, record)
    assert answer["tokens"] == 0
    assert "".join(token["token"] for token in answer["prompt_logprobs"]) == "The old"
    assert all(token["logprob"] < 0 and len(token["top"]) == 2 for token in answer["prompt_logprobs"])


def test_biases_are_given_by_the_id_of_a_token(tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("generate", tiny.run, "The", "--logit-bias", "97=100", *SHORT, "--json")
    assert json.loads(result.text)["tokens"] == 3
    run_cli("generate", tiny.run, "The", "--logit-bias", "a=1").error(2, "generate", "--logit-bias a=1: want ID=BIAS")
    run_cli("generate", tiny.run, "The", "--logit-bias", "1=500").error(2, "generate", "from -100 to 100")


def test_a_record_that_cannot_be_written_leaves_the_others_alone(tmp_path: Path, run_cli: RunCli) -> None:
    """One position is poisoned: the records that reach it have an error, the others their text."""
    tokenizer = learn_merges(["the cat sat on the mat"] * 3, vocab_size=260)
    shape: dict[str, Any] = {"num_layers": 1, "num_heads": 1, "hidden_size": 16, "context_length": 32}
    model = GPT(ModelConfig.from_preset("gpt2", **shape, vocab_size=tokenizer.vocab_size))
    model.initialize(torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.position_embedding.weight[12] = 3e38  # which a norm squares
    directory = tmp_path / "model"
    directory.mkdir()
    checkpoint.save_model(model, tokenizer, directory, step=1, metadata=ModelMetadata())
    lines = [json.dumps({"prompt": "a" * length, "id": length, "max_tokens": 3}) for length in (2, 20, 4, 11, 5)]
    result = run_cli("generate", directory, "--jsonl", "--no-stop-at-eos", "--threads", "1", input="\n".join(lines))
    result.error(3, "generate", "2 records could not be written")
    found = [json.loads(line) for line in result.text.splitlines()]
    assert [(record["id"], record["finish_reason"], "error" in record) for record in found] == [
        (2, "length", False), (20, "error", True), (4, "length", False), (11, "error", True), (5, "length", False)
    ]  # fmt: skip
    assert "non-finite logits at position 1" in found[3]["error"]
    run_cli("generate", directory, "a" * 20).error(4, "generate", "non-finite logits")


def test_a_control_token_ends_a_text_and_is_never_a_part_of_it(tmp_path: Path, run_cli: RunCli) -> None:
    """A model tuned to converse, continued as plain text: it says `ab` and then its end token, over and over."""
    form = Conversation()
    tokenizer = learn_merges(["-"], vocab_size=257).with_specials(form.specials)
    size = tokenizer.vocab_size
    shape: dict[str, Any] = {"num_layers": 1, "num_heads": 1, "head_dim": 2, "hidden_size": size}
    model = GPT(ModelConfig(**shape, context_length=64, vocab_size=size))
    model.initialize(torch.Generator().manual_seed(1))
    path = [*tokenizer.encode("ab"), form.end_id(tokenizer)]
    with torch.no_grad():
        model.embedding.weight.copy_(torch.eye(size))
        model.head.weight.fill_(-20.0)
        for here, there in zip(path, [*path[1:], path[0]], strict=True):
            model.head.weight[there, here] = 20.0
    directory = tmp_path / "model"
    directory.mkdir()
    checkpoint.save_model(model, tokenizer, directory, step=1, metadata=ModelMetadata(conversation=form))
    result = run_cli("generate", directory, "a", "--json", "--threads", "1")
    answer = json.loads(result.text)
    assert (answer["text"], answer["finish_reason"], answer["tokens"]) == ("b", "stop", 1)
