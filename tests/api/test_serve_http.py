"""The server's HTTP and who may ask; numbers are those of the faults that others' users reported."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import RunCli, Tiny
from serving import COMPLETIONS, TEXT, Running, serving


@pytest.fixture(scope="module")
def server(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tiny.run, tmp_path_factory.mktemp("serve"), "--batch-size", "4") as running:
        yield running


@pytest.mark.slow
def test_33_a_slow_head_is_ended(server: Running) -> None:
    began = time.monotonic()
    assert server.raw(b"GET /health HT", seconds=30).startswith(b"HTTP/1.1 408 ")
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
    found = server.raw(content)
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
