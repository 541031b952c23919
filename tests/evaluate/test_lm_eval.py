"""lm-eval on our models: local tasks without a network. Skipped where lm-eval is missing: pip install -e '.[test,eval]'

then pytest tests/test_harness.py."""

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

import torch
from conftest import RunCli, Tiny
from lm_eval.api.instance import Instance

from gptcli.api.eval_harness import hf_beginning
from gptcli.api.import_model import import_model
from gptcli.api.open_model import load, open_model
from gptcli.base.report import Report
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.runtime import Runtime
from gptcli.evaluate.lm_eval import Beginning, HarnessModel, draw_options
from gptcli.evaluate.perplexity import score_documents
from gptcli.model.gpt import GPT

torch.set_num_threads(1)

CPU = Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
PAIRS = [
    ("Ann saw a boat", " in the rain"),
    ("", "Before dawn"),
    ("Ann saw ", "a boat"),
    ("the dog ran " * 20, "home"),  # longer than the context
    ("a", " b" * 60),  # and so is the continuation
]


@pytest.fixture(scope="module")
def loaded(tiny: Tiny) -> tuple[GPT, Tokenizer]:
    return load(tiny.run)


@pytest.fixture(scope="module")
def adapter(loaded: tuple[GPT, Tokenizer]) -> HarnessModel:
    return HarnessModel(*loaded, CPU)


def instances(kind: str, arguments: list[tuple[object, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=given, idx=number) for number, given in enumerate(arguments)]


def test_loglikelihood_is_the_models_own(adapter: HarnessModel, loaded: tuple[GPT, Tokenizer]) -> None:
    model, tokenizer = loaded
    room = model.config.context_length
    found = adapter.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    for (context, continuation), (logprob, greedy) in zip(PAIRS, found, strict=True):
        before = tokenizer.encode(context.rstrip())
        after = tokenizer.encode(context + continuation)[len(before) :][-room:]
        fed = [tokenizer.end_of_text, *(before + after)[:-1][-(room - 1) :]]
        with torch.no_grad():
            logprobs = model(torch.tensor([fed]))[0].double().log_softmax(-1)[-len(after) :]
        wanted = torch.tensor(after)
        assert logprob == pytest.approx(float(logprobs.gather(1, wanted[:, None]).sum()), abs=1e-4)
        assert greedy == bool((logprobs.argmax(-1) == wanted).all())


def test_loglikelihood_of_a_whole_text_is_our_score(adapter: HarnessModel, loaded: tuple[GPT, Tokenizer]) -> None:
    text = "Ann saw a boat before dawn, and the dog ran home in the rain. " * 5
    (found,) = adapter.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)]))
    (score,) = score_documents(*loaded, [loaded[1].encode(text)], CPU)
    assert found == pytest.approx(-score.nats, abs=1e-4)


def test_text_is_written_up_to_the_first_stop_string(adapter: HarnessModel) -> None:
    asked = [("Ann saw", {"until": [], "max_gen_toks": 12}), ("x " * 99, {"until": "zzz", "max_gen_toks": 12})]
    whole, _ = adapter.generate_until(instances("generate_until", asked))
    assert len(whole) > 4
    stop = whole[2:4]
    again = adapter.generate_until(instances("generate_until", [("Ann saw", {"until": [stop], "max_gen_toks": 12})]))
    assert again == [whole[: whole.index(stop)]]


def test_an_answer_leaves_a_prompt_half_of_a_short_context(adapter: HarnessModel) -> None:
    assert adapter.prompt_room(4) == adapter.room - 3
    assert adapter.prompt_room(10_000) > adapter.room // 2


