"""The server as its clients meet it: a real process, real sockets; numbers are those of the faults that others' users
reported, in the order of the issue."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from conftest import RunCli, Tiny, environment

for package in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(package)


class Running:
    """A server in a process of its own."""

    def __init__(self, run: Path, where: Path, *flags: str, changes: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "gptcli", "serve", str(run), "--port", "0", *flags]
        self.log = (where / "log.txt").open("w+")
        env = environment(where / "cache", changes)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, env=env, cwd=where, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.port = urlparse(self.url).port or 0

    def wait(self) -> Running:
        for _ in range(1200):
            if self.ask("GET", "/health")[0] == 200:
                return self
            time.sleep(0.1)
        raise AssertionError(self.said())

    def ask(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, content, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        text = answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        is_json = found.get("content-type", "").startswith("application/json")
        return answer.status, json.loads(text) if is_json and text else text.decode(), found

    def ok(self, path: str, body: Any) -> Any:
        status, found, _ = self.ask("POST", path, body)
        assert status == 200, found
        return found

    def refused(self, status: int, code: str, path: str, body: Any, **how: Any) -> dict[str, Any]:
        got, found, headers = self.ask("POST", path, body, **how)
        assert (got, found["error"]["code"]) == (status, code), found
        assert set(found["error"]) == {"message", "type", "param", "code"}
        return {**found["error"], "headers": headers}

    def stream(self, path: str, body: dict[str, Any]) -> list[str]:
        """The data of every event."""
        status, text, headers = self.ask("POST", path, {**body, "stream": True})
        assert status == 200, text
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["x-accel-buffering"] == "no"
        events = text.split("\n\n")
        assert events.pop() == ""
        assert all(event.startswith("data: ") for event in events)
        return [event.removeprefix("data: ") for event in events]

    def said(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def server(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tiny.run, tmp_path_factory.mktemp("serve"), "--batch-size", "4").wait()
    yield running
    assert running.end() == 0, running.said()


TEXT = {"prompt": "the old", "max_tokens": 12, "seed": 5}
COMPLETIONS = "/v1/completions"


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


def test_9_to_13_lengths(server: Running) -> None:
    both = server.ok(COMPLETIONS, {**TEXT, "max_tokens": 9, "max_completion_tokens": 3})
    assert both["usage"]["completion_tokens"] == 3
    assert both["choices"][0]["finish_reason"] == "length"
    long = server.ok(COMPLETIONS, {**TEXT, "max_tokens": 10**6})  # an upper bound, not a demand
    assert long["usage"]["completion_tokens"] < 40
    assert server.ok(COMPLETIONS, {**TEXT, "max_tokens": None})["usage"]["completion_tokens"] > 0
    error = server.refused(400, "context_length_exceeded", COMPLETIONS, {"prompt": "the old bridge " * 40})
    assert "32" in error["message"]


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
    free = [server.ok(COMPLETIONS, {"prompt": "the"})["seed"] for _ in range(2)]
    assert free[0] != free[1]


def test_25_the_name_of_the_model(server: Running, tiny: Tiny) -> None:
    name = server.ask("GET", "/v1/models")[1]["data"][0]["id"]
    assert name == tiny.run.name
    assert server.ok(COMPLETIONS, {**TEXT, "model": str(tiny.run)})["model"] == name
    assert name in server.refused(404, "model_not_found", COMPLETIONS, {**TEXT, "model": "gpt-9"})["message"]


def test_26_a_client_that_goes_away_frees_its_row(server: Running) -> None:
    before = generated_tokens(server)
    for stream in (True, False):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            content = json.dumps({"prompt": "the", "max_tokens": 25, "n": 200, "stream": stream}).encode()
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            time.sleep(0.2)
    for _ in range(100):
        if (metric(server, "gptcli_rows_running"), metric(server, "gptcli_queue_texts")) == (0, 0):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("rows are still running")
    assert generated_tokens(server) - before < 2 * 200 * 25


def metric(server: Running, name: str) -> float:
    lines = server.ask("GET", "/metrics")[1].splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def generated_tokens(server: Running) -> float:
    return metric(server, "gptcli_generated_tokens_total")


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


def test_31_sigterm_cuts_no_answer(tiny: Tiny, tmp_path: Path) -> None:
    running = Running(tiny.run, tmp_path, "--batch-size", "2").wait()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(running.ask, "POST", COMPLETIONS, {**TEXT, "n": 2, "max_tokens": 25}) for _ in range(4)]
        time.sleep(0.1)
        running.process.send_signal(signal.SIGTERM)
        answers = [future.result() for future in asked]
    assert {status for status, _, _ in answers} <= {200, 503}
    assert any(status == 200 for status, _, _ in answers)
    assert all(len(found["choices"]) == 2 for status, found, _ in answers if status == 200)
    assert running.process.wait(30) == 0
    assert "Traceback" not in running.said()


def raw(server: Running, content: bytes, *, seconds: float = 5) -> bytes:
    """What comes back for some bytes, until the server closes or nothing more comes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(content)
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
                if b"connection: close" not in found.lower() and b"\r\n\r\n" in found:
                    return found
        except TimeoutError:
            pass
        return found


