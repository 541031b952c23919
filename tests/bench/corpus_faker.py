"""Personal data of six countries among look-alikes, by faker and not by whoever wrote the patterns: for corpus.py.

    PYTHON-WITH-FAKER tests/bench/corpus_faker.py DOCUMENTS SEED US,GB > records.jsonl

A record has a text and its spans [start, end, kind]. Only what can be checked counts as planted: a phone number that
exists in the country's plan, a card of an issuer, an address that is routed.
faker makes others, too; they are drawn again.
"""

from __future__ import annotations

import ipaddress
import json
import random
import re
import sys
from collections.abc import Callable

import phonenumbers
from faker import Faker

LOCALES = {
    "US": "en_US", "GB": "en_GB", "DE": "de_DE", "FR": "fr_FR", "IT": "it_IT", "ES": "es_ES",
    "BR": "pt_BR", "CH": "de_CH", "NL": "nl_NL", "PL": "pl_PL", "SE": "sv_SE", "PT": "pt_PT",
}  # fmt: skip
AROUND = (
    "{}", "{}.", "({})", "{},", "Tel: {}", "<{}>", '"{}"', '"contact": "{}",', "value={};", "- {}\n", "\t{}\t",
    "\n{}\n",     "[{}]", "'{}'", "| {} |", "{}?", "{}:", "** {} **", "<td>{}</td>", "contact:{}",
)  # fmt: skip


def is_phone(text: str, country: str) -> bool:
    """Return whether a number exists in its country's plan."""
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, country))
    except phonenumbers.NumberParseException:
        return False


def planted(fake: Faker, country: str, draw: random.Random) -> tuple[str, str, str]:
    """Return (kind, text, what follows it) of personal data of a country."""
    kind = draw.choice(["EMAIL", "PHONE", "IP", "CARD", "IBAN", "ID"])
    while True:
        match kind:
            case "EMAIL":
                return kind, draw.choice([fake.email, fake.company_email, fake.free_email, fake.ascii_email])(), ""
            case "PHONE":
                number, extension, rest = fake.phone_number().partition("x")
                if is_phone(number, country):
                    return kind, number, extension + rest
            case "IP":
                address = draw.choice([fake.ipv4_public, fake.ipv6])()
                if ipaddress.ip_address(address).is_global:
                    return kind, address, ""
            case "CARD":
                number = fake.credit_card_number()
                no_issuer = number[:2] == "35" and not 3528 <= int(number[:4]) <= 3589
                if no_issuer or number[0] == "0":
                    continue
                groups = len(number) == 16 and draw.random() < 0.4
                return kind, " ".join(re.findall("....", number)) if groups else number, ""
            case "IBAN":
                account = fake.iban()
                return kind, " ".join(re.findall(".{1,4}", account)) if draw.random() < 0.4 else account, ""
            case "ID":
                makers: dict[str, Callable[[], str]] = dict.fromkeys(("US", "FR", "IT", "CH"), fake.ssn)
                if country in ("ES", "BR"):
                    makers[country] = draw.choice([fake.nie, fake.nif]) if country == "ES" else fake.cpf
                if (
                    country in makers
                ):  # of GB faker makes numbers that are not given out, of others none that is claimed
                    return kind, makers[country](), ""
                kind = "EMAIL"


def decoy(fake: Faker, draw: random.Random) -> str:
    """Return what looks like personal data and is none."""
    makers: list[Callable[[], object]] = [
        fake.user_agent, fake.ean13, fake.isbn13, fake.isbn10, fake.uuid4, fake.md5, fake.sha1, fake.mac_address,
        fake.iso8601, fake.date, fake.time, fake.latitude, fake.file_path, fake.url, fake.license_plate, fake.postcode,
        fake.ipv4_private, fake.hostname, fake.swift11, fake.date_time, fake.unix_time, fake.user_name, fake.doi,
        fake.pricetag, fake.street_address, fake.rgb_color, fake.port_number,
        lambda: fake.bothify("??-####-##"), lambda: fake.numerify("INV-####-####"), lambda: fake.numerify("%.%.##"),
        lambda: fake.numerify("%########"), lambda: fake.numerify("%#,###,###.##"), lambda: fake.numerify("v%.%.%.#"),
        lambda: fake.numerify("#.######e-0#"), lambda: fake.numerify("%###/%###"), lambda: fake.numerify("%## x %##"),
        lambda: fake.numerify("%###-%###"), lambda: f"{fake.date()} - {fake.date()}",
        lambda: fake.numerify("ISO %###:20##"),
        lambda: fake.numerify("p. %##-%##"), lambda: f"@{fake.user_name()}",
    ]  # fmt: skip
    return str(draw.choice(makers)())


def record(fakes: dict[str, Faker], draw: random.Random) -> dict[str, object]:
    """Return a text of sentences of a country, with data and decoys between them."""
    country = draw.choice(sorted(fakes))
    fake, text, spans = fakes[country], "", []
    for part in range(9):
        text += fake.sentence() + " "
        before, after = draw.choice(AROUND).split("{}")
        if part % 3 == 0:
            kind, data, rest = planted(fake, country, draw)
            start = len(text) + len(before)
            spans.append((start, start + len(data), kind))
            text += f"{before}{data}{rest}{after} "
        elif part % 3 == 1:
            text += f"{before}{decoy(fake, draw)}{after} "
    return {"text": text, "spans": spans, "country": country}


def main() -> None:
    """Write the records to stdout."""
    documents, seed, countries = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
    draw, fakes = random.Random(seed), {country: Faker(LOCALES[country]) for country in countries}
    for number, fake in enumerate(fakes.values()):
        fake.seed_instance(seed + number)
    for _ in range(documents):
        print(json.dumps(record(fakes, draw)))


if __name__ == "__main__":
    main()
