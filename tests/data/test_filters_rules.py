"""Documents are kept by rules, languages and chance, each by its own text alone."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
from conftest import RunCli, english

from gptcli.config.corpus import Rules
from gptcli.data.filters.rules import broken_rules, without_c4_lines


def names(text: str, preset: str) -> set[str]:
    return {reason.partition(":")[0] for reason in broken_rules(text, Rules.from_preset(preset))}


GOOD = english(12)
PROSE = """The tide went out before anybody in the village had finished breakfast, and the boats that had been moored
along the quay were left leaning on their keels. Nobody worried about it. Fishing would begin again with the evening,
and until then there were nets to mend, engines to clean, and stories to be told by those who had stayed awake.
"""


def test_good_text_breaks_no_rule() -> None:
    for preset in ("fineweb", "c4"):
        assert names(GOOD, preset) == set()
    assert names(PROSE, "gopher") == set()


@pytest.mark.parametrize(
    ("text", "preset", "rule"),
    [
        ("too short", "gopher", "words_min"),
        ("a b c " * 50, "gopher", "word_length_min"),
        (GOOD + "# " * 40, "gopher", "symbols_max"),
        ("\n".join(f"- {line}" for line in GOOD.splitlines()), "gopher", "bullet_lines_max"),
        (GOOD.replace(".\n", "...\n"), "gopher", "ellipsis_lines_max"),
        ("12 34 " * 60 + GOOD, "gopher", "alphabetic_words_min"),
        ("lorem " * 80, "gopher", "stop_words_min"),
        (GOOD.splitlines()[0] * 2 + "\n" + (GOOD.splitlines()[0] + "\n") * 9, "gopher", "repeated_lines_max"),
        (GOOD + (GOOD.splitlines()[0] + " ") * 9, "gopher", "repeated_5_grams_max"),
        ("of the " * 60 + GOOD, "gopher", "top_2_gram_max"),
        (GOOD + "{", "c4", "code_and_filler"),
        ("One. Two.", "c4", "sentences_min"),
        (GOOD.replace(".", ""), "fineweb", "punctuated_lines_min"),
        ("Yes.\n" * 20, "fineweb", "short_lines_max"),
    ],
)
def test_each_rule_has_its_text(text: str, preset: str, rule: str) -> None:
    assert rule in names(text, preset)


def test_repeated_grams_are_the_share_of_their_characters() -> None:
    text = "aa bb cc dd ee ff aa bb cc dd ee gg"  # 5 of 12 words came before in that order
    [reason] = broken_rules(text, Rules(repeated_5_grams_max=0.4))
    assert reason == "repeated_5_grams_max: 0.4167 > 0.4"
    assert not list(broken_rules(text, Rules(repeated_5_grams_max=0.42)))


def test_c4_lines() -> None:
    text = "A whole sentence stands here.\nMenu\nEnable JavaScript to see this page.\nNo end\n\nAnd one more line."
    assert without_c4_lines(text) == "A whole sentence stands here.\n\nAnd one more line."


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    lines = [{"id": n, "text": english(4, n), "source": "s"} for n in range(40)]
    lines += [{"id": 40, "text": "Der schnelle braune Fuchs springt über den faulen Hund."}]
    lines += [{"id": 41, "text": "Write to anna@mail.example.org about the lantern by the river."}]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return path


def test_a_filter_is_a_function_of_each_line(records: Path, tmp_path: Path, run_cli: RunCli) -> None:
    options = ["--rules", "fineweb", "--sample", "0.5", "-q"]
    whole = run_cli("corpus", "filter", records, *options)
    assert whole.code == 0, whole.err
    assert 10 < whole.out.count(b"\n") < 32
    lines = records.read_bytes().splitlines(keepends=True)
    parts = [
        run_cli("corpus", "filter", *options, input=b"".join(lines[n : n + 10])) for n in range(0, 50, 10) if lines[n:]
    ]
    assert b"".join(part.out for part in parts) == whole.out
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(records.read_bytes()))
    assert run_cli("corpus", "filter", packed, *options, "-o", tmp_path / "o.gz", "--workers", "2").code == 0
    assert gzip.decompress((tmp_path / "o.gz").read_bytes()) == whole.out


def test_languages_and_masks(records: Path, tmp_path: Path, run_cli: RunCli) -> None:
    pytest.importorskip("py3langid")
    pytest.importorskip("phonenumbers")
    log = tmp_path / "dropped"
    result = run_cli("corpus", "filter", records, "--language", "en", "--pii", "mask", "--dropped", log)
    assert result.code == 0, result.err
    out = [json.loads(line) for line in result.text.splitlines()]
    assert [record["id"] for record in out] == [*range(40), 41]
    assert out[-1]["text"] == "Write to <EMAIL> about the lantern by the river."
    assert out[0]["source"] == "s"
    assert json.loads(log.read_text()) == {"id": 40, "place": f"{records}:41", "reasons": ["language: de"]}
    assert "42 documents, 1 dropped (2.38%); language 1; <EMAIL> 1" in result.err


def test_annotation_changes_no_text(records: Path, run_cli: RunCli) -> None:
    result = run_cli("corpus", "filter", records, "--rules", "gopher", "--annotate", "-q")
    out = [json.loads(line) for line in result.text.splitlines()]
    assert len(out) == 42
    assert out[40]["rules"][0] == "words_min: 9 < 50"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rules", "gofer"], ["unknown rules 'gofer'; did you mean gopher?"]),
        (["--language", "eng"], ["unknown code 'eng'; did you mean en?"]),
        (["--pii", "mask", "--phone-regions", "UK"], ["no country 'UK'"]),
        ([], ["no filter is on"]),
    ],
)
def test_mistakes_are_told_before_any_work(
    records: Path, options: list[str], words: list[str], run_cli: RunCli
) -> None:
    run_cli("corpus", "filter", records, *options).error(2, "corpus", *words)


def test_thresholds_of_a_file(records: Path, tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "r.yaml").write_text("words_min: 12\n")
    result = run_cli("corpus", "filter", records, "--rules", tmp_path / "r.yaml", "-q")
    assert result.out.count(b"\n") == 40
    (tmp_path / "r.yaml").write_text("word_min: 12\n")
    run_cli("corpus", "filter", records, "--rules", tmp_path / "r.yaml").error(2, "corpus", "did you mean 'words_min'?")


def test_more_than_may_be_dropped_is_an_error(records: Path, tmp_path: Path, run_cli: RunCli) -> None:
    common = ["corpus", "filter", records, "--sample", "0.1", "-o", tmp_path / "o.jsonl"]
    run_cli(*common, "--most-dropped", "0.5").error(3, "corpus", "were dropped, more than 0.5")
    assert not (tmp_path / "o.jsonl").exists()
    assert "more than half" in run_cli(*common).err


def test_what_is_not_installed_is_named(records: Path, run_cli: RunCli) -> None:
    program = (
        "import sys; sys.modules['py3langid'] = None; from gptcli.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    result = run_cli("corpus", "filter", records, "--language", "en", python=[sys.executable, "-c", program])
    result.error(2, "corpus", "py3langid is not installed", "pip install 'gptcli[corpus]'")
