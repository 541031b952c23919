"""Personal data is found by its form and its check, decoys are not, and no text takes long."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("phonenumbers")

from gptcli.data.filters.identities import is_card, is_iban, is_luhn
from gptcli.data.filters.pii import find_pii, masked

REGIONS = ("US", "GB", "FR", "DE", "IT", "ES")


def found(text: str) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.end]) for span in find_pii(text, REGIONS)]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("EMAIL", "anna.b+lists@mail.example.org"),
        ("EMAIL", "jörg@büro.de"),
        ("PHONE", "+49 30 901820"),
        ("PHONE", "+33 (0)6 12 34 56 78"),
        ("PHONE", "0044 20 7946 0958"),
        ("PHONE", "(415) 555-2671"),
        ("PHONE", "020 7946 0958"),
        ("PHONE", "06 12 34 56 78"),
        ("PHONE", "612 345 678"),
        ("PHONE", "+44(0)1144960240"),
        ("PHONE", "01144960032"),
        ("IP", "8.8.4.4"),
        ("IP", "2a00:1450:4001:81b::200e"),
        ("IP", "2a00:1450:4001:81b:0:9e:1:200e"),
        ("CARD", "4111 1111 1111 1111"),
        ("CARD", "378282246310005"),
        ("CARD", "5555-5555-5555-4444"),
        ("CARD", "180035762762795"),
        ("CARD", "6759649826438453"),
        ("IBAN", "DE89 3704 0044 0532 0130 00"),
        ("IBAN", "GB82WEST12345698765432"),
        ("IBAN", "FR14 2004 1010 0505 0001 3M02 606"),
        ("ID", "078-05-1120"),
        ("ID", "529.982.247-25"),
        ("ID", "12345678Z"),
        ("ID", "X1234567L"),
        ("ID", "RSSMRA85T10A562S"),
        ("ID", "168062B03366505"),
        ("ID", "AB 12 34 56 C"),
        ("ID", "756.9217.0769.85"),
        ("KEY", "AKIAIOSFODNN7EXAMPLE"),
        ("KEY", "ghp_" + "a1B2" * 9),
        ("KEY", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"),
    ],
)
@pytest.mark.parametrize(
    "around", ["{}", "It is {}.", "see ({}), or\n{}", "IS {} IN", "…{}…", "x={};", "to:{}", "{}: ", "12 {} 3rd"]
)
def test_what_is_there_is_found_whole(kind: str, text: str, around: str) -> None:
    whole = found(around.format(text, text))
    wanted = around.count("{}")
    if around == "x={};" and kind == "EMAIL":
        return  # x=anna is a name of a mailbox, too
    if around == "12 {} 3rd" and kind in ("PHONE", "CARD", "ID", "IP"):
        return  # digits beside digits may belong to them
    assert whole == [(kind, text)] * wanted


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4",
        "127.0.0.1 and 10.0.0.1 and 192.168.1.1",
        "oid 1.3.6.1.4.1.311.21",
        "12:34:56 2024-05-06 12:34:56 06.05.2024",
        "550e8400-e29b-41d4-a716-446655440000",
        "3.14159265358979 1700000000 0.000000123456",
        "@app.route('/x') and x @= y and x@y.shape",
        "1234567890123456",
        "DE88 3704 0044 0532 0130 00",
        "d41d8cd98f00b204e9800998ecf8427e",
        "2024/05/06 1,234,567.89 1.234.567,89",
        "12345678A",
        "isbn 978-3-16-148410-0",
        "0-497-76258-7 and 0-504-77641-X",
        "(-78.7834865)",
        "rv:1.9.2.20",
        "0962500882985",
        "2175701325",
        "12:34:56:789",
    ],
)
def test_decoys_stay(text: str) -> None:
    assert found(text) == []
    assert found(f"The value is {text}, as it was.") == []


def test_plain_digits_are_a_phone_number_after_a_word_for_one_and_an_extension_is_not_of_it() -> None:
    assert found("Tel.: 2175701325, mobile number 3420837783") == [("PHONE", "2175701325"), ("PHONE", "3420837783")]
    assert found("tell 2175701325") == []
    assert found("469-262-9278x765, or ask") == [("PHONE", "469-262-9278")]
    assert found("((0116)4960934)") == [("PHONE", "(0116)4960934")]


def test_masks_say_their_kind() -> None:
    text = "Mail a@b.com, call +49 30 901820"
    assert masked(text, find_pii(text)) == "Mail <EMAIL>, call <PHONE>"


def test_a_secret_is_its_value() -> None:
    assert found('{"api_key": "q9Xk29sLLq0z", "password": "changeme"}') == [("KEY", "q9Xk29sLLq0z")]


def test_check_digits() -> None:
    assert is_luhn("79927398713")
    assert not is_luhn("79927398710")
    assert is_card("4111111111111111")
    assert not is_card("4111111111111112")
    assert is_iban("GB82WEST12345698765432")
    assert not is_iban("GB82WEST12345698765433")


HOSTILE = [
    "1",
    "a.b",
    "1 ",
    "a@",
    "A1",
    ":a",
    "(1) ",
    "eyJa",
    "password=",
    "1.",
    "+",
    "::",
    "AKIA",
    "-----BEGIN ",
    "@a.",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_is_linear(unit: str) -> None:
    def seconds(size: int) -> float:
        text = unit * (size // len(unit))
        started = time.process_time()
        find_pii(text)
        return time.process_time() - started

    short, long = (min(seconds(size) for _ in range(3)) for size in (1 << 16, 1 << 19))  # others may slow one down
    assert long < 12 * max(0.02, short)  # of 8 times the text
