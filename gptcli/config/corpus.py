"""Thresholds of the rules that documents are held to, and the recipe of `gptcli corpus run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from gptcli.config.schema import Section, is_name, number, value

_SHARE = {"ge": 0, "le": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules(Section):
    """Thresholds, each null where the rule is off. A YAML file of them is named by `--rules FILE`.

    Presets: gopher (Rae et al. 2021, tables A1 and A2), c4 (Raffel et al. 2020, section 2.2) and fineweb (Penedo et al.
    2024, section 3.6).
    """

    preset: Literal["none", "gopher", "c4", "fineweb"] = value("none", "published rules to begin with")
    words_min: int | None = number(None, "fewer words", ge=0)
    words_max: int | None = number(None, "more words", ge=0)
    word_length_min: float | None = number(None, "shorter words on average, in characters", ge=0)
    word_length_max: float | None = number(None, "longer words on average", ge=0)
    symbols_max: float | None = number(None, "more # or ellipses for each word", ge=0)
    bullet_lines_max: float | None = number(None, "a greater share of lines begins with a bullet", **_SHARE)
    ellipsis_lines_max: float | None = number(None, "a greater share of lines ends with an ellipsis", **_SHARE)
    alphabetic_words_min: float | None = number(None, "a smaller share of words holds a letter", **_SHARE)
    stop_words_min: int | None = number(None, "fewer of: the be to of and that have with (English alone)", ge=0)
    repeated_lines_max: float | None = number(None, "a greater share of lines occurred before", **_SHARE)
    repeated_paragraphs_max: float | None = number(None, "a greater share of paragraphs occurred before", **_SHARE)
    repeated_line_characters_max: float | None = number(None, "characters in such lines, a share", **_SHARE)
    repeated_paragraph_characters_max: float | None = number(None, "characters in such paragraphs", **_SHARE)
    top_2_gram_max: float | None = number(None, "characters in the most frequent pair of words, a share", **_SHARE)
    top_3_gram_max: float | None = number(None, "the same for three words", **_SHARE)
    top_4_gram_max: float | None = number(None, "the same for four words", **_SHARE)
    repeated_5_grams_max: float | None = number(None, "characters in runs of 5 words that came before", **_SHARE)
    repeated_6_grams_max: float | None = number(None, "the same for 6 words", **_SHARE)
    repeated_7_grams_max: float | None = number(None, "the same for 7 words", **_SHARE)
    repeated_8_grams_max: float | None = number(None, "the same for 8 words", **_SHARE)
    repeated_9_grams_max: float | None = number(None, "the same for 9 words", **_SHARE)
    repeated_10_grams_max: float | None = number(None, "the same for 10 words", **_SHARE)
    c4_lines: bool = value(False, "cut lines of less than 3 words, without end punctuation, or about JavaScript")
    sentences_min: int | None = number(None, "fewer sentences", ge=0)
    code_and_filler: bool = value(False, "drop text with a curly bracket or 'lorem ipsum'")
    punctuated_lines_min: float | None = number(None, "a smaller share of lines ends with punctuation", **_SHARE)
    short_lines_max: float | None = number(None, "a greater share of lines has 30 characters or less", **_SHARE)
    newlines_for_words_max: float | None = number(None, "more newlines for each word", ge=0)

    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "none": {},
        "gopher": {
            "words_min": 50,
            "words_max": 100_000,
            "word_length_min": 3,
            "word_length_max": 10,
            "symbols_max": 0.1,
            "bullet_lines_max": 0.9,
            "ellipsis_lines_max": 0.3,
            "alphabetic_words_min": 0.8,
            "stop_words_min": 2,
            "repeated_lines_max": 0.3,
            "repeated_paragraphs_max": 0.3,
            "repeated_line_characters_max": 0.2,
            "repeated_paragraph_characters_max": 0.2,
            "top_2_gram_max": 0.2,
            "top_3_gram_max": 0.18,
            "top_4_gram_max": 0.16,
            "repeated_5_grams_max": 0.15,
            "repeated_6_grams_max": 0.14,
            "repeated_7_grams_max": 0.13,
            "repeated_8_grams_max": 0.12,
            "repeated_9_grams_max": 0.11,
            "repeated_10_grams_max": 0.10,
        },
        "c4": {"c4_lines": True, "sentences_min": 5, "code_and_filler": True},
        "fineweb": {
            "punctuated_lines_min": 0.12,
            "short_lines_max": 0.67,
            "repeated_line_characters_max": 0.01,
            "newlines_for_words_max": 0.3,
        },
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig(Section):
    """The options of `gptcli corpus filter`; nothing is on by itself."""

    language: tuple[str, ...] = value((), "codes of languages to keep: [en, de]")
    rules: tuple[str, ...] = value((), "gopher, c4, fineweb, or YAML files of thresholds")
    pii: Literal["off", "mask", "drop", "annotate"] = value("off", "what becomes of personal data")
    phone_regions: tuple[str, ...] = value(("US",), "whose national phone numbers are known, beside those with +")
    sample: float = number(1.0, "share of documents to keep, drawn by a hash of the text", gt=0, le=1)
    seed: int = number(0, "of the sample", ge=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupConfig(Section):
    """The options of `gptcli corpus dedup`."""

    documents: Literal["near", "exact", "off"] = value("near", "drop documents that are alike, the same, or none")
    similarity: float = number(0.7, "from which documents are alike", ge=0.3, le=1)
    lines: int | None = number(None, "a line in more documents than this stays in the first", ge=1)
    passages: int | None = number(None, "cut passages of so many words that came before", ge=8)
    against: tuple[str, ...] = value((), "inputs of which nothing is to be repeated")
    keep: Literal["first", "longest"] = value("first", "which of those that are alike")
    most_dropped: float = number(0.5, "greatest share of documents to drop", ge=0, le=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecontaminateConfig(Section):
    """The options of `gptcli corpus decontaminate`."""

    against: tuple[str, ...] = value((), "evaluation sets: JSONL, CSV, TSV or text")
    fields: tuple[str, ...] = value((), "fields of an item; none: all that hold text")
    action: Literal["drop", "cut", "report"] = value("drop", "what becomes of documents that hold an item")
    share: float = number(0.4, "of an item's 5-word grams, in one place of a document", gt=0, le=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusRecipe(Section):
    """A recipe of `gptcli corpus run`: inputs, and the steps in this order, each left out where its section is."""

    inputs: tuple[str, ...] = value(doc="files, directories, globs")
    filter: FilterConfig | None = None  # languages, rules, personal data, sample
    dedup: DedupConfig | None = None  # repeated documents, lines and passages
    decontaminate: DecontaminateConfig | None = None  # what is in evaluation sets
    field: str = value("text", "JSONL field that holds the text")
    encoding: str = value("utf-8", "encoding of the text")
    errors: Literal["strict", "replace", "ignore"] = value("strict", "what to do with undecodable bytes")
    separator: str | None = value(None, "divides text files into documents: line, blank, or a text; null: each is one")

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.inputs:
            yield "inputs", "no input; name a file"
        if any(not is_name(given) for given in self.inputs):
            yield "inputs", "must name files"
        if self.decontaminate is not None and not self.decontaminate.against:
            yield "decontaminate", "no evaluation set; give decontaminate.against"
