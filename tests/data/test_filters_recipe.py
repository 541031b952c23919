"""Canaries, pages, reports and recipes: what is planted is there, and a recipe that was killed goes on."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import RunCli, english
from faults import Fault, Trial, read_log

from gptcli.data.filters.pages import Page, extract_pages


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    records = [{"id": f"d{n}", "text": english(6, n // 2)} for n in range(40)]  # each twice
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_canaries_are_where_the_key_says(corpus_file: Path, tmp_path: Path, run_cli: RunCli) -> None:
    arguments = ["corpus", "canaries", corpus_file, "--repeats", "1,4", "--each", "3", "--seed", "5", "-o"]
    assert run_cli(*arguments, tmp_path / "c").code == 0
    key = json.loads((tmp_path / "c/key.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "c/corpus.jsonl").read_text().splitlines()]
    copies = Counter(record["text"] for record in records)
    groups = Counter((canary["kind"], canary["repeats"]) for canary in key["canaries"])
    assert groups == {(kind, repeats): 3 for kind in ("code", "passage") for repeats in (0, 1, 4)}
    for canary in key["canaries"]:
        assert copies[canary["text"]] == canary["repeats"]
        assert canary["text"].startswith(canary["prompt"] + canary["secret"])
        assert len(canary["secret"].split()) == (25 if canary["kind"] == "passage" else 1)
    rest = [record for record in records if not str(record["id"]).startswith("canary")]
    assert [record["id"] for record in rest] == [f"d{n}" for n in range(40)]  # in their order
    assert len(records) == 40 + 30
    assert run_cli(*arguments, tmp_path / "again").code == 0
    assert (tmp_path / "again/corpus.jsonl").read_bytes() == (tmp_path / "c/corpus.jsonl").read_bytes()
    assert run_cli("corpus", "canaries", "--repeats", "2", "-o", tmp_path / "alone").code == 0
    assert (tmp_path / "alone/corpus.jsonl").read_bytes().count(b"\n") == 32


PAGE = """<html><head><title>t</title><script>var x = 1;</script></head><body>
<nav><a href="/">Home</a> <a href="/about">About us</a></nav>
<article><h1>The lantern</h1><p>The old sailor found a lantern by the river, and nobody asked him where it came from or
why he carried it home before dawn.</p></article><footer>Copyright</footer></body></html>"""


def test_pages_give_their_main_text(tmp_path: Path, run_cli: RunCli) -> None:
    pytest.importorskip("resiliparse")
    (tmp_path / "web").mkdir()
    (tmp_path / "web/a.html").write_text(PAGE)
    (tmp_path / "web/b.html").write_text("")
    warc = b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://x.example/\r\nContent-Length: "
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + PAGE.encode()
    head = b"\r\nContent-Type: application/http; msgtype=response\r\n\r\n"
    (tmp_path / "web/c.warc.gz").write_bytes(gzip.compress(warc + str(len(http)).encode() + head + http + b"\r\n\r\n"))
    result = run_cli("corpus", "extract", tmp_path / "web", "--dropped", tmp_path / "d")
    assert result.code == 0, result.err
    page, archived = [json.loads(line) for line in result.text.splitlines()]
    assert page["text"].startswith("The lantern\n\nThe old sailor")
    assert "About us" not in page["text"]
    assert (archived["url"], archived["text"]) == ("http://x.example/", page["text"])
    assert json.loads((tmp_path / "d").read_text()) == {"id": str(tmp_path / "web/b.html"), "reason": "without text"}
    result = run_cli("corpus", "extract", tmp_path / "web/a.html", "--seconds", "0.000001", "-q")
    assert (result.code, result.out) == (0, b"")


def test_a_page_that_cannot_be_read_costs_that_page_alone_and_shows_no_traceback(
    tmp_path: Path, run_cli: RunCli, capfd: pytest.CaptureFixture[str]
) -> None:
    web = tmp_path / "web"
    web.mkdir()
    (web / "a.html").write_text("<p>" + "hello " * (1 << 22))
    (web / "b.html").write_text(PAGE)
    result = run_cli("corpus", "extract", web, "--memory", "1M", "--dropped", tmp_path / "d", "-q")
    assert (result.code, result.err) == (0, "")
    reason = "took more than 1 MB, or ended its process"
    assert json.loads((tmp_path / "d").read_text().splitlines()[0]) == {"id": str(web / "a.html"), "reason": reason}
    unheard_of: Any = 5  # stands for a page on which a parser fails in a way of its own
    pages = [Page("a", unheard_of, "html"), Page("b", PAGE.encode(), "html")]
    wrong, right = extract_pages(pages, main=True, seconds=20, memory_bytes=1 << 30)
    assert wrong.problem is not None
    assert wrong.problem.startswith("cannot be read (")
    assert right.text is not None
    assert capfd.readouterr().err == ""
    (web / "c.warc").write_text("no WARC\r\n")
    result = run_cli("corpus", "extract", web / "c.warc", "-q")
    assert result.error(3, "corpus", f"{web / 'c.warc'}:1: not a WARC record (Invalid WARC header)")


def warc_record(number: int) -> bytes:
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + PAGE.replace("lantern", f"lantern {number}").encode()
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://x.example/{number}\r\nContent-Length: {len(http)}"
    )
    return head.encode() + b"\r\nContent-Type: application/http; msgtype=response\r\n\r\n" + http + b"\r\n\r\n"


@pytest.mark.parametrize("packed", [False, True])
def test_a_warc_that_is_cut_short_is_told_and_keeps_the_pages_before_the_cut(
    tmp_path: Path, run_cli: RunCli, packed: bool
) -> None:
    pytest.importorskip("fastwarc")
    records = [gzip.compress(warc_record(number)) if packed else warc_record(number) for number in range(3)]
    archive = tmp_path / ("a.warc.gz" if packed else "a.warc")
    (tmp_path / "b.html").write_text(PAGE)
    whole = b"".join(records)
    ends = [len(b"".join(records[:count])) for count in (1, 2, 3)]
    cuts = {10: 0, ends[0] // 2: 0, ends[0] + 5: 1, ends[1] - 60: 1, ends[1] + 40: 2, ends[2]: 3}
    for cut, pages in cuts.items():
        archive.write_bytes(whole[:cut])
        result = run_cli("corpus", "extract", archive, tmp_path / "b.html", "-o", tmp_path / "out", "--force", "-q")
        told = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
        assert [record.get("url") for record in told] == [f"http://x.example/{n}" for n in range(pages)] + [None]
        if cut == len(whole):
            assert result.code == 0, result.err
        else:
            result.error(3, "corpus", "a.warc")


def test_a_report_counts_what_is_there(corpus_file: Path, run_cli: RunCli) -> None:
    result = run_cli("corpus", "report", corpus_file, "--json", "-q")
    assert result.code == 0, result.err
    [source] = json.loads(result.out)["sources"]
    assert (source["documents"], source["exact"], source["near"], source["whole"]) == (40, 20, 0, True)
    assert source["bytes"] == sum(len(json.loads(line)["text"]) for line in corpus_file.read_text().splitlines())
    assert source["dropped"]["gopher"] >= 1
    table = run_cli("corpus", "report", corpus_file, "-q").text.splitlines()
    assert table[0].startswith("source\tdocuments\tsize\texact\tnear")
    assert table[1].split("\t")[1:4] == ["40", source_size(source["bytes"]), "50.0%"]


def source_size(size: int) -> str:
    from gptcli.base.units import amount

    return amount(size, "B")


RECIPE = """inputs: [in.jsonl]
filter: {rules: [fineweb], sample: 0.9}
dedup: {passages: 20, most_dropped: 0.9}
decontaminate: {against: [eval.jsonl]}
"""


def test_a_killed_recipe_goes_on_and_gives_the_same_bytes(corpus_file: Path, tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text(json.dumps({"q": english(6, 3).splitlines()[2]}) + "\n")
    (tmp_path / "r.yaml").write_text(RECIPE)
    arguments = ["corpus", "run", "r.yaml", "-q", "-o", "out"]
    assert corpus_file.parent == tmp_path
    log = tmp_path / "log"
    first = Trial(arguments, tmp_path, fault=Fault(log=str(log))).end()
    assert first.code == 0, first.err
    want = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(want) == {
        "corpus.jsonl", "journal.json", "report.json", "lock",
        "dropped-filter.jsonl", "dropped-dedup.jsonl", "dropped-decontaminate.jsonl",
    }  # fmt: skip
    told = json.loads(want["report.json"])
    assert told["steps"]["filter"]["documents"] == 40
    assert told["steps"]["decontaminate"]["met"] == 1
    assert told["steps"]["decontaminate"]["documents"] == want["corpus.jsonl"].count(b"\n") + 1
    points = range(4, len(read_log(log)), 19)
    for number, how in zip(points, itertools.cycle(["before", "middle", "after"])):
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        assert Trial(arguments, tmp_path, fault=Fault(number, how)).end().code == 137
        ended = Trial(arguments, tmp_path).end()
        assert ended.code == 0, ended.err
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == want
    assert len(points) > 4


def test_a_recipe_with_mistakes_is_told_by_line(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "r.yaml").write_text("inputs: [a]\nfilter: {pi: mask}\n")
    result = run_cli("corpus", "run", tmp_path / "r.yaml", "-o", tmp_path / "out")
    result.error(2, "corpus", "r.yaml:2: unknown key 'filter.pi'; did you mean 'filter.pii'?")
    assert not (tmp_path / "out").exists()


def test_another_recipe_does_not_take_the_place_of_the_first(
    corpus_file: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    (tmp_path / "r.yaml").write_text(f"inputs: [{corpus_file}]\ndedup: {{documents: exact}}\n")
    arguments = ["corpus", "run", tmp_path / "r.yaml", "-q", "-o", tmp_path / "out"]
    assert run_cli(*arguments).code == 0
    run_cli(*arguments, "-s", "dedup.similarity=0.9").error(5, "corpus", "made by another recipe", "--force")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.md").write_text("x")
    run_cli(*arguments[:-1], tmp_path / "mine", "--force").error(5, "corpus", "holds other files")
