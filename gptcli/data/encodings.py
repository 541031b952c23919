"""Guesses of a text's encoding: trial decoding, and how common the characters are that come out.

The candidates are advice for a person, who knows the text. latin-1 is none: it decodes every file.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable
from typing import NamedTuple

from gptcli.data.blocks import TextOptions, codec_name

SAMPLE_BYTES = 1 << 15  # on either side of the byte that cannot be decoded
LEAST_SCORE = 0.5
CLOSE = 0.9  # of the best score: named as well

_MARKS = "“”‘’„–—…«»°€£§©®•·¡¿™ªº½¼¾²³×\u00a0"
_WESTERN = "éèêëàâäáãåæçîïíìôöóòõøœùûüúñßÿÉÈÊÀÂÄÁÅÆÇÎÍÔÖÓØŒÙÜÚÑ" + _MARKS
_CENTRAL = "ąćęłńóśźżŁŚŻÓáčďéěíňřšťúůýžČŘŠŽÁÉÍÚőűöüŐŰÖÜäßâăîșțţşĂÂÎȘȚŢŞđĐ" + _MARKS
_TURKISH = "ğışçöüâîûĞİŞÇÖÜ" + _MARKS
_BALTIC = "āčēģīķļņšūžąęėįųõäöüĀČĒĪŠŪŽĄĖĮŲÕÄÖÜ" + _MARKS
_CHINESE = (
    "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然"
    "作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从這為來個們說國時後對著裡過發無麼經當與學進種將還見沒從"
    "，。、！？"
)
_KOREAN = "이다는의에을가고하지은로기도사한를나어그자서리시인대아니만있수"


class Candidate(NamedTuple):
    """An encoding, and how much of what it gives is what people write, from 0 to 1."""

    name: str
    score: Callable[[str, list[str]], float]  # of (text, its characters beyond ASCII)
    rare: bool = False  # named only where it fits better than a common one


def _share(characters: list[str], common: Callable[[str], bool]) -> float:
    return sum(map(common, characters)) / len(characters)


def _alphabet(letters: str, frequent: str, share: float) -> Callable[[str, list[str]], float]:
    """Score a script of its own: its letters, the frequent ones once more; no capital and no Latin letter in a word."""
    known, often = set(letters + letters.upper() + _MARKS + "№"), set(frequent)

    def score(text: str, characters: list[str]) -> float:
        lower = sum(character.islower() for character in characters)
        capitals = sum(character.isupper() for character in characters)
        pairs = [pair for pair in itertools.pairwise(text) if pair[0].isalpha() and pair[1].isalpha()]
        inside = sum(b.isupper() and a.islower() for a, b in pairs)
        mixed = sum(a.isascii() != b.isascii() for a, b in pairs)
        found = (_share(characters, known.__contains__) + min(1.0, _share(characters, often.__contains__) / share)) / 2
        wrong = (4 * inside + 2 * mixed) / len(characters)
        return found * (0.6 if capitals > lower else 1.0) * max(0.0, 1 - wrong)

    return score


def _latin(letters: str) -> Callable[[str, list[str]], float]:
    """Score letters with marks, which stand among those of ASCII."""
    known = set(letters)

    def score(text: str, characters: list[str]) -> float:
        alone = sum(b > "\x7f" and b.isalpha() and a > "\x7f" and a.isalpha() for a, b in itertools.pairwise(text))
        inside = sum(b.isupper() and b > "\x7f" and a.islower() for a, b in itertools.pairwise(text))
        return _share(characters, known.__contains__) * max(0.0, 1 - (1.2 * alone + 2 * inside) / len(characters))

    return score


def _ideographs(codec: str, leads: range, frequent: str, share: float) -> Callable[[str, list[str]], float]:
    """Score characters of the common half of an East Asian set, and the frequent ones once more."""
    often = set(frequent)

    def is_common(character: str) -> bool:
        if "\u3000" <= character <= "\u30ff" or "\uff01" <= character <= "\uff5e" or character in _MARKS:
            return not "\uff66" <= character <= "\uff9f"
        try:
            return character.encode(codec)[0] in leads
        except UnicodeEncodeError:
            return False

    def score(_text: str, characters: list[str]) -> float:
        frequent_share = min(1.0, _share(characters, often.__contains__) / share)
        return (_share(characters, is_common) + frequent_share) / 2

    return score


_HIRAGANA = "".join(map(chr, range(0x3041, 0x3097)))
_JAPANESE = _ideographs("euc_jp", range(0xB0, 0xD0), _HIRAGANA, 0.25)
_CYRILLIC = _alphabet("абвгдежзийклмнопрстуфхцчшщъыьэюяёіїєґў", "оеаинтсрвлкмдпу", 0.85)
CANDIDATES = (
    Candidate("cp1252", _latin(_WESTERN)),
    Candidate("cp1251", _CYRILLIC),
    Candidate("gb18030", _ideographs("gb2312", range(0xB0, 0xD8), _CHINESE, 0.2)),
    Candidate("shift_jis", _JAPANESE),
    Candidate("euc_jp", _JAPANESE),
    Candidate("big5", _ideographs("big5", range(0xA4, 0xC7), _CHINESE, 0.2)),
    Candidate("cp949", _ideographs("euc_kr", range(0xB0, 0xC9), _KOREAN, 0.2)),
    Candidate("cp1250", _latin(_CENTRAL)),
    Candidate("iso8859-2", _latin(_CENTRAL)),
    Candidate("koi8-r", _CYRILLIC),
    Candidate("cp866", _CYRILLIC),
    Candidate("iso8859-5", _CYRILLIC),
    Candidate("cp1253", _alphabet("αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋ", "αοιεσντρκπςυλμ", 0.75)),
    Candidate("cp1255", _alphabet("אבגדהוזחטיךכלםמןנסעףפץצקרשת", "יוהלאמרתבש", 0.68)),
    Candidate("cp1256", _alphabet("ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤإئىةپچژگ،؛؟", "المينوترهبسعد", 0.75)),
    Candidate(
        "cp874", _alphabet("".join(map(chr, [*range(0xE01, 0xE3B), *range(0xE3F, 0xE5C)])), "านรกอเงมยลวดท่ส้ตะ", 0.6)
    ),
    Candidate("cp1254", _latin(_TURKISH)),
    Candidate("cp1257", _latin(_BALTIC)),
    Candidate("mac-roman", _latin(_WESTERN), rare=True),
    Candidate("cp850", _latin(_WESTERN), rare=True),
)


def advice(block: bytes, wrong: bytes, options: TextOptions) -> str:
    """Return what to do about a block whose part `wrong`, to the end, cannot be decoded with the options."""
    place = len(block) - len(wrong)
    replace = options.setting("errors", "replace")
    sample = _sample(block, max(0, place))
    if codec_name(options) == "utf-8" and _is_damaged_utf8(sample):
        return f"the text around it is UTF-8, so mend the byte or pass {replace}"
    if names := candidates(sample, besides=codec_name(options)):
        choice = " or ".join(options.setting("encoding", name) for name in names)
        return f"pass {choice}" if len(names) == 1 else f"it may be one of these: pass {choice}"
    return f"pass the text's own {options.setting('encoding', 'NAME')}, or {replace}"


def candidates(sample: bytes, *, besides: str = "utf-8") -> list[str]:
    """Return the encodings that a text is likely to be in, the likeliest first, three at most."""
    found: list[tuple[float, str]] = []
    for candidate in CANDIDATES:
        if codecs.lookup(candidate.name).name == besides:
            continue
        try:
            text = codecs.getincrementaldecoder(candidate.name)().decode(sample)
        except UnicodeDecodeError:
            continue
        characters = [character for character in text if character > "\x7f"]
        score = candidate.score(text, characters) * (0.9 if candidate.rare else 1.0) if characters else 0.0
        if score >= LEAST_SCORE and not any(character < "\xa0" for character in characters):  # C1 controls are no text
            found.append((score, candidate.name))
    found.sort(key=lambda pair: -pair[0])  # stable: of equal ones the more common stands first
    chosen: list[str] = []
    seen = set()
    for score, name in found:
        text = sample.decode(name, "ignore")
        if score >= CLOSE * found[0][0] and text not in seen:
            seen.add(text)
            chosen.append(name)
    return chosen[:3]


def _sample(block: bytes, place: int) -> bytes:
    """Return bytes around a place, begun where a word does, so that no character is cut."""
    start = max(0, place - SAMPLE_BYTES)
    if start:
        start = max(block.rfind(b"\n", 0, start), block.rfind(b" ", 0, start)) + 1
    return block[start : place + SAMPLE_BYTES]


def _is_damaged_utf8(sample: bytes) -> bool:
    """Return whether more of the characters beyond ASCII are UTF-8 than are not."""
    text = sample.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    beyond = sum(character > "\x7f" for character in text) - wrong
    return beyond > 2 * wrong
