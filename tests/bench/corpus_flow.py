"""Filters in a pipe, and filters that are killed: for corpus.py."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from corpus_texts import generated, pieces, say, write
from harness import gptcli, run

KILLED = 20  # of each command

Ended = tuple[int, int, str]  # exit code, peak of resident memory in bytes, what it said


def joined(commands: Sequence[Sequence[str | Path]], work: Path, *, output: Path | None = None) -> list[Ended]:
    """Run commands joined by pipes to their end."""
    running: list[subprocess.Popen[bytes]] = []
    before = None
    for number, command in enumerate(commands):
        is_last = number == len(commands) - 1
        with (work / f"stderr-{number}").open("wb") as said, (output or Path(os.devnull)).open("ab") as file:
            out = file if is_last else subprocess.PIPE
            process = subprocess.Popen(command, cwd=work, stdin=before, stdout=out, stderr=said)
        if before is not None:
            before.close()  # so that a command that ends is felt by the one before it
        before = process.stdout
        running.append(process)
    peaks = [0] * len(running)
    while any(process.poll() is None for process in running):
        for number, process in enumerate(running):
            peaks[number] = max(peaks[number], peak_of(process.pid))
        time.sleep(0.1)
    said = [(work / f"stderr-{number}").read_text(errors="replace") for number in range(len(running))]
    return [(process.returncode, peak, text) for process, peak, text in zip(running, peaks, said, strict=True)]


def peak_of(process: int) -> int:
    """Return the most memory that a process and those that it started have held so far, in bytes; 0 at its end."""
    found = 0
    with suppress(OSError):
        status = Path(f"/proc/{process}/status").read_text()
        found = sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        found += sum(peak_of(int(child)) for child in children)
    return found


def pipe(megabytes: float, _peers: str | None, work: Path) -> None:
    """Filter, deduplicate and prepare compressed text in one pipe; then again into a reader that goes away."""
    (work / "tok.txt").write_text("\n".join(pieces()))
    run(gptcli("train-tokenizer", work / "tok.txt", "-o", work / "tok.json", "--vocab-size", "2048", "-q"))
    with gzip.open(work / "0.jsonl.gz", "wt", compresslevel=1) as file:
        for number, text in enumerate(generated(megabytes)):
            file.write(json.dumps({"id": number, "text": text}) + "\n")
    zcat = ["zcat", work / "0.jsonl.gz"]
    keep = gptcli("corpus", "filter", "-", "--pii", "mask", "--sample", "0.95")
    dedup, prepare = gptcli("corpus", "dedup", "-"), gptcli("prepare", "-", "-t", "tok.json", "-o", "prepared")
    began = time.perf_counter()
    ended = joined([zcat, keep, dedup, prepare], work)
    say(f"{megabytes:,.0f} MB through filter, dedup and prepare", f"{time.perf_counter() - began:,.0f} s")
    for name, (code, peak, said) in zip(("filter", "dedup", "prepare"), ended[1:], strict=True):
        lines = said.strip().splitlines() or ["nothing"]
        told = f"{len(lines)} lines told, last: {lines[-1]}"
        say(f"{name}: exit code, peak memory", f"{code}, {peak / 1e6:.0f} MB; {told}")
    for name, commands in {"filter": [keep], "dedup": [["head", "-n", "5000"], dedup]}.items():
        began = time.perf_counter()
        code, _, said = joined([zcat, *commands, ["head", "-n", "1"]], work)[-2]
        wrong = "Traceback" in said or "rror" in said
        seconds = time.perf_counter() - began
        say(f"{name} | head -n 1", f"exit code {code} after {seconds:.1f} s, {'SAID AN ERROR' if wrong else 'quiet'}")


def kills(_megabytes: float, _peers: str | None, work: Path) -> None:
    """Kill every filter at drawn times, and run it again."""
    draw = random.Random(24)
    texts = list(generated(2, 1, 120)) + pieces()[:300]
    pages = work / "pages"
    pages.mkdir()
    for number, text in enumerate(texts[:400]):
        (pages / f"{number}.html").write_text(f"<html><body><article><p>{text}</p></article></body></html>")
    write(work / "in.jsonl", texts)
    write(work / "eval.jsonl", [" ".join(text.split()[:30]) for text in texts[::50]])
    (work / "recipe.yaml").write_text(
        "inputs: [in.jsonl]\nfilter: {rules: [c4], pii: mask}\ndedup: {passages: 50}\n"
        "decontaminate: {against: [eval.jsonl]}\n"
    )
    commands = {
        "filter": ("filter", "in.jsonl", "--pii", "mask", "--rules", "c4,gopher", "--dropped", "d", "-o", "o.jsonl"),
        "dedup": ("dedup", "in.jsonl", "--passages", "50", "--dropped", "d", "--work", "w", "-o", "o.jsonl"),
        "decontaminate": ("decontaminate", "in.jsonl", "--against", "eval.jsonl", "--action", "drop", "--hits", "d",
                          "-o", "o.jsonl"),
        "extract": ("extract", "pages", "--dropped", "d", "-o", "o.jsonl.gz"),
        "canaries": ("canaries", "in.jsonl", "-o", "o"),
        "run": ("run", "recipe.yaml", "-o", "o"),
    }  # fmt: skip
    for name, arguments in commands.items():
        force = ("--force",) if name != "run" else ()
        command = gptcli("corpus", *arguments, *force, "-q" if name != "canaries" else "--force")
        given = set(work.iterdir())
        began = time.perf_counter()
        run(command, cwd=work)
        lasts = time.perf_counter() - began
        wanted = dict(made(work, given))
        counts = {"killed": 0, "same": 0, "left": 0}
        while counts["killed"] < KILLED:
            for path in set(work.iterdir()) - given:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            process = subprocess.Popen(command, cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                process.wait(draw.uniform(0.1, 1) * lasts)
                continue  # it was at its end
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            run(command, cwd=work)
            found = dict(made(work, given))
            counts["killed"] += 1
            counts["same"] += all(found.get(path) == content for path, content in wanted.items())
            counts["left"] += len(found.keys() - wanted.keys())
        told = f"{counts['same']} of {counts['killed']} the same bytes, {counts['left']} files left over"
        say(f"{name}, killed and run again", told)
        for path in set(work.iterdir()) - given:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def made(work: Path, given: set[Path]) -> Iterator[tuple[Path, bytes]]:
    """Yield the files that a command made, and what they hold."""
    for path in sorted(set(work.iterdir()) - given):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                yield file.relative_to(work), file.read_bytes()
