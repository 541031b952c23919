"""Personal data, beside presidio's patterns: for corpus.py."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

from corpus_texts import say, write
from harness import BENCH, run

from gptcli.data.filters.pii import find_pii

Span = tuple[int, int, str]  # start, end, kind
Record = tuple[str, list[Span]]  # a text, and what is planted in it
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
names |= {"IBAN_CODE": "IBAN", "US_SSN": "ID", "ES_NIF": "ID", "ES_NIE": "ID", "IT_FISCAL_CODE": "ID"}
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
    """Plant data of six countries and decoys: in lines of words, and as faker has them, where a Python has faker."""
    draw = random.Random(22)
    _compared("own set", [_record(draw) for _ in range(500)], tuple(PHONES), peers, work)
    for countries in (",".join(PHONES), "BR,CH,NL,PL,SE,PT") if peers else ():
        made = run([str(peers), BENCH / "corpus_faker.py", "3000", "20261129", countries])
        records = [json.loads(line) for line in made.stdout.splitlines()]
        pairs = [(each["text"], [tuple(span) for span in each["spans"]]) for each in records]
        _compared(f"faker's {countries}", pairs, tuple(countries.split(",")), peers, work)


def _record(draw: random.Random) -> Record:
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
    return " ".join(parts), spans


def _compared(name: str, records: list[Record], regions: tuple[str, ...], peers: str | None, work: Path) -> None:
    """Print what is found of a set, beside presidio's patterns."""
    texts = [text for text, _ in records]
    find_pii(texts[0], regions)
    began = time.process_time()
    ours = [[(s.start, s.end, s.kind) for s in find_pii(text, regions)] for text in texts]
    _score(f"{name}, gptcli", records, ours, time.process_time() - began)
    if peers:
        done = run([peers, "-c", PRESIDIO, write(work / "pii.jsonl", texts)])
        seconds, theirs = json.loads(done.stdout)
        _score(f"{name}, presidio's patterns", records, [[tuple(span) for span in spans] for spans in theirs], seconds)


def _score(name: str, records: list[Record], found: list[list[Span]], seconds: float) -> None:
    """Print recall, of spans found whole and of their kind, and the share of what is found that was planted."""
    wanted, hit, wrong = Counter[str](), Counter[str](), Counter[str]()
    for (_, spans), here in zip(records, found, strict=True):
        for start, end, kind in spans:
            wanted[kind] += 1
            hit[kind] += any(a <= start and end <= b and kind == other for a, b, other in here)
        wrong.update(kind for a, b, kind in here if not any(a < end and start < b for start, end, _ in spans))
    everything = sum(map(len, found))
    parts = ", ".join(f"{kind} {hit[kind]}/{wanted[kind]}" for kind in sorted(wanted))
    speed = sum(len(text) for text, _ in records) / 1e6 / seconds
    say(f"{name}: recall, whole and of the kind", f"{hit.total() / wanted.total():.4f} of {wanted.total():,} ({parts})")
    told = ", ".join(f"{kind} {count}" for kind, count in sorted(wrong.items()))
    precision = 1 - wrong.total() / max(1, everything)
    say("precision, speed", f"{precision:.4f} of {everything:,} (wrong: {told}); {speed:.2f} MB/s of CPU time")
