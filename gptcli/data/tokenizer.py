"""Text <-> ids. Text never becomes a control token.

A tokenizer is a Hugging Face tokenizer.json: of our own training byte-level BPE (Radford et al. 2019), of an imported
model whatever it has. Its control tokens are kept out of the encoder: they have ids which only code inserts, so
`<|endoftext|>` in a corpus is thirteen characters like any others.

Decoding gives back the exact bytes where the tokenizer allows it: always where its tokens are bytes, and but for a
space before the text, which is taken off again, where they fall back to bytes. `lossy` says what it does to others.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.signals import interruptible
from gptcli.data import tokenizer_file
from gptcli.data.split import cut_runs, split_text
from gptcli.data.tokenizer_file import Unfit

LONGEST_RUN = 25_000
PIECE_LENGTH = 1 << 14  # characters; what the encoder keeps of a megabyte leaves the cache, and it is slower
MAX_BYTES = 1 << 27  # of a tokenizer.json; those of a million tokens have some 50 MB
END_OF_TEXT = "<|endoftext|>"
DOCUMENT_MARKS = (END_OF_TEXT, "<|bos|>")  # ours and GPT-2's name of the token between documents, and nanochat's
OTHER_MARKS = ("</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "<EOS>", "[EOS]")  # names of it elsewhere
MARKS = "gptcli"  # the key of a tokenizer.json whose tokens between documents have other names
NO_TOKEN = "has no token for every character"
# Texts that a tokenizer may change, by what becomes of them.
PROBES = {
    "takes letters as small ones": "The CAPITAL",
    "drops accents": "na\u00efve caf\u00e9",
    "rewrites characters (Unicode NFC or NFKC)": "e\u0301 \u212b \ufb01 \uff21",
    "joins, drops or adds white space": " a  b\n\tc ",
    NO_TOKEN: "\u4f60 \U0001f642 \u0639 \U000e0041",
}

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
    """An encoder and decoder, immutable. `specials` maps control tokens to their ids."""

    def __init__(self, content: bytes, *, name: str = "tokenizer.json") -> None:
        """Read the content of a tokenizer.json; DataError where it is damaged or cannot represent text."""
        self.content = content
        try:
            document = json.loads(content)
            given = document.pop(MARKS, None)
            marks = _default_marks(document) if given is None else _read_marks(given)
            tokenizer_file.check(document)
            by_name = tokenizer_file.ordinary_tokens(document)
            self.specials = tokenizer_file.added_tokens(document, special=True)
            self.specials |= {mark: by_name[mark] for mark in marks.names() if mark in by_name}
            self._encoder = _encoder(tokenizer_file.encoding_part(document, self.specials))
            self._encoder.encode("a \u00e9", add_special_tokens=False)
            words = tokenizer_file.added_tokens(document, special=False)
            self.vocab_size = max([*by_name.values(), *words.values(), *self.specials.values()]) + 1
            self.token_bytes = tokenizer_file.token_bytes(document, self._encoder, self.vocab_size)
            self._cut = tokenizer_file.cut_between_words(document, (*PATTERNS.values(), NANOCHAT_PATTERN))  # type: ignore[arg-type]
            missing = tokenizer_file.missing_bytes(document)
            self._held = bytes(byte for byte in range(256) if byte not in missing) if missing else None
        except Unfit as error:
            raise DataError(f"{escape(name)}: {error}") from None
        except Exception as error:
            raise DataError(
                f"{escape(name)}: not a tokenizer.json ({escape(str(error))}); make one with gptcli train-tokenizer"
            ) from None
        for token, index in self.specials.items():
            self.token_bytes[index] = token.encode()
        self.marks = marks
        self.begin = self.specials.get(marks.begin or "")  # of every document and window, if there is one
        self.ends = tuple(dict.fromkeys(self.specials[mark] for mark in marks.ends if mark in self.specials))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Load a tokenizer.json, or the one in a directory of a run, a checkpoint or prepared data."""
        path = fsio.follow(Path(path))
        if path.is_dir():
            places = [fsio.follow(path / part) / "tokenizer.json" for part in ("", "best", "latest")]
            path = next(filter(Path.is_file, places), places[0])
        if not path.exists():
            raise ConfigError(f"{escape(str(path))}: no such file; make one with gptcli train-tokenizer")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise DataError(f"{escape(str(path))}: larger than {MAX_BYTES >> 20} MiB; this is no tokenizer.json")
        return cls(content, name=str(path))

    def with_specials(self, names: Sequence[str]) -> Tokenizer:
        """Return the same tokenizer with more control tokens, their ids after all others; those it has already stay."""
        if not names:
            return self
        document = json.loads(self.plain_content)
        new = [name for name in names if name not in self.specials]
        if taken := [name for name in new if name in tokenizer_file.ordinary_tokens(document)]:
            raise DataError(f"{escape(taken[0])} is an ordinary token; it cannot become a control token")
        added = [special(self.vocab_size + index, name) for index, name in enumerate(new)]
        document["added_tokens"] = [*(document.get("added_tokens") or []), *added]
        return Tokenizer(_with_marks(_written(document), self.marks))

    def with_end_of_text(self) -> Tokenizer:
        """Return this tokenizer, or one with a token between documents where it names none: its </s> or another of
        OTHER_MARKS, else a new <|endoftext|>."""
        if self.end_of_text is not None:
            return self
        mark = next((name for name in OTHER_MARKS if name in self.specials), None)
        return self.with_specials([END_OF_TEXT]) if mark is None else self.with_marks(mark, [mark])

    def with_end(self) -> Tokenizer:
        """Return this tokenizer, or one with a token that ends an answer where it names none, as with_end_of_text."""
        if self.end is not None:
            return self
        begin = next((name for name, index in self.specials.items() if index == self.begin), None)
        mark = next((name for name in (*DOCUMENT_MARKS, *OTHER_MARKS) if name in self.specials), END_OF_TEXT)
        return self.with_specials([mark]).with_marks(begin, [mark])

    @functools.cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def with_marks(self, begin: str | None, ends: Sequence[str]) -> Tokenizer:
        """Return the same tokenizer whose documents begin with one control token and end with any of others, if it has
        them.

        The key is put before all others, so that `plain_content` has the bytes of before.
        """
        return Tokenizer(_with_marks(self.plain_content, Marks(begin, tuple(ends))))

    @property
    def plain_content(self) -> bytes:
        """Return the tokenizer.json as other programs read it."""
        start = f'{{"{MARKS}": '.encode()
        if not self.content.startswith(start):
            return self.content
        _, end = json.JSONDecoder().raw_decode(self.content[len(start) :].decode())
        return b"{" + self.content.decode()[len(start.decode()) + end + 1 :].encode()

    @property
    def end(self) -> int | None:
        """Return the id of the token that ends an answer, or None."""
        return self.ends[0] if self.ends else None

    @property
    def end_of_text(self) -> int | None:
        """Return the id of the token between documents: the one they begin with, else the one they end with."""
        return self.end if self.begin is None else self.begin

    @property
    def bos_ids(self) -> list[int]:
        """Return the ids that every window begins with: the begin token, if there is one."""
        return [] if self.begin is None else [self.begin]

    @property
    def eos_ids(self) -> list[int]:
        """Return the ids that every answer ends with: the end token, if there is one."""
        return [] if self.end is None else [self.end]

    def encode(self, text: str) -> list[int]:
        """Return ids of `text`, none of them special. Lone surrogates raise UnicodeEncodeError: they are not text.
        DataError for a byte that has no token.

        A word of more than 25,000 characters is encoded in pieces (see `split.cut_runs`) where the tokens are bytes.
        """
        ids = [self._encoder.encode(piece, add_special_tokens=False).ids for piece in self._pieces(text)]
        return ids[0] if len(ids) == 1 else list(itertools.chain.from_iterable(ids))

    def encode_rendered(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return ids of a text in which control tokens are written out, as a chat template gives it, and where each
        begins and ends in it. Never for a person's text."""
        self._check_held(text)
        encoding = self._whole.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    @functools.cached_property
    def _whole(self) -> tokenizers.Tokenizer:
        """Return the encoder with its control tokens."""
        document = json.loads(self.plain_content)
        known = tokenizer_file.added_tokens(document, special=True)
        marks = [special(index, token) for token, index in self.specials.items() if token not in known]
        document["added_tokens"] = [*(document.get("added_tokens") or []), *marks]
        return _encoder(tokenizer_file.encoding_part(document, ()))

    def _pieces(self, text: str) -> list[str]:
        """Return the text, in pieces that are encoded apart without other ids than the whole; DataError for a byte that
        has no token."""
        self._check_held(text)
        return _pieces(text) if self._cut else [text]

    def _check_held(self, text: str) -> None:
        content = text.encode()  # the Rust side would panic on a lone surrogate
        if self._held is not None and (lost := content.translate(None, self._held)):
            place = len(content[: content.index(lost[:1])].decode(errors="ignore")) + 1
            raise DataError(f"character {place} has the byte 0x{lost[0]:02x}, for which the tokenizer has no token; "
                            "drop it from the text")  # fmt: skip

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ids of each text, on all cores."""
        cut = [self._pieces(text) for text in texts]
        pieces = list(itertools.chain.from_iterable(cut))
        encodings = iter(self._encoder.encode_batch_fast(pieces, add_special_tokens=False))
        return [
            next(encodings).ids if len(own) == 1 else [index for _ in own for index in next(encodings).ids]
            for own in cut
        ]

    @functools.cached_property
    def written_bytes(self) -> list[bytes]:
        """Return the bytes that each id adds to a text which a model writes: none for a control token."""
        controls = set(self.specials.values())
        return [b"" if index in controls else content for index, content in enumerate(self.token_bytes)]

    @property
    def stop_ids(self) -> frozenset[int]:
        """Return the control tokens but for that between documents: no text has one, so that one which is drawn ends
        it."""
        return frozenset(self.specials.values()) - {self.end_of_text}

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the exact bytes of ids, specials as their text; IndexError for an id outside of the vocabulary."""
        return b"".join(map(self.token_bytes.__getitem__, ids))

    def decode(self, ids: Iterable[int]) -> str:
        """Return text of ids; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    @functools.cached_property
    def prefix(self) -> bytes:
        """Return what encoding puts before a text: nothing, or a space."""
        found = self.decode_bytes(self.encode("a"))
        return b" " if found == b" a" else b""

    def text_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the bytes of a whole text, from its beginning: without what encoding puts before it."""
        return self.decode_bytes(ids).removeprefix(self.prefix)

    @functools.cached_property
    def lossy(self) -> list[str]:
        """Return what encoding and decoding change in some texts; an empty list where every text comes back
        unchanged."""
        back = {what: self._gives_back(text) for what, text in PROBES.items()}
        return [what for what, same in back.items() if same is False or (what == NO_TOKEN and None in back.values())]

    def _gives_back(self, text: str) -> bool | None:
        """Return whether a text comes back unchanged; None where it cannot be encoded."""
        try:
            return self.text_bytes(self.encode(text)) == text.encode()
        except DataError:
            return None


@dataclass(frozen=True)
class Marks:
    """Names of control tokens: the one that documents and windows begin with, and those that end a text."""

    begin: str | None
    ends: tuple[str, ...]

    def names(self) -> tuple[str, ...]:
        return (*([self.begin] if self.begin is not None else []), *self.ends)


def _default_marks(document: dict[str, Any]) -> Marks:
    """Choose the begin and end tokens where the file does not name them: <|endoftext|> or nanochat's <|bos|> for
    both."""
    controls = tokenizer_file.added_tokens(document, special=True)
    mark = next((name for name in DOCUMENT_MARKS if name in controls), None)
    return Marks(mark, () if mark is None else (mark,))


def _with_marks(content: bytes, marks: Marks) -> bytes:
    if marks == _default_marks(json.loads(content)):
        return content
    said = json.dumps({MARKS: {"begin": marks.begin, "ends": list(marks.ends)}}, ensure_ascii=False)
    return said[:-1].encode() + b"," + content.lstrip()[1:]


def _read_marks(document: Any) -> Marks:
    begin, ends = document["begin"], document["ends"]
    if not isinstance(begin, str | None) or not all(isinstance(name, str) for name in ends):
        raise Unfit(f"{MARKS}: want the names of tokens")
    return Marks(begin, tuple(ends))


def _encoder(document: dict[str, Any]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(document))


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
        raise ConfigError(f"--special: {escape(taken[0])} is an ordinary token too; choose a form like <|name|>")
    document["added_tokens"] = [special(len(ordinary) + index, name) for index, name in enumerate(names)]
    return Tokenizer(_written(document))


def from_merges(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], specials: dict[str, int], *, pattern: str = "gpt2"
) -> Tokenizer:
    """Return the tokenizer of a vocab.json and a merges.txt; DataError where they do not fit each other."""
    try:
        encoder = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    except Exception as error:
        raise DataError(f"vocab.json and merges.txt do not fit each other ({escape(str(error))})") from None
    encoder.pre_tokenizer = _pre_tokenizer(pattern)
    encoder.decoder = decoders.ByteLevel()
    document = json.loads(encoder.to_str())
    document["added_tokens"] = [special(index, name) for index, name in sorted((i, n) for n, i in specials.items())]
    return Tokenizer(_written(document))


