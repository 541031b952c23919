"""Streams of `gptcli serve`; numbers are those of the faults that others' users reported."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RunCli, Tiny
from serving import CHAT, COMPLETIONS, TEXT, Running, received, serving, text_of
from table_models import table_model


@pytest.fixture(scope="module")
def server(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tiny.run, tmp_path_factory.mktemp("serve"), "--batch-size", "4") as running:
        yield running


def generated(run_cli: RunCli, tiny: Tiny, prompt: str, *flags: str) -> str:
    """What `gptcli generate` writes."""
    result = run_cli("generate", tiny.run, prompt, *flags)
    assert result.code == 0, result.err
    return result.text


def test_the_text_is_that_of_generate_whole_and_streamed(server: Running, tiny: Tiny, run_cli: RunCli) -> None:
    wanted = generated(run_cli, tiny, "the old", "--max-tokens", "12", "--seed", "5")
    whole = server.ok(COMPLETIONS, TEXT)
    assert whole["choices"][0]["text"] == wanted
    assert (whole["seed"], whole["usage"]["completion_tokens"]) == (5, 12)
    *events, done = server.stream(COMPLETIONS, TEXT)
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == wanted
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"


def test_1_no_part_of_a_stop_string_is_streamed(server: Running) -> None:
    text = server.ok(COMPLETIONS, {**TEXT, "max_tokens": 30})["choices"][0]["text"]
    for start in (3, 8, 13):
        stop = text[start : start + 4]
        body = {**TEXT, "max_tokens": 30, "stop": stop}
        whole = server.ok(COMPLETIONS, body)["choices"][0]
        streamed = [json.loads(event) for event in server.stream(COMPLETIONS, body)[:-1]]
        joined = "".join(chunk["choices"][0]["text"] for chunk in streamed)
        assert whole["text"] == joined == text[: text.index(stop)]
        assert whole["finish_reason"] == "stop"


def test_3_usage_is_told_where_it_was_asked_for_and_only_there(server: Running) -> None:
    events = [json.loads(event) for event in server.stream(COMPLETIONS, TEXT)[:-1]]
    assert all("usage" not in event and event["choices"] for event in events)
    body = {**TEXT, "stream_options": {"include_usage": True}}
    *events, last = [json.loads(event) for event in server.stream(COMPLETIONS, body)[:-1]]
    assert all(event["usage"] is None and event["choices"] for event in events)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 12


EMOJI = "a\U0001f600e\u0301\u00e9 \u4e2d!"
NO_INTERVAL = """
import functools, gptcli.api.serve.server as server
server.Settings = functools.partial(server.Settings, interval=0.0)
"""
SOON = """
import gptcli.api.serve.answer as answer
answer.HEAD_SECONDS = 0.3
"""


def question(text: str = "Hello", **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **more}


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model that writes EMOJI, each token a byte, each step an event."""
    directory = tmp_path_factory.mktemp("chat")
    with serving(table_model(directory / "model", [EMOJI]), directory, before=NO_INTERVAL) as running:
        yield running


@pytest.mark.parametrize("stop", ["e\u0301", "\u00e9 \u4e2d", "!", "!?", "\u4e2d!x", "\U0001f600"])
def test_1_a_stop_string_over_any_tokens(chat: Running, stop: str) -> None:
    whole = chat.ok(CHAT, question(stop=stop))["choices"][0]
    streamed = chat.chunks(CHAT, question(stop=stop))
    assert whole["message"]["content"] == text_of(streamed) == EMOJI.split(stop)[0]


def test_2_chunks_are_whole_characters(chat: Running) -> None:
    chunks = [chunk["choices"][0] for chunk in chat.chunks(CHAT, question())]
    pieces = [chunk["delta"]["content"] for chunk in chunks if chunk["delta"].get("content")]
    assert "".join(pieces) == EMOJI
    assert not any("\ufffd" in piece for piece in pieces)
    empty = [chunk for chunk in chunks if not chunk["delta"].get("content")]
    assert [(chunk["delta"].get("role"), chunk["finish_reason"]) for chunk in empty] == [
        ("assistant", None),
        (None, "stop"),
    ]


