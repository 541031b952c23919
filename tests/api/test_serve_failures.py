"""What fails, and how the server ends; numbers are those of the faults that others' users reported."""

from __future__ import annotations

import concurrent.futures
import signal
import time
from pathlib import Path

import pytest
from conftest import Tiny
from serving import CHAT, COMPLETIONS, TEXT, Running, question, serving
from table_models import table_model


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends by itself."""
    return table_model(tmp_path_factory.mktemp("endless") / "model", [["ab"]], context_length=8192)


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


def test_30_a_text_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    model = table_model(tmp_path / "model", ["gold", "bXy!"], breaks_after="!")
    with serving(model, tmp_path) as running:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            asked = [question(seed=seed, temperature=1, max_tokens=8) for seed in range(24)]
            found = list(pool.map(lambda body: running.ask("POST", CHAT, body), asked))
        texts = {body["choices"][0]["message"]["content"] for status, body, _ in found if status == 200}
        codes = {body["error"]["code"] for status, body, _ in found if status == 500}
        assert (codes, len(texts)) == ({"engine_error"}, 1), found
        assert {status for status, _, _ in found} == {200, 500}
        assert running.ask("GET", "/health")[0] == 200


BROKEN = """
from gptcli.generate.engine import Engine
def broken(*_, **__): raise ZeroDivisionError("a bug")
Engine.step = broken
"""


def test_30_a_dead_engine_ends_the_server_with_a_report(tiny: Tiny, tmp_path: Path) -> None:
    running = Running(tiny.run, tmp_path, before=BROKEN).wait()
    error = running.refused(500, "engine_failed", COMPLETIONS, TEXT)
    assert "bug" not in error["message"]
    assert running.process.wait(10) == 70
    said = running.said()
    assert "ZeroDivisionError: a bug; this is a bug in gptcli, please report it with " in said
    assert "Traceback" not in said
    (report,) = (tmp_path / "cache").rglob("crash-*.txt")
    assert "in broken" in report.read_text()


BROKEN_PROMPT = """
from gptcli.generate.engine import Engine
add = Engine.add
def broken(self, request):
    return add(self, request) if len(request.prompt) < 20 else 1 / 0
Engine.add = broken
"""


def test_30_a_bug_in_one_text_leaves_the_others_alone(tiny: Tiny, tmp_path: Path) -> None:
    running = Running(tiny.run, tmp_path, before=BROKEN_PROMPT).wait()
    error = running.refused(500, "internal_error", COMPLETIONS, {"prompt": ["old", "the old bridge " * 3]})
    assert error["message"] == "this is a bug in gptcli"
    assert running.ok(COMPLETIONS, TEXT)["usage"]["completion_tokens"] > 0
    assert running.is_free()
    assert running.end() == 0
    assert "ZeroDivisionError" in running.said()


SLOW = """
import time
import gptcli.api.serve.worker as worker
from gptcli.generate.engine import Engine
worker.STUCK_SECONDS = 1.0
step, steps = Engine.step, []
def slow(*given, **named):
    end = time.monotonic() + (4 if not steps else 0)
    steps.append(1)
    while time.monotonic() < end: pass
    return step(*given, **named)
Engine.step = slow
"""


def test_30_an_engine_that_works_is_alive_however_slow_it_is(tiny: Tiny, tmp_path: Path) -> None:
    with serving(tiny.run, tmp_path, before=SLOW) as running:
        assert running.ok(COMPLETIONS, TEXT)["usage"]["completion_tokens"] > 0


STUCK = """
import time
import gptcli.api.serve.worker as worker
from gptcli.generate.engine import Engine
worker.STUCK_SECONDS = 0.5
Engine.step = lambda *_, **__: time.sleep(30)
"""


def test_30_an_engine_that_takes_no_steps_is_not_healthy(tiny: Tiny, tmp_path: Path) -> None:
    running = Running(tiny.run, tmp_path, before=STUCK).wait()
    with running.send(COMPLETIONS, TEXT):
        states = set()
        while running.process.poll() is None:
            try:
                states.add(running.ask("GET", "/health")[0])
            except OSError:
                break
            time.sleep(0.05)
    assert running.process.wait(10) == 1
    assert 200 in states
    assert "error: the engine does nothing any more" in running.said()


BUG = """
import gptcli.api.serve.answer as answer
def broken(*_, **__): raise ZeroDivisionError("a bug")
answer.usage = broken
"""


def test_a_bug_is_a_500_of_one_line_and_a_report(tiny: Tiny, tmp_path: Path) -> None:
    running = Running(tiny.run, tmp_path, before=BUG).wait()
    error = running.refused(500, "internal_error", COMPLETIONS, TEXT)
    assert (error["message"], error["headers"]["x-should-retry"]) == ("this is a bug in gptcli", "false")
    assert running.ask("GET", "/health")[0] == 200
    assert running.end() == 0
    said = running.said()
    assert "ZeroDivisionError: a bug; this is a bug in gptcli, please report it with " in said
    assert "Traceback" not in said
    assert [path for path in (tmp_path / "cache").rglob("crash-*.txt") if "in broken" in path.read_text()]


def test_31_after_the_grace_answers_are_cut_and_the_exit_code_says_so(endless: Path, tmp_path: Path) -> None:
    running = Running(endless, tmp_path, "--grace", "0.3").wait()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        whole = pool.submit(running.ask, "POST", CHAT, question())
        stream = running.send(CHAT, question(stream=True))
        stream.recv(65536)
        running.process.send_signal(signal.SIGTERM)
        content = b""
        while part := stream.recv(65536):
            content += part
        assert whole.result()[0] == 503
    assert b'"code":"draining"' in content
    assert not content.endswith(b"0\r\n\r\n")
    assert running.process.wait(10) == 143


def test_31_a_second_signal_ends_it_at_once(endless: Path, tmp_path: Path) -> None:
    running = Running(endless, tmp_path).wait()
    stream = running.send(CHAT, question(stream=True))
    stream.recv(65536)
    running.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    began = time.monotonic()
    assert running.end(signal.SIGINT) == 130
    assert time.monotonic() - began < 0.5


def test_23_a_pattern_that_outgrows_its_limit_is_the_requests_own_fault(tmp_path: Path) -> None:
    either = table_model(tmp_path / "model", [["aab"]], context_length=8192)  # after a comes a or b, for ever
    with serving(either, tmp_path) as running:
        body = question(regex="[ab]*a[ab]{24}", temperature=1, seed=1)
        error = running.refused(400, "invalid_schema", CHAT, body)
        assert error["param"] == "regex"
        assert "more than 4000 states" in error["message"]
        with running.send(CHAT, body | {"stream": True}) as connection:
            content = b""
            while part := connection.recv(65536):
                content += part
        events = [line for line in content.splitlines() if line.startswith(b"data: ")]
        assert b'"code":"invalid_schema"' in events[-1]
        assert not content.endswith(b"0\r\n\r\n")  # and is cut: no client takes it for whole
        assert running.ok(CHAT, question(max_tokens=3))
