"""The goals of tests/bench/serve.py that count and do not race: G5 to G14."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
from serve_process import Line, Server, Trace, own, share, stream, together

CHUNK_TOKENS = 256
WORDS = "the of and a to in is you that it he was for on are as with his they I at be this have from".split()


def text_of(count: int, seed: int) -> str:
    """So many words."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def waiting_prompts(how: Any) -> Iterator[Line]:
    """G5."""
    with own(how.models / "small", how.threads, "--batch-size", "64", spied=True) as server:

        async def go() -> None:
            running = asyncio.create_task(stream(server, {"prompt": "the", "max_tokens": 250, "ignore_eos": True}))
            while len(server.passes()) < 5:
                await asyncio.sleep(0.01)
            asked = [{"prompt": text_of(180, seed), "max_tokens": 2} for seed in range(63)]  # of about 200 tokens
            traces, _ = await together([running, *(stream(server, body) for body in asked)])
            assert all(trace.status == 200 for trace in traces)

        asyncio.run(go())
        passes = server.passes()
    kinds = [kind for kind, _, _ in passes]
    first, last = kinds.index("step"), len(kinds) - 1 - kinds[::-1].index("step")
    chunks = [count for kind, count, _ in passes[first:last] if kind == "prompt"]
    in_a_row = max((len(run) for run in "".join(kind[0] for kind in kinds[first:last]).split("s")), default=0)
    most = max(chunks, default=0)
    yield Line(
        "G5", f"passes of prompts between two steps ({sum(chunks)} tokens came)", "<= 1", str(in_a_row), in_a_row <= 1
    )
    yield Line("G5", "tokens of a pass of prompts", f"<= {CHUNK_TOKENS}", str(most), most <= CHUNK_TOKENS)


def many_connections(how: Any) -> Iterator[Line]:
    """G6."""
    writing, idle = how.count(64), how.count(936)
    with own(how.models / "small", how.threads, "--queue", "1000") as server:
        body = {"prompt": "the", "max_tokens": 200, "ignore_eos": True}
        asyncio.run(together([stream(server, body) for _ in range(writing)]))  # rows have all their memory then
        before = server.status("VmRSS")
        waits: list[float] = []

        async def look() -> None:
            for _ in range(100):
                began = time.monotonic()
                await asyncio.to_thread(server.get, "/health")
                waits.append(time.monotonic() - began)
                await asyncio.sleep(0.02)

        async def go() -> tuple[list[Trace], int]:
            connections = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(idle)]
            traces, _ = await together([*(stream(server, body) for _ in range(writing)), look()])
            after = server.status("VmRSS")
            for _, writer in connections:
                writer.close()
            return traces[:-1], after

        traces, after = asyncio.run(go())
    each = max(0, after - before) / (writing + idle)
    yield Line("G6", f"kB for each of {writing + idle} connections", "<= 30", f"{each:.1f}", each <= 30)
    done = sum(trace.done for trace in traces)
    yield Line("G6", "streams that ended as they should", str(writing), str(done), done == writing)
    ms = 1000 * share(waits, 0.99)
    yield Line("G6", "/health p99 meanwhile", "< 50 ms", f"{ms:.1f} ms", ms < 50)


def closing_clients(how: Any) -> Iterator[Line]:
    """G7: one text at a time, so that a pass after its end can only be its."""
    draw, worst = random.Random(1), 0
    with own(how.models / "small", how.threads, "--batch-size", "2", spied=True) as server:
        for number in range(how.count(500)):
            body = {"prompt": "the", "max_tokens": 230, "ignore_eos": True, "stream": number % 2 == 0}
            body["n"] = 8 if number % 3 == 0 else 1  # most of them queued
            asyncio.run(stream(server, body, until=draw.uniform(0.0, 0.1)))
            closed = time.monotonic()
            free = server.is_free()
            if body["n"] == 1:
                worst = max(worst, sum(when > closed + 0.005 for _, _, when in server.passes()))  # 5 ms on the way
            if not free:
                break
        left = server.metric("gptcli_rows_running") + server.metric("gptcli_queue_texts")
    yield Line("G7", "steps later than 5 ms after a client went away", "<= 2", str(worst), worst <= 2)
    yield Line("G7", "texts left", "0", f"{left:.0f}", left == 0)


