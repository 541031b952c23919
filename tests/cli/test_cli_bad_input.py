"""Mistakes and damage, through the real command: the exit code, one line that names the place, and no traceback."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import RunCli, Tiny, english, tiny_run_file

# ------------------------------------------------------------------------------------------------------------ corpora


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", ["no text"]),
        ("blank.txt", b" \n\t\n" * 100, ["no text"]),
        ("latin.txt", b"one\ntwo\nth\xe9 end\n", ["latin.txt:3: byte 0xe9 at column 3 is not UTF-8", "--encoding"]),
        ("binary.txt", b"text\n" + bytes(range(256)), ["looks binary", "offset 5"]),
        ("windows.txt", "some text\n".encode("utf-16"), ["UTF-16", "--encoding utf-16"]),
        ("program.txt", b"\x7fELF\x02\x01\x01", ["ELF"]),
        ("cut.txt.gz", gzip.compress(os.urandom(5000))[:-3000], ["cut.txt.gz"]),
        ("broken.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', ["broken.jsonl:3: not JSON", "column"]),
        ("other.jsonl", b'{"text": "a"}\n{"body": "b"}\n', ["other.jsonl:2: no field 'text'", "'body'", "--field"]),
        ("number.jsonl", b'{"text": 7}\n', ["number.jsonl:1", "must be text, got a number, 7"]),
    ],
)
def test_a_corpus_that_is_no_text_is_told_with_its_place(
    name: str, content: bytes, words: list[str], tmp_path: Path, run_cli: RunCli
) -> None:
    corpus = tmp_path / name
    corpus.write_bytes(content)
    output = tmp_path / "tok.json"
    result = run_cli("train-tokenizer", corpus, "-o", output, "-q")
    assert len(result.error(3, "train-tokenizer", *words)) == 1
    assert result.out == b""
    assert not output.exists()


def test_every_missing_input_is_told_at_once_with_the_name_that_was_meant(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "corpus.txt").write_text("text\n")
    result = run_cli("train-tokenizer", tmp_path / "corpsu.txt", tmp_path / "*.md", "-o", tmp_path / "t.json")
    lines = result.error(2, "train-tokenizer", "corpsu.txt: no such file; did you mean", "*.md: no file matches")
    assert len(lines) == 2


def test_the_line_of_a_filters_input_is_named(tokenizer: Path, run_cli: RunCli) -> None:
    run_cli("encode", tokenizer, input=b"fine\nbad \xff\n").error(3, "encode", "stdin:2", "0xff at column 5")
    run_cli("decode", tokenizer, input="1 2\n3 x\n").error(3, "decode", "stdin:2", "not a line of ids")
    run_cli("decode", tokenizer, input="1\n300\n").error(3, "decode", "stdin:2", "300", "vocabulary of 300")
    run_cli("decode", tokenizer, input="-1\n").error(3, "decode", "stdin:1", "-1")
    run_cli("decode", tokenizer, "--json", input="[1]\n").error(
        3, "decode", "stdin:1", "record is a list, want an object"
    )
    run_cli("decode", tokenizer, "--json", input='{"id": [1]}\n').error(3, "decode", "stdin:1", "'ids'")


def test_empty_standard_input_is_told(tokenizer: Path, run_cli: RunCli) -> None:
    run_cli("count", tokenizer).error(3, "count", "stdin: no input")


# ---------------------------------------------------------------------------------------------------------- tokenizers


@pytest.mark.parametrize("size", [0, 256, 2**20 + 1, -5])
def test_a_vocabulary_that_cannot_be_is_refused_with_its_bounds(
    size: int, corpus: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    result = run_cli("train-tokenizer", corpus, "-o", tmp_path / "t.json", "--vocab-size", size)
    result.error(2, "train-tokenizer", "--vocab-size", "from 257", "to 1048576", f"got {size}")


def test_a_vocabulary_that_the_corpus_cannot_fill_is_warned_of(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "small.txt").write_text("one two three\n")
    result = run_cli("train-tokenizer", tmp_path / "small.txt", "-o", tmp_path / "t.json", "--vocab-size", 5000)
    result.error(0, "train-tokenizer", "of the 5000 tokens wanted")
    assert (tmp_path / "t.json").exists()


def test_a_file_that_is_no_tokenizer_is_told(tmp_path: Path, tokenizer: Path, run_cli: RunCli) -> None:
    run_cli("encode", tmp_path / "none.json", input="x").error(
        2, "encode", "none.json: no such file", "train-tokenizer"
    )
    damaged = tmp_path / "damaged.json"
    for content in (b"", b"{}", b"[]", b"\x00\xff", tokenizer.read_bytes()[:-100]):
        damaged.write_bytes(content)
        run_cli("encode", damaged, input="x").error(3, "encode", "damaged.json: not a tokenizer.json")


# ------------------------------------------------------------------------------------------------------- prepared data


@pytest.fixture(scope="module")
def whole_preparation(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, run_cli: RunCli) -> Path:
    path = tmp_path_factory.mktemp("prepared") / "data"
    result = run_cli("prepare", tiny.corpus, "-t", tiny.tokenizer, "-o", path, "-q")
    assert result.code == 0, result.err
    return path


@pytest.fixture
def prepared(whole_preparation: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_preparation, tmp_path / "data"))


@pytest.fixture
def pretrain_on(tmp_path: Path, run_cli: RunCli) -> Callable[..., None]:
    """`pretrain_on(data, code, words)`: pretraining on a prepared directory must end so, before any step."""

    def pretrain(data: Path, code: int, *words: str, overrides: tuple[str, ...] = ()) -> None:
        run_file = tmp_path / "run.yaml"
        run_file.write_text(tiny_run_file(data, tmp_path / "run"))
        result = run_cli("pretrain", run_file, "-q", *(part for pair in overrides for part in ("-s", pair)))
        result.error(code, "pretrain", *words)
        assert not (tmp_path / "run" / "checkpoints").exists()

    return pretrain


def test_a_tokenizer_larger_than_the_model_is_told(prepared: Path, pretrain_on: Callable[..., None]) -> None:
    pretrain_on(prepared, 2, "model.vocab_size: 299", "300", overrides=("model.vocab_size=299",))


def test_a_tokenizer_other_than_the_prepared_one_is_told(
    prepared: Path, corpus: Path, tmp_path: Path, run_cli: RunCli, pretrain_on: Callable[..., None]
) -> None:
    other = tmp_path / "other.json"
    assert run_cli("train-tokenizer", corpus, "-o", other, "--vocab-size", 290).code == 0
    pretrain_on(prepared, 3, "tokenizer.path", "other.json", "prepared with", overrides=(f"tokenizer.path={other}",))


def test_a_cut_shard_is_told_with_both_sizes(prepared: Path, pretrain_on: Callable[..., None]) -> None:
    shard = prepared / "train-00000.bin"
    size = shard.stat().st_size
    os.truncate(shard, size - 2)
    pretrain_on(prepared, 3, f"train-00000.bin: has {size - 2} bytes, want {size}", "gptcli prepare")


def test_an_id_outside_of_the_vocabulary_is_told(prepared: Path, pretrain_on: Callable[..., None]) -> None:
    index = json.loads((prepared / "index.json").read_text())
    index["splits"]["train"]["max_id"] = 300
    (prepared / "index.json").write_text(json.dumps(index))
    pretrain_on(prepared, 3, "index.json: id 300 is outside of the vocabulary of 300")


# --------------------------------------------------------------------------------------------------------- checkpoints


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def lists_for_numbers(path: Path) -> None:
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "model": {**document["model"], "num_layers": [2]}}))


@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        ("model.safetensors", Path.unlink, "missing; the checkpoint is damaged"),
        ("model.safetensors", cut_in_half, "cut or damaged"),
        ("config.json", cut_in_half, "not JSON"),
        ("config.json", lists_for_numbers, "num_layers: must be an integer"),
        ("tokenizer.json", cut_in_half, "not a tokenizer.json"),
    ],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_a_damaged_checkpoint_is_told_with_the_file(
    file: str, damage: Callable[[Path], None], words: str, tiny: Tiny, tmp_path: Path, run_cli: RunCli
) -> None:
    checkpoint = shutil.copytree(tiny.checkpoint, tmp_path / "step-000006")
    damage(checkpoint / file)
    result = run_cli("generate", checkpoint, "The")
    assert len(result.error(3, "generate", file, words)) == 1
    assert result.out == b""


def test_a_run_that_is_not_there_is_told(tmp_path: Path, run_cli: RunCli) -> None:
    run_cli("score", tmp_path / "runs", input="x\n").error(2, "score", "runs: no such directory")


# ----------------------------------------------------------------------------------------------------------- run files


def test_all_mistakes_of_a_run_file_are_told_at_once_with_their_lines(tmp_path: Path, run_cli: RunCli) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_text(
        "run_dir: out\n"
        "data:\n"
        "  train: [corpus.txt]\n"
        "model:\n"
        "  num_layer: 2\n"
        "  hidden_size: wide\n"
        "  dropout: 1.5\n"
        "  num_heads: 4\n"
        "  num_heads: 2\n"
    )
    for command in (("config", "check"), ("pretrain",)):
        result = run_cli(*command, run_file, "-s", "train.steps=-1")
        lines = result.error(
            2,
            command[0],
            "run.yaml:5: unknown key 'model.num_layer'; did you mean 'model.num_layers'?",
            "run.yaml:6: model.hidden_size",
            "run.yaml:7: model.dropout: must be < 1, got 1.5",
            "run.yaml:9",
            "-s train.steps=-1",
        )
        assert len(lines) == 5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"run_dir: out\nmodel:\n\tnum_layers: 2\n", ["run.yaml:3", "tab"]),
        (b"run_dir: [out\n", ["run.yaml:"]),
        (b"", ["run_dir", "missing"]),
        (b"just words\n", ["run.yaml:1"]),
        (b"run_dir: caf\xe9\n", ["run.yaml:1", "0xe9", "UTF-8"]),
    ],
    ids=["tab", "syntax", "empty", "words", "latin1"],
)
def test_a_file_that_is_no_run_file_is_told(content: bytes, words: list[str], tmp_path: Path, run_cli: RunCli) -> None:
    run_file = tmp_path / "run.yaml"
    run_file.write_bytes(content)
    run_cli("config", "check", run_file).error(2, "config", *words)


def test_a_missing_run_file_is_told_with_the_name_that_was_meant(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "pretrain.yaml").write_text("run_dir: out\n")
    run_cli("pretrain", tmp_path / "pretain.yaml").error(2, "pretrain", "no such file; did you mean", "pretrain.yaml")


# ------------------------------------------------------------------------------------------------------------ generate


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--temperature", "warm"], "'warm'"),
        (["--top-p", "0"], "top_p"),
        (["--top-k", "0"], "top_k"),
        (["--n", "0"], "n: "),
        (["--max-tokens", "0"], "max_tokens"),
        (["--seed", "-1"], "seed"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", "100000000"], "--batch-size"),
        (["--stop", ""], "stop: an empty text"),
        (["--jsonl"], "PROMPT"),
        (["--stream", "--n", "2"], "--stream"),
        (["--logprobs"], "--json"),
        (["--regex", "a+", "--min-tokens", "2"], "min_tokens"),
        (["--temprature", "1"], "--temperature"),
    ],
    ids=lambda part: "".join(part) if isinstance(part, list) else None,
)
def test_a_generate_option_that_cannot_be_is_refused_before_the_model_is_loaded(
    options: list[str], word: str, tmp_path: Path, run_cli: RunCli
) -> None:
    run_cli("generate", tmp_path / "no-run", "The", *options).error(2, "generate", word)


def test_an_empty_prompt_begins_a_text(tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("generate", tiny.run, "--json", "--max-tokens", 5)
    record = json.loads(result.out)
    assert (record["prompt"], record["prompt_tokens"]) == ("", 0)
    assert result.err == ""


def test_a_prompt_longer_than_the_context_is_refused_or_cut(tiny: Tiny, run_cli: RunCli) -> None:
    prompt = english(20)
    run_cli("generate", tiny.run, prompt).error(
        3, "generate", "the prompt has", "the context holds 31", "--truncate left"
    )
    result = run_cli("generate", tiny.run, prompt, "--truncate", "left", "--json")
    assert result.code == 0
    assert json.loads(result.out)["prompt_tokens"] == 31


def test_a_bad_record_among_good_ones_does_not_stop_the_others(tiny: Tiny, run_cli: RunCli) -> None:
    lines = [
        b'{"prompt": "The", "id": 1, "max_tokens": 3}',
        b'{"prompt": "The", "id": 2, "temperature": -1}',
        b'{"id": 3}',
        b"not json",
        b'{"prompt": "\xff"}',
        b"",
        b'{"prompt": "A", "id": 7, "max_tokens": 3}',
    ]
    result = run_cli("generate", tiny.run, "--jsonl", input=b"\n".join(lines))
    result.error(3, "generate", "4 records")
    records = [json.loads(line) for line in result.text.splitlines()]
    assert [record.get("id") for record in records] == [1, 2, 3, None, None, 7]
    assert [("error" in record, "text" in record) for record in records] == [
        (False, True), (True, False), (True, False), (True, False), (True, False), (False, True)
    ]  # fmt: skip
    for record, place in zip(records[1:5], ("stdin:2", "stdin:3", "stdin:4", "stdin:5"), strict=True):
        assert record["error"].startswith(place)


def test_what_json_and_text_cannot_hold_in_a_passed_on_field_stops_no_record(tiny: Tiny, run_cli: RunCli) -> None:
    lines = [
        '{"prompt": "The", "id": "\\ud800", "max_tokens": 2}',
        '{"prompt": "A", "far": 1e999, "max_tokens": 2}',
        "{}",
    ]
    result = run_cli("generate", tiny.run, "--jsonl", input="\n".join(lines))
    result.error(3, "generate", "1 record could not be written")
    first, second, third = (json.loads(line) for line in result.text.splitlines())
    assert (first["id"], second["far"]) == ("\ud800", None)
    assert third["error"] == "stdin:3: no field 'prompt'; it has no fields"


# --------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("command", ["finetune", "preview"])
def test_a_run_file_of_the_other_kind_is_told_in_one_line(command: str, tiny: Tiny, run_cli: RunCli) -> None:
    said = "is a run file of gptcli pretrain; name one of gptcli finetune"
    assert len(run_cli(command, tiny.run_file).error(2, command, said)) == 1


@pytest.mark.parametrize("options", [("--mfu", "nan"), ("--price", "nan"), ("--peak-flops", "inf", "--memory", "1GB")])
def test_a_number_that_is_not_finite_is_no_fact_of_a_machine(
    options: tuple[str, ...], tiny: Tiny, run_cli: RunCli
) -> None:
    run_cli("plan", tiny.run_file, "--on", "h100", *options).error(2, "plan", "is not a finite number")


def test_a_run_that_exists_is_gone_on_with_only_when_told(tiny: Tiny, run_cli: RunCli) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny.checkpoint.iterdir()}
    run_cli("pretrain", tiny.run_file, "-q").error(5, "pretrain", "step-000006", "--resume", "--force")
    result = run_cli("pretrain", tiny.run_file, "--resume")
    assert result.code == 0
    assert "already done at step 6" in result.err
    assert {path: path.stat().st_mtime_ns for path in tiny.checkpoint.iterdir()} == before


def test_a_validation_on_one_token_reads_the_two_that_it_takes(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    how = ("-q", "-s", f"run_dir={tmp_path}/run", "-s", "train.steps=1", "-s", "train.eval_tokens=1")
    assert run_cli("pretrain", tiny.run_file, *how).code == 0
    assert '"kind": "validation"' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_record_with_a_word_that_is_none_of_its_option_is_refused(tiny: Tiny, run_cli: RunCli) -> None:
    result = run_cli("generate", tiny.run, "--jsonl", input='{"prompt": "The", "truncate": "right"}\n')
    assert "truncate: must be one of error, left" in json.loads(result.out)["error"]


def test_a_field_of_text_is_refused_for_rows(tmp_path: Path, run_cli: RunCli) -> None:
    result = run_cli("evaluate", tmp_path / "no-run", "rows.jsonl", "--task", "classify", "--field", "body")
    result.error(2, "evaluate", "--field", "--template")


@pytest.mark.parametrize("name", ["table.csv", "list.json.gz"])
def test_a_file_that_is_more_than_text_is_read_as_text_and_says_so(name: str, tmp_path: Path, run_cli: RunCli) -> None:
    content = b"id,text\n" + b"1,a line of words\n" * 50
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    result = run_cli("train-tokenizer", tmp_path / name, "-o", tmp_path / "tok.json", "--vocab-size", 260)
    assert result.code == 0
    assert f"{name}: read as plain text, markup included" in result.err
