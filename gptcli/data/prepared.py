"""The data of a run -> a tokenizer and a prepared directory, made once and kept in a cache keyed on the content."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, compress
from pathlib import Path
from typing import Any

from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.places import cache_directory
from gptcli.base.report import Report
from gptcli.config.data import DataConfig, TokenizerConfig
from gptcli.data.corpus import Corpus, read_corpus, survey
from gptcli.data.encode import encode_corpus, finish, tell_overlap
from gptcli.data.learn_tokenizer import learn_tokenizer
from gptcli.data.shards import SPLITS, TokenArray, is_prepared, read_index
from gptcli.data.tokenizer import Tokenizer

ABANDONED_SECONDS = 7 * 24 * 3600  # what a killed preparation left is kept so long, to go on with
KEY = "[0-9a-f]" * 24  # of a corpus; the cache may be a directory that holds other things, too
SPOOL = "spool-" + "[a-z0-9_]" * 8  # as tempfile names it


def check_on_machine(prepared: Path, rank: int) -> None:
    """Raise ConfigError where the directory that process 0 prepared is not on the machine of process `rank`."""
    if not is_prepared(prepared):
        raise ConfigError(
            f"{escape(str(prepared))}: is not on the machine of process {rank}; set data.cache_dir to a directory "
            "that all machines share, or prepare the text there, gptcli prepare"
        )


def prepare_data(data: DataConfig, wanted: TokenizerConfig, report: Report) -> tuple[Tokenizer, Path]:
    """Return the tokenizer and the prepared directory of a run, made and kept in the cache where it names raw text."""
    directories = [Path(path) for path in data.inputs if is_prepared(Path(path))]
    if directories:
        if len(data.train) > 1 or data.validation:
            raise ConfigError(f"data.train: {escape(str(directories[0]))} is a prepared directory; name it alone")
        tokenizer = Tokenizer.load(directories[0])
        if wanted.path and Tokenizer.load(wanted.path).with_end_of_text().sha256 != tokenizer.sha256:
            raise DataError(
                f"tokenizer.path: {escape(wanted.path)} is not the tokenizer that "
                f"{escape(str(directories[0]))} was prepared with; leave it out or run gptcli prepare again"
            )
        tell_overlap(read_index(directories[0]), report)
        return tokenizer, directories[0]
    cache = cache_directory(data.cache_dir)
    given = Tokenizer.load(wanted.path).with_end_of_text() if wanted.path else None
    with _spool_directory(cache) as spool:
        corpus = survey(data, spool, report)
        work = cache / "work" / corpus.key()
        with fsio.locked(work, wait=report.message):  # runs on the same text make its data once
            tokenizer = given or _cached_tokenizer(wanted, cache, [corpus], report)
            key = corpus.key(tokenizer.sha256)
            prepared = cache / "prepared" / key
            if not _is_whole(prepared, report):
                partial = work / key
                for directory in (partial, prepared.parent):
                    fsio.make_directory(directory)
                encode_corpus(corpus, tokenizer, partial, report=report)
                finish(partial, prepared)
    tell_overlap(read_index(prepared), report)
    return tokenizer, prepared


@contextmanager
def _spool_directory(cache: Path) -> Iterator[Path]:
    """Make a directory for copies of streams, removed afterwards; remove what killed runs left in the cache as well."""
    work = cache / "work"
    work.mkdir(parents=True, exist_ok=True)
    fsio.sweep_abandoned(work.glob(SPOOL), seconds=60)
    fsio.sweep_abandoned(work.glob(KEY), seconds=ABANDONED_SECONDS)
    for directory, names in ((cache / "prepared", KEY), (cache / "tokenizers", rf"{KEY}\.json")):
        left = chain.from_iterable(fsio.leftovers(directory, kind, names) for kind in fsio.KINDS)
        fsio.sweep_abandoned(left, seconds=ABANDONED_SECONDS)
    spool = Path(tempfile.mkdtemp(prefix="spool-", dir=work))
    try:
        with fsio.locked(spool):
            yield spool
    finally:
        shutil.rmtree(spool, ignore_errors=True)


def _is_whole(prepared: Path, report: Report) -> bool:
    """Return a prepared directory of the cache can be used; one that was damaged is made again."""
    if not is_prepared(prepared):
        return False
    try:
        for split in SPLITS:
            TokenArray(prepared, split)
    except DataError:
        report.warning(f"{escape(str(prepared))}: damaged; preparing the text again")
        return False
    return True


def prepare_parts(data: DataConfig, wanted: TokenizerConfig, report: Report) -> tuple[Tokenizer, list[Path]]:
    """Return the tokenizer of a mixture and a prepared directory for each part of it; one, where data are no mixture.

    The tokenizer is that of parts that are prepared, or is trained on the training text of all parts.
    """
    if not data.mixed:
        tokenizer, prepared = prepare_data(data, wanted, report)
        return tokenizer, [prepared]
    ready = next((name for name in data.inputs if is_prepared(Path(name))), None)
    if data.validation and all(is_prepared(Path(name)) for name in data.inputs):
        raise ConfigError("data.validation: the mixture is of prepared directories, which hold out text; leave it out")
    if wanted.path is None and ready is not None:
        wanted = dataclasses.replace(wanted, path=str(Path(ready) / "tokenizer.json"))
    elif wanted.path is None:
        wanted = dataclasses.replace(wanted, path=str(_mixture_tokenizer(data, wanted, report)))
    found = []
    for part in data.each:
        if is_prepared(Path(part.inputs[0])):
            part = dataclasses.replace(part, validation=())
        tokenizer, prepared = prepare_data(part, wanted, report)
        found.append(prepared)
    if data.validation:
        _tell_of_held_out(data, found, report)
    return tokenizer, found


def _tell_of_held_out(data: DataConfig, directories: Sequence[Path], report: Report) -> None:
    """Warn of parts that were prepared before and may hold what is validated on; only raw text is compared with it."""
    facts = [read_index(directory)["inputs"] for directory in directories]
    ready = [is_prepared(Path(name)) for name in data.inputs]
    raw = facts[ready.index(False)]
    held_out = {fact["sha256"] for fact in raw if fact["split"] == "validation"}
    for name, inputs in zip(compress(data.inputs, ready), compress(facts, ready), strict=True):
        learnt = [fact["name"] for fact in inputs if fact["split"] != "validation" and fact["sha256"] in held_out]
        if learnt:
            report.warning(f"{escape(name)}: holds {escape(learnt[0])}, on which data.validation validates; prepare it "
                           "again without that file")  # fmt: skip
        elif not held_out <= {fact["sha256"] for fact in inputs}:
            report.message(f"{escape(name)}: what it holds of data.validation is learnt; to leave that out, prepare it "
                           "with --validation")  # fmt: skip


def _mixture_tokenizer(data: DataConfig, wanted: TokenizerConfig, report: Report) -> Path:
    """Return the cached tokenizer that is trained on all parts of a mixture."""
    cache = cache_directory(data.cache_dir)
    with _spool_directory(cache) as spool:
        corpora = [survey(part, spool / str(number), report) for number, part in enumerate(data.each)]
        with fsio.locked(cache / "work" / corpora[0].key("mixture"), wait=report.message):
            _cached_tokenizer(wanted, cache, corpora, report)
            return _tokenizer_path(wanted, cache, corpora)


def _tokenizer_path(wanted: TokenizerConfig, cache: Path, corpora: Sequence[Corpus]) -> Path:
    key = corpora[0].key(dataclasses.astuple(wanted), *(corpus.key() for corpus in corpora[1:]))
    return cache / "tokenizers" / f"{key}.json"


def _cached_tokenizer(wanted: TokenizerConfig, cache: Path, corpora: Sequence[Corpus], report: Report) -> Tokenizer:
    path = _tokenizer_path(wanted, cache, corpora)
    if path.exists():
        return Tokenizer(path.read_bytes(), name=str(path))
    done, total_bytes = 0, sum(corpus.total_bytes for corpus in corpora)

    def training_pieces() -> Iterator[Any]:
        nonlocal done
        for split, piece in chain.from_iterable(map(read_corpus, corpora)):
            done += piece.raw_bytes
            report.progress("train tokenizer", done, total_bytes, unit="B")
            if split == "train":
                yield piece

    tokenizer, facts = learn_tokenizer(
        training_pieces(),
        vocab_size=wanted.vocab_size,
        pattern=wanted.pattern,
        max_bytes=wanted.max_bytes,
        report=report,
    )
    report.message(f"trained a tokenizer: {facts.vocab_size} tokens, {facts.bytes_per_token:.2f} bytes per token")
    fsio.make_directory(path.parent)
    fsio.write_file(path, tokenizer.content)
    return tokenizer