def test_3_the_order_of_a_chat_of_several_choices(chat: Running) -> None:
    chunks = chat.chunks(CHAT, question(n=3, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 3 * len(EMOJI.encode())
    for index in range(3):
        assert text_of(chunks, index) == EMOJI
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["stop"]
        assert own[-1]["delta"] == {}


def test_4_choices_are_empty_only_beside_the_usage_that_was_asked_for(server: Running, chat: Running) -> None:
    for chunks in (
        server.chunks(COMPLETIONS, TEXT),
        server.chunks(COMPLETIONS, {**TEXT, "stop": "e", "logprobs": 1}),
        server.chunks(COMPLETIONS, {"prompt": "the", "echo": True, "max_tokens": 0}),
        chat.chunks(CHAT, question(stop="a")),
    ):
        assert all(len(chunk["choices"]) == 1 for chunk in chunks)


def test_5_an_error_after_the_head_breaks_the_connection(tmp_path: Path) -> None:
    broken = table_model(tmp_path / "model", ["abcdefgh!"], breaks_after="!")
    with serving(broken, tmp_path, before=NO_INTERVAL) as running:
        connection = running.send(CHAT, question(stream=True))
        content = b""
        while part := connection.recv(65536):
            content += part
        head, _, rest = content.partition(b"\r\n\r\n")
        assert b" 200 " in head
        assert b"[DONE]" not in rest
        assert not rest.endswith(b"0\r\n\r\n")
        *_, event = [line for line in rest.splitlines() if line.startswith(b"data: ")]
        assert json.loads(event.removeprefix(b"data: "))["error"] == {
            "message": json.loads(event[6:])["error"]["message"],
            "type": "server_error",
            "param": None,
            "code": "engine_error",
        }
        assert "non-finite" in event.decode()
        openai = pytest.importorskip("openai")
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none")
        with pytest.raises(openai.APIError, match="non-finite"):
            list(client.chat.completions.create(model="", stream=True, **question()))
        error = running.refused(500, "engine_error", CHAT, question())
        assert error["headers"]["x-should-retry"] == "false"
        assert running.ask("GET", "/health")[0] == 200


def test_6_and_7_a_stream_that_waits_gets_its_head_and_comments(tmp_path: Path) -> None:
    endless = table_model(tmp_path / "model", [["ab"]], context_length=8192)
    with serving(endless, tmp_path, "--batch-size", "1", "--ping", "0.2", before=SOON) as running:
        first = running.send(CHAT, question(stream=True))
        assert received(first, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        second = running.send(CHAT, question(stream=True))
        assert received(second, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - began > 0.25
        assert b"data:" not in received(second, b": waiting\n\n", 2)
        assert b": waiting" not in received(first, b"data:", 5)  # no comment while tokens flow
        first.close()
        received(second, b"data:")
        second.close()
        assert running.is_free()


def test_7_a_refusal_keeps_its_status_until_the_head_is_sent(server: Running) -> None:
    for body, status in (({"stream": True, "prompt": "x" * 9999}, 400), ({"stream": True, "model": "no"}, 400)):
        assert server.ask("POST", COMPLETIONS, body)[0] == status


def test_8_each_event_is_a_write_of_its_own(chat: Running) -> None:
    connection = chat.send(CHAT, question(stream=True))
    body = received(connection, b"\r\n0\r\n\r\n").partition(b"\r\n\r\n")[2]
    sizes = []  # of the chunks of HTTP
    while body:
        size, _, body = body.partition(b"\r\n")
        sizes.append(int(size, 16))
        chunk, body = body[: sizes[-1]], body[sizes[-1] + 2 :]
        assert not chunk or chunk.endswith(b"\n\n")
    assert len(sizes) > 5
    connection.close()
