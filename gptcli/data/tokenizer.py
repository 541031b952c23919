"""Byte-level BPE (Radford et al. 2019): text <-> ids. Text never becomes a control token.

A tokenizer is a Hugging Face tokenizer.json. Its special tokens are kept out of the encoder: they have ids after the
ordinary ones, which only code inserts, so `<|endoftext|>` in a corpus is thirteen characters like any others.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import shown
from gptcli.base.signals import interruptible
from gptcli.data.text import split_text

LONGEST_RUN = 25_000
PIECE_LENGTH = 1 << 14  # characters; what the encoder keeps of a megabyte leaves the cache, and it takes twice the time
SPACE, REST = re.compile(r"\s+"), re.compile(r"\S+")
MAX_BYTES = 1 << 27  # of a tokenizer.json; those of a million tokens have some 50 MB
END_OF_TEXT = "<|endoftext|>"
DOCUMENT_MARKS = (END_OF_TEXT, "<|bos|>")  # ours and GPT-2's name of the token between documents, and nanochat's

# Split patterns by the name that llama.cpp knows them under; `gpt2` is built into ByteLevel.
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS: dict[str, str | None] = {
    "gpt2": None,
    "llama3": _LETTERS + r"\p{N}{1,3}" + _REST,
    "qwen2": _LETTERS + r"\p{N}" + _REST,
}
# Read, but not offered for training: nanochat's, for the models that are exported from there.
NANOCHAT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


class Tokenizer:
    """Encodes and decodes; immutable. `specials` maps control tokens to their ids."""

    def __init__(self, content: bytes, *, name: str = "tokenizer.json") -> None:
        """From the bytes of a tokenizer.json; DataError where it is damaged or not byte-level BPE."""
        self.content = content
        try:
            document = json.loads(content)
            added = document.get("added_tokens") or []
            self.specials = {token["content"]: int(token["id"]) for token in added}
            _check(document)
            self._encoder = tokenizers.Tokenizer.from_str(json.dumps(_without_specials(document)))
        except _Unfit as error:
            raise DataError(f"{shown(name)}: {error}") from None
        except Exception as error:
            raise DataError(
                f"{shown(name)}: not a tokenizer.json ({shown(str(error))}); make one with gptcli train-tokenizer"
            ) from None
        ordinary: dict[str, int] = document["model"]["vocab"]
        self.vocab_size = max([*ordinary.values(), *self.specials.values()]) + 1
        from_character = _bytes_of_characters()
        self.token_bytes: list[bytes] = [b""] * self.vocab_size
        for token, index in ordinary.items():
            self.token_bytes[index] = bytes(from_character[c] for c in token if c in from_character)
        for token, index in self.specials.items():
            self.token_bytes[index] = token.encode()

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """From a tokenizer.json, or a directory that holds one: of a run, of a checkpoint, of prepared data."""
        path = Path(path)
        if path.is_dir():
            places = [path / part / "tokenizer.json" for part in ("", "best", "latest")]
            path = next(filter(Path.is_file, places), places[0])
        if not path.exists():
            raise ConfigError(f"{shown(str(path))}: no such file; make one with gptcli train-tokenizer")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(f"{shown(str(path))}: larger than {MAX_BYTES >> 20} MiB; this is no tokenizer.json")
        return cls(content, name=str(path))

    def with_specials(self, names: Sequence[str]) -> Tokenizer:
        """The same tokenizer with more control tokens, their ids after all others; those it has already stay."""
        document = json.loads(self.content)
        new = [name for name in names if name not in self.specials]
        if taken := [name for name in new if name in document["model"]["vocab"]]:
            raise DataError(f"{shown(taken[0])} is an ordinary token; it cannot become a control token")
        added = [_special(self.vocab_size + index, name) for index, name in enumerate(new)]
        document["added_tokens"] = [*(document.get("added_tokens") or []), *added]
        return Tokenizer(_written(document))

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def end_of_text(self) -> int | None:
        """Id of the token that begins every document and ends every answer, if the tokenizer has it."""
        return next((self.specials[name] for name in DOCUMENT_MARKS if name in self.specials), None)

    @property
    def first(self) -> list[int]:
        """What every window begins with: that token, if the tokenizer has it."""
        return [] if self.end_of_text is None else [self.end_of_text]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, none of them special. Lone surrogates raise UnicodeEncodeError: they are not text.

        A word of more than 25,000 characters is encoded in pieces (see `_cut_runs`).
        """
        ids = [self._encoder.encode(piece, add_special_tokens=False).ids for piece in _pieces(text)]
        return ids[0] if len(ids) == 1 else list(itertools.chain.from_iterable(ids))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, on all cores."""
        cut = [_pieces(text) for text in texts]
        pieces = list(itertools.chain.from_iterable(cut))
        encodings = iter(self._encoder.encode_batch_fast(pieces, add_special_tokens=False))
        return [
            next(encodings).ids if len(own) == 1 else [index for _ in own for index in next(encodings).ids]
            for own in cut
        ]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of ids, specials as their text; IndexError for an id outside of the vocabulary."""
        return b"".join(map(self.token_bytes.__getitem__, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def learn_merges(
    texts: Iterable[str], *, vocab_size: int, pattern: str = "gpt2", specials: Sequence[str] = ()
) -> Tokenizer:
    """Learn byte-level BPE merges from `texts` (Sennrich et al. 2016).

    `vocab_size` counts the 256 bytes and all specials; END_OF_TEXT is always one of them. A corpus with too few
    distinct words gives a smaller vocabulary. ConfigError for a size or special that cannot be.
    """
    names = check_vocabulary(vocab_size, specials)
    encoder = tokenizers.Tokenizer(models.BPE())
    encoder.pre_tokenizer = _pre_tokenizer(pattern)
    encoder.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(names),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    interruptible(lambda: encoder.train_from_iterator(texts, trainer=trainer))
    document = json.loads(encoder.to_str())
    ordinary = document["model"]["vocab"]
    if taken := [name for name in names if name in ordinary]:
        raise ConfigError(f"--special: {shown(taken[0])} is an ordinary token too; choose a form like <|name|>")
    document["added_tokens"] = [_special(len(ordinary) + index, name) for index, name in enumerate(names)]
    return Tokenizer(_written(document))


def from_merges(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], specials: dict[str, int], *, pattern: str = "gpt2"
) -> Tokenizer:
    """The tokenizer of a vocab.json and a merges.txt; DataError where they do not fit each other."""
    try:
        encoder = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    except Exception as error:
        raise DataError(f"vocab.json and merges.txt do not fit each other ({shown(str(error))})") from None
    encoder.pre_tokenizer = _pre_tokenizer(pattern)
    encoder.decoder = decoders.ByteLevel()
    document = json.loads(encoder.to_str())
    document["added_tokens"] = [_special(index, name) for index, name in sorted((i, n) for n, i in specials.items())]
    return Tokenizer(_written(document))


def _special(index: int, name: str) -> dict[str, Any]:
    """A control token in the form of tokenizer.json."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": name, **plain, "special": True}


def _written(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def check_vocabulary(vocab_size: int, specials: Sequence[str]) -> list[str]:
    """All special tokens, in order of their ids; ConfigError for a size or specials that cannot be."""
    names = [END_OF_TEXT, *(name for name in specials if name != END_OF_TEXT)]
    if "" in names or len(set(names)) < len(names):
        raise ConfigError("--special: special tokens must be distinct and not empty")
    smallest, largest = 256 + len(names), 1 << 20
    if not smallest <= vocab_size <= largest:
        raise ConfigError(
            f"--vocab-size: must be from {smallest} (256 bytes and {len(names)} special tokens) to {largest}, "
            f"got {vocab_size}"
        )
    return names


def sample_evenly(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    """Texts spread evenly over the input, max_bytes at most and half of that or more, in memory of that size.

    The length of the input need not be known: when the texts kept pass the limit, every second one is dropped and
    from then on half as many are taken.
    """
    kept: list[str] = []
    kept_bytes, stride = 0, 1
    for number, text in enumerate(texts):
        if number % stride:
            continue
        kept.append(text)
        kept_bytes += len(text.encode())
        while kept_bytes > max_bytes and len(kept) > 1:
            kept, stride = kept[::2], stride * 2
            kept_bytes = sum(len(text.encode()) for text in kept)
        if kept_bytes > max_bytes:  # one text, too long by itself
            kept = [kept[0].encode()[:max_bytes].decode(errors="ignore")]
            kept_bytes = len(kept[0].encode())
    yield from kept


class _Unfit(Exception):
    """Why a well-formed tokenizer.json is not one that gptcli can hold."""


def _check(document: dict[str, Any]) -> None:
    """Accept byte-level BPE with a known split pattern only.

    An unknown regex could take exponential time on hostile text, and another model would not round-trip bytes.
    """
    model, splitter = document["model"], document.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE":
        raise _Unfit(f"a {shown(str(model['type']))} tokenizer; gptcli reads byte-level BPE")
    if (document.get("normalizer") or {}).get("type") not in (None, "NFC"):
        raise _Unfit(f"normalizer {shown(str(document['normalizer'].get('type')))} changes the text; want none")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _Unfit(f"model.{key} is set; gptcli reads plain byte-level BPE")
    parts = splitter.get("pretokenizers", [splitter])
    splits = [part for part in parts if part.get("type") == "Split"]
    digits = [part for part in parts if part.get("type") == "Digits" and part.get("individual_digits")]  # SmolLM
    if parts[-1].get("type") != "ByteLevel" or len(parts) != len(splits) + len(digits) + 1:
        raise _Unfit("not byte-level BPE (its pre_tokenizer does not end in ByteLevel)")
    if parts[-1].get("add_prefix_space"):
        raise _Unfit("add_prefix_space changes the text; want false")
    if any(part["pattern"].get("Regex", "") not in (*PATTERNS.values(), NANOCHAT_PATTERN) for part in splits):
        raise _Unfit(f"an unknown split pattern; gptcli knows {', '.join(PATTERNS)} and nanochat's")
    if any(part.get("behavior") != "Isolated" or part.get("invert") for part in splits):
        raise _Unfit("its split pattern drops or joins text; want behavior Isolated")
    vocabulary = model["vocab"]
    if missing := set(_bytes_of_characters()) - set(vocabulary):
        raise _Unfit(f"{len(missing)} of the 256 bytes have no token; it cannot hold every text")
    ids = [*vocabulary.values(), *(token["id"] for token in document.get("added_tokens") or [])]
    if not all(type(index) is int and 0 <= index < 1 << 22 for index in ids):
        raise _Unfit("ids must be from 0 to 4194303")
    by_name = vocabulary | {token["content"]: token["id"] for token in document.get("added_tokens") or []}
    if len(set(by_name.values())) < len(by_name):
        raise _Unfit("two tokens have the same id")


def _without_specials(document: dict[str, Any]) -> dict[str, Any]:
    """The part of a tokenizer.json that encodes text: it yields no special, and cuts, pads and adds nothing."""
    specials = {token["content"] for token in document.get("added_tokens") or []}
    vocabulary = {token: index for token, index in document["model"]["vocab"].items() if token not in specials}
    nothing: dict[str, Any] = {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
    return {**document, **nothing, "model": {**document["model"], "vocab": vocabulary}}


def _pre_tokenizer(pattern: str) -> Any:
    regex = PATTERNS[pattern]
    if regex is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = pre_tokenizers.Split(Regex(regex), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@functools.cache
def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte -> the byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _pieces(text: str) -> list[str]:
    """The text, in pieces that are encoded apart: of PIECE_LENGTH, and no word of them longer than LONGEST_RUN."""
    text.encode()  # the Rust side would panic on a lone surrogate
    return [piece for part in split_text(text, PIECE_LENGTH, anywhere=False) for piece in _cut_runs(part)]


def _cut_runs(text: str) -> list[str]:
    """The text, cut within runs of more than LONGEST_RUN characters that are all white space, or all not.

    Merging takes more than linear time in the length of a word. Llama 3's own tokenizer cuts there, too.
    """
    cuts, end = [0], 0
    for place in range(LONGEST_RUN, len(text), LONGEST_RUN):  # a longer run holds one of these places
        if place < end:
            continue
        kind = SPACE if text[place].isspace() else REST
        after, before = kind.match(text, place), kind.match(text[place - LONGEST_RUN : place][::-1])
        end = after.end() if after else place
        start = place - (before.end() if before else 0)
        cuts += range(start + LONGEST_RUN, end, LONGEST_RUN)
    return [text[start:end] for start, end in itertools.pairwise([*cuts, len(text)])]