@pytest.mark.slow
def test_33_a_slow_head_is_ended(server: Running) -> None:
    began = time.monotonic()
    assert raw(server, b"GET /health HT", seconds=30).startswith(b"HTTP/1.1 408 ")
    assert 9 < time.monotonic() - began < 20


def test_35_a_key_is_needed_everywhere_but_for_health(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("Secret-1\nsecret-2\n")
    running = Running(tiny.run, tmp_path, "--api-key-file", "keys").wait()
    for path in ("/v1/models", "/metrics", "/openapi.json", "/tokenizer_info"):
        status, found, headers = running.ask("GET", path)
        assert (status, found["error"]["code"], headers["www-authenticate"]) == (401, "invalid_api_key", "Bearer")
    wrong = {"Authorization": "Bearer SECRET-1"}
    assert running.refused(401, "invalid_api_key", COMPLETIONS, TEXT, headers=wrong)
    for key in ("Secret-1", "secret-2"):
        assert running.ask("POST", COMPLETIONS, TEXT, headers={"Authorization": f"Bearer {key}"})[0] == 200
    assert running.ask("OPTIONS", COMPLETIONS)[0] == 204
    assert running.end() == 0


def test_36_other_sites_and_names_are_refused(server: Running) -> None:
    assert server.ask("GET", "/v1/models", headers={"Host": "evil.example"})[0] == 403
    for origin in ("https://evil.example", "null"):
        server.refused(403, "forbidden_origin", COMPLETIONS, TEXT, headers={"Origin": origin})
    own = f"http://127.0.0.1:{server.port}"
    status, _, headers = server.ask("POST", COMPLETIONS, TEXT, headers={"Origin": own})
    assert status == 200
    assert "access-control-allow-origin" not in headers
    server.refused(415, "unsupported_encoding", COMPLETIONS, TEXT, headers={"Content-Type": "text/plain"})


def test_36_without_a_key_no_other_host_is_served(tiny: Tiny, run_cli: RunCli) -> None:
    run_cli("serve", tiny.run, "--host", "0.0.0.0", "--port", "0").error(2, "serve", "--api-key-file")


def test_38_text_never_becomes_a_control_token(server: Running) -> None:
    found = server.ok("/tokenize", {"prompt": "<|endoftext|>a"})
    assert found["count"] > 2
    assert server.ok("/detokenize", {"tokens": found["tokens"]})["prompt"] == "<|endoftext|>a"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"200"),
        (b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n", b"200"),
        (b"GET /health/ HTTP/1.1\r\nHost: localhost\r\n\r\n", b"200"),
        (b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"GET /..%2f..%2fetc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"PUT /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", b"431"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
         b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", b"415"),
    ],
    ids=range(10),
)  # fmt: skip
def test_40_corners_of_http(server: Running, content: bytes, status: bytes) -> None:
    found = raw(server, content)
    assert found.split(b" ")[1] == status, found
    if status >= b"400":
        assert b"application/json" in found.lower()


def test_the_place_is_told_alone_on_stdout_and_a_taken_one_is_refused(
    server: Running, tiny: Tiny, run_cli: RunCli
) -> None:
    assert server.url == f"http://127.0.0.1:{server.port}"
    run_cli("serve", tiny.run, "--port", str(server.port)).error(5, "serve", str(server.port))


def test_a_unix_socket_is_its_owners_alone(tiny: Tiny, tmp_path: Path) -> None:
    running = Running(tiny.run, tmp_path, "--unix-socket", "s")
    assert running.url == "unix:s"
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(tmp_path / "s"))
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: whatever\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 ")
    assert running.end() == 0
    assert not (tmp_path / "s").exists()


def test_the_openai_package(server: Running) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    whole = client.completions.create(model="", **TEXT)
    parts = client.completions.create(model="", stream=True, **TEXT)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="", prompt="a", temperature=1000)


def test_the_log_tells_each_request_and_no_text(server: Running) -> None:
    server.ok(COMPLETIONS, {**TEXT, "prompt": "harbour secrets"})
    time.sleep(0.2)
    said = server.said()
    assert "POST /v1/completions 200 12 tokens" in said
    assert "secret" not in said


def test_it_is_there_before_torch_is() -> None:
    code = "import sys; import gptcli.api.serve.server; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.stdout == "False\n", done.stderr
