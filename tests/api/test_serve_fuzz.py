"""Requests that nobody wrote by hand, to a model of each task: none is a bug, and every refusal has one form."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import Running, serving
from table_models import table_model

from gptcli.api.open_model import load
from gptcli.model.gpt import GPT
from gptcli.train import checkpoint
from gptcli.train.metadata import ModelMetadata

GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "the old", "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2},
    "/v1/classify": {"input": ["the old", ""]},
    "/classify": {"input": "the old"},
    "/v1/score": {"input": ["the old", ""]},
    "/tokenize": {"prompt": "the old"},
    "/detokenize": {"tokens": [70]},
}
FIELDS = sorted(
    "prompt messages input tokens model max_tokens max_completion_tokens temperature top_p top_k min_p seed n stop echo"
    " repetition_penalty presence_penalty frequency_penalty logit_bias min_tokens ignore_eos lookup stream best_of"
    " tools stream_options logprobs top_logprobs choices regex response_format suffix truncate text_1 content".split()
)
ODD: list[Any] = [
    None, True, -1, 0, 2**63, 10**400, 1e308, 0.5, "", "x" * 3000, "\0\u202e", [], {}, [[]], [None], ["a", 1],
    {"a": [1]}, {"type": "json_schema", "json_schema": {"schema": {"enum": []}}},
]  # fmt: skip


def classifier(tiny: Tiny, directory: Path) -> Path:
    """The tiny model with a classification head of random weights."""
    model, tokenizer = load(tiny.run)
    with_head = GPT(model.config, labels=2)
    with_head.initialize(torch.Generator().manual_seed(1))
    with_head.load_state_dict(model.state_dict(), strict=False)
    directory.mkdir()
    checkpoint.save_model(with_head, tokenizer, directory, step=1, metadata=ModelMetadata(labels=("dog", "boat")))
    return directory


SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in ("text", "chat")]


@pytest.fixture(scope="module", params=["classify", *SLOW])
def server(request: pytest.FixtureRequest, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp(request.param)
    match request.param:
        case "classify":
            run = classifier(tiny, directory / "model")
        case "chat":
            run = table_model(directory / "model", ["Yes, man"])
        case _:
            run = tiny.run
    with serving(run, directory, "--queue", "300") as running:
        yield running


class Client:
    """A connection that stays, to which anything is sent."""

    def __init__(self, server: Running) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)

    def ask(self, path: str, content: bytes) -> int:
        """Return the status of an answer that is well formed."""
        self.connection.request("POST", path, content, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        text = answer.read()
        assert answer.status < 500, (path, content, text)
        if answer.status != 200:
            assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}, (path, content, text)
        elif answer.getheader("content-type") == "application/json":
            json.loads(text)
        return answer.status


@pytest.mark.parametrize("path", GOOD)
def test_any_field_may_have_any_type(server: Running, path: str) -> None:
    client, task = Client(server), server.ask("GET", "/v1/models")[1]["data"][0]["task"]
    answers = {"text": {"/v1/completions"}, "classify": {"/v1/classify", "/classify"}}.get(
        task, {"/v1/completions", "/v1/chat/completions"}
    ) | {"/v1/score", "/tokenize", "/detokenize"}
    assert (client.ask(path, json.dumps(GOOD[path]).encode()) == 200) == (path in answers)
    statuses = {client.ask(path, json.dumps(GOOD[path] | {name: odd}).encode()) for name in FIELDS for odd in ODD}
    assert statuses <= {200, 400, 404}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(ODD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(sorted(GOOD)),
    st.dictionaries(st.sampled_from(FIELDS) | st.text(), values, max_size=4),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=3), st.integers(0, 3)), max_size=3),
)
def test_mutated_requests(
    server: Running, path: str, changes: dict[str, Any], cuts: list[tuple[float, bytes, int]]
) -> None:
    content = bytearray(json.dumps(GOOD[path] | changes).encode())
    for where, put, taken in cuts:
        place = int(where * len(content))
        content[place : place + taken] = put
    Client(server).ask(path, bytes(content))


@pytest.mark.slow
def test_schemathesis_finds_no_answer_that_the_document_does_not_tell(server: Running) -> None:
    pytest.importorskip("schemathesis")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--max-examples", "10",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--seed", "1", "--no-color", "--request-timeout", "60", "--phases", "examples,coverage,fuzzing",
        "--suppress-health-check", "too_slow",  # on a busy machine
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
