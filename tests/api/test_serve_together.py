"""Many clients at once, those that go away or never read, failures and the end; numbers are those of the faults that
others' users reported."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Tiny
from serving import CHAT, COMPLETIONS, TEXT, Running, question, received, serving
from table_models import table_model


@pytest.fixture(scope="module")
def server(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tiny.run, tmp_path_factory.mktemp("serve"), "--batch-size", "4") as running:
        yield running


def test_26_a_client_that_goes_away_frees_its_row(server: Running) -> None:
    before = server.metric("gptcli_generated_tokens_total")
    for stream in (True, False):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            content = json.dumps({"prompt": "the", "max_tokens": 25, "n": 200, "stream": stream}).encode()
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            time.sleep(0.2)
    for _ in range(100):
        if (server.metric("gptcli_rows_running"), server.metric("gptcli_queue_texts")) == (0, 0):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("rows are still running")
    assert server.metric("gptcli_generated_tokens_total") - before < 2 * 200 * 25


def test_27_a_full_queue_is_429_with_a_time(tiny: Tiny, tmp_path: Path) -> None:
    running = Running(tiny.run, tmp_path, "--batch-size", "1", "--queue", "1")
    status, found, headers = running.ask("POST", COMPLETIONS, TEXT)
    if status == 503:  # it loads
        assert found["error"]["code"] == "loading"
        assert int(headers["retry-after"]) >= 1
    running.wait()
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: running.ask("POST", COMPLETIONS, {**TEXT, "n": 20}), range(12)))
    codes = [status for status, _, _ in found]
    assert set(codes) == {200, 429}
    assert all("retry-after" in headers for status, _, headers in found if status == 429)
    assert running.end() == 0


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends by itself."""
    return table_model(tmp_path_factory.mktemp("endless") / "model", [["ab"]], context_length=8192)


SPY = """
import torch
from gptcli.generate.forward_view import ForwardView
from gptcli.generate.kv_cache import Prefill
hidden, file = ForwardView.hidden, open("passes.txt", "w")
def spied(self, ids, layout):
    print("prompt" if isinstance(layout, Prefill) else "step", sum(map(len, ids)), file=file, flush=True)
    return hidden(self, ids, layout)
ForwardView.hidden = spied
"""


def test_28_a_stream_waits_for_one_chunk_of_prompts_at_most(endless: Path, tmp_path: Path) -> None:
    with serving(endless, tmp_path, "--batch-size", "32", before=SPY) as running:
        stream = running.send(CHAT, question(stream=True))
        stream.recv(65536)
        prompts = ["".join(chr(97 + (i * j) % 26) for j in range(200)) for i in range(1, 21)]
        body = {"prompt": prompts, "max_tokens": 3}
        running.ok(COMPLETIONS, body)
        stream.close()
        assert running.is_free()
    passes = [line.split() for line in (tmp_path / "passes.txt").read_text().splitlines()]
    first = next(number for number, (kind, _) in enumerate(passes) if kind == "step")
    chunks = [int(count) for kind, count in passes[first:] if kind == "prompt"]
    assert sum(chunks) > 3000  # what begins alike is shared
    assert max(chunks) <= 256
    kinds = [kind for kind, _ in passes[first:]]
    assert ("prompt", "prompt") not in itertools.pairwise(kinds)


def test_28_scores_of_long_texts_come_between_the_steps_of_a_stream(endless: Path, tmp_path: Path) -> None:
    with serving(endless, tmp_path, before=SPY) as running:
        stream = running.send(CHAT, question(stream=True))
        stream.recv(65536)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            scoring = pool.submit(running.ok, "/v1/score", {"input": ["xy" * 20_000] * 2})
            events = 0
            while not scoring.done():
                events += stream.recv(65536).count(b"data:")
        assert events >= 3
        assert [row["bytes"] for row in scoring.result()["data"]] == [40_000] * 2
        stream.close()
        assert running.is_free()


def test_29_another_client_waits_for_a_row_and_not_for_the_queue(endless: Path, tmp_path: Path) -> None:
    with serving(endless, tmp_path, "--batch-size", "2", "--queue", "8") as running:
        greedy = running.send(CHAT, question(n=200, max_tokens=300))
        while running.metric("gptcli_rows_running") == 0:
            time.sleep(0.01)
        running.refused(429, "queue_full", CHAT, question(max_tokens=1))
        other = running.ok(CHAT, question(max_tokens=3), source="127.0.0.2")
        assert other["usage"]["completion_tokens"] == 3
        assert running.metric("gptcli_queue_texts") > 100
        greedy.close()
        assert running.is_free()


SLOW_PATTERN = """
import time
import gptcli.generate.constrain as constrain
automaton_of = constrain.automaton_of
def slow(options):
    if options.regex is not None: time.sleep(3)
    return automaton_of(options)
constrain.automaton_of = slow
"""


