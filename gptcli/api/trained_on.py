"""Tell whether the text that a model is judged by is in the text it was trained on, as far as that can still be
read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, GptcliError
from gptcli.base.report import Report
from gptcli.config.data import DataConfig, SourceConfig
from gptcli.data.blocks import PIECE_BYTES
from gptcli.data.corpus import split_pieces, survey
from gptcli.data.overlap import HELD_OUT_CHARACTERS, find_overlap
from gptcli.data.shards import TokenArray, is_prepared
from gptcli.data.text import Piece
from gptcli.data.tokenizer import Tokenizer

MOST_BYTES = 1 << 30  # of training text that is looked at


class Kept:
    """Pieces that pass through, the first HELD_OUT_CHARACTERS of them kept to be searched for."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces, self.pieces, self._characters = pieces, list[Piece](), 0

    def __iter__(self) -> Iterator[Piece]:
        for piece in self._pieces:
            if self._characters < HELD_OUT_CHARACTERS:
                self.pieces.append(piece)
                self._characters += len(piece.text)
            yield piece


def warn_of_training_text(checkpoint: Path, judged_by: Sequence[Piece], names: str, report: Report) -> None:
    """Tell how much of a text is in the training text of a checkpoint of `gptcli pretrain`.

    Says nothing where the training text is not there any more, has changed, is a stream or larger than MOST_BYTES.
    """
    try:
        with tempfile.TemporaryDirectory() as spool:
            training = _training_pieces(checkpoint, Path(spool))
            if training is not None and (line := find_overlap(judged_by, training).warning(names)):
                report.warning(line)
    except (GptcliError, OSError):  # it cannot be read now
        return


def _training_pieces(checkpoint: Path, spool: Path) -> Iterator[Piece] | None:
    path = checkpoint / "training.json"
    if not path.is_file():
        return None
    run: Any = fsio.read_json(path).get("run")
    if not isinstance(run, dict) or not isinstance(run.get("data"), dict):
        return None
    given: dict[str, Any] = {
        name: tuple(_input(item) for item in value) if isinstance(value, list) else value
        for name, value in run["data"].items()
    }
    try:
        data = DataConfig(**given)
    except (TypeError, ConfigError):  # of a fine-tuning run, whose data are rows
        return None
    if any(name == "-" or Path(name).is_fifo() for name in (*data.inputs, *data.validation)):
        return None
    parts = [None if is_prepared(Path(part.inputs[0])) else survey(part, spool, Report()) for part in data.each]
    corpora = [corpus for corpus in parts if corpus is not None]
    known = {fact["sha256"] for corpus in corpora for fact in corpus.facts}
    if sum(corpus.total_bytes for corpus in corpora) > MOST_BYTES:
        return None
    if len(corpora) == len(parts) and known != set(run.get("content", {}).get("inputs", ())):
        return None
    return chain.from_iterable(
        _decoded(Path(part.inputs[0])) if corpus is None else split_pieces(corpus, "train")
        for part, corpus in zip(data.each, parts, strict=True)
    )


def _input(item: Any) -> Any:
    """Return an input as a run file has it: a name, or a part of a mixture."""
    return SourceConfig(**item) if isinstance(item, dict) else item


def _decoded(prepared: Path) -> Iterator[Piece]:
    """Yield the training text of a prepared directory, from its tokens."""
    tokens, tokenizer = TokenArray(prepared, "train"), Tokenizer.load(prepared)
    for start in range(0, min(len(tokens), MOST_BYTES // 4), PIECE_BYTES):
        yield Piece(tokenizer.decode(tokens.read(start, PIECE_BYTES).tolist()), start == 0, 0)
