"""What the commands print: help, results that programs read, and what a terminal gets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli, Tiny, english, on_a_terminal

COMMANDS = [
    "quickstart",
    "corpus",
    "train-tokenizer",
    "encode",
    "decode",
    "count",
    "prepare",
    "config",
    "plan",
    "pretrain",
    "import",
    "sweep",
    "runs",
    "plot",
    "checkpoint",
    "lineage",
    "preview",
    "finetune",
    "merge",
    "evaluate",
    "eval-harness",
    "score",
    "audit",
    "generate",
    "chat",
    "classify",
    "serve",
    "watermark-key",
    "detect",
    "export",
    "bench",
]
SUBCOMMANDS = [
    "corpus report",
    "corpus extract",
    "corpus canaries",
    "corpus run",
    "corpus filter",
    "corpus decontaminate",
    "corpus dedup",
    "config show",
    "config keys",
    "config check",
    "checkpoint list",
    "checkpoint verify",
    "runs list",
    "runs compare",
    "bench machine",
    "bench train",
    "bench all",
    "bench generate",
]
AWKWARD = (
    "na\u00efve \u65e5\u672c\u8a9e \U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301\r\n\t  \x1b[31m \u202e"
    " <|endoftext|>\u2028\n\n \ufeff "
)


def strict_json(line: str | bytes) -> Any:
    """JSON without NaN, Infinity or repeated keys."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    return json.loads(line, parse_constant=refuse, object_pairs_hook=unique)


# ---------------------------------------------------------------------------------------------------------------- help


def test_help_lists_the_commands_in_the_order_of_the_work(run_cli: RunCli) -> None:
    result = run_cli("--help")
    assert (result.code, result.err) == (0, "")
    listed = result.text.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed if not line.startswith("   ")] == COMMANDS  # a long one is wrapped


@pytest.mark.parametrize("command", [*COMMANDS, *SUBCOMMANDS])
def test_every_command_has_help(command: str, run_cli: RunCli) -> None:
    result = run_cli(*command.split(), "--help")
    assert (result.code, result.err) == (0, "")
    assert result.text.startswith(f"Usage: gptcli {command} ")


def test_help_and_mistakes_do_not_load_torch(tmp_path: Path, tokenizer: Path, run_cli: RunCli) -> None:
    (tmp_path / "run.yaml").write_text("run_dir: out\nmodel: {num_layers: 0}\n")
    program = "import sys; from gptcli.cli.main import run; print(run(sys.argv[1:]), 'torch' in sys.modules)"
    for arguments, code in (
        (["generate", "--help"], 0),
        (["pretrain", "run.yaml"], 2),
        (["config", "check", "run.yaml"], 2),
        (["generate", "none", "--n", "0"], 2),
        (["count", str(tokenizer), "run.yaml"], 0),
    ):
        result = run_cli(*arguments, cwd=tmp_path, python=[sys.executable, "-c", program])
        assert result.text.splitlines()[-1] == f"{code} False", arguments


def test_a_command_that_is_not_there_is_told_on_one_line(run_cli: RunCli) -> None:
    result = run_cli("xyzzy")
    assert (result.code, result.out) == (2, b"")
    assert result.err == "gptcli: error: No such command 'xyzzy'; see gptcli --help\n"


# ------------------------------------------------------------------------------------------------------ result formats


def test_what_config_show_prints_is_the_same_run_file(tmp_path: Path, tiny: Tiny, run_cli: RunCli) -> None:
    first = run_cli("config", "show", tiny.run_file, "-s", "train.steps=77")
    assert first.code == 0
    assert "steps: 77" in first.text
    assert "# -s train.steps=77" in first.text
    shown = tmp_path / "shown.yaml"
    shown.write_bytes(first.out)
    check = run_cli("config", "check", shown)
    assert (check.code, check.out, check.err) == (0, b"", "")
    again = run_cli("config", "show", shown)

    def values(text: str) -> list[str]:
        return [line.split("  # ")[0].rstrip() for line in text.splitlines()]

    assert values(again.text) == values(first.text)


@pytest.mark.parametrize("text", [AWKWARD, "no newline at the end", "\n", "a\r\nb\rc\n", english(50)])
def test_encode_and_decode_in_a_pipe_give_back_every_byte(text: str, tokenizer: Path, run_bash: RunCli) -> None:
    content = text.encode()
    result = run_bash(f"gptcli encode {tokenizer} | gptcli decode {tokenizer}", input=content)
    assert result.out == content
    told = result.err.splitlines()  # of a mark that is read as text, and of nothing else
    assert len(told) == ("<|endoftext|>" in text)
    assert all("is read as 13 characters" in line for line in told)


def test_encode_and_decode_as_json_keep_documents_and_other_fields(tokenizer: Path, run_cli: RunCli) -> None:
    records = "".join(json.dumps({"text": text}) + "\n" for text in ("one\ntwo", "\x1b[0m", "日本"))
    encoded = run_cli("encode", tokenizer, "--json", input=records)
    lines = encoded.text.splitlines()
    assert all(set(strict_json(line)) == {"ids"} for line in lines)
    with_names = "".join(json.dumps({**json.loads(line), "name": n}) + "\n" for n, line in enumerate(lines))
    decoded = [strict_json(line) for line in run_cli("decode", tokenizer, "--json", input=with_names).text.splitlines()]
    assert decoded == [{"name": 0, "text": "one\ntwo"}, {"name": 1, "text": "\x1b[0m"}, {"name": 2, "text": "日本"}]