def special(index: int, name: str) -> dict[str, Any]:
    """Return a control token in the form of tokenizer.json."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": name, **plain, "special": True}


def _written(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def check_vocabulary(vocab_size: int, specials: Sequence[str]) -> list[str]:
    """Return all special tokens, in order of their ids; ConfigError for a size or specials that cannot be."""
    names = [END_OF_TEXT, *(name for name in specials if name != END_OF_TEXT)]
    if "" in names or len(set(names)) < len(names):
        raise ConfigError("--special: special tokens must be distinct and not empty")
    smallest, largest = 256 + len(names), 1 << 20
    if not smallest <= vocab_size <= largest:
        least = f"{smallest} (256 bytes and {len(names)} special tokens)"
        raise ConfigError(f"--vocab-size: must be from {least} to {largest}, got {vocab_size}")
    return names


def _pre_tokenizer(pattern: str) -> Any:
    regex = PATTERNS[pattern]
    if regex is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = pre_tokenizers.Split(Regex(regex), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _pieces(text: str) -> list[str]:
    """Return the text in pieces that are encoded apart: of PIECE_LENGTH, no word longer than LONGEST_RUN."""
    return [piece for part in split_text(text, PIECE_LENGTH, anywhere=False) for piece in cut_runs(part, LONGEST_RUN)]