def test_only_a_request_to_sample_samples() -> None:
    assert draw_options({"until": ["\n"], "temperature": 0.0, "do_sample": False}).temperature == 0
    assert draw_options({"do_sample": True, "temperature": 0.5, "max_gen_toks": 7}).temperature == 0.5
    assert draw_options({"do_sample": False, "temperature": 0.5}).temperature == 0
    assert draw_options({}).max_tokens == 256


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks")
    rows = [{"q": f"Where was Ann, {n}?", "choices": ["at home", "in the rain"], "gold": n % 2} for n in range(6)]
    (directory / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    (directory / "where.yaml").write_text(
        "task: where_was_ann\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {directory / 'rows.json'}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        "doc_to_text: 'Question: {{q}}\\nAnswer:'\n"
        "doc_to_choice: choices\n"
        "doc_to_target: gold\n"
        "metric_list:\n  - {metric: acc}\n  - {metric: acc_norm}\n"
        "metadata: {version: 1.0}\n"
    )
    return directory


def test_a_local_task_gives_the_accuracies_of_our_own_evaluation(
    tiny: Tiny, tasks: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    arguments = ("--tasks", "where_was_ann", "--include-path", tasks, "--json", "-q")
    result = run_cli("eval-harness", tiny.run, *arguments, env={**OFFLINE, "HF_HOME": str(tmp_path)})
    assert result.code == 0, result.err
    found = json.loads(result.out)["tasks"]["where_was_ann"]
    assert (found["rows"], found["shots"]) == (6, 0)
    own = tmp_path / "rows.jsonl"
    lines = (tasks / "rows.json").read_text().splitlines()
    rows = [{"question": row["q"], "choices": row["choices"], "answer": row["gold"]} for row in map(json.loads, lines)]
    own.write_text("\n".join(map(json.dumps, rows)))
    ours = run_cli("evaluate", tiny.run, own, "--task", "choice", "--truncate", "left", "--json", "-q")
    metrics = json.loads(ours.out)["metrics"]
    assert found["metrics"]["acc"]["value"] == metrics["accuracy"]["value"]
    assert found["metrics"]["acc_norm"]["value"] == metrics["accuracy_per_character"]["value"]


def test_an_unknown_task_is_one_line(tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("eval-harness", tiny.run, "--tasks", "no_such_task", env=OFFLINE)
    assert len(result.error(2, "eval-harness", "lm-eval knows no task 'no_such_task'")) == 1
    run_cli("eval-harness", tiny.run, "--tasks", ",").error(2, "eval-harness", "--tasks: names no task")


MARKED = ["", "bos"]  # whether the tokenizer of transformers puts its token before every text


@pytest.mark.parametrize("marked", MARKED)
def test_as_hf_gives_the_numbers_of_lm_evals_own_model(marked: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from hugging_face import CONFIGS, hf_directory
    from lm_eval.models.huggingface import HFLM

    hf_directory(tmp_path / "hf", CONFIGS["llama"])
    if marked:
        path = tmp_path / "hf" / "tokenizer.json"
        mark = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
        text = {"Sequence": {"id": "A", "type_id": 0}}
        processor = {"type": "TemplateProcessing", "single": [mark, text], "pair": [mark, text, text], "special_tokens":
                     {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}}  # fmt: skip
        path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": processor}))
    import_model(tmp_path / "hf", tmp_path / "ours", report=Report())
    opened = open_model(tmp_path / "ours", dtype="float32")
    ours = HarnessModel(opened.model, opened.tokenizer, opened.runtime, Beginning(*hf_beginning(opened)))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")
    assert (ours.tok_encode("Ann saw"), ours.prefix_token_id) == (theirs.tok_encode("Ann saw"), theirs.prefix_token_id)
    pairs = [asked.loglikelihood(instances("loglikelihood", PAIRS[:4]), disable_tqdm=True) for asked in (ours, theirs)]
    for (mine, my_greedy), (yours, your_greedy) in zip(*pairs, strict=True):
        assert (mine, my_greedy) == (pytest.approx(yours, rel=1e-5), your_greedy)
    texts = [("Ann saw a boat before dawn, and the dog ran home in the rain. " * 5,), ("a",)]
    rolled = [
        asked.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
        for asked in (ours, theirs)
    ]
    assert rolled[0] == pytest.approx(rolled[1], rel=1e-5)
    asked_for = [
        ("Ann saw", {"until": ["zzz"], "max_gen_toks": 12}),
        ("x " * 99, {"until": ["zzz"], "max_gen_toks": 8}),
    ]
    written = [
        asked.generate_until(instances("generate_until", asked_for), disable_tqdm=True) for asked in (ours, theirs)
    ]
    # gptcli writes whole characters only
    assert written[0] == [text.rstrip("\ufffd") for text in written[1]]
