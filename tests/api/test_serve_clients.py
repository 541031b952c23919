"""Other programs as clients of the server: what they send is taken, and what they need is there."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Tiny, english
from serving import COMPLETIONS, TEXT, Running, serving
from table_models import table_model

ANSWER = "Yes, man"


@pytest.fixture(scope="module")
def server(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tiny.run, tmp_path_factory.mktemp("serve"), "--batch-size", "4") as running:
        yield running


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("chat")
    with serving(table_model(directory / "model", [ANSWER]), directory, "--temperature", "0") as running:
        yield running


def test_the_openai_package(server: Running, chat: Running) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    whole = client.completions.create(model="", **TEXT)
    parts = client.completions.create(model="", stream=True, **TEXT)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="", prompt="a", temperature=1000)
    assert [model.id for model in client.models.list()] == [client.models.retrieve(client.models.list().data[0].id).id]
    talk = openai.OpenAI(base_url=f"{chat.url}/v1", api_key="none").chat.completions
    messages: Any = [{"role": "user", "content": "Hello"}]
    with talk.stream(model="", messages=messages, logprobs=True) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ANSWER
    assert "".join(entry.token for entry in final.choices[0].logprobs.content) == ANSWER
    usage = {"include_usage": True}
    *_, last = talk.create(model="", messages=messages, stream=True, stream_options=usage)
    assert last.usage.completion_tokens == len(ANSWER)


def test_the_openai_package_with_many_requests_at_once(server: Running) -> None:
    openai = pytest.importorskip("openai")

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def ask(seed: int) -> str:
                stream = await client.completions.create(
                    model="", prompt="the old", max_tokens=8, seed=seed, stream=True
                )
                return "".join([part.choices[0].text async for part in stream])

            return await asyncio.gather(*(ask(seed % 5) for seed in range(20)))

    texts = asyncio.run(ask_all())
    for seed in range(5):
        alone = server.ok(COMPLETIONS, {"prompt": "the old", "max_tokens": 8, "seed": seed})["choices"][0]["text"]
        assert set(texts[seed::5]) == {alone}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(server: Running) -> None:
    command = ["curl", "-sS", "--no-buffer", f"{server.url}{COMPLETIONS}", "-H", "Content-Type: application/json", "-d"]
    whole = json.loads(subprocess.run([*command, json.dumps(TEXT)], capture_output=True, check=True).stdout)
    stream = subprocess.run([*command, json.dumps(TEXT | {"stream": True})], capture_output=True, check=True)
    *events, done = stream.stdout.decode().removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    texts = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events]
    assert "".join(texts) == whole["choices"][0]["text"]
    large = "x" * (3 << 20)  # curl asks first whether it may: Expect: 100-continue
    body = json.dumps({"prompt": large})
    refused = subprocess.run([*command[:-1], "-d", "@-"], input=body.encode(), capture_output=True, check=True)
    assert json.loads(refused.stdout)["error"]["code"] == "context_length_exceeded"


def test_llm(chat: Running, server: Running, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    models = [
        {"model_id": "talk", "model_name": chat.ask("GET", "/v1/models")[1]["data"][0]["id"], "api_base": chat.url},
        {"model_id": "write", "model_name": "run", "api_base": server.url, "completion": True},
    ]
    lines = [f"- {json.dumps(model | {'api_base': str(model['api_base']) + '/v1'})}" for model in models]
    (tmp_path / "extra-openai-models.yaml").write_text("\n".join(lines))
    env = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def llm(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert llm("-m", "talk", "-s", "Be brief", "Hello") == f"{ANSWER}\n"
    assert llm("-c", "--no-stream", "And now?") == f"{ANSWER}\n"  # the conversation goes on
    given = llm("-m", "write", "-o", "max_tokens", "12", "-o", "seed", "5", "the old")
    assert given.rstrip("\n") == server.ok(COMPLETIONS, TEXT)["choices"][0]["text"].rstrip("\n")


def test_lm_eval_over_http_finds_what_it_finds_on_the_run_itself(server: Running, tiny: Tiny) -> None:
    pytest.importorskip("lm_eval")
    for package in ("aiohttp", "tenacity", "requests"):
        pytest.importorskip(package)
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from gptcli.api.open_model import load
    from gptcli.device.runtime import Runtime
    from gptcli.evaluate.lm_eval import HarnessModel

    words = [line.split() for line in english(200, seed=7).splitlines()]
    pairs = [(" ".join(line[:3]), " " + " ".join(line[3:5])) for line in words]
    asked = [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=number) for number, pair in enumerate(pairs)
    ]
    own = HarnessModel(*load(tiny.run), Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1))
    wanted = own.loglikelihood(asked, disable_tqdm=True)
    name = server.ask("GET", "/v1/models")[1]["data"][0]["id"]
    address = f"{server.url}{COMPLETIONS}"
    other = LocalCompletionsAPI(base_url=address, model=name, num_concurrent=2, batch_size=8, max_length=32)
    assert other.tokenizer_backend == "remote"
    found = other.loglikelihood(asked, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    torch.testing.assert_close([sum_ for sum_, _ in found], [sum_ for sum_, _ in wanted], rtol=1e-6, atol=0)
