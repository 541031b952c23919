"""Corpus work on planted data, beside datatrove and presidio where another Python has them.

    python tests/bench/corpus.py near|passages|language|pii|overlap|all [--mb 20] [--peers PYTHON]

Every set is made by a seed: what is planted is known, so that recall and precision are counted and not judged. Speeds
are MB of UTF-8 text per second of CPU time, of one process; peers run in the same call.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import gptcli, run

from gptcli.data.filters.overlap import Item, build_index, find_items
from gptcli.data.filters.pii import find_pii
from gptcli.data.filters.words import words_of
from gptcli.data.python_english import documents

CHANGED = (0, 0.01, 0.02, 0.03, 0.1)  # of the words of a planted copy


def pieces(words: int = 300) -> list[str]:
    """Return Python's own English in pieces of about so many words."""
    found = []
    for text in documents():
        parts = text.split(" ")
        found += [" ".join(parts[start : start + words]) for start in range(0, len(parts), words)]
    return [piece for piece in found if len(piece) > 400]


def shuffled_words(draw: random.Random, base: list[str], megabytes: float) -> list[str]:
    """Return texts of real words that have nothing in common: half of the words of a real one are others'."""
    vocabulary = sorted({word for text in base for word in text.split() if word.isalpha()})
    found, size = [], 0
    while size < megabytes * 1e6:
        words = draw.choice(base).split(" ")
        found.append(" ".join(draw.choice(vocabulary) if draw.random() < 0.5 else word for word in words))
        size += len(found[-1])
    return found


def shingle_set(text: str) -> set[tuple[str, ...]]:
    """Return the 5-word shingles of a text, as users think of them."""
    words = text.lower().split()
    return {tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))}


def jaccard(one: str, other: str) -> float:
    """Return the exact similarity of two texts."""
    a, b = shingle_set(one), shingle_set(other)
    return len(a & b) / max(1, len(a | b))


def write(path: Path, texts: list[str]) -> Path:
    """Write texts as JSONL, with their numbers as ids."""
    path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))
    return path


def say(name: str, value: str) -> None:
    """Print a line of the table."""
    print(f"| {name} | {value} |", flush=True)


