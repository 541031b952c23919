"""Duplicates: what is planted is found, nothing else is, and shards, workers and passes change no byte."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import GPTCLI, RunCli, english
from faults import Fault, Trial, read_log
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.base.errors import DataError
from gptcli.base.report import Report
from gptcli.data.filters.documents import Document
from gptcli.data.filters.drops import apply_drops, drop_entries, without
from gptcli.data.filters.group import GroupOptions, group
from gptcli.data.filters.near import rows_of_a_band
from gptcli.data.filters.passages import fingerprints
from gptcli.data.filters.sketch import Sketch, SketchOptions, minhash, write_sketch
from gptcli.data.filters.words import grams, shingles, words_of
from gptcli.data.filters.workers import ordered_map

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]


def made_up(draw: random.Random, words: int) -> list[str]:
    return [draw.choice(WORDS) for _ in range(words)]


def jaccard(one: str, other: str) -> float:
    def sets(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    a, b = sets(one), sets(other)
    return len(a & b) / len(a | b)


def planted(seed: int = 3, originals: int = 300, copies: int = 150) -> list[dict[str, str]]:
    """Documents, and copies of some with a share of words changed, in any order."""
    draw = random.Random(seed)
    texts = [made_up(draw, draw.randint(80, 300)) for _ in range(originals)]
    records = [{"id": f"d{n}", "text": " ".join(text)} for n, text in enumerate(texts)]
    for number in range(copies):
        text, rate = list(draw.choice(texts)), draw.choice([0, 0.01, 0.02, 0.03, 0.05, 0.2])
        text = [draw.choice(WORDS) if draw.random() < rate else word for word in text]
        records.append({"id": f"c{number}", "text": " ".join(text)})
    draw.shuffle(records)
    return records


def write(path: Path, records: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def sketch_of(texts: list[str], path: Path, options: SketchOptions) -> Sketch:
    documents = (Document(f"t:{n}", "text", {"text": text}) for n, text in enumerate(texts, 1))
    write_sketch(documents, path, options, Report())
    return Sketch(path)


def dropped(texts: list[str], tmp: Path, sketching: SketchOptions, options: GroupOptions) -> list[dict[str, object]]:
    sketch = sketch_of(texts, tmp / "s", sketching)
    group([sketch], tmp / "drops", options, Report())
    return list(drop_entries(tmp / "drops" / "s.jsonl"))


def test_words_are_folded_and_scripts_without_spaces_split() -> None:
    words = words_of(["Don't STOP", "", "ＡＢＣ 你好😀é"])
    spans = [(s, e) for s, e in zip(words.starts.tolist(), words.ends.tolist(), strict=True)]
    assert spans == [(0, 3), (4, 5), (6, 10), (0, 3), (4, 5), (5, 6), (7, 8)]
    assert words.offsets.tolist() == [0, 3, 3, 7]
    same = words_of(["don t stop abc"]).hashes
    assert words.hashes[:4].tolist() == same.tolist()


@given(st.lists(st.text(max_size=40), max_size=6))
@settings(max_examples=60, deadline=None)
def test_words_of_a_text_do_not_depend_on_its_neighbours(texts: list[str]) -> None:
    texts = [text.encode(errors="ignore").decode() for text in texts]
    together = words_of(texts)
    alone = [words_of([text]) for text in texts]
    assert together.hashes.tolist() == [value for words in alone for value in words.hashes.tolist()]
    assert together.starts.tolist() == [value for words in alone for value in words.starts.tolist()]
    one, _ = shingles(together, 3)
    assert one.tolist() == [value for words in alone for value in shingles(words, 3)[0].tolist()]


def test_words_of_a_long_text_are_those_of_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    text = english(300)
    whole = words_of([text])
    monkeypatch.setattr("gptcli.data.filters.words.CHUNK_CHARACTERS", 5000)
    assert words_of([text]).hashes.tolist() == whole.hashes.tolist()


def test_signatures_estimate_jaccard() -> None:
    draw, errors = random.Random(1), []
    for _ in range(100):
        text = made_up(draw, 400)
        other = [draw.choice(WORDS) if draw.random() < draw.choice([0, 0.02, 0.05]) else word for word in text]
        pair = [" ".join(text), " ".join(other)]
        one, two = minhash(*shingles(words_of(pair), 5))
        errors.append(float((one == two).mean()) - jaccard(*pair))
    assert abs(np.mean(errors)) < 0.01  # unbiased: a standard deviation of 0.045 each
    assert np.abs(errors).max() < 0.2


def test_bands_miss_at_most_a_hundredth_a_third_above_the_threshold() -> None:
    for similarity in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        rows = rows_of_a_band(similarity)
        assert (1 - (similarity + (1 - similarity) / 3) ** rows) ** (120 // rows) <= 0.01 or rows == 3
    assert rows_of_a_band(0.7) == 6


def test_planted_near_duplicates_are_found_and_nothing_else(tmp_path: Path) -> None:
    records = planted()
    texts = [record["text"] for record in records]
    found = dropped(texts, tmp_path, SketchOptions(), GroupOptions())
    goes = {int(str(entry["document"])) for entry in found}
    place = {f"t:{n}": n - 1 for n in range(1, len(texts) + 1)}
    for entry in found:
        assert jaccard(texts[int(str(entry["document"]))], texts[place[str(entry["kept_id"])]]) > 0.5
        assert place[str(entry["kept_id"])] not in goes  # it stays
    close = [
        (i, j) for i in range(len(texts)) for j in range(i) if texts[i][:20] == texts[j][:20] or texts[i] == texts[j]
    ]
    missed = [(i, j) for i, j in close if jaccard(texts[i], texts[j]) >= 0.8 and not {i, j} & goes]
    assert not missed


def test_n_distinct_documents_stay_n(tmp_path: Path) -> None:
    draw = random.Random(2)
    texts = [" ".join(made_up(draw, draw.randint(1, 60))) for _ in range(3000)]
    texts = list(dict.fromkeys(texts))
    assert not dropped(texts, tmp_path, SketchOptions("exact"), GroupOptions())
    few = [e for e in dropped(texts, tmp_path, SketchOptions(), GroupOptions()) if e["similarity"] < 0.7]  # type: ignore[operator]
    assert not few


@pytest.mark.parametrize("text", ["", "...", "!?", "a", "a b c d"])
def test_short_texts_are_compared_as_wholes(tmp_path: Path, text: str) -> None:
    found = dropped([text, "x y z", text, "z y x"], tmp_path, SketchOptions(), GroupOptions())
    assert [(entry["document"], entry["reason"]) for entry in found] == [(2, "exact")]


def test_a_chain_of_likenesses_makes_no_cluster(tmp_path: Path) -> None:
    """Each text is like the next one, the ends have nothing in common: what goes is like what stays."""
    draw = random.Random(4)
    words = made_up(draw, 1000)
    texts = [" ".join(words[20 * n : 20 * n + 200]) for n in range(40)]  # neighbours share 180 of 200 words
    found = dropped(texts, tmp_path, SketchOptions(), GroupOptions(most_dropped=1))
    assert 15 <= len(found) <= 30
    for entry in found:
        kept = int(str(entry["kept_id"]).removeprefix("t:")) - 1
        assert abs(kept - int(str(entry["document"]))) <= 2


def test_the_longest_copy_stays(tmp_path: Path) -> None:
    draw = random.Random(5)
    words = made_up(draw, 300)
    texts = [" ".join(words[:290]), " ".join(words), " ".join(words[:280])]
    found = dropped(texts, tmp_path, SketchOptions(), GroupOptions(keep="longest", most_dropped=1))
    assert [(e["document"], e["kept_id"]) for e in found] == [(0, "t:2"), (2, "t:2")]


@pytest.mark.parametrize("size", [20, 50])
def test_every_planted_passage_is_found_and_no_shorter_one(tmp_path: Path, size: int) -> None:
    draw = random.Random(size)
    texts = [made_up(draw, 400) for _ in range(60)]
    for number in range(1, 60):
        length = size if number % 2 else size - 1
        at, start = draw.randint(0, 300), draw.randint(0, 300)
        source = texts[draw.randrange(number)]
        texts[number][at : at + length] = source[start : start + length]
    # A word before and after that differs, so that each passage has just its length.
    found = dropped([" ".join(t) for t in texts], tmp_path, SketchOptions("off", passages=size), GroupOptions())
    cut = {int(str(entry["document"])) for entry in found}
    assert set(range(1, 60, 2)) <= cut
    for entry in found:
        first, last = entry["words"]  # type: ignore[misc]
        document = int(str(entry["document"]))
        gone = " ".join(texts[document][first:last])
        assert last - first >= size
        assert any(gone in " ".join(other) for other in texts[:document]) or last - first > size


def test_fingerprints_of_equal_stretches_are_equal() -> None:
    draw = random.Random(6)
    passage = made_up(draw, 50)
    for _ in range(50):
        one, two = ([*made_up(draw, draw.randint(0, 90)), *passage, *made_up(draw, 30)] for _ in "ab")
        kept = [set(fingerprints(words_of([" ".join(text)]), 50)[0].tolist()) for text in (one, two)]
        inside = set(grams(words_of([" ".join(passage)]), 26)[0].tolist())
        assert kept[0] & kept[1] & inside


def test_cuts_end_at_sentences_and_never_in_a_character() -> None:
    text = "Уже поздно. Кошка спит на тёплой печи. 猫が寝ている。\nSie schläft."
    words = words_of([text])
    number = words.starts.tolist().index(text.index("Кошка"))
    cut = {"reason": "passage", "words": [number - 1, number + 6]}
    assert without(text, [cut]) == "Уже поздно. 猫が寝ている。\nSie schläft."
    assert without("a b\nc d e f\ng", [{"reason": "line", "line": 1}]) == "a b\ng"


def test_repeated_lines_stay_in_the_first_document(tmp_path: Path) -> None:
    texts = [f"Accept all of our cookies\n{english(1, seed)}}}" for seed in range(5)]
    found = dropped(texts, tmp_path, SketchOptions("off", lines=True), GroupOptions(lines=2))
    assert [(e["document"], e["line"]) for e in found] == [(n, 0) for n in range(1, 5)]
    assert not dropped(texts, tmp_path, SketchOptions("off", lines=True), GroupOptions(lines=5))


def test_a_list_for_other_documents_is_refused(tmp_path: Path) -> None:
    dropped(["a b c", "a b c"], tmp_path, SketchOptions(), GroupOptions())
    other = [Document("x:1", "text", {"text": "a b c"}), Document("x:2", "text", {"text": "d"})]
    with pytest.raises(DataError, match="not the text"):
        list(apply_drops(other, tmp_path / "drops" / "s.jsonl"))
    with pytest.raises(DataError, match="made for 2 documents"):
        list(apply_drops(other[:1], tmp_path / "drops" / "s.jsonl"))


def square(number: int) -> int:
    return number * number


def test_workers_give_results_in_order() -> None:
    assert list(ordered_map(square, range(50), 3)) == [number * number for number in range(50)]
    assert list(ordered_map(square, [], 3)) == []


def test_items_and_results_larger_than_a_pipe_holds_are_passed() -> None:
    script = """