def client_that_never_reads(how: Any) -> Iterator[Line]:
    """G8. Memory: beyond what the same texts take for a client that reads them."""
    body = {"prompt": "the", "max_tokens": 200, "ignore_eos": True}

    def others(server: Server) -> float:  # the least of some times: what else the machine does only adds
        return min(asyncio.run(together([stream(server, body) for _ in range(4)]))[1] for _ in range(5))

    with own(how.models / "small", how.threads, "--batch-size", "64") as server:
        others(server)
        asyncio.run(together([stream(server, {**body, "n": 32, "logprobs": 20})]))
        alone, before = others(server), server.status("VmRSS")
        time.sleep(1)
        files = server.files()
        lazy = socket.socket()
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", server.port))
        content = json.dumps({**body, "n": 32, "stream": True, "logprobs": 20}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        lazy.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        began = time.monotonic()
        time.sleep(15)  # until its texts are written
        beside, after = others(server), server.status("VmRSS")
        while server.files() > files and time.monotonic() - began < 90:
            time.sleep(0.5)
        cut = time.monotonic() - began
        lazy.close()
    ratio = beside / alone
    yield Line("G8", "the others' time beside it", "<= 1.05 x", f"{ratio:.3f} x", ratio <= 1.05)
    yield Line("G8", "memory it takes", "<= 16 MB", f"{(after - before) / 1024:.1f} MB", after - before <= 16 << 10)
    yield Line("G8", "it is cut after", "<= 70 s", f"{cut:.0f} s", cut <= 70)


def mixed(number: int) -> dict[str, Any]:
    """A request of the soak, the same for the same number."""
    draw = random.Random(number)
    body: dict[str, Any] = {
        "prompt": text_of(draw.randint(1, 60), draw.randint(0, 50)),
        "max_tokens": draw.randint(1, 40),
        "seed": draw.randint(0, 1000),
        "temperature": draw.choice([0.0, 0.7, 1.0, 1.5]),
    }
    extras: list[dict[str, Any]] = [
        {}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05}, {"repetition_penalty": 1.3}, {"presence_penalty": 1.0},
        {"frequency_penalty": 0.5}, {"stop": [draw.choice(WORDS)]}, {"lookup": 4}, {"regex": "[a-z ]+"},
        {"choices": ["yes", "no"]},
    ]  # fmt: skip
    return body | draw.choice(extras)


