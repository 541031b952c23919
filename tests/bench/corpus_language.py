"""Languages: for corpus.py."""

from __future__ import annotations

import gettext
import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

from corpus_texts import say

from gptcli.data.filters.languages import language_of

COMMON = (
    "af ar az be bg bn br ca cs cy da de el en eo es et eu fa fi fr ga gl he hi hr hu hy id is it ja ka kk km kn ko lt "
    "lv mk ml mn mr ne nl pa pl pt ro ru sk sl sq sv sw ta te th tr uk ur vi"
).split()
EACH = 200  # sentences of a language
LENGTHS = (0, 60, 100, 1 << 20)


def language(_megabytes: float, peers: str | None, _work: Path, sentences: Path | None = None) -> None:
    """Tell the language of sentences: of Django's translations, and of files that are named.

    Such files are those of lingua-py, language-testdata/sentences in its repository: 1,000 of the web a language.
    """
    translated = _translations(peers or sys.executable)
    _judge("Django's translations, 40 characters or more", translated)
    if sentences is not None:
        found = {path.stem: path.read_text().splitlines() for path in sorted(sentences.glob("*.txt"))}
        _judge("sentences", {code: [text.strip() for text in found[code] if text.strip()] for code in found})


def _judge(name: str, texts: dict[str, list[str]]) -> None:
    """Print the mean over the languages that are common, and how it is by length and of whom it is worst."""
    if not (chosen := {code: texts[code][:EACH] for code in COMMON if code in texts}):
        say(name, "left out: there are none; pip install django")
        return
    shares: dict[str, float] = {}
    taken: dict[str, Counter[str]] = {}
    by_length = Counter[tuple[int, bool]]()
    for code, given in chosen.items():
        found = [language_of(text)[0] for text in given]
        taken[code] = Counter(found)
        shares[code] = taken[code][code] / len(given)
        for text, one in zip(given, found, strict=True):
            by_length[max(low for low in LENGTHS if len(text) >= low), one == code] += 1
    say(f"{name}: macro accuracy of {len(chosen)} languages", f"{sum(shares.values()) / len(shares):.4f}")
    for low, high in itertools.pairwise(LENGTHS):
        right, wrong = by_length[low, True], by_length[low, False]
        limits = f"{low} to {high - 1} characters" if high < 1 << 20 else f"{low} characters and more"
        say(f"of {limits}", f"{right / max(1, right + wrong):.4f} of {right + wrong:,}")
    worst = sorted(shares, key=lambda code: shares[code])[:4]
    say("the worst", "; ".join(f"{code} {shares[code]:.2f} ({_others(taken[code], code)})" for code in worst))


def _others(taken: Counter[str], code: str) -> str:
    return ", ".join(f"{other} {count}" for other, count in taken.most_common(3) if other != code) or "none"


def _translations(python: str) -> dict[str, list[str]]:
    """Return the sentences of Django's catalogues by language, where a Python has Django."""
    asked = [python, "-c", "import django; print(django.__path__[0])"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode:
        return {}
    found: dict[str, list[str]] = {}
    for code in COMMON:
        texts: set[str] = set()
        for path in sorted(Path(done.stdout.strip()).glob(f"**/locale/{code}/LC_MESSAGES/*.mo")):
            with path.open("rb") as file:
                catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
            told = {text for source, text in catalogue.items() if source and isinstance(text, str) and source != text}
            texts |= told
        whole = sorted(text for text in texts if len(text) >= 40 and "%" not in text and "<" not in text)
        if len(whole) >= 20:
            found[code] = whole
    return found