from gptcli.data.filters.workers import ordered_map
sizes = [1 << 21, 5, 1 << 21, 1 << 20, *[1 << 21] * 8]
assert [len(item) for item in ordered_map(bytes, map(bytes, sizes), 2)] == sizes
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def not_five(number: int) -> int:
    if number == 5:
        raise DataError("five")
    return number


def test_an_error_of_a_worker_is_raised_in_its_place() -> None:
    results = ordered_map(not_five, range(50), 3)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(DataError, match="five"):
        next(results)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards")
    records = planted(9, 200, 100)
    for record in records[::7]:
        record["text"] = "Accept all cookies now\n" + record["text"]
    write(path / "all.jsonl", records)
    for number in range(7):
        write(path / f"part-{number}.jsonl", records[number * 43 : (number + 1) * 43] if number < 6 else records[258:])
    return path


OPTIONS = ["--passages", "20", "--lines", "3"]


def test_shards_workers_and_passes_change_no_byte(shards: Path, tmp_path: Path, run_cli: RunCli) -> None:
    whole = run_cli("corpus", "dedup", shards / "all.jsonl", "-q", *OPTIONS)
    assert whole.code == 0, whole.err
    assert 100 < whole.out.count(b"\n") < 300
    parts = sorted(shards.glob("part-*.jsonl"))
    assert run_cli("corpus", "dedup", *parts, "-q", *OPTIONS, "--memory", "10k", "--workers", "2").out == whole.out
    piped = run_cli("corpus", "dedup", "-", "-q", *OPTIONS, input=(shards / "all.jsonl").read_bytes())
    assert piped.out == whole.out
    for part in parts:
        signed = run_cli("corpus", "dedup", "--sign", part, "-o", tmp_path / f"sketch-{part.stem}", "-q", *OPTIONS)
        assert signed.code == 0, signed.err
    sketches = sorted(tmp_path.glob("sketch-*"))
    grouped = run_cli("corpus", "dedup", "--group", *sketches, "-o", tmp_path / "drops", "-q", *OPTIONS)
    assert grouped.code == 0, grouped.err
    out = [run_cli("corpus", "dedup", "--apply", tmp_path / f"drops/sketch-{p.stem}.jsonl", p).out for p in parts]
    assert b"".join(out) == whole.out