def soak(how: Any) -> Iterator[Line]:
    """G9. Memory: from when every row of the cache has been full, whose pages come when they are touched."""
    count, found = how.count(10_000), {}
    with own(how.models / "small", how.threads, "--queue", "10000") as server:

        async def client(numbers: list[int]) -> None:
            while numbers:
                number = numbers.pop()
                if number % 7 == 0:
                    await stream(server, mixed(number), until=random.random() / 20)
                elif number % 2:
                    found[number] = (await stream(server, mixed(number))).text
                else:
                    _, content = await asyncio.to_thread(server.post, "/v1/completions", mixed(number))
                    found[number] = json.loads(content)["choices"][0]["text"]

        def run(first: int, last: int) -> None:
            numbers = list(range(first, last))
            asyncio.run(together([client(numbers) for _ in range(32)]))

        def facts() -> tuple[int, int, int]:
            server.is_free()
            time.sleep(1)  # connections are closed
            return server.status("VmRSS"), server.status("Threads"), server.files()

        filling = [{"prompt": text_of(40, number), "max_tokens": 5000, "ignore_eos": True} for number in range(64)]
        asyncio.run(together([stream(server, each) for each in filling]))
        run(0, count // 5)
        before = facts()
        run(count // 5, count)
        after = facts()
    asked = sorted(found)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "asked.jsonl"
        path.write_text("".join(json.dumps(mixed(number)) + "\n" for number in asked))
        command = harness.gptcli("generate", how.models / "small", "--jsonl", "--threads", str(how.threads))
        written = [json.loads(line)["text"] for line in harness.run(command, stdin=path).stdout.splitlines()]
    same = sum(found[number] == text for number, text in zip(asked, written, strict=True))
    growth = 100 * (after[0] / before[0] - 1)
    yield Line("G9", f"of {len(asked)} seeded texts those of generate", str(len(asked)), str(same), same == len(asked))
    yield Line("G9", "memory after a fifth and at the end", "<= +5 %", f"{growth:+.1f} %", growth <= 5)
    yield Line("G9", "threads, files", f"{before[1:]}", f"{after[1:]}", before[1:] == after[1:])


ODD = [
    None, True, -1, 0, 2**63, 10**400, 1e308, -0.0, 0.5, "", "x" * 5000, "\ud800", "\0", "\u202e", [], {}, [[]],
    {"a": [1]}, [1, "a"],
]  # fmt: skip
OTHER_FIELDS = "n logprobs echo stream stream_options logit_bias response_format model x messages input tokens".split()


def mutated(draw: random.Random) -> bytes:
    """A request that is nearly one."""
    body: dict[str, Any] = mixed(draw.randint(0, 10_000)) | {"max_tokens": draw.randint(0, 3)}
    for _ in range(draw.randint(1, 3)):
        body[draw.choice([*body, *OTHER_FIELDS])] = draw.choice(ODD)
    content = bytearray(json.dumps(body).encode())
    for _ in range(draw.choice([0, 0, 1, 5])):
        place = draw.randrange(len(content))
        match draw.randint(0, 2):
            case 0:
                content[place] = draw.randrange(256)
            case 1:
                del content[place : place + draw.randint(1, 5)]
            case _:
                content[place:place] = draw.choice([b"NaN", b"[" * 100, b"\\ud800", b"\xff", b"1" * 5000, b'"', b"}"])
        content = content or bytearray(b" ")
    return bytes(content)


def mutated_requests(how: Any) -> Iterator[Line]:
    """G10."""
    paths = ["/v1/completions"] * 6 + ["/v1/chat/completions", "/v1/score", "/v1/classify", "/tokenize", "/detokenize"]
    bad: list[str] = []

    def ask(number: int) -> int:
        draw = random.Random(number)
        path, content = draw.choice(paths), mutated(draw)
        try:
            status, answer = server.post(path, content)
            if status >= 500 or (
                status >= 400 and set(json.loads(answer)["error"]) != {"message", "type", "param", "code"}
            ):
                bad.append(f"{path} {content[:300]!r}: {status} {answer[:200]!r}")
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            bad.append(f"{path} {content[:300]!r}: {error!r}")
            return 0
        return status

    count = how.count(10_000)
    with own(how.models / "small", how.threads, "--queue", "10000") as server:
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(ask, range(count)))
        found = None
        with contextlib.suppress(ImportError):
            import schemathesis  # noqa: F401

            address = f"http://127.0.0.1:{server.port}/openapi.json"
            command = [sys.executable, "-m", "schemathesis.cli", "run", address, "--no-color", "--seed", "1"]
            command += [
                "--max-examples",
                str(how.count(100)),
                "--checks",
                "not_a_server_error,response_schema_conformance",
            ]
            found = subprocess.run(command, capture_output=True, text=True)
        alive = server.get("/health")[0] == 200
        said = server.said()
    for each in bad[:10]:
        harness.note(each)
    answered = sum(status == 200 for status in statuses)
    yield Line("G10", f"of {count} mutated ({answered} answered) not refused well", "0", str(len(bad)), not bad)
    clean = alive and "Traceback" not in said and "bug" not in said
    yield Line("G10", "alive, no traceback, no bug", "True", str(clean), clean)
    if found is not None:
        yield Line("G10", "schemathesis", "exit 0", f"exit {found.returncode}", found.returncode == 0)
        if found.returncode:
            harness.note(found.stdout[-3000:])


def signals(how: Any) -> Iterator[Line]:
    """G11."""
    cut, codes, draw = 0, [], random.Random(1)
    for _ in range(how.count(50)):
        with own(how.models / "small", how.threads, "--batch-size", "8", "--queue", "64") as server:
            answers: list[int] = []

            def ask(number: int, server: Server = server, answers: list[int] = answers) -> None:
                body = {"prompt": "the", "max_tokens": 60, "ignore_eos": True, "seed": number}
                with contextlib.suppress(ConnectionError, http.client.RemoteDisconnected):
                    if number % 2:
                        trace = asyncio.run(stream(server, body))
                        answers.append(trace.status == 200 and not trace.done)
                    else:
                        status, content = server.post("/v1/completions", body)
                        answers.append(status == 200 and len(json.loads(content)["choices"]) != 1)

            threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
            for thread in threads:
                thread.start()
            time.sleep(draw.uniform(0.0, 0.4))
            server.process.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join()
            codes.append(server.process.wait(40))
            cut += sum(answers)
    yield Line("G11", f"answers cut by {len(codes)} SIGTERMs", "0", str(cut), cut == 0)
    yield Line("G11", "exit codes", "{0}", str(set(codes)), set(codes) == {0})
    with own(how.models / "small", how.threads) as server:
        body = {"prompt": "the", "max_tokens": 250, "n": 64, "ignore_eos": True}
        threading.Thread(target=_quiet, args=(server, body), daemon=True).start()
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(40)
        seconds = time.monotonic() - began
    yield Line("G11", "from a second signal to the end", "< 0.5 s", f"{seconds:.2f} s", seconds < 0.5)


def _quiet(server: Server, body: dict[str, Any]) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        server.post("/v1/completions", body)


def start(how: Any) -> Iterator[Line]:
    """G12."""
    listening, answers, ready, written = [], [], [], []
    for _ in range(max(2, how.rounds)):
        with own(how.models / "small", how.threads) as server:
            listening.append(server.listening)
            answers.append(server.answers)
            ready.append(server.ready)
        command = harness.gptcli("generate", how.models / "small", "a", "--max-tokens", "1")
        written.append(harness.run(command).seconds)
    yield Line("G12", "from the start until it listens", "< 0.3 s", f"{min(listening):.2f} s", min(listening) < 0.3)
    yield Line("G12", "from the start until a request is answered 503", "", f"{min(answers):.2f} s", None)
    over = min(ready) - min(written)
    yield Line("G12", "ready, later than generate of one token", "<= 0.2 s", f"{over:+.2f} s", over <= 0.2)


def clients(_how: Any) -> Iterator[Line]:
    """G13."""
    tests = harness.BENCH.parent / "api" / "test_serve_clients.py"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "slow or not slow", tests]
    found = subprocess.run(command, capture_output=True, text=True)
    last = found.stdout.strip().splitlines()[-1] if found.stdout.strip() else f"exit {found.returncode}"
    yield Line("G13", "other programs", "all pass", last.strip("= "), found.returncode == 0)


def idle(how: Any) -> Iterator[Line]:
    """G14."""
    with own(how.models / "small", how.threads) as server:
        asyncio.run(stream(server, {"prompt": "the", "max_tokens": 5}))
        time.sleep(2)
        before = server.cpu_seconds()
        time.sleep(10)
        percent = 10 * (server.cpu_seconds() - before)
    yield Line("G14", "CPU over 10 s without a request", "0.0 %", f"{percent:.1f} %", percent < 0.15)


GOALS: dict[str, Callable[[Any], Iterator[Line]]] = {
    "G5": waiting_prompts,
    "G6": many_connections,
    "G7": closing_clients,
    "G8": client_that_never_reads,
    "G9": soak,
    "G10": mutated_requests,
    "G11": signals,
    "G12": start,
    "G13": clients,
    "G14": idle,
}
