"""`gptcli serve` in a process of its own, as its clients meet it."""

from __future__ import annotations

import contextlib
import http.client
import json
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
from conftest import environment

for package in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(package)

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT = {"prompt": "the old", "max_tokens": 12, "seed": 5}


class Running:
    """A server. `before` is Python that runs first, for a shorter deadline or a fault in the works."""

    def __init__(
        self, run: Path, where: Path, *flags: str, before: str = "", changes: dict[str, str] | None = None
    ) -> None:
        start = f"{before}\nfrom gptcli.cli.main import main\nmain()"
        command = [sys.executable, "-c", start, "serve", str(run), "--port", "0", *flags]
        where.mkdir(parents=True, exist_ok=True)
        self.run = run
        self.log = (where / "log.txt").open("w+")
        env = environment(where / "cache", changes)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, env=env, cwd=where, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.port = urlparse(self.url).port or 0

    def wait(self) -> Running:
        for _ in range(1200):
            with contextlib.suppress(TimeoutError):  # the libraries that load hold up everything on a busy machine
                if self.ask("GET", "/health")[0] == 200:
                    return self
            time.sleep(0.1)
        raise AssertionError(self.said())

    def ask(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, source: str = ""
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body and headers; `source` is an address of the loopback to ask from."""
        address = (source, 0) if source else None
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60, source_address=address)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, content, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        text = answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        is_json = found.get("content-type", "").startswith("application/json")
        return answer.status, json.loads(text) if is_json and text else text.decode(), found

    def ok(self, path: str, body: Any, **how: Any) -> Any:
        status, found, _ = self.ask("POST", path, body, **how)
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
        assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")
        assert "content-encoding" not in headers
        events = text.split("\n\n")
        assert events.pop() == ""
        assert all(event.startswith("data: ") for event in events)
        return [event.removeprefix("data: ") for event in events]

    def chunks(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a stream that ends as it should."""
        *events, done = self.stream(path, body)
        assert done == "[DONE]"
        return [json.loads(event) for event in events]

    def send(self, path: str, body: Any, *, buffer: int = 0) -> socket.socket:
        """The connection on which a request was sent; the answer is the caller's to read."""
        connection = socket.socket()
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", self.port))
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return connection

    def raw(self, content: bytes, *, seconds: float = 5) -> bytes:
        """What comes back for some bytes, until the server closes or nothing more comes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
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

    def metric(self, name: str) -> float:
        lines = self.ask("GET", "/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def is_free(self, seconds: float = 10.0) -> bool:
        """Whether no text is written or waits, soon."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if (self.metric("gptcli_rows_running"), self.metric("gptcli_queue_texts")) == (0, 0):
                return True
            time.sleep(0.02)
        return False

    def said(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(run: Path, where: Path, *flags: str, before: str = "") -> Iterator[Running]:
    """A server that has loaded its model; it ends well, and nothing unexpected was said."""
    running = Running(run, where, *flags, before=before)
    try:
        yield running.wait()
        assert running.end() == 0, running.said()
        assert "Traceback" not in running.said()
        assert "bug" not in running.said()
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()


def received(connection: socket.socket, what: bytes, times: int = 1) -> bytes:
    """What comes until it holds `what` so often, however the network cuts it."""
    found = b""
    while found.count(what) < times:
        part = connection.recv(65536)
        assert part, found
        found += part
    return found


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """The text of a choice, joined."""
    found = ""
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                found += choice["text"] if "text" in choice else choice["delta"].get("content", "")
    return found


def question(text: str = "Hello", **more: object) -> dict[str, object]:
    """The body of a chat of one question."""
    return {"messages": [{"role": "user", "content": text}], **more}