def test_dropped_says_which_for_what(shards: Path, tmp_path: Path, run_cli: RunCli) -> None:
    log = tmp_path / "dropped.jsonl"
    assert run_cli("corpus", "dedup", shards / "all.jsonl", "-o", tmp_path / "o.jsonl", "--dropped", log).code == 0
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    kept = {json.loads(line)["id"] for line in (tmp_path / "o.jsonl").read_text().splitlines()}
    assert {"id", "kept_id", "similarity", "reason"} <= entries[0].keys()
    assert all(entry["kept_id"] in kept and entry["id"] not in kept for entry in entries)
    assert len(kept) + len(entries) == 300


def test_two_outputs_are_two_files(shards: Path, tmp_path: Path, run_cli: RunCli) -> None:
    same = tmp_path / "same"
    for command in (("dedup",), ("filter", "--pii", "mask")):
        asked = ("corpus", *command, shards / "all.jsonl", "-o", same, "--dropped", tmp_path / "." / "same")
        run_cli(*asked).error(2, "corpus", "named for two outputs")
    assert not same.exists()


def test_against_drops_what_the_other_has(tmp_path: Path, run_cli: RunCli) -> None:
    records = planted(11, 40, 0)
    test = write(tmp_path / "test.jsonl", [{**record, "id": f"t{n}"} for n, record in enumerate(records[:10])])
    train = write(tmp_path / "train.jsonl", records)
    result = run_cli("corpus", "dedup", train, "--against", test, "-q", "--dropped", tmp_path / "d")
    assert [json.loads(line)["id"] for line in result.text.splitlines()] == [record["id"] for record in records[10:]]
    assert json.loads((tmp_path / "d").read_text().splitlines()[0])["kept_id"] == "t0"