def test_count_counts(tokenizer: Path, corpus: Path, run_cli: RunCli) -> None:
    found = strict_json(run_cli("count", tokenizer, corpus, "--json").out)
    tokens = len(run_cli("encode", tokenizer, corpus).text.split())
    size = corpus.stat().st_size
    assert found == {"documents": 1, "bytes": size, "tokens": tokens, "bytes_per_token": size / tokens}
    for_a_pipe = run_cli("count", tokenizer, corpus).text
    assert [line.split("\t")[0] for line in for_a_pipe.splitlines()] == [
        "documents",
        "bytes",
        "tokens",
        "bytes per token",
    ]


def test_evaluate_gives_json_and_a_table(tiny: Tiny, run_cli: RunCli) -> None:
    text = english(5, seed=2)
    result = run_cli("evaluate", tiny.run, "--json", "--threads", 1, input=text)
    assert result.err == ""
    found = strict_json(result.out)
    assert set(found) == {
        "checkpoint", "loss_nats", "perplexity", "bits_per_byte", "nats", "tokens", "bytes", "documents",
        "context_length", "stride",
    }  # fmt: skip
    assert (found["documents"], found["bytes"], found["context_length"], found["stride"]) == (1, len(text), 32, 16)
    assert found["loss_nats"] == pytest.approx(found["nats"] / found["tokens"])
    assert 0 < found["bits_per_byte"] < 9


def test_score_gives_a_record_a_line_in_order(tiny: Tiny, run_cli: RunCli) -> None:
    lines = ["The old sailor found a lantern.", "", "日本語"]
    records = "".join(json.dumps({"text": line, "id": number}) + "\n" for number, line in enumerate(lines))
    result = run_cli("score", tiny.run, "--jsonl", input=records)
    assert (result.code, result.err) == (0, "")
    found = [strict_json(line) for line in result.text.splitlines()]
    assert [(record["id"], record["text"]) for record in found] == list(enumerate(lines))
    for record in found:
        assert set(record) == {"id", "text", "logprob", "tokens", "bytes", "bits_per_byte"}
    assert [record["bytes"] for record in found] == [31, 0, 9]
    assert found[1]["bits_per_byte"] is None
    assert found[0]["logprob"] < 0


# ------------------------------------------------------------------------------------------------------------ generate


def test_the_same_seed_gives_the_same_text_streamed_or_not(tiny: Tiny, run_cli: RunCli) -> None:
    common = ("generate", tiny.run, "The old", "--max-tokens", 20, "--seed", 7)
    streamed = run_cli(*common, "--stream")
    record = strict_json(run_cli(*common, "--json").out)
    plain = run_cli(*common, env={"OMP_NUM_THREADS": "1"})
    assert streamed.out == plain.out == record["text"].encode()
    assert (record["tokens"], record["finish_reason"]) in {(20, "length"), (record["tokens"], "stop")}
    samples = run_cli(*common, "--n", 3, "--json", "--stop", record["text"][5:7])
    records = [strict_json(line) for line in samples.text.splitlines()]
    assert [record["sample"] for record in records] == [0, 1, 2]
    assert len({record["text"] for record in records}) == 3
    first = record["text"]
    assert records[0]["text"] == first[: first.index(first[5:7])]
    assert records[0]["finish_reason"] == "stop"


# ------------------------------------------------------------------------------------------------------------ terminals


def test_no_escape_sequence_goes_where_no_terminal_is(
    tiny: Tiny, corpus: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    for changes in ({}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"FORCE_COLOR": "1"}):
        for result in (
            run_cli("train-tokenizer", corpus, "-o", tmp_path / "t.json", "--force", "--vocab-size", 280, env=changes),
            run_cli("count", tiny.tokenizer, corpus, env=changes),
            run_cli("pretrain", "none.yaml", env=changes),
        ):
            assert b"\x1b" not in result.out + result.err.encode()


@pytest.mark.parametrize("changes", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
def test_a_terminal_without_colour_gets_no_escape_sequence(
    changes: dict[str, str], tokenizer: Path, session_cache: Path
) -> None:
    shown = on_a_terminal(["count", str(tokenizer)], session_cache, input=b"some text\n", env=changes)
    assert shown.code == 0
    assert b"bytes per token" in shown.out
    assert b"\x1b" not in shown.out


def test_control_characters_of_a_text_are_escaped_on_a_terminal_only(
    tokenizer: Path, session_cache: Path, run_cli: RunCli
) -> None:
    text = b"red \x1b[31m and \x07 bell\n"
    ids = run_cli("encode", tokenizer, input=text).out
    assert run_cli("decode", tokenizer, input=ids).out == text
    shown = on_a_terminal(["decode", str(tokenizer)], session_cache, input=ids)
    assert shown.code == 0
    assert shown.out == b"red \\x1b[31m and \\x07 bell\r\n"
    wrong = on_a_terminal(["count", "\x1b[31mnone.json"], session_cache, input=b"")
    assert wrong.code == 2
    assert b"\\x1b[31mnone.json: no such file" in wrong.out
    assert b"\x1b" not in wrong.out
