"""Repetitions: near duplicates, beside datatrove, and long passages: for corpus.py."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

from corpus_texts import generated, jaccard, measured, pieces, say, shuffled_words, vocabulary_of, write
from harness import gptcli, run

from gptcli.data.filters.words import words_of

CHANGED = (0, 0.01, 0.02, 0.03, 0.1)  # of the words of a planted copy


def near(megabytes: float, peers: str | None, work: Path) -> None:
    """Plant copies with changed words, and compare who is dropped with the exact similarity."""
    draw = random.Random(20)
    base = pieces()
    texts = shuffled_words(draw, base, megabytes)
    originals = len(texts)
    vocabulary = vocabulary_of(base)
    pairs = []
    for _ in range(originals // 10):
        source, rate = draw.randrange(originals), draw.choice(CHANGED)
        copy = [draw.choice(vocabulary) if draw.random() < rate else word for word in texts[source].split(" ")]
        pairs.append((source, len(texts), rate))
        texts.append(" ".join(copy))
    path = write(work / "near.jsonl", texts)
    size = sum(map(len, texts))
    command = ["corpus", "dedup", path, "-q", "--force"]
    done = measured(gptcli(*command, "-o", work / "o.jsonl", "--dropped", work / "d.jsonl"))
    entries = [json.loads(line) for line in (work / "d.jsonl").read_text().splitlines()]
    gone = {entry["id"] for entry in entries}
    alike = [(a, b) for a, b, _ in pairs if jaccard(texts[a], texts[b]) >= 0.8]
    wrong = sum(jaccard(texts[entry["id"]], texts[entry["kept_id"]]) < 0.5 for entry in entries)
    recall = sum(a in gone or b in gone for a, b in alike) / len(alike)
    say("near duplicates: size, documents", f"{size / 1e6:.1f} MB, {len(texts):,}")
    say("planted pairs of Jaccard 0.8 or more: found", f"{recall:.4f} of {len(alike):,}")
    say("dropped for one below Jaccard 0.5", f"{wrong} of {len(entries):,}")
    say("speed, memory", f"{size / 1e6 / done.cpu_seconds:.1f} MB/s of CPU time, {done.peak_bytes / 1e6:.0f} MB")
    eighths = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number in range(8):
        eighths.append(work / f"part-{number}.jsonl")
        eighths[-1].write_bytes(b"".join(lines[number * len(lines) // 8 : (number + 1) * len(lines) // 8]))
    same = set()
    for inputs in ([path], eighths):
        run(gptcli("corpus", "dedup", *inputs, "-q", "-o", work / "p.jsonl", "--force", "--memory", "1M"))
        same.add(hashlib.sha256((work / "p.jsonl").read_bytes()).hexdigest())
    same.add(hashlib.sha256((work / "o.jsonl").read_bytes()).hexdigest())
    say("1 and 8 shards, 1 MB and 1 GB to compare in", "same bytes" if len(same) == 1 else "OTHER BYTES")
    if peers:
        _datatrove(peers, path, size, texts, alike, work)


DATATROVE = """
import os, sys
from datatrove.executor import LocalPipelineExecutor as E
from datatrove.pipeline.dedup import MinhashDedupSignature as S, MinhashDedupBuckets as B, MinhashDedupCluster as C
from datatrove.pipeline.dedup import MinhashDedupFilter as F
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader as R
from datatrove.pipeline.writers import JsonlWriter as W
path, name, w = sys.argv[1:4]
os.chdir(path)  # it writes logs where it runs
c = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
r = R(path, glob_pattern=name, text_key="text", id_key="id")
for steps, tasks in (([r, S(output_folder=w+"/s", config=c)], 1),
                     ([B(input_folder=w+"/s", output_folder=w+"/b", config=c)], c.num_buckets),
                     ([C(input_folder=w+"/b", output_folder=w+"/c", config=c)], 1),
                     ([r, F(input_folder=w+"/c"), W(w+"/out", compression=None)], 1)):
    E(pipeline=steps, tasks=tasks, workers=1, logging_dir=None).run()
"""


def _datatrove(python: str, path: Path, size: int, texts: list[str], alike: list[tuple[int, int]], work: Path) -> None:
    done = measured([python, "-c", DATATROVE, path.parent, path.name, work / "dt"])
    lines = [line for file in (work / "dt/out").iterdir() for line in file.read_text().splitlines()]
    kept = {json.loads(line)["text"] for line in lines}
    gone = {number for number, text in enumerate(texts) if text not in kept or text in texts[:number]}
    recall = sum(a in gone or b in gone for a, b in alike) / len(alike)
    say(
        "datatrove, 14 x 8, one worker",
        f"{recall:.4f}; {size / 1e6 / done.cpu_seconds:.2f} MB/s of CPU time, {done.peak_bytes / 1e6:.0f} MB",
    )


def memory(megabytes: float, _peers: str | None, work: Path) -> None:
    """Deduplicate text of any size, made as it is written."""
    path, size, documents = work / "large.jsonl", 0, 0
    with path.open("w") as file:
        for number, text in enumerate(generated(megabytes)):
            file.write(json.dumps({"id": number, "text": text}) + "\n")
            size, documents = size + len(text), number + 1
    done = measured(gptcli("corpus", "dedup", path, "-o", work / "o.jsonl"))
    say("deduplicated", f"{size / 1e6:,.0f} MB, {documents:,} documents; {done.stderr.strip().splitlines()[-1]}")
    speed = f"{size / 1e6 / done.cpu_seconds:.1f} MB/s of CPU time"
    say("peak of memory, speed", f"{done.peak_bytes / 1e6:.0f} MB, {speed}")


def passages(megabytes: float, _peers: str | None, work: Path) -> None:
    """Plant passages of 50 to 80 words in other texts."""
    draw = random.Random(21)
    texts = shuffled_words(draw, pieces(), megabytes)
    planted = []
    for number in range(1, len(texts), 10):
        source, length = texts[draw.randrange(number)].split(), draw.randint(50, 80)
        start, words = draw.randint(0, max(0, len(source) - length)), texts[number].split()
        passage = source[start : start + length]
        if len(words_of([" ".join(passage)]).hashes) >= 50:  # "=" and the like are no words
            at = draw.randint(0, len(words))
            texts[number] = " ".join([*words[:at], *passage, *words[at:]])
            planted.append(number)
    path = write(work / "passages.jsonl", texts)
    command = ["corpus", "dedup", path, "-q", "--documents", "off", "--passages", "50", "--force"]
    done = measured([*gptcli(*command, "-o", work / "o.jsonl", "--dropped", work / "d.jsonl")])
    cut = {json.loads(line)["id"] for line in (work / "d.jsonl").read_text().splitlines()}
    size = sum(map(len, texts))
    say(
        "passages of 50 to 80 words: found",
        f"{sum(number in cut for number in planted) / len(planted):.4f} of {len(planted):,}",
    )
    say("speed, memory", f"{size / 1e6 / done.cpu_seconds:.1f} MB/s of CPU time, {done.peak_bytes / 1e6:.0f} MB")
