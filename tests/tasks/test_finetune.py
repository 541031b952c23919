"""gptcli finetune, preview, classify and merge, as users type them."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, RunCli, Tiny, environment
from safetensors.torch import load_file

from gptcli.data.batches import derived_seed

GOOD = "lovely brilliant warm funny".split()
BAD = "dull clumsy cold boring".split()


def reviews(count: int, seed: int = 1) -> list[dict[str, str]]:
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = draw.choice(["good", "bad"])
        word = draw.choice(GOOD if label == "good" else BAD)
        rows.append({"text": f"the {draw.choice(['sailor', 'miller', 'clerk'])} was {word} {number}", "label": label})
    return rows


def write_rows(path: Path, rows: list[dict[str, object]] | list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chats(count: int) -> list[dict[str, object]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"where is the map {number}"},
                {"role": "assistant", "content": f"by the river {number}"},
            ]
        }
        for number in range(count)
    ]


@pytest.fixture
def home(tmp_path: Path, tiny: Tiny) -> Path:
    """Rows and run files beside the tiny base."""
    write_rows(tmp_path / "reviews.jsonl", reviews(160))
    write_rows(tmp_path / "chats.jsonl", chats(24))
    prompts = [{"prompt": f"the clerk {number}", "completion": " lost a map"} for number in range(24)]
    write_rows(tmp_path / "prompts.jsonl", prompts)
    pairs = [{"prompt": f"the clerk {n}", "chosen": " lost a map", "rejected": " hid by the river"} for n in range(24)]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    (tmp_path / "more.txt").write_text("a grey cat hid by the river. " * 200)
    for task, data in {
        "classify": "reviews",
        "chat": "chats",
        "instruct": "prompts",
        "text": "more.txt",
        "prefer": "pairs",
    }.items():
        name = data if "." in data else f"{data}.jsonl"
        (tmp_path / f"{task}.yaml").write_text(
            f"run_dir: {task}\nbase: {tiny.run}\ntask: {task}\ndata: {{train: [{name}], validation_fraction: 0.2}}\n"
            "train: {epochs: 2, batch_size: 8}\nruntime: {device: cpu, threads: 1}\n"
        )
    return tmp_path


def weights(run: Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(run / "latest" / name)


def ok(result: Result) -> Result:
    assert result.code == 0, result.err
    return result


def test_a_classifier_learns_and_names_labels_in_order_in_a_pipe(home: Path, run_cli: RunCli) -> None:
    how = ("-s", "train.epochs=12", "-s", "optim.learning_rate=0.01", "--json")
    result = ok(run_cli("finetune", "classify.yaml", *how, cwd=home))
    assert json.loads(result.out)["validation"]["macro_f1"] > 0.9
    assert "labels: bad " in result.err
    rows = reviews(40, seed=2)
    plain = ok(run_cli("classify", "classify", input="".join(row["text"] + "\n" for row in rows), cwd=home))
    lines = [line.split("\t") for line in plain.text.splitlines()]
    assert sum(label == row["label"] for (label, _), row in zip(lines, rows, strict=True)) > 36
    records = "".join(json.dumps({"text": row["text"], "id": n}) + "\n" for n, row in enumerate(rows))
    written = ok(run_cli("classify", "classify", "--jsonl", input=records, cwd=home))
    found = [json.loads(line) for line in written.text.splitlines()]
    assert [record["id"] for record in found] == list(range(40))
    for record, (label, probability) in zip(found, lines, strict=True):
        assert record["label"] == label
        assert sum(record["probabilities"].values()) == pytest.approx(1)
        assert record["probabilities"][label] == pytest.approx(float(probability), abs=1e-4)


def test_one_text_gets_the_same_probabilities_alone_and_among_others(home: Path, run_cli: RunCli) -> None:
    ok(run_cli("finetune", "classify.yaml", "-q", cwd=home))
    from gptcli.api.classify import Classifier

    classifier = Classifier(home / "classify", device="cpu", threads=1)
    texts = [row["text"] for row in reviews(20, seed=3)] + ["", "a" * 5000]
    together, cut = classifier.ensemble.probabilities(texts)
    alone = [classifier.ensemble.probabilities([text])[0][0] for text in texts]
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
    assert cut == {len(texts) - 1}


def test_several_runs_name_labels_together(home: Path, tiny: Tiny, run_cli: RunCli) -> None:
    """The mean of what each says, by classify and by evaluate alike; runs of other labels are refused."""
    for number in (1, 2):
        how = ("-s", f"runtime.seed={number}", "-s", f"run_dir=seed{number}", "-s", "train.epochs=1")
        ok(run_cli("finetune", "classify.yaml", "-q", *how, cwd=home))
    rows = (home / "reviews.jsonl").read_text()

    def said(*runs: str) -> list[dict[str, float]]:
        result = ok(run_cli("classify", *runs, "--jsonl", input=rows, cwd=home))
        return [json.loads(line)["probabilities"] for line in result.out.splitlines()]

    one, two, both = said("seed1"), said("seed2"), said("seed1", "--with", "seed2")
    assert one != two
    for first, second, mean in zip(one, two, both, strict=True):
        assert mean == pytest.approx({label: (first[label] + second[label]) / 2 for label in first})
    how = ("evaluate", "seed1", "reviews.jsonl", "--with", "seed2", "--json", "--records", "said.jsonl")
    document = json.loads(ok(run_cli(*how, "--task", "classify", cwd=home)).out)
    assert [Path(member).parts[0] for member in document["members"]] == ["seed1", "seed2"]
    records = [json.loads(line) for line in (home / "said.jsonl").read_text().splitlines()]
    for record, mean in zip(records, both, strict=True):
        assert record["probabilities"] == pytest.approx(mean)
    told = ok(run_cli(*how[:-3], "--task", "classify", "--compare", "seed1", cwd=home)).text
    assert "\nwith\tseed2" in told
    assert "\n  difference\t" in told
    run_cli(*how, cwd=home).error(2, "evaluate", "--with: is of labelled rows")
    run_cli(*how, "--force", "--task", "generate", cwd=home).error(2, "evaluate", "--with: averages")
    (home / "others.jsonl").write_text(rows.replace('"label": "', '"label": "very '))
    how = ("-s", "run_dir=others", "-s", "data.train=[others.jsonl]", "-s", "train.epochs=1")
    ok(run_cli("finetune", "classify.yaml", "-q", *how, cwd=home))
    run_cli("classify", "seed1", "--with", "others", input="a\n", cwd=home).error(3, "classify", "its labels are")
    run_cli("classify", "seed1", "--with", tiny.run, input="a\n", cwd=home).error(3, "classify", "names no labels")


@pytest.mark.parametrize("task", ["classify", "chat", "instruct", "text", "prefer"])
def test_every_task_lowers_its_loss(home: Path, run_cli: RunCli, task: str) -> None:
    how = ("-q", "-s", "train.epochs=6", "-s", "optim.learning_rate=0.005")
    how += ("-s", "classify.token_dropout=0") if task == "classify" else ()
    ok(run_cli("finetune", f"{task}.yaml", *how, cwd=home))
    metrics = [json.loads(line) for line in (home / task / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss_nats"] for record in metrics if record["kind"] == "validation"]
    assert losses[-1] < losses[0]


def test_a_chat_checkpoint_carries_its_form_and_its_control_tokens(home: Path, run_cli: RunCli, tiny: Tiny) -> None:
    ok(run_cli("finetune", "chat.yaml", "-q", cwd=home))
    config = json.loads((home / "chat" / "latest" / "config.json").read_text())
    assert config["conversation"]["end"] == "<|end|>"
    before = json.loads((tiny.checkpoint / "config.json").read_text())["model"]["vocab_size"]
    assert config["model"]["vocab_size"] == before + 4
    ok(run_cli("generate", "chat", "hello", "--max-tokens", 3, cwd=home))


@pytest.mark.parametrize("lora", [(), ("-s", "lora.rank=2")], ids=["full", "lora"])
@pytest.mark.parametrize("task", ["classify", "chat", "prefer"])
def test_a_run_cut_short_and_resumed_ends_with_the_same_bits(
    home: Path, run_cli: RunCli, task: str, lora: tuple[str, ...]
) -> None:
    how = ("-q", "-s", "train.dropout=0.1", *lora)
    ok(run_cli("finetune", f"{task}.yaml", *how, cwd=home))
    process = subprocess.Popen(
        [sys.executable, "-m", "gptcli", "finetune", f"{task}.yaml", *how[1:], "-s", "run_dir=cut"],
        cwd=home,
        env=environment(home),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (home / "cut" / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 130), said  # 0 where it was done already
    if process.returncode == 130:
        assert "go on with: gptcli finetune cut/run.yaml --resume" in said
    ok(run_cli("finetune", "cut/run.yaml", "--resume", "-q", cwd=home))
    name = "adapter_model.safetensors" if lora else "model.safetensors"
    whole, resumed = weights(home / task, name), weights(home / "cut", name)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.parametrize("task", ["instruct", "text"])
def test_a_classifier_that_is_taught_to_write_has_no_labels_any_more(home: Path, run_cli: RunCli, task: str) -> None:
    ok(run_cli("finetune", "classify.yaml", "-q", "-s", "train.epochs=1", cwd=home))
    ok(run_cli("finetune", f"{task}.yaml", "-q", "-s", "base=classify", "-s", "train.epochs=1", cwd=home))
    ok(run_cli("generate", task, "hello", "--max-tokens", 3, cwd=home))
    run_cli("classify", task, input="hello\n", cwd=home).error(3, "classify", "names no labels")


@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_a_label_whose_rows_are_all_held_out_stops_nothing(home: Path, run_cli: RunCli, weights: str) -> None:
    rows = reviews(20)
    held_out = next(number for number in range(20) if derived_seed("validation", number) < 0.2 * 2**63)
    rows[held_out]["label"] = "worst"
    write_rows(home / "rare.jsonl", rows)
    how = ("-q", "-s", "data.train=[rare.jsonl]", "-s", f"classify.class_weights={weights}", "-s", "train.epochs=1")
    ok(run_cli("finetune", "classify.yaml", *how, cwd=home))
    metrics = [json.loads(line) for line in (home / "classify" / "metrics.jsonl").read_text().splitlines()]
    assert all(record["loss_nats"] is not None for record in metrics if record["kind"] != "end")


def test_the_tokens_that_are_counted_are_those_that_are_read(home: Path, run_cli: RunCli) -> None:
    how = ("-s", "train.epochs=1", "-s", "data.validation_fraction=0", "-s", "train.log_every_steps=1")
    said = ok(run_cli("finetune", "instruct.yaml", *how, cwd=home)).err
    metrics = [json.loads(line) for line in (home / "instruct" / "metrics.jsonl").read_text().splitlines()]
    tokens = [record["tokens"] for record in metrics if record["kind"] == "train"]
    assert f"24 rows to train on ({tokens[-1]:,} tokens)" in said


def test_frozen_blocks_stay_as_they_are(home: Path, run_cli: RunCli, tiny: Tiny) -> None:
    ok(run_cli("finetune", "instruct.yaml", "-q", "-s", "train.frozen_blocks=1", cwd=home))
    before, after = load_file(tiny.checkpoint / "model.safetensors"), weights(home / "instruct")
    changed = {".".join(name.split(".")[:2]) for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"blocks.1", "head.weight"}


def test_training_stops_when_validation_gets_no_better_and_keeps_the_best(home: Path, run_cli: RunCli) -> None:
    how = ("-s", "train.epochs=60", "-s", "train.patience=2", "-s", "optim.learning_rate=0.01", "--json")
    result = json.loads(ok(run_cli("finetune", "classify.yaml", *how, cwd=home)).out)
    metrics = [json.loads(line) for line in (home / "classify" / "metrics.jsonl").read_text().splitlines()]
    scores = {record["step"]: record["macro_f1"] for record in metrics if record["kind"] == "validation"}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert result["finished"]
    assert list(scores).index(result["step"]) == list(scores).index(best) + 2
    assert (home / "classify" / "best").resolve().name == f"step-{best:06d}"
    again = ok(run_cli("finetune", "classify.yaml", *how, "--resume", cwd=home))
    assert "already done" in again.err


def test_a_merged_adapter_says_what_the_adapter_says(home: Path, run_cli: RunCli) -> None:
    how = ("-q", "-s", "lora.rank=4", "-s", "train.epochs=16", "-s", "optim.learning_rate=0.01")
    ok(run_cli("finetune", "classify.yaml", *how, cwd=home))
    assert not (home / "classify" / "latest" / "model.safetensors").exists()
    ok(run_cli("merge", "classify", "-o", "merged", cwd=home))
    lines = "".join(row["text"] + "\n" for row in reviews(20, seed=4))
    adapted, merged = (ok(run_cli("classify", run, input=lines, cwd=home)).out for run in ("classify", "merged"))
    assert adapted == merged
    assert len({line.split(b"\t")[0] for line in adapted.splitlines()}) == 2


def test_preview_shows_what_is_learnt_in_brackets(home: Path, run_cli: RunCli) -> None:
    shown = ok(run_cli("preview", "chat.yaml", "--rows", 2, cwd=home)).text.splitlines()
    assert len(shown) == 4
    place, tokens = shown[:2]
    assert place.startswith("chats.jsonl:")
    question, _, answer = tokens.partition("<|assistant|>")
    assert "[" not in question
    assert answer.endswith("[<|end|>]")
    assert "".join(answer.replace("]|[", "").strip("|[]").removesuffix("<|end|>")).startswith("by the river")
    records = ok(run_cli("preview", "instruct.yaml", "--rows", 1, "--jsonl", cwd=home)).text
    record = json.loads(records)
    assert "".join(t for t, learnt in zip(record["tokens"], record["learnt"], strict=True) if learnt) == (
        " lost a map<|endoftext|>"
    )


def test_what_is_odd_about_the_rows_is_said_before_training(home: Path, run_cli: RunCli) -> None:
    rows = [*reviews(10), reviews(1)[0], {"text": "long " * 100, "label": "bad"}]
    write_rows(home / "odd.jsonl", rows)
    write_rows(home / "held.jsonl", reviews(3))
    (home / "odd.jsonl").open("a").write("not json\n")
    said = ok(
        run_cli(
            *("preview", "classify.yaml", "-s", "data.train=[odd.jsonl]", "-s", "data.validation=[held.jsonl]"),
            *("-s", "data.on_bad_line=skip"),
            cwd=home,
        )
    ).err
    for words in (
        "12 rows to train on",
        "3 held out",
        "1 row cut at the end: longer than allowed",
        "1 repeated row to train on",
        "3 held-out rows also in the training rows",
        "1 bad line skipped, the first: odd.jsonl:13: not JSON",
    ):
        assert words in said


CHAT = '{"messages": [{"role": "user", "content": "a"}'


@pytest.mark.parametrize(
    ("task", "content", "said"),
    [
        ("classify", '{"text": "a", "label": "x"}\n', "rows.jsonl: every row has the label 'x'"),
        ("classify", '{"text": " ", "label": "x"}\n{"text": "b", "label": "y"}\n', "rows.jsonl:1: the text is empty"),
        ("classify", '{"text": "a", "label": "x"}\n{"text": "b"}\n', "rows.jsonl:2: no field 'label'"),
        ("classify", '{"text": "a", "label": "x"}\nhello\n', "rows.jsonl:2: not JSON"),
        ("classify", '{"text": 3, "label": "x"}\n{"text": "b", "label": "y"}\n', "rows.jsonl:1: field 'text' must be"),
        ("classify", "", "rows.jsonl: no rows"),
        ("chat", f"{CHAT}]}}\n", "rows.jsonl:1: no turn of the assistant"),
        ("chat", f'{CHAT}, {{"role": "user", "content": "b"}}]}}\n', "rows.jsonl:1: message 2 is the user's"),
        (
            "chat",
            f'{CHAT}, {{"role": "assistant", "content": ""}}]}}\n',
            "rows.jsonl:1: message 2: the content is empt",
        ),
        (
            "chat",
            '{"text": "a"}\n',
            "rows.jsonl:1: no field 'messages'; it has 'text'; name it, -s data.messages_field=NAME",
        ),
        ("instruct", '{"prompt": "a", "completion": ""}\n', "rows.jsonl:1: the completion is empty"),
        ("instruct", json.dumps({"prompt": "a " * 99, "completion": "b"}) + "\n", "rows.jsonl: nothing to learn"),
    ],
)
def test_bad_rows_end_with_one_line_that_names_them(
    home: Path, run_cli: RunCli, task: str, content: str, said: str
) -> None:
    (home / "rows.jsonl").write_text(content)
    result = run_cli("finetune", f"{task}.yaml", "-s", "data.train=[rows.jsonl]", cwd=home)
    assert len(result.error(3, "finetune", said)) == 1


def test_a_label_that_training_does_not_have_is_named(home: Path, run_cli: RunCli) -> None:
    write_rows(home / "held.jsonl", [*reviews(2), {"text": "so so", "label": "fair"}])
    result = run_cli("finetune", "classify.yaml", "-s", "data.validation=[held.jsonl]", cwd=home)
    result.error(3, "finetune", "held.jsonl:3: label 'fair' is not in the training rows; they have bad, good")


def test_of_every_label_a_row_stays_to_train_on_and_one_that_is_not_held_out_is_named(
    home: Path, run_cli: RunCli
) -> None:
    how = ("-s", "data.validation_fraction=0.99", "-s", "classify.class_weights=balanced", "-s", "train.epochs=1")
    write_rows(home / "reviews.jsonl", [*reviews(60), {"text": "never seen", "label": "rare"}])
    said = ok(run_cli("finetune", "classify.yaml", *how, cwd=home)).err
    assert "labels: bad 1, good 1, rare 1" in said
    assert "no held-out row has the label rare" in said


def test_a_label_with_a_tab_and_a_newline_stays_in_its_field(home: Path, run_cli: RunCli) -> None:
    rows = [{**row, "label": f"{row['label']}\tor\nso"} for row in reviews(40)]
    write_rows(home / "reviews.jsonl", rows)
    ok(run_cli("finetune", "classify.yaml", "-q", "-s", "train.epochs=1", cwd=home))
    lines = ok(run_cli("classify", "classify", input="a\nb\n", cwd=home)).text.splitlines()
    assert [line.split("\t")[0] in ("good\\tor\\nso", "bad\\tor\\nso") for line in lines] == [True, True]


def test_a_run_file_of_finetune_is_none_of_the_commands_that_pretrain(home: Path, run_cli: RunCli) -> None:
    said = "classify.yaml: is a run file of gptcli finetune; name one of gptcli pretrain"
    for command in ("pretrain", "plan", "bench"):
        assert len(run_cli(command, "classify.yaml", cwd=home).error(2, command, said)) == 1


def test_a_run_never_begins_again_in_the_directory_of_its_base(home: Path, run_cli: RunCli, tiny: Tiny) -> None:
    shutil.copytree(tiny.run, home / "base", symlinks=True)
    how = ("-s", "base=base", "-s", "run_dir=base", "--force")
    run_cli("finetune", "classify.yaml", *how, cwd=home).error(5, "finetune", "base: would replace the input base/")
    ok(run_cli("checkpoint", "verify", "base", cwd=home))


def test_an_adapter_on_the_wrong_base_is_refused(home: Path, run_cli: RunCli, tiny: Tiny) -> None:
    shutil.copytree(tiny.run, home / "base", symlinks=True)
    ok(run_cli("finetune", "classify.yaml", "-q", "-s", "lora.rank=2", "-s", "base=base", cwd=home))
    ok(run_cli("pretrain", tiny.run_file, "-s", "run_dir=base", "-s", "runtime.seed=7", "--force", "-q", cwd=home))
    run_cli("classify", "classify", input="a\n", cwd=home).error(3, "classify", "an adapter of another base")
    shutil.rmtree(home / "base")
    run_cli("classify", "classify", input="a\n", cwd=home).error(3, "classify", "its base", "is not there")
    run_cli("merge", tiny.run, "-o", "m", cwd=home).error(3, "merge", "has no adapter")


def test_mistakes_of_the_run_file_are_named(home: Path, run_cli: RunCli, tiny: Tiny) -> None:
    run_cli("finetune", "classify.yaml", "-s", "base=none", cwd=home).error(2, "finetune", "none: no such directory")
    run_cli("finetune", "classify.yaml", "-s", "task=sing", cwd=home).error(2, "finetune", "task", "classify")
    run_cli("finetune", "classify.yaml", "-s", "train.frozen_blocks=9", "-q", cwd=home).error(
        2, "finetune", "train.frozen_blocks: 9, but the base has 2 blocks"
    )
    run_cli("classify", tiny.run, input="a\n").error(3, "classify", "names no labels")
    ok(run_cli("config", "check", "classify.yaml", cwd=home))


def test_a_fine_tuning_run_writes_scalars_and_is_listed_as_finished(home: Path, run_cli: RunCli) -> None:
    pytest.importorskip("tensorboard")
    how = ("-q", "-s", "run_dir=boarded", "-s", "train.tensorboard=true", "-s", "train.epochs=1")
    ok(run_cli("finetune", "classify.yaml", *how, cwd=home))
    assert list((home / "boarded" / "tensorboard").glob("events.*"))
    (facts,) = json.loads(ok(run_cli("runs", "boarded", "--json", cwd=home)).out)
    assert facts["state"] == "finished"