def test_28_a_pattern_is_made_beside_the_steps_of_a_stream(endless: Path, tmp_path: Path) -> None:
    with serving(endless, tmp_path, "--queue", "1", before=SLOW_PATTERN) as running:
        stream = running.send(CHAT, question(stream=True))
        received(stream, b"data:")
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            asked = pool.submit(running.ok, CHAT, question(regex="[ab]{4}", max_tokens=9))
            time.sleep(0.5)
            assert running.metric("gptcli_queue_texts") == 1
            running.refused(429, "queue_full", CHAT, question())
            received(stream, b"data:", 20)
            assert not asked.done()
            assert asked.result()["choices"][0]["message"]["content"] == "abab"
        stream.close()
        assert running.is_free()


ENCODED = """
import threading
from gptcli.data.tokenizer import Tokenizer
encode, file = Tokenizer.encode_batch, open("threads.txt", "w")
def spied(self, texts):
    print(threading.current_thread().name, file=file, flush=True)
    return encode(self, texts)
Tokenizer.encode_batch = spied
"""


def test_28_texts_are_encoded_beside_the_steps_of_a_stream(endless: Path, tmp_path: Path) -> None:
    with serving(endless, tmp_path, before=ENCODED) as running:
        for size in (10, 10_000):
            assert running.ok("/v1/score", {"input": ["x" * size] * 2})["data"][1]["bytes"] == size
            running.ok(COMPLETIONS, {"prompt": "x" * (size // 2), "max_tokens": 1})
    names = (tmp_path / "threads.txt").read_text().split()
    assert len(names) >= 4
    assert "gptcli-engine" not in names


def test_the_time_limit_is_of_each_text(endless: Path, tmp_path: Path) -> None:
    with serving(endless, tmp_path, "--batch-size", "1", "--timeout", "1") as running:
        found = running.ok(CHAT, question(n=3, max_tokens=8000, logprobs=True))
    assert found["timeout"] is True
    lengths = [len(choice["logprobs"]["content"]) for choice in found["choices"]]
    assert min(lengths) > max(lengths) / 10


STALL = """
import gptcli.api.serve.http as http
http.STALL_SECONDS = 2
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts the connections of the server in /proc")
@pytest.mark.parametrize("stream", [True, False])
def test_34_a_client_that_never_reads_is_cut_and_holds_no_row(endless: Path, tmp_path: Path, *, stream: bool) -> None:
    body = question(stream=stream, logprobs=True, top_logprobs=20, n=4, max_tokens=1500)  # more than sockets hold
    with serving(endless, tmp_path, "--batch-size", "8", before=STALL) as running:

        def files() -> int:
            time.sleep(0.05)
            return len(os.listdir(f"/proc/{running.process.pid}/fd"))

        before = min(files() for _ in range(10))
        with running.send(CHAT, body, buffer=4096) as lazy:
            assert running.ok(CHAT, question(max_tokens=3), source="127.0.0.2")
            while files() > before:  # until it is cut, however slowly the machine writes
                assert running.process.poll() is None
            assert running.is_free()
            content = b""
            with contextlib.suppress(ConnectionResetError):
                while part := lazy.recv(1 << 20):
                    content += part
        assert b"200 OK" in content[:20]
        assert not content.endswith((b"0\r\n\r\n", b"}"))


def test_37_clients_share_no_beginnings_unless_they_are_let(endless: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\ntwo\n")
    body = {"prompt": "a beginning that is long enough to be shared by whoever asks for it, at that", "max_tokens": 2}

    def cached(running: Running, key: str) -> int:
        found = running.ok(COMPLETIONS, body, headers={"Authorization": f"Bearer {key}"})
        return int(found["usage"]["prompt_tokens_details"]["cached_tokens"])

    flags = ("--api-key-file", str(tmp_path / "keys"))
    with serving(endless, tmp_path / "apart", *flags) as running:
        assert (cached(running, "one"), cached(running, "two")) == (0, 0)
        assert min(cached(running, "one"), cached(running, "two")) >= 32
    with serving(endless, tmp_path / "together", *flags, "--share-prefix") as running:
        assert cached(running, "one") == 0
        assert cached(running, "two") >= 32


def test_39_what_will_fail_again_is_asked_once(server: Running) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2)

    def requests_while(work: Any) -> float:
        before = server.metric("gptcli_requests_total")
        with pytest.raises(openai.APIStatusError):
            work()
        return server.metric("gptcli_requests_total") - before - 1  # one of them asked for the metrics

    assert requests_while(lambda: client.completions.create(model="no such", prompt="a")) == 1
    assert requests_while(lambda: client.completions.create(model="", prompt="a", n=999)) == 1
    assert requests_while(lambda: client.completions.create(model="", prompt="a " * 999)) == 1
    assert requests_while(lambda: client.embeddings.create(model="", input="a")) == 1
    assert requests_while(lambda: client.completions.create(model="", prompt="a" * (5 << 20))) == 1