def near(megabytes: float, peers: str | None, work: Path) -> None:
    """Plant copies with changed words, and compare who is dropped with the exact similarity."""
    draw = random.Random(20)
    base = pieces()
    texts = shuffled_words(draw, base, megabytes)
    originals = len(texts)
    vocabulary = sorted({word for text in base for word in text.split() if word.isalpha()})
    pairs = []
    for _ in range(originals // 10):
        source, rate = draw.randrange(originals), draw.choice(CHANGED)
        copy = [draw.choice(vocabulary) if draw.random() < rate else word for word in texts[source].split(" ")]
        pairs.append((source, len(texts), rate))
        texts.append(" ".join(copy))
    path = write(work / "near.jsonl", texts)
    size = sum(map(len, texts))
    done = run(
        [*gptcli("corpus", "dedup", path, "-q", "-o", work / "o.jsonl", "--dropped", work / "d.jsonl", "--force")]
    )
    entries = [json.loads(line) for line in (work / "d.jsonl").read_text().splitlines()]
    gone = {entry["id"] for entry in entries}
    alike = [(a, b) for a, b, _ in pairs if jaccard(texts[a], texts[b]) >= 0.8]
    wrong = sum(jaccard(texts[entry["id"]], texts[entry["kept_id"]]) < 0.5 for entry in entries)
    recall = sum(a in gone or b in gone for a, b in alike) / len(alike)
    say("near duplicates: size, documents", f"{size / 1e6:.1f} MB, {len(texts):,}")
    say("planted pairs of Jaccard 0.8 or more: found", f"{recall:.4f} of {len(alike):,}")
    say("dropped for one below Jaccard 0.5", f"{wrong} of {len(entries):,}")
    say("speed, memory", f"{size / 1e6 / done.cpu_seconds:.1f} MB/s of CPU time, {done.peak_bytes / 1e6:.0f} MB")
    eighths = [
        write(work / f"part-{n}.jsonl", texts[n * len(texts) // 8 : (n + 1) * len(texts) // 8]) for n in range(8)
    ]
    same = []
    for inputs in ([path], eighths):
        whole = run([*gptcli("corpus", "dedup", *inputs, "-q", "-o", work / "p.jsonl", "--force", "--memory", "1M")])
        texts_kept = [json.loads(line)["text"] for line in (work / "p.jsonl").read_text().splitlines()]
        same.append(hashlib.sha256("\n".join(texts_kept).encode()).hexdigest())
        del whole
    say("1 and 8 shards, 1 MB of memory to compare", "same bytes" if same[0] == same[1] else "OTHER BYTES")
    if peers:
        _datatrove(peers, path, size, texts, alike, work)


DATATROVE = """
import sys, time, shutil
from datatrove.executor import LocalPipelineExecutor as E
from datatrove.pipeline.dedup import MinhashDedupSignature as S, MinhashDedupBuckets as B, MinhashDedupCluster as C
from datatrove.pipeline.dedup import MinhashDedupFilter as F
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader as R
from datatrove.pipeline.writers import JsonlWriter as W
path, name, w = sys.argv[1:4]
c = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
r = R(path, glob_pattern=name, text_key="text", id_key="id")
for steps, tasks in (([r, S(output_folder=w+"/s", config=c)], 1),
                     ([B(input_folder=w+"/s", output_folder=w+"/b", config=c)], c.num_buckets),
                     ([C(input_folder=w+"/b", output_folder=w+"/c", config=c)], 1),
                     ([r, F(input_folder=w+"/c"), W(w+"/out", compression=None)], 1)):
    E(pipeline=steps, tasks=tasks, workers=1, logging_dir=None).run()
"""


def _datatrove(python: str, path: Path, size: int, texts: list[str], alike: list[tuple[int, int]], work: Path) -> None:
    done = run([python, "-c", DATATROVE, path.parent, path.name, work / "dt"])
    lines = [line for file in (work / "dt/out").iterdir() for line in file.read_text().splitlines()]
    kept = {json.loads(line)["text"] for line in lines}
    gone = {number for number, text in enumerate(texts) if text not in kept or text in texts[:number]}
    recall = sum(a in gone or b in gone for a, b in alike) / len(alike)
    say(
        "datatrove, 14 x 8, one worker",
        f"{recall:.4f}; {size / 1e6 / done.cpu_seconds:.2f} MB/s of CPU time, {done.peak_bytes / 1e6:.0f} MB",
    )


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
    done = run([*gptcli(*command, "-o", work / "o.jsonl", "--dropped", work / "d.jsonl")])
    cut = {json.loads(line)["id"] for line in (work / "d.jsonl").read_text().splitlines()}
    size = sum(map(len, texts))
    say(
        "passages of 50 to 80 words: found",
        f"{sum(number in cut for number in planted) / len(planted):.4f} of {len(planted):,}",
    )
    say("speed, memory", f"{size / 1e6 / done.cpu_seconds:.1f} MB/s of CPU time, {done.peak_bytes / 1e6:.0f} MB")


# ----------------------------------------------------------------------------------------------- personal data

WORDS = (
    "the of and to in is that it was for on are with as at be this have from or had by but not what all were".split()
)


def _luhn(draw: random.Random, prefix: str, size: int) -> str:
    digits = prefix + "".join(draw.choices("0123456789", k=size - len(prefix) - 1))
    total = sum(sum(divmod(int(digit) * (2 - place % 2), 10)) for place, digit in enumerate(reversed(digits)))
    return digits + str(-total % 10)


def _iban(draw: random.Random, country: str, form: str) -> str:
    letters = {"d": "0123456789", "A": "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    account = "".join(draw.choice(letters[kind]) for kind in form)
    number = int("".join(str(int(character, 36)) for character in account + country + "00"))
    whole = f"{country}{98 - number % 97:02d}{account}"
    return whole if draw.random() < 0.5 else " ".join(whole[start : start + 4] for start in range(0, len(whole), 4))


def _digits(draw: random.Random, form: str) -> str:
    return "".join(draw.choice("0123456789") if character == "#" else character for character in form)


# Plans of six countries: international and national forms. The first digits are those that numbers there have.
PHONES = {
    "US": ("+1 212 55#-####", "(312) 55#-####", "415-55#-####"),
    "GB": ("+44 20 7### ####", "020 7### ####", "07700 9#####", "+44 161 ### ####"),
    "DE": ("+49 30 2######", "030 2######", "+49 171 2######", "089 3#######"),
    "FR": ("+33 1 4# ## ## ##", "01 4# ## ## ##", "06 1# ## ## ##"),
    "IT": ("+39 06 4### ####", "06 4### ####", "+39 333 ### ####"),
    "ES": ("+34 91 4## ## ##", "91 4## ## ##", "+34 612 ### ###"),
}
IBANS = {"GB": "AAAAdddddddddddddd", "DE": "d" * 18, "FR": "d" * 23, "IT": "A" + "d" * 22, "ES": "d" * 20}


def planted_item(draw: random.Random) -> tuple[str, str]:
    """Return (kind, text) of made-up personal data of one of six countries."""
    country = draw.choice(sorted(PHONES))
    kind = draw.choice(["EMAIL", "PHONE", "IP", "IPv6", "CARD", "IBAN", "KEY"])
    word = "".join(draw.choices("abcdefghiklmnoprstuvw", k=6))
    top = {"US": "com", "GB": "co.uk"}.get(country, country.lower())
    match kind:
        case "EMAIL":
            return kind, draw.choice([f"{word}@{word[::-1]}.{top}", f"{word}.{word[:3]}+x@mail.{word}.{top}"])
        case "PHONE":
            return kind, _digits(draw, draw.choice(PHONES[country]))
        case "IP":
            return (
                kind,
                ".".join(map(str, (draw.choice([23, 80, 93, 145, 185]), *(draw.randint(1, 254) for _ in range(3))))),
            )
        case "IPv6":
            return "IP", f"2a{draw.randint(0, 15):x}0:{draw.getrandbits(16):x}::{draw.getrandbits(15) + 1:x}"
        case "CARD":
            number = _luhn(draw, *draw.choice([("4", 16), ("52", 16), ("2300", 16), ("37", 15)]))
            spaced = " ".join(number[start : start + 4] for start in range(0, 16, 4))
            return kind, number if len(number) == 15 or draw.random() < 0.5 else spaced
        case "IBAN":
            country = draw.choice(sorted(IBANS))
            return kind, _iban(draw, country, IBANS[country])
    tail = "".join(draw.choices("ABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=16))
    return "KEY", draw.choice([f"AKIA{tail}", f"ghp_{tail}{tail}{tail[:4]}"])


def decoy(draw: random.Random) -> str:
    """Return what looks like personal data and is none."""
    number = draw.randrange
    return draw.choice(
        [
            f"version {number(9)}.{number(20)}.{number(9)}.{number(9)}",
            f"1.3.6.1.4.1.{number(9000)}.{number(99)}",
            f"{draw.getrandbits(128):032x}",
            f"550e8400-e29b-41d4-a716-{draw.getrandbits(48):012x}",
            f"20{number(10, 26)}-{number(10, 12)}-{number(10, 28)} {number(10, 23)}:{number(10, 59)}:{number(10, 59)}",
            f"127.0.0.1:{number(1000, 9999)}",
            f"192.168.{number(255)}.{number(255)}",
            f"{number(10)}.{number(10**9, 10**10)}",
            f"@app.route('/{number(99)}')",
            f"{number(10**8, 10**9)}",
            f"{number(1, 999)},{number(100, 999)},{number(100, 999)}.{number(10, 99)}",
            f"a@b.shape[{number(9)}]",
        ]
    )


PRESIDIO = """
import json, sys, time
from presidio_analyzer import RecognizerRegistry
registry = RecognizerRegistry(); registry.load_predefined_recognizers()
names = {"EMAIL_ADDRESS": "EMAIL", "PHONE_NUMBER": "PHONE", "IP_ADDRESS": "IP", "CREDIT_CARD": "CARD"}
names["IBAN_CODE"] = "IBAN"
found = [r for r in registry.recognizers if set(r.supported_entities) & set(names) and r.supported_language == "en"]
out = []; began = time.process_time()
for line in open(sys.argv[1]):
    text = json.loads(line)["text"]; spans = []
    for r in found:
        results = r.analyze(text, list(names), None) or []
        spans += [(x.start, x.end, names[x.entity_type]) for x in results if x.score >= 0.3]
    out.append(spans)
json.dump([time.process_time() - began, out], sys.stdout)
"""


def pii(_megabytes: float, peers: str | None, work: Path) -> None:
    """Plant data of six countries and decoys in lines of words."""
    draw = random.Random(22)
    texts, truths = [], []
    for _ in range(500):
        parts, spans, at = [], [], 0
        for part in range(12):
            run_of_words = " ".join(draw.choices(WORDS, k=draw.randint(4, 12)))
            parts.append(run_of_words)
            at += len(run_of_words) + 1
            kind, text = planted_item(draw) if part % 3 == 0 else ("", decoy(draw) if part % 3 == 1 else "so")
            if kind:
                spans.append((at, at + len(text), kind))
            parts.append(text + draw.choice(["", ".", ","]) if part % 3 != 2 else text)
            at += len(parts[-1]) + 1
        texts.append(" ".join(parts))
        truths.append(spans)
    path = write(work / "pii.jsonl", texts)
    find_pii(texts[0], tuple(PHONES))
    began = time.process_time()
    ours = [[(s.start, s.end, s.kind) for s in find_pii(text, tuple(PHONES))] for text in texts]
    _score("gptcli", texts, truths, ours, time.process_time() - began)
    if peers:
        done = subprocess.run([peers, "-c", PRESIDIO, str(path)], capture_output=True, text=True, check=True)
        seconds, theirs = json.loads(done.stdout)
        _score("presidio's patterns", texts, truths, [[tuple(span) for span in spans] for spans in theirs], seconds)


def _score(
    name: str,
    texts: list[str],
    truths: list[list[tuple[int, int, str]]],
    found: list[list[tuple[int, int, str]]],
    seconds: float,
) -> None:
    kinds = sorted({kind for spans in truths for _, _, kind in spans})
    parts = []
    for kind in kinds:
        wanted = [(n, span) for n, spans in enumerate(truths) for span in spans if span[2] == kind]
        hit = sum(span in found[n] for n, span in wanted)
        parts.append(f"{kind} {hit}/{len(wanted)}")
    everything = sum(len(spans) for spans in found)
    right = sum(any(a < d and c < b for c, d, _ in truths[n]) for n, spans in enumerate(found) for a, b, _ in spans)
    total = sum(len(spans) for spans in truths)
    whole = sum(span in found[n] for n, spans in enumerate(truths) for span in spans)
    speed = sum(map(len, texts)) / 1e6 / seconds
    say(
        f"personal data, {name}: recall, whole and of the kind",
        f"{whole / total:.4f} of {total:,} ({', '.join(parts)})",
    )
    say("precision, speed", f"{right / max(1, everything):.4f} of {everything:,}; {speed:.2f} MB/s of CPU time")


def overlap(megabytes: float, _peers: str | None, _work: Path) -> None:
    """Plant items of an evaluation set in real text, verbatim, re-wrapped and edited; clean text beside it."""
    draw = random.Random(23)
    base = pieces(120)
    draw.shuffle(base)
    items, clean = base[:400], base[400:]
    items = [" ".join(text.split()[: draw.randint(14, 60)]) for text in items]
    vocabulary = sorted({word for text in base for word in text.split() if word.isalpha()})
    index = build_index([Item(str(n), (text,)) for n, text in enumerate(items)])

    def found(changed: Callable[[str], str]) -> float:
        texts = [f"{draw.choice(clean)}\n{changed(item)}\n{draw.choice(clean)}" for item in items]
        hits = find_items(texts, index, 0.4)
        return sum(number in {hit.item for hit in hits[number]} for number in range(len(items))) / len(items)

    def edited(text: str) -> str:
        words = text.split()
        return " ".join(draw.choice(vocabulary) if draw.random() < 0.05 else word for word in words)

    def wrapped(text: str) -> str:
        words = text.upper().split()
        return "\n".join(" ".join(words[start : start + 8]) for start in range(0, len(words), 8))

    say(
        "items of 14 to 60 words: verbatim, re-wrapped, 5 % of the words changed",
        f"{found(str):.4f}, {found(wrapped):.4f}, {found(edited):.4f}",
    )
    texts = shuffled_words(draw, clean, megabytes)
    began = time.process_time()
    hits = [hits for start in range(0, len(texts), 500) for hits in find_items(texts[start : start + 500], index, 0.4)]
    speed = sum(map(len, texts)) / 1e6 / (time.process_time() - began)
    say("clean documents with a hit", f"{sum(map(bool, hits))} of {len(texts):,}; {speed:.1f} MB/s of CPU time")
    real = [hits for hits in find_items(clean, index, 0.4) if hits]
    say("other pieces of the same documentation with a hit (it repeats itself)", f"{len(real)} of {len(clean):,}")


def language(_megabytes: float, _peers: str | None, _work: Path) -> None:
    """Sentences of 55 languages: Django's translations, where Django is installed."""
    from gptcli.data.filters.languages import language_of

    found: dict[str, list[bool]] = {}
    for code, text in _django_sentences():
        found.setdefault(code, []).append(language_of(text)[0] == code)
    if not found:
        say("languages", "left out: install django for its translations")
        return
    shares = sorted(sum(right) / len(right) for right in found.values())
    say(
        f"sentences of {len(found)} languages: macro accuracy",
        f"{sum(shares) / len(shares):.4f}, the worst {shares[0]:.2f}",
    )


COMMON = (
    "af ar az be bg bn br ca cs cy da de el en eo es et eu fa fi fr ga gl he hi hr hu hy id is it ja ka kk km kn ko lt "
    "lv mk ml mn mr ne nl pa pl pt ro ru sk sl sq sv sw ta te th tr uk ur vi"
).split()


def _django_sentences() -> Iterator[tuple[str, str]]:
    try:
        import gettext

        import django  # type: ignore[import-not-found]
    except ImportError:
        return
    for code in COMMON:
        texts: set[str] = set()
        for path in sorted(Path(django.__file__).parent.glob(f"**/locale/{code}/LC_MESSAGES/*.mo")):
            with path.open("rb") as file:
                catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
            texts |= {text for source, text in catalogue.items() if isinstance(text, str) and source != text}
        whole = sorted(text for text in texts if len(text) >= 40 and "%" not in text and "<" not in text)[:60]
        if len(whole) >= 20:
            yield from ((code, text) for text in whole)


def main() -> None:
    """Run the parts that are named, each in an empty directory."""
    parts = {"near": near, "passages": passages, "language": language, "pii": pii, "overlap": overlap}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*parts, "all"])
    parser.add_argument("--mb", type=float, default=20)
    parser.add_argument("--peers", help="a Python with datatrove and presidio-analyzer")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in parts if given.part == "all" else [given.part]:
        with tempfile.TemporaryDirectory(prefix="corpus-bench-") as work:
            parts[name](given.mb, given.peers, Path(work))


if __name__ == "__main__":
    sys.exit(main())
