"""What `gptcli serve` takes and gives, field by field; numbers are those of the faults that others' users reported."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli, Tiny
from serving import CHAT, COMPLETIONS, TEXT, Running, serving
from table_models import table_model


@pytest.fixture(scope="module")
def server(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tiny.run, tmp_path_factory.mktemp("serve"), "--batch-size", "4") as running:
        yield running


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("chat")
    with serving(table_model(directory / "model", ["Yes, man"]), directory) as running:
        yield running


def generated(run_cli: RunCli, tiny: Tiny, prompt: str, *flags: str) -> str:
    """What `gptcli generate` writes."""
    result = run_cli("generate", tiny.run, prompt, *flags)
    assert result.code == 0, result.err
    return result.text


def test_9_to_13_lengths(server: Running) -> None:
    both = server.ok(COMPLETIONS, {**TEXT, "max_tokens": 9, "max_completion_tokens": 3})
    assert both["usage"]["completion_tokens"] == 3
    assert both["choices"][0]["finish_reason"] == "length"
    long = server.ok(COMPLETIONS, {**TEXT, "max_tokens": 10**6})  # an upper bound, not a demand
    assert long["usage"]["completion_tokens"] < 40
    assert server.ok(COMPLETIONS, {**TEXT, "max_tokens": None})["usage"]["completion_tokens"] > 0
    error = server.refused(400, "context_length_exceeded", COMPLETIONS, {"prompt": "the old bridge " * 40})
    assert "32" in error["message"]


def test_11_to_13_why_a_text_ended_is_what_generate_says(chat: Running, server: Running, run_cli: RunCli) -> None:
    for most, reason in ((3, "length"), (50, "stop"), (None, "stop")):
        body = {"prompt": "Y", "temperature": 0, "max_tokens": most}
        choice = chat.ok(COMPLETIONS, body)["choices"][0]
        record = {name: value for name, value in body.items() if value is not None}
        wanted = json.loads(run_cli("generate", chat.run, "--jsonl", input=json.dumps(record) + "\n").text)
        assert (choice["text"], choice["finish_reason"]) == (wanted["text"], wanted["finish_reason"])
        assert choice["finish_reason"] == reason
    facts = server.ask("GET", "/v1/models")[1]["data"][0]
    assert facts["defaults"]["max_tokens"] == 200  # of completions that name none
    by_context = server.ok(COMPLETIONS, {"prompt": "the", "ignore_eos": True})
    assert by_context["choices"][0]["finish_reason"] == "length"
    assert by_context["usage"]["total_tokens"] == facts["context_length"]


def asked(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], "temperature": 0}


def test_14_content_in_parts(chat: Running) -> None:
    parts = [{"type": "text", "text": "Are you"}, {"type": "text", "text": " there?"}]
    whole, joined = (chat.ok(CHAT, asked(("user", content))) for content in ("Are you there?", parts))
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "Yes, man", "refusal": None}
    assert whole["usage"]["prompt_tokens"] == joined["usage"]["prompt_tokens"]
    image = [{"type": "image_url", "image_url": {"url": "http://localhost/a.png"}}]
    assert "image_url" in chat.refused(400, "invalid_value", CHAT, asked(("user", image)))["message"]


def test_15_roles_need_not_alternate(chat: Running) -> None:
    def ids(*turns: tuple[str, str]) -> list[int]:
        found: list[int] = chat.ok("/tokenize", {"messages": asked(*turns)["messages"]})["tokens"]
        return found

    joined = ids(("system", "Be brief.\n\nBe kind."), ("user", "Hello\n\nthere"))
    assert ids(("system", "Be brief."), ("developer", "Be kind."), ("user", "Hello"), ("user", "there")) == joined
    goes_on = chat.ok(CHAT, asked(("user", "Hello"), ("assistant", "Yes")))
    assert goes_on["choices"][0]["message"]["content"] == ", man"
    late = asked(("user", "a"), ("assistant", "b"), ("system", "c"), ("user", "d"))
    assert "system" in chat.refused(400, "invalid_value", CHAT, late)["message"]
    question = asked(("user", "Hello"))
    for harmless in ({"tools": []}, {"tool_choice": "none"}, {"tools": None}):
        assert chat.ok(CHAT, question | harmless)["choices"][0]["finish_reason"] == "stop"
    tool = {"type": "function", "function": {"name": "f"}}
    assert chat.refused(400, "unsupported_parameter", CHAT, question | {"tools": [tool]})["param"] == "tools"
    chat.refused(400, "unsupported_parameter", CHAT, asked(("user", "a"), ("tool", "b")))


def test_turns_that_cannot_fit_are_dropped_before_they_are_encoded(chat: Running) -> None:
    turns = [("user", "x" * 5000), ("assistant", "y" * 5000)] * 300
    found = chat.ok(CHAT, asked(*turns, ("user", "Hello")))
    assert (found["dropped_turns"], found["choices"][0]["message"]["content"]) == (300, "Yes, man")
    chat.refused(400, "context_length_exceeded", CHAT, asked(("user", "x" * 100_000)))


def test_16_and_17_log_probabilities_of_a_chat(chat: Running) -> None:
    body = asked(("user", "Hello")) | {"logprobs": True}
    for top in (None, 0, 1, 20):
        content = chat.ok(CHAT, body | {"top_logprobs": top})["choices"][0]["logprobs"]["content"]
        assert bytes(byte for entry in content for byte in entry["bytes"]) == b"Yes, man"
        assert all(len(entry["top_logprobs"]) == (top or 0) for entry in content)
        for entry in content if top else []:
            assert (entry["top_logprobs"][0]["token"], len({t["token"] for t in entry["top_logprobs"]})) == (
                entry["token"],
                top,
            )
    assert chat.refused(400, "invalid_value", CHAT, asked(("user", "a")) | {"top_logprobs": 2})


def test_a_control_token_ends_a_text_as_in_generate(chat: Running, run_cli: RunCli) -> None:
    found = chat.ok(COMPLETIONS, {"prompt": "Y", "temperature": 0, "max_tokens": 50})
    assert (found["choices"][0]["text"], found["choices"][0]["finish_reason"]) == ("es, man", "stop")
    assert run_cli("generate", chat.run, "Y", "--temperature", 0, "--max-tokens", 50).text == "es, man"


def test_requests_are_drawn_as_the_makers_advise_where_nothing_else_is_said(tmp_path: Path) -> None:
    advice = json.dumps({"do_sample": True, "temperature": 0.25, "top_k": 1, "top_p": 0.5})
    model = table_model(tmp_path / "model", ["gold", "silver", "copper"], origin={"generation_config.json": advice})
    with serving(model, tmp_path, "--top-p", "0.9") as running:
        assert running.ask("GET", "/v1/models")[1]["data"][0]["defaults"]["temperature"] == 0.25
        found = running.ok(CHAT, asked(("user", "Hi")) | {"temperature": 1, "n": 12})["choices"]
        assert len({choice["message"]["content"] for choice in found}) == 1  # of three as likely: top_k is 1
        assert "temperature 0.25, top_k 1; an option of yours wins" in running.said()


@pytest.mark.parametrize("schema", [{"required": [{}]}, {"type": "string", "format": []}, {"enum": [1e200, [{}]]}])
def test_a_schema_that_is_wrong_harms_nobody(server: Running, schema: Any) -> None:
    body = {**TEXT, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    assert server.ask("POST", COMPLETIONS, body)[0] in (200, 400)
    assert server.ok(COMPLETIONS, TEXT)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("regex", "(", "regex"), ("regex", "a" * 20_000, "regex"), ("regex", "(a{1000}){1000}", "regex"),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}, "response_format"),
        ("choices", ["a" * 65_000], "choices"),
    ],
)  # fmt: skip
def test_a_pattern_that_cannot_be_used_is_refused_by_its_field(
    server: Running, field: str, value: Any, named: str
) -> None:
    error = server.refused(400, "invalid_schema", COMPLETIONS, {**TEXT, field: value})
    assert error["param"] == named


def test_17_tokens_that_are_no_text_have_names_of_their_own(tmp_path: Path) -> None:
    text = "a\U0001f600\u00e9"
    with serving(table_model(tmp_path / "model", [text]), tmp_path, "--temperature", "0") as running:
        body = asked(("user", "Hello")) | {"logprobs": True, "top_logprobs": 20}
        content = running.ok(CHAT, body)["choices"][0]["logprobs"]["content"]
        body = {"prompt": "a", "logprobs": 20, "echo": True, "max_tokens": 9}
        facts = running.ok(COMPLETIONS, body)["choices"][0]["logprobs"]
    names = ["a", *(f"bytes:\\x{byte:02x}" for byte in text.encode()[1:])]
    assert [entry["token"] for entry in content] == facts["tokens"] == names
    assert bytes(byte for entry in content for byte in entry["bytes"]) == text.encode()
    assert all(len({top["token"] for top in entry["top_logprobs"]}) == 20 for entry in content)
    assert all(len(top) >= 20 and name in top for name, top in zip(names[1:], facts["top_logprobs"][1:], strict=True))


def test_18_entries_end_with_the_text(chat: Running) -> None:
    body = asked(("user", "Hello")) | {"logprobs": True, "stop": ", m"}
    whole = chat.ok(CHAT, body)["choices"][0]
    assert whole["message"]["content"] == "Yes"
    assert [entry["token"] for entry in whole["logprobs"]["content"]] == ["Y", "e", "s"]
    streamed = [choice for chunk in chat.chunks(CHAT, body) for choice in chunk["choices"]]
    entries = [entry for choice in streamed if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert entries == whole["logprobs"]["content"]


def test_16_to_19_log_probabilities_and_echo(server: Running, tiny: Tiny, run_cli: RunCli) -> None:
    body = {**TEXT, "logprobs": 1, "echo": True}
    choice = server.ok(COMPLETIONS, body)["choices"][0]
    facts = choice["logprobs"]
    assert choice["text"].startswith(facts["tokens"][0])
    for offset, token in zip(facts["text_offset"], facts["tokens"], strict=True):
        assert token.startswith("bytes:") or choice["text"][offset:].startswith((token, "\ufffd"))
    assert all(token in top for token, top in zip(facts["tokens"], facts["top_logprobs"], strict=True) if top)
    scored = server.ok(COMPLETIONS, {"prompt": "the old harbour", "max_tokens": 0, "echo": True, "logprobs": 0})
    record = json.loads(run_cli("score", tiny.run, input="the old harbour\n").text)
    assert sum(scored["choices"][0]["logprobs"]["token_logprobs"]) == pytest.approx(record["logprob"], abs=1e-4)
    assert server.ok("/v1/score", {"input": "the old harbour"})["data"][0]["logprob"] == pytest.approx(
        record["logprob"], abs=1e-5
    )


def test_19_prompts_of_any_kind_are_scored_alike(server: Running) -> None:
    texts = ["the old harbour", "a new bridge"]
    ids = [server.ok("/tokenize", {"prompt": text})["tokens"] for text in texts]
    scores = [row["logprob"] for row in server.ok("/v1/score", {"input": texts})["data"]]
    for most in (0, 1):
        for prompts in (texts, ids, texts[0], ids[0]):
            body = {"prompt": prompts, "max_tokens": most, "echo": True, "logprobs": 2, "temperature": 0}
            choices = server.ok(COMPLETIONS, body)["choices"]
            assert [choice["index"] for choice in choices] == list(range(2 if len(prompts) == 2 else 1))
            for choice, text, known, score in zip(choices, texts, ids, scores, strict=False):
                facts = choice["logprobs"]
                assert len(facts["tokens"]) == len(known) + most
                assert choice["text"].startswith(text)
                assert sum(facts["token_logprobs"][: len(known)]) == pytest.approx(score, abs=1e-4)


def test_20_fields_that_are_unknown_unsupported_or_harmless(server: Running) -> None:
    assert server.ok(COMPLETIONS, {**TEXT, "user": "me", "store": True, "best_of": 1, "suffix": "", "stop": None})
    error = server.refused(400, "unknown_parameter", COMPLETIONS, {**TEXT, "temprature": 1})
    assert "did you mean temperature" in error["message"]
    assert error["param"] == "temprature"
    server.refused(400, "unsupported_parameter", COMPLETIONS, {**TEXT, "best_of": 3})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 999999), ("temperature", -1), ("temperature", "hot"), ("top_p", -1), ("top_p", 0), ("top_k", 0),
        ("repetition_penalty", 0), ("presence_penalty", 3), ("n", 0), ("n", 257), ("n", True), ("max_tokens", -1),
        ("logprobs", 21), ("seed", 2**64), ("stop", [1]), ("stop", ["x"] * 17), ("logit_bias", {"x": 1}),
        ("logit_bias", {"99999": 1}), ("prompt", []), ("prompt", [[]] * 300), ("prompt", [-1]), ("prompt", 7),
        ("regex", "("), ("response_format", {"type": "xml"}), ("stream_options", {"include_usage": True}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"type": "object", "not": {}}}}),
    ],
)  # fmt: skip
def test_21_to_23_values_out_of_range_are_refused_by_name(server: Running, field: str, value: Any) -> None:
    status, found, _ = server.ask("POST", COMPLETIONS, {**TEXT, field: value})
    assert status == 400, found
    assert found["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'{"prompt": NaN}', b"[" * 100_000, b'{"a":' * 3000,
        b'{"n": 1' + b"0" * 9999 + b"}", b'{"prompt": "\\ud800"}', b'{"prompt": "a", "prompt": 1}',
    ],
    ids=range(11),
)  # fmt: skip
def test_21_bodies_that_are_no_request(server: Running, content: bytes) -> None:
    status, found, _ = server.ask("POST", COMPLETIONS, content)
    assert (status, found["error"]["type"]) == (400, "invalid_request_error")


def test_22_what_would_take_too_much_is_refused_before_any_work(server: Running) -> None:
    for field, body in (
        ("n", {"prompt": ["a"] * 129, "n": 2}), ("prompt", {"prompt": ["a"] * 257}), ("n", {"n": 10**9}),
        ("logprobs", {"logprobs": -1}), ("logprobs", {"logprobs": 10**6}), ("best_of", {"best_of": 10**6}),
    ):  # fmt: skip
        assert server.ask("POST", COMPLETIONS, {**TEXT, **body})[1]["error"]["param"] == field
    server.refused(413, "body_too_large", COMPLETIONS, {"prompt": "a" * (5 << 20)})
    assert len(server.ok(COMPLETIONS, {"prompt": ["a"] * 128, "n": 2, "max_tokens": 1})["choices"]) == 256


def test_23_a_bound_text_matches(server: Running) -> None:
    assert server.ok(COMPLETIONS, {**TEXT, "choices": ["yes", "no"]})["choices"][0]["text"] in ("yes", "no")
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    found = server.ok(COMPLETIONS, {"prompt": "", "max_tokens": 25, "response_format": form})["choices"][0]
    assert json.loads(found["text"])["a"] in (1, 2)


def test_24_seeded_texts_under_load_are_those_of_generate(server: Running, tiny: Tiny, run_cli: RunCli) -> None:
    prompts = ["the old", "a new bridge", "across", "the river and"]
    wanted = {p: generated(run_cli, tiny, p, "--max-tokens", "8", "--seed", "11") for p in prompts}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        bodies = [{"prompt": prompts[i % 4], "max_tokens": 8, "seed": 11} for i in range(16)]
        found = list(pool.map(lambda body: server.ok(COMPLETIONS, body), bodies))
    assert [each["choices"][0]["text"] for each in found] == [wanted[body["prompt"]] for body in bodies]
    for seed in (-1, -(2**63), 2**63 - 1):
        same = [server.ok(COMPLETIONS, {"prompt": "the", "seed": seed}) for _ in range(2)]
        assert same[0]["choices"] == same[1]["choices"]
        assert same[0]["seed"] == seed % 2**63
    free = [server.ok(COMPLETIONS, {"prompt": "the"})["seed"] for _ in range(2)]
    assert free[0] != free[1]


def test_a_seed_of_the_server_holds_where_a_request_names_none(tiny: Tiny, tmp_path: Path) -> None:
    with serving(tiny.run, tmp_path, "--seed", "5") as running:
        found = [running.ok(COMPLETIONS, {"prompt": "the", **seed}) for seed in ({}, {"seed": None}, {"seed": 5})]
        assert [each["seed"] for each in found] == [5, 5, 5]
        assert found[0]["choices"] == found[1]["choices"] == found[2]["choices"]
        assert running.ok(COMPLETIONS, {"prompt": "the", "seed": 6})["seed"] == 6


def test_25_the_name_of_the_model(server: Running, tiny: Tiny) -> None:
    name = server.ask("GET", "/v1/models")[1]["data"][0]["id"]
    assert name == tiny.run.name
    assert server.ok(COMPLETIONS, {**TEXT, "model": str(tiny.run)})["model"] == name
    assert name in server.refused(404, "model_not_found", COMPLETIONS, {**TEXT, "model": "gpt-9"})["message"]
