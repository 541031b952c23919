"""Numbers that carry their own check: cards, accounts, and identity numbers of some countries."""

from __future__ import annotations

import re
from collections.abc import Callable

IBAN_LENGTHS = {
    code[:2]: int(code[2:])
    for code in (
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 "
        "FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 "
        "LU20 LV21 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 "
        "SK24 SM27 TN24 TR26 UA29 VA22 VG24 XK20"
    ).split()
}


def is_iban(compact: str) -> bool:
    """Return whether an account number without spaces has the right check digits (ISO 13616, mod 97)."""
    moved = compact[4:] + compact[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


def is_luhn(digits: str) -> bool:
    """Return whether the last digit is the check digit of the others (ISO/IEC 7812)."""
    total = 0
    for place, character in enumerate(reversed(digits)):
        digit = int(character) * (1 + place % 2)
        total += digit - 9 if digit > 9 else digit
    return total % 10 == 0


_MAESTRO = frozenset((5018, 5020, 5038, 6304, 6390, 6759, 6761, 6762, 6763))


def is_card(digits: str) -> bool:
    """Return whether digits are a payment card's: a known issuer, its length, and Luhn's check digit."""
    prefix, size = int(digits[:4]), len(digits)
    lengths: tuple[int, ...] = ()
    if digits[0] == "4":
        lengths = (13, 16, 19)
    elif 5100 <= prefix <= 5599 or 2221 <= prefix <= 2720 or prefix == 6011 or 6440 <= prefix <= 6599:
        lengths = (16,)
    elif prefix // 100 in (34, 37):
        lengths = (15,)
    elif 3528 <= prefix <= 3589 or prefix // 100 == 62:
        lengths = (16, 17, 18, 19)
    elif prefix in (1800, 2131):  # JCB's older ones
        lengths = (15,)
    elif prefix // 100 in (36, 38, 39) or 3000 <= prefix <= 3059:
        lengths = (14,)
    elif 5600 <= prefix <= 5899 or prefix in _MAESTRO:
        lengths = tuple(range(12, 20))
    return size in lengths and len(set(digits)) > 1 and is_luhn(digits)


def _is_ssn(digits: str) -> bool:
    """Return whether digits can be a US social security number: no area 000, 666 or 900 on, no zero group."""
    return digits[:3] not in ("000", "666") and digits[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


def _is_cpf(digits: str) -> bool:
    """Return whether digits are a Brazilian CPF."""
    if len(set(digits)) == 1:
        return False
    for size in (9, 10):
        total = sum(int(digit) * weight for digit, weight in zip(digits[:size], range(size + 1, 1, -1), strict=True))
        if total * 10 % 11 % 10 != int(digits[size]):
            return False
    return True


def _is_nir(digits: str) -> bool:
    """Return whether digits are a French NIR with its key."""
    month = int(digits[3:5])
    return (1 <= month <= 12 or 20 <= month <= 99) and 97 - int(digits[:13]) % 97 == int(digits[13:])


def _is_corsican(text: str) -> bool:
    """Return whether a French NIR of Corsica, 2A or 2B, has its key."""
    return _is_nir(text[:5] + {"A": "19", "B": "18"}[text[6]] + text[7:])


def is_isbn(digits: str) -> bool:
    """Return whether ten digits have the check digit of a book's number (ISO 2108 before 2007)."""
    return len(digits) == 10 and sum(int(digit) * (10 - place) for place, digit in enumerate(digits)) % 11 == 0


def _is_ahv(digits: str) -> bool:
    """Return whether digits are a Swiss AHV number (EAN-13)."""
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(digits[:12]))
    return (10 - total % 10) % 10 == int(digits[12])


def _is_spanish(text: str) -> bool:
    """Return whether a Spanish DNI or NIE has its letter."""
    compact = text.replace("-", "").upper()
    number = compact[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == compact[-1]


_ODD_VALUES = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def _is_italian(text: str) -> bool:
    """Return whether an Italian codice fiscale has its letter (DM 23/12/1976)."""
    total = 0
    for place, character in enumerate(text[:15].upper()):
        value = int(character) if character.isdigit() else ord(character) - 65
        total += value if place % 2 else _ODD_VALUES[value]
    return chr(65 + total % 26) == text[15].upper()


def _is_chinese(text: str) -> bool:
    """Return whether a Chinese identity number has its check character (GB 11643)."""
    total = sum(int(digit) * (2 ** (17 - place) % 11) for place, digit in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17].upper() and 1 <= int(text[10:12]) <= 12 and 1 <= int(text[12:14]) <= 31


def _is_nino(text: str) -> bool:
    """Return whether a British national insurance number has an allowed prefix."""
    return text[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


# Of digits and marks alone; the function gets the digits.
NUMBERED: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
    (re.compile(r"\d{3}-\d{2}-\d{4}|\d{3} \d{2} \d{4}"), _is_ssn),
    (re.compile(r"\d{3}\.\d{3}\.\d{3}-\d{2}"), _is_cpf),
    (re.compile(r"[12] ?\d{2} ?\d{2} ?\d{2} ?\d{3} ?\d{3} ?\d{2}"), _is_nir),
    (re.compile(r"756[. ]?\d{4}[. ]?\d{4}[. ]?\d{2}"), _is_ahv),
    (re.compile(r"[1-9]\d{5}(?:19|20)\d{9}"), lambda digits: _is_chinese(digits)),
)
# With letters: how far before its first two digits one begins, its form, and a function of the text.
_ALONE, _END = r"(?<![A-Za-z0-9-])", r"(?![A-Za-z0-9])"
_DNI = re.compile(rf"{_ALONE}[0-9]{{8}}-?[A-HJ-NP-TV-Z]{_END}")
_NIE = re.compile(rf"{_ALONE}[XYZ]-?[0-9]{{7}}-?[A-HJ-NP-TV-Z]{_END}")
_CODICE = re.compile(rf"{_ALONE}[A-Z]{{6}}[0-9]{{2}}[A-EHLMPR-T][0-9]{{2}}[A-Z][0-9]{{3}}[A-Z]{_END}")
_NINO = re.compile(rf"{_ALONE}[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{{2}} ?[0-9]{{2}} ?[0-9]{{2}} ?[A-D]{_END}")
_CORSICAN = re.compile(rf"{_ALONE}[12][0-9]{{4}}2[AB][0-9]{{8}}{_END}")
_WITH_X = re.compile(rf"{_ALONE}[1-9][0-9]{{5}}(?:19|20)[0-9]{{9}}X{_END}")
LETTERED: tuple[tuple[int, re.Pattern[str], Callable[[str], bool]], ...] = (
    (0, _DNI, _is_spanish),
    (1, _NIE, _is_spanish),
    (2, _NIE, _is_spanish),
    (6, _CODICE, _is_italian),
    (2, _NINO, _is_nino),
    (3, _NINO, _is_nino),
    (0, _WITH_X, _is_chinese),
    (0, _CORSICAN, _is_corsican),
)
