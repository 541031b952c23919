"""Personal data that has a form which can be checked: addresses, numbers and keys. Names of people are not found.

A pattern proposes, a validator decides: Luhn, mod 97, check letters, number plans, routed networks. Every pattern is
linear in the length of the text. Masks carry their kind, and never another's made-up data.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Literal, NamedTuple

from gptcli.data.filters import identities
from gptcli.data.filters.extra import extra

Kind = Literal["EMAIL", "KEY", "IBAN", "ID", "CARD", "IP", "PHONE"]
KINDS: tuple[Kind, ...] = ("EMAIL", "KEY", "IBAN", "ID", "CARD", "IP", "PHONE")


class Span(NamedTuple):
    """Characters [start, end) of a text that are personal data."""

    start: int
    end: int
    kind: Kind


def find_pii(text: str, regions: Sequence[str] = ("US",)) -> list[Span]:
    """Return the personal data of a text, in order, none overlapping another.

    `regions` are the countries (ISO 3166) whose national phone numbers are known; numbers with + are known of all.
    """
    found: list[Span] = []
    for spans in (
        _emails(text),
        _keys(text),
        _lettered(text),
        _numbers(text, tuple(regions)),
        _ipv4(text),
        _ipv6(text),
    ):
        found += spans
    order = {kind: number for number, kind in enumerate(KINDS)}
    taken: list[Span] = []
    for span in sorted(found, key=lambda span: (order[span.kind], span.start, -span.end)):
        if all(span.end <= other.start or span.start >= other.end for other in _near(taken, span)):
            taken.append(span)
    return sorted(taken)


def _near(taken: list[Span], span: Span) -> list[Span]:
    return (
        taken if len(taken) < 200 else [other for other in taken if other.start < span.end and span.start < other.end]
    )


def masked(text: str, spans: Sequence[Span]) -> str:
    """Return a text with its personal data replaced by <KIND>."""
    parts, at = [], 0
    for span in spans:
        parts += [text[at : span.start], f"<{span.kind}>"]
        at = span.end
    return "".join(parts) + text[at:]


# ---------------------------------------------------------------------------------------------------------------- mail

_LOCAL = re.compile(r"[\w.+%'&=~/-]{1,64}$")
_DOMAIN = re.compile(r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}([^\W\d_]{2,24})(?![\w-])")
_TOP_DOMAINS = frozenset(
    "com org net edu gov mil int info biz name pro aero coop museum jobs mobi travel asia cat tel post app dev page "
    "blog cloud shop store site online website tech space xyz top club live life world today news media agency digital "
    "email support company group team work studio design art health care bank money law "
    "london paris berlin amsterdam koeln hamburg wien tokyo nyc example test invalid local".split()
)


def _emails(text: str) -> Iterator[Span]:
    at = text.find("@")
    while at >= 0:
        local = _LOCAL.search(text, max(0, at - 64), at)
        domain = _DOMAIN.match(text, at + 1)
        if local and domain and (len(domain[1]) == 2 or domain[1].lower() in _TOP_DOMAINS or not domain[1].isascii()):
            start = local.start()
            while text[start] in ".'/=&~%-+" and start < at:
                start += 1
            if start < at and text[at - 1] != ".":
                yield Span(start, domain.end(), "EMAIL")
        at = text.find("@", at + 1)


# ---------------------------------------------------------------------------------------------------------------- keys

_KEY = re.compile(
    r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])"
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[\w-]{20,64}"
    r"|sk-(?:[a-z]{2,8}-)?[A-Za-z0-9_-]{20,255}|[srp]k_(?:live|test)_[A-Za-z0-9]{16,255}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,255}|AIza[\w-]{35}(?![\w-])|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}"
    r"|eyJ[\w-]{10,4096}\.[\w-]{10,8192}\.[\w-]{10,1024}"
)
_KEY_STARTS = (
    "AKIA ASIA ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ glpat- sk- sk_live_ sk_test_ rk_live_ rk_test_ pk_live_ pk_test_ "
    "xox AIza hf_ npm_ eyJ"
).split()
_BLOCK_START, _BLOCK_END = "-----BEGIN ", "-----END "
_SECRET_NAMES = (
    "password",
    "passwd",
    "secret",
    "api_key",
    "apikey",
    "api-key",
    "access_key",
    "auth_token",
    "access_token",
)
_ASSIGNED = re.compile(r"[\"']?\s{0,4}[:=]\s{0,4}[\"']?([^\s\"'<>,;]{8,256})")
_MANY_KINDS = (str.islower, str.isupper, str.isdigit)
_ASCII_LOWER = {ord(character): character.lower() for character in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def _places(text: str, part: str) -> Iterator[int]:
    """Yield where a part of a text begins; much faster than a pattern of many parts."""
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def _keys(text: str) -> Iterator[Span]:
    for part in _KEY_STARTS:
        for at in _places(text, part):
            match = None if text[at - 1 : at].isalnum() else _KEY.match(text, at)
            if match and any(map(str.isdigit, match[0])):
                yield Span(at, match.end(), "KEY")
    lower = text.lower()
    lower = lower if len(lower) == len(text) else text.translate(_ASCII_LOWER)
    for name in _SECRET_NAMES:
        for at in _places(lower, name):
            match = _ASSIGNED.match(text, at + len(name))
            if match and sum(any(map(kind, match[1])) for kind in _MANY_KINDS) >= 2 and match[1][-1] not in "()]}":
                yield Span(match.start(1), match.end(1), "KEY")
    for start in _places(text, _BLOCK_START):
        end = text.find(_BLOCK_END, start, start + (1 << 15))
        if "PRIVATE KEY" in text[start : start + 80].split("\n")[0] and end >= 0:
            stop = text.find("-----", end + len(_BLOCK_END), end + 100)
            yield Span(start, stop + 5 if stop >= 0 else end, "KEY")


# --------------------------------------------------------------------------------------------------------------- IBANs

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,30}")


_DIGITS = re.compile(r"[0-9]{2,}")


def _lettered(text: str) -> Iterator[Span]:
    """Yield accounts and identity numbers that hold letters, looked for around their digits."""
    for run in _DIGITS.finditer(text):
        at = run.start()
        if text[at - 2 : at].isupper() and at >= 2:
            yield from _iban(text, at - 2)
        for back, pattern, holds in identities.LETTERED:
            if at >= back and (match := pattern.match(text, at - back)) and holds(match[0]):
                yield Span(match.start(), match.end(), "ID")


def _iban(text: str, start: int) -> Iterator[Span]:
    match, length = _IBAN.match(text, start), identities.IBAN_LENGTHS.get(text[start : start + 2], 0)
    if match is None or not length:
        return
    end, taken = start, 0
    while end < match.end() and taken < length:
        taken += text[end] not in " -"
        end += 1
    compact = re.sub("[ -]", "", text[start:end])
    if len(compact) == length and not text[end : end + 1].isalnum() and identities.is_iban(compact):
        yield Span(start, end, "IBAN")


# ------------------------------------------------------------------------------------------------------------- numbers

# Digits with at most two marks between two of them: cards, identities, phones. It begins with a set of characters and
# not with what may be before it, so that the search runs at the speed of the set.
_NUMBER = re.compile(r"[+(0-9](?:[ .()/\u00a0-]{0,2}[0-9]){6,31}")
_BEFORE = re.compile(r"[\w.,/+@#-]")
_AFTER = re.compile(r"(?!x\d{1,6}\b)[\w@]|\.\w|-[A-Za-z]")  # an extension may follow: 555-0100x12
_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}")
_VERSION = re.compile(r"\b(?:version|release|ver|rv|build|firmware|update|oid|section|chapter)\W{0,3}$", re.IGNORECASE)
_CARD = re.compile(r"\d{12,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5}")


def _stands_alone(text: str, start: int, end: int) -> bool:
    return not (start and _BEFORE.match(text, start - 1)) and not _AFTER.match(text, end)


def _numbers(text: str, regions: tuple[str, ...]) -> Iterator[Span]:
    for match in _NUMBER.finditer(text):
        candidate, start = match[0], match.start()
        if candidate[0] == "(" and candidate.count("(") > candidate.count(")"):
            inside = candidate[1:].lstrip(" .-/\u00a0")  # a bracket before it, not around its first digits
            candidate, start = inside, start + len(candidate) - len(inside)
        if not _stands_alone(text, start, match.end()):
            continue
        if spans := list(_in_number(candidate, regions)):
            yield from (Span(start + span.start, start + span.end, span.kind) for span in spans)
        elif candidate.isdigit() and _PHONE_WORD.search(text, max(0, start - 20), start):
            if len(candidate) in _PLAIN_DIGITS and any(_valid(candidate, region) for region in regions):
                yield Span(start, match.end(), "PHONE")
        elif " " in candidate:  # several numbers in a row
            yield from _in_groups(candidate, start, regions)


def _ipv4(text: str) -> Iterator[Span]:
    if text.count(".") < 3:
        return
    for match in _IPV4.finditer(text):
        start, end = match.span()
        whole = not ((start and text[start - 1] in ".-_") or text[start - 1 : start].isalnum()) and not _AFTER.match(
            text, end
        )
        if whole and _is_global(match[0]) and not _VERSION.search(text, max(0, start - 12), start):
            yield Span(start, end, "IP")


def _in_groups(candidate: str, start: int, regions: tuple[str, ...]) -> Iterator[Span]:
    """Yield the data in runs of groups of a candidate that is nothing as a whole, the longest first."""
    groups = [(group.start(), group.end()) for group in re.finditer(r"[^ \u00a0]+", candidate)]
    first = 0
    while first < len(groups):
        for last in range(min(len(groups), first + 8), first, -1):
            begin, end = groups[first][0], groups[last - 1][1]
            part = candidate[begin:end]
            if sum(map(str.isdigit, part)) < 7 or (begin == 0 and end == len(candidate)):
                continue
            if found := list(_in_number(part, regions)):
                yield from (Span(start + begin + span.start, start + begin + span.end, span.kind) for span in found)
                break
        else:
            last = first + 1
        first = last


def _in_number(candidate: str, regions: tuple[str, ...]) -> Iterator[Span]:
    """Yield what a run of digits and marks is."""
    digits = re.sub(r"\D", "", candidate)
    size = len(candidate)
    if _IPV4.fullmatch(candidate):
        return
    if any(pattern.fullmatch(candidate) and holds(digits) for pattern, holds in identities.NUMBERED):
        yield Span(0, size, "ID")
    elif _CARD.fullmatch(candidate) and identities.is_card(digits):
        yield Span(0, size, "CARD")
    elif 7 <= len(digits) <= 17 and _is_phone(candidate, digits, regions):
        yield Span(0, size, "PHONE")


def _is_global(address: str) -> bool:
    """Return whether an address belongs to somebody: not a private, loopback or documentation one."""
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


# What is no phone number: dates, times, and plain runs of digits, which are ids.
_DATE = re.compile(r"(?:\d{4}[-./ ]\d{1,2}[-./ ]\d{1,2}|\d{1,2}[-./ ]\d{1,2}[-./ ](?:19|20)\d{2})(?:[ .:-]\d+)*")
_DECIMALS = re.compile(r"\d+\.\d+")
_ISBN = re.compile(r"\d{1,5}([ -])\d{1,7}\1\d{1,7}\1\d")
_PHONE_WORD = re.compile(
    r"\b(?:tel|tél|phone|telephone|téléphone|telefon|telefono|teléfono|fax|mobile?|móvil|cell|cellulare|handy|call|whatsapp)"
    r"(?:[ .:#=\"']|number|no|nr){1,8}$",
    re.IGNORECASE,
)
_PLAIN_DIGITS = range(9, 13)  # of a number with a trunk prefix and no marks; fewer are an index, 13 an article (EAN)


def _is_phone(candidate: str, digits: str, regions: tuple[str, ...]) -> bool:
    if candidate.startswith(("+", "(+")):
        return _valid(
            "+" + digits if "(0)" not in candidate else "+" + re.sub(r"\D", "", candidate.replace("(0)", "")), None
        )
    if candidate.isdigit() and candidate.startswith("00"):
        return _valid("+" + digits[2:], None)
    if candidate.isdigit():
        has_prefix = candidate[0] == "0" and len(candidate) in _PLAIN_DIGITS
        return has_prefix and any(_national(candidate, digits, region) for region in regions)
    if _DATE.fullmatch(candidate) or _DECIMALS.fullmatch(candidate):
        return False
    if _ISBN.fullmatch(candidate) and identities.is_isbn(digits):
        return False
    if candidate.startswith("00") and _valid("+" + digits[2:], None):
        return True
    return any(_national(candidate, digits, region) for region in regions)


_AMERICAN = re.compile(r"(?:1[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}")


def _national(candidate: str, digits: str, region: str) -> bool:
    """Return whether a number is written as one of the region's: with its trunk prefix, or as in North America."""
    if region in ("US", "CA"):
        return bool(_AMERICAN.fullmatch(candidate)) and _valid(digits, region)
    return (digits.startswith("0") or _phones().region_metadata(region)) and _valid(digits, region)


