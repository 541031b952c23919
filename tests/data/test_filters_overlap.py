"""Items of an evaluation set are found verbatim, re-wrapped and edited; clean text has none."""

from __future__ import annotations

import json
import random
from pathlib import Path

from conftest import RunCli, english

from gptcli.data.filters.overlap import Item, build_index, find_items, self_test

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]


def made_up(draw: random.Random, words: int) -> list[str]:
    return [draw.choice(WORDS) for _ in range(words)]


def items(draw: random.Random, number: int = 60) -> list[list[str]]:
    return [made_up(draw, draw.randint(8, 60)) for _ in range(number)]


def held(texts: list[str], given: list[list[str]]) -> list[set[int]]:
    index = build_index([Item(str(n), (" ".join(words),)) for n, words in enumerate(given)])
    return [{hit.item for hit in hits} for hits in find_items(texts, index, 0.4)]


def test_planted_items_are_found_wherever_they_are() -> None:
    draw = random.Random(1)
    given = items(draw)
    texts = []
    for words in given:
        wrapped = "\n".join(" ".join(words[n : n + 8]).upper() for n in range(0, len(words), 8))
        texts.append(f"{' '.join(made_up(draw, 3000))} {wrapped}\n{' '.join(made_up(draw, 300))}")
    assert held(texts, given) == [{number} for number in range(len(given))]


def test_edited_items_are_found() -> None:
    draw = random.Random(2)
    given = [made_up(draw, draw.randint(20, 60)) for _ in range(200)]
    texts = [" ".join(draw.choice(WORDS) if draw.random() < 0.05 else word for word in words) for words in given]
    assert sum(number in found for number, found in enumerate(held(texts, given))) >= 190


def test_clean_documents_hold_none() -> None:
    draw = random.Random(3)
    given = items(draw)
    assert not any(held([" ".join(made_up(draw, 500)) for _ in range(1000)], given))
    scattered = [
        " ".join(word for n in range(0, len(w), 5) for word in [*w[n : n + 5], *made_up(draw, 90)]) for w in given
    ]
    assert sum(map(bool, held(scattered, given))) <= 3  # the grams are there, but not in one place


def test_an_item_of_few_words_must_be_there_whole() -> None:
    item = "what is the capital of france today".split()
    assert held(["they asked: What is the capital of France today?", "what is the capital of spain"], [item]) == [
        {0},
        set(),
    ]


def test_the_self_test_finds_what_it_plants() -> None:
    draw = random.Random(4)
    index = build_index(
        [Item(str(n), (" ".join(words),)) for n, words in enumerate(items(draw))] + [Item("x", ("no",))]
    )
    assert (self_test(index, 0.4), index.too_short) == (24, 1)


def test_drop_cut_and_report(tmp_path: Path, run_cli: RunCli) -> None:
    question = "How many stones did the miller carry over the old bridge before the rain came down at noon"
    (tmp_path / "eval.jsonl").write_text(json.dumps({"id": "q1", "question": question + "?", "answer": "seven"}) + "\n")
    texts = [english(3, 1), f"{english(2, 2)}{question}? Seven.\n{english(2, 3)}", english(3, 4)]
    train = tmp_path / "train.jsonl"
    train.write_text("".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(texts)))
    common = ["corpus", "decontaminate", train, "--against", tmp_path / "eval.jsonl", "-q"]
    told = run_cli(*common, "--json")
    assert json.loads(told.out) == {"items": 1, "too_short": 0, "met": 1, "documents": 3, "with_items": 1}
    dropped = run_cli(*common, "--action", "drop", "--hits", tmp_path / "hits")
    assert [json.loads(line)["n"] for line in dropped.text.splitlines()] == [0, 2]
    hit = json.loads((tmp_path / "hits").read_text())
    assert (hit["id"], hit["share"]) == (f"{train}:2", 1.0)
    cut = [json.loads(line) for line in run_cli(*common, "--action", "cut").text.splitlines()]
    assert [record["text"] for record in cut] == [texts[0], texts[1].replace(question + "? ", ""), texts[2]]


def test_an_evaluation_set_without_text_is_an_error(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "e.jsonl").write_text('{"a": "b"}\n')
    (tmp_path / "t.jsonl").write_text('{"text": "b"}\n')
    result = run_cli("corpus", "decontaminate", tmp_path / "t.jsonl", "--against", tmp_path / "e.jsonl")
    result.error(3, "corpus", "no item has 5 words or more", "--fields")