def test_too_much_dropped_is_an_error_before_anything_is_written(tmp_path: Path, run_cli: RunCli) -> None:
    train = write(tmp_path / "train.jsonl", planted(12, 1, 0) * 5)
    result = run_cli("corpus", "dedup", train, "-o", tmp_path / "o.jsonl", "-q")
    result.error(3, "corpus", "80.0% of 5 documents would be dropped", "--most-dropped")
    assert not (tmp_path / "o.jsonl").exists()


def test_a_killed_dedup_goes_on_and_gives_the_same_bytes(shards: Path, tmp_path: Path, run_cli: RunCli) -> None:
    parts = [str(part) for part in sorted(shards.glob("part-*.jsonl"))]
    want = run_cli("corpus", "dedup", *parts, "-q").out
    arguments = ["corpus", "dedup", *parts, "-q", "--force", "-o", "o.jsonl", "--dropped", "d.jsonl", "--work", "w"]
    log = tmp_path / "log"
    assert Trial(arguments, tmp_path, fault=Fault(log=str(log))).end().code == 0
    dropped = (tmp_path / "d.jsonl").read_bytes()
    points = range(3, len(read_log(log)), 23)
    for number, how in zip(points, itertools.cycle(["before", "middle", "after"])):
        for name in ("o.jsonl", "d.jsonl"):
            (tmp_path / name).unlink()
        assert Trial(arguments, tmp_path, fault=Fault(number, how)).end().code == 137
        assert not (tmp_path / "o.jsonl").exists() or (tmp_path / "o.jsonl").read_bytes() == want
        ended = Trial(arguments, tmp_path).end()
        assert ended.code == 0, ended.err
        assert (tmp_path / "o.jsonl").read_bytes() == want
        assert (tmp_path / "d.jsonl").read_bytes() == dropped
        assert {path.name for path in tmp_path.iterdir()} == {"o.jsonl", "d.jsonl", "log"}
    assert len(points) > 5


def test_a_dedup_killed_while_it_removes_its_work_is_done_again(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", planted(5, 40, 10))
    arguments = ["corpus", "dedup", "in.jsonl", "-q", "--force", "-o", "o.jsonl", "--work", "w"]
    log = tmp_path / "log"
    assert Trial(arguments, tmp_path, fault=Fault(only="remove", log=str(log))).end().code == 0
    removals = len(read_log(log))
    assert removals == 3  # the sketch, the lists, the whole
    for number in range(1, removals + 1):
        assert Trial(arguments, tmp_path, fault=Fault(number, "after", only="remove")).end().code == 137
        ended = Trial(arguments, tmp_path).end()
        assert (ended.code, (tmp_path / "w").exists()) == (0, False), ended.err


def test_a_killed_commands_workers_end_with_it(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", planted(5, 400, 100) * 10)
    command = [*GPTCLI, "corpus", "dedup", "in.jsonl", "-q", "--workers", "2", "--most-dropped", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children: list[str] = []
    deadline = time.monotonic() + 30
    while len(children) < 2 and time.monotonic() < deadline and process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert len(children) == 2
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_reader_that_goes_away_ends_it_quietly(shards: Path, tmp_path: Path) -> None:
    arguments = ["corpus", "dedup", str(shards / "all.jsonl"), "-q"]
    ended = Trial(arguments, tmp_path, stdout="broken").end()
    assert (ended.code, ended.err) == (141, "")