class _Phones(NamedTuple):
    parse: Callable[..., object]
    is_valid: Callable[..., bool]
    error: type[Exception]
    region_metadata: Callable[[str], bool]


@cache
def _phones() -> _Phones:
    library = extra("phonenumbers", "corpus", "find phone numbers")

    def has_no_trunk_prefix(region: str) -> bool:
        found = library.PhoneMetadata.metadata_for_region(region)
        return found is not None and found.national_prefix is None

    return _Phones(library.parse, library.is_valid_number, library.NumberParseException, has_no_trunk_prefix)


@cache
def known_regions() -> frozenset[str]:
    """Return the regions whose phone numbers can be checked."""
    return frozenset(extra("phonenumbers", "corpus", "find phone numbers").SUPPORTED_REGIONS)


def _valid(number: str, region: str | None) -> bool:
    phones = _phones()
    try:
        return phones.is_valid(phones.parse(number, region))
    except phones.error:
        return False


# ---------------------------------------------------------------------------------------------------------------- IPv6

_IPV6 = re.compile(r"(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?!\w|:[\w:])")
_IPV6_SIGN = re.compile(r":[0-9A-Fa-f]{0,4}:")
_HEX = frozenset("0123456789abcdefABCDEF")


def _ipv6(text: str) -> Iterator[Span]:
    end = 0
    for sign in _IPV6_SIGN.finditer(text):
        start = sign.start()
        while start > max(end, sign.start() - 4) and text[start - 1] in _HEX:
            start -= 1
        if start and text[start - 1].isalnum() and text[sign.start() + 1] in _HEX:
            start = sign.start() + 1  # after a name and its colon
        elif start and (text[start - 1].isalnum() or text[start - 1] in ":._"):
            continue
        if start < end:
            continue
        if (match := _IPV6.match(text, start)) is None:
            continue
        address = match[0] if match[0].endswith("::") else match[0].removesuffix(":")  # of the sentence
        if _is_global(address):
            end = start + len(address)
            yield Span(start, end, "IP")
