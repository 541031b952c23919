"""`gptcli evaluate --task`: real rows, real files, real commands."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunCli, Tiny

from gptcli.api.open_model import load
from gptcli.cli import main
from gptcli.data.tokenizer import Tokenizer
from gptcli.model.gpt import GPT
from gptcli.train import checkpoint
from gptcli.train.metadata import ModelMetadata

LABELLED = [
    {"text": "Ann saw a boat", "label": "boat"},
    {"text": "the dog ran home", "label": "dog"},
    {"text": "it was a boat", "label": "boat"},
    {"text": "no dog saw it", "label": "dog"},
    {"text": "a hill", "label": "boat"},
]
QUESTIONS = [
    {"question": "Who?", "choices": ["Ann", "a dog"], "answer": 0},
    {"question": "Where?", "choices": ["home", "the rain", "noon"], "answer": "noon"},
]
PROMPTS = [{"prompt": "Ann saw", "answer": "a boat"}, {"prompt": "Ben ran", "answers": ["home", "a mile"]}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    return write(tmp_path / "labelled.jsonl", LABELLED)


def document(run_cli: RunCli, *arguments: object) -> dict[str, Any]:
    result = run_cli("evaluate", *arguments, "--json", "-q", "--resamples", 200)
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return found


@torch.no_grad()
def logprob(model: GPT, tokenizer: Tokenizer, context: str, answer: str) -> float:
    before, after = tokenizer.encode(context), tokenizer.encode(context + answer)[len(tokenizer.encode(context)) :]
    fed = [tokenizer.end_of_text, *before, *after]
    logprobs = model(torch.tensor([fed[:-1]]))[0].double().log_softmax(-1)[-len(after) :]
    return float(logprobs.gather(1, torch.tensor(after)[:, None]).sum())


def test_a_label_is_the_one_whose_words_are_likeliest_after_the_prompt(
    tiny: Tiny, labelled: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    records = tmp_path / "records.jsonl"
    words = {"boat": "a boat", "dog": "dogs"}
    given = [f"--label-word={label}={word}" for label, word in words.items()]
    found = document(
        run_cli, tiny.run, labelled, "--task", "classify", "--template", r"{text}\n=", *given, "--records", records
    )
    model, tokenizer = load(tiny.run)
    right = []
    for line, row in zip(records.read_text().splitlines(), LABELLED, strict=True):
        record = json.loads(line)
        scores = [logprob(model, tokenizer, row["text"] + "\n=", " " + word) for word in words.values()]
        expected = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
        assert list(record["probabilities"].values()) == pytest.approx(expected, abs=1e-4)
        assert record["given"] == max(record["probabilities"], key=record["probabilities"].get)
        right.append(record["given"] == row["label"])
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(sum(right) / len(right))
    assert found["per_label"]["dog"]["recall"]["value"] is not None
    assert found["support"] == {"boat": 3, "dog": 2}
    assert sum(map(sum, found["confusion"])) == found["rows"] == 5


def test_csv_rows_are_evaluated_as_those_of_jsonl(tiny: Tiny, labelled: Path, tmp_path: Path, run_cli: RunCli) -> None:
    csv = tmp_path / "rows.csv"
    csv.write_text("label,text\n" + "".join(f'{row["label"]},"{row["text"]}"\n' for row in LABELLED))
    first, second = (document(run_cli, tiny.run, path, "--task", "classify") for path in (labelled, csv))
    assert first == second


def test_choices_are_compared_by_log_probability(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    records = tmp_path / "records.jsonl"
    rows = write(tmp_path / "rows.jsonl", QUESTIONS)
    found = document(run_cli, tiny.run, rows, "--task", "choice", "--template", "{question}", "--records", records)
    model, tokenizer = load(tiny.run)
    for line, row in zip(records.read_text().splitlines(), QUESTIONS, strict=True):
        record = json.loads(line)
        scores = {text: logprob(model, tokenizer, row["question"], " " + text) for text in row["choices"]}
        assert {choice["text"]: choice["logprob"] for choice in record["choices"]} == pytest.approx(scores, abs=1e-4)
        assert record["preferred"]["accuracy"] == max(scores, key=scores.__getitem__)
        assert record["preferred"]["accuracy_per_byte"] == max(scores, key=lambda text: scores[text] / len(text))
    assert set(found["metrics"]) == {
        "accuracy", "accuracy_per_character", "accuracy_per_byte", "accuracy_per_token"
    }  # fmt: skip


def test_written_answers_are_those_of_generate(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    records = tmp_path / "records.jsonl"
    rows = write(tmp_path / "rows.jsonl", PROMPTS)
    found = document(run_cli, tiny.run, rows, "--task", "generate", "--max-tokens", 6, "--records", records)
    assert set(found["metrics"]) == {"exact_match", "token_f1"}
    for line, row in zip(records.read_text().splitlines(), PROMPTS, strict=True):
        written = run_cli("generate", tiny.run, row["prompt"], "--max-tokens", 6, "--temperature", 0)
        assert json.loads(line)["text"] == written.text.strip()


def test_shots_stand_before_the_prompt_and_those_that_do_not_fit_are_counted(
    tiny: Tiny, tmp_path: Path, run_cli: RunCli
) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"text": "Ann", "label": "a"}, {"text": "Ben", "label": "b"}])
    arguments = (tiny.run, rows, "--task", "classify", "--template", "{text} ->", "--shots-file", rows)
    found = document(run_cli, *arguments, "--shots", 1)
    assert (found["shots"], found["shots_dropped"]) == (1, 0)
    pool = write(tmp_path / "pool.jsonl", [{"text": f"{n} " * 9, "label": "a"} for n in range(5)])
    result = run_cli("evaluate", *arguments[:-1], pool, "--shots", 4, "--json")
    found = json.loads(result.out)
    assert found["rows_with_fewer_shots"] == 2
    assert f"warning: {found['shots_dropped']} shots of 2 rows did not fit" in result.err


def test_a_model_compared_with_itself_does_not_differ(
    tiny: Tiny, labelled: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    records = tmp_path / "records.jsonl"
    found = document(
        run_cli, tiny.run, labelled, "--task", "classify", "--compare", tiny.checkpoint, "--records", records
    )
    other = found["compare"]
    assert other["metrics"] == found["metrics"]
    accuracy = other["differences"]["metrics"]["accuracy"]
    assert accuracy == {"value": 0.0, "interval": [0.0, 0.0], "p_value": 1.0, "test": "exact McNemar"}
    assert other["differences"]["metrics"]["macro_f1"]["test"] == "paired randomisation"
    record = json.loads(records.read_text().splitlines()[0])
    assert record["compare"]["given"] == record["given"]


def test_records_are_replaced_only_with_force(tiny: Tiny, labelled: Path, tmp_path: Path, run_cli: RunCli) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text("mine")
    arguments = ("evaluate", tiny.run, labelled, "--task", "classify", "--records", records)
    run_cli(*arguments).error(5, "evaluate", "records.jsonl: exists; pass --force")
    assert records.read_text() == "mine"
    assert run_cli(*arguments, "--force").code == 0
    assert len(records.read_text().splitlines()) == len(LABELLED)


@pytest.mark.parametrize(
    ("lines", "arguments", "said"),
    [
        ('{"text": "a", "label": "x"}\n{"text": "a"}', [], ":2: no field 'label'"),
        ('{"text": "a", "label": "x"}\n{"text"', [], ":2: not JSON"),
        ('{"text": "a", "label": "x"}', [], ":1: every row has the label 'x'; name all with --label-word"),
        ('{"text": "a", "label": "x"}', ["--label-word", "y=1", "--label-word", "z=2"], ":1: label 'x' has no words"),
        ("\n", [], "no rows"),
        ('{"text": "' + "a b " * 99 + '", "label": "x"}\n{"text": "a", "label": "y"}', [], ":1: takes "),
        ('{"text": "a", "label": "x"}', ["--template", "{body}"], ":1: no field 'body'; it has 'text', 'label'"),
    ],
)
def test_wrong_rows_are_one_line_with_their_place(
    tiny: Tiny, tmp_path: Path, capfd: pytest.CaptureFixture[str], lines: str, arguments: list[str], said: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(lines + "\n")
    code = main.run(["evaluate", str(tiny.run), str(path), "--task", "classify", "--threads", "1", *arguments])
    out, err = capfd.readouterr()
    assert (code, out) == (3, "")
    assert err.startswith(f"gptcli evaluate: error: {path}")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shots", "2"], "--shots: is of labelled rows; add --task classify, choice, generate or pairs"),
        (["--task", "choice", "--shots", "2"], "--shots and --shots-file go together; pass both"),
        (["--task", "choice", "--stride", "2"], "--stride: is of the task text; leave it out"),
        (["--task", "classify", "--label-word", "a"], "--label-word: 'a' has no words; want LABEL=WORDS"),
        (["--task", "classify", "--label-word", "a=b"], "--label-word: name two labels or more, each once"),
        (
            ["--task", "classify", "--label-word", "a=b", "--label-word", "c=b"],
            "--label-word: two labels have the same words; give each its own",
        ),
        (
            ["--task", "classify", "--template", "{text.upper}"],
            "--template: names no field of a row; write one in braces, as {text}",
        ),
        (
            ["--task", "classify", "--field", "body"],
            "--field: is of the task text; name the fields of a row in --template",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tiny: Tiny, labelled: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main.run(["evaluate", str(tiny.run), str(labelled), *arguments]) == 2
    assert capfd.readouterr().err == f"gptcli evaluate: error: {said}\n"


# ------------------------------------------------------------------------------------------------ classification head


@pytest.fixture
def classifier(tiny: Tiny, tmp_path: Path) -> Path:
    """The tiny model with a classification head of random weights."""
    model, tokenizer = load(tiny.run)
    with_head = GPT(model.config, labels=2)
    with_head.initialize(torch.Generator().manual_seed(1))
    with_head.load_state_dict(model.state_dict(), strict=False)
    directory = tmp_path / "classifier"
    directory.mkdir()
    metadata = ModelMetadata(labels=("dog", "boat"))
    checkpoint.save_model(with_head, tokenizer, directory, step=1, metadata=metadata)
    return directory


def test_a_classifier_names_labels_by_its_head(
    classifier: Path, labelled: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    records = tmp_path / "records.jsonl"
    found = document(run_cli, classifier, labelled, "--task", "classify", "--records", records)
    assert found["method"] == "classification head"
    assert found["labels"] == ["boat", "dog"]
    model, tokenizer = load(classifier)
    assert model.label_head is not None
    for line, row in zip(records.read_text().splitlines(), LABELLED, strict=True):
        with torch.no_grad():
            hidden = model.hidden(torch.tensor([[tokenizer.end_of_text, *tokenizer.encode(" " + row["text"])]]))
            expected = model.label_head(hidden[0, -1]).double().softmax(-1).tolist()
        named = dict(zip(("dog", "boat"), expected, strict=True))
        assert json.loads(line)["probabilities"] == pytest.approx(named, abs=1e-5)


def test_a_template_asks_a_classifier_for_words_instead(
    tiny: Tiny, classifier: Path, labelled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--task",
        "classify",
        "--template",
        "{text} =",
        "--compare",
        str(tiny.run),
        "--json",
        "-q",
        "--threads",
        "1",
    ]
    assert main.run(["evaluate", str(classifier), str(labelled), *flags]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["method"] == found["compare"]["method"] == "log-probability of the label's words"
    assert found["metrics"] == found["compare"]["metrics"]


def test_a_head_is_compared_with_a_model_without_one(
    tiny: Tiny, classifier: Path, labelled: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--task", "classify", "--compare", str(tiny.run), "--json", "-q", "--threads", "1"]
    assert main.run(["evaluate", str(classifier), str(labelled), *flags]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["method"] != found["compare"]["method"]
    value, other = (at["metrics"]["accuracy"]["value"] for at in (found, found["compare"]))
    assert found["compare"]["differences"]["metrics"]["accuracy"]["value"] == pytest.approx(value - other)


def test_a_label_that_the_head_does_not_know_is_an_error(
    classifier: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "rows.jsonl", [LABELLED[0], {"text": "a", "label": "cat"}])
    assert main.run(["evaluate", str(classifier), str(rows), "--task", "classify", "--threads", "1"]) == 3
    said = "label 'cat' is none of the model's: dog, boat; mend or drop the row"
    assert capfd.readouterr().err == f"gptcli evaluate: error: {rows}:2: {said}\n"


def test_the_help_shows_tasks_and_examples_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["evaluate", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  classify  Rows with text and label") for line in lines)
    assert r"      --template 'Review: {text}\nSentiment:'" in lines
