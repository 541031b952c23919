"""Filter, dedup and decontaminate one after another, with a journal from which a killed run continues."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from gptcli.api.corpus.decontaminate import decontaminate
from gptcli.api.corpus.dedup import dedup
from gptcli.api.corpus.filter import filter_corpus
from gptcli.api.corpus.output import holds_others, write_documents
from gptcli.api.corpus.reading import Reading
from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError, RefusedError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.config.corpus import CorpusRecipe, DecontaminateConfig, DedupConfig, FilterConfig
from gptcli.config.schema import Section
from gptcli.data.filters.group import GroupOptions
from gptcli.data.filters.sketch import SketchOptions
from gptcli.data.text import TextOptions, file_sha256, find_sources

OUTPUT, REPORT = "corpus.jsonl", "report.json"


class _How(NamedTuple):
    """The settings that a step of a recipe is run with."""

    name: str
    reading: Reading
    memory_bytes: int
    report: Report


def run_recipe(
    recipe: CorpusRecipe,
    output: Path,
    report: Report,
    *,
    workers: int = 1,
    memory_bytes: int = 1 << 30,
    force: bool = False,
) -> dict[str, Any]:
    """Write output/corpus.jsonl, the lists of what was dropped and report.json, and return the report.

    Each step's result is a file of `output`, named in a journal with what it was made of; one that is there and whole
    is not made again. The report holds the recipe, the sha256 of inputs and outputs, and the counts of each step.
    Raises RefusedError where `output` holds the result of another recipe or of other inputs, without `force`.
    """
    text = TextOptions(field=recipe.field, encoding=recipe.encoding, errors=recipe.errors, separator=recipe.separator)
    inputs = _facts(recipe.inputs, text)
    names, reading = _names(recipe), Reading(text, workers)
    key = hashlib.sha256(json.dumps([asdict(recipe), inputs, _evaluation_sets(recipe)]).encode()).hexdigest()
    fsio.make_directory(output)
    with fsio.locked(output):
        journal = _journal(output, key, force=force)
        fsio.sweep(output)
        given = list(recipe.inputs)
        for number, name in enumerate(names):
            target = output / (OUTPUT if name == names[-1] else f"{number + 1}-{name}.jsonl")
            if not _is_done(journal, name, target):
                report.message(f"step {number + 1} of {len(names)}: {name}")
                counts = _make(getattr(recipe, name), given, target, _How(name, reading, memory_bytes, report))
                journal["steps"][name] = {**counts, "sha256": file_sha256(target)}
                fsio.write_json(output / "journal.json", journal)
            given, reading = [str(target)], Reading(TextOptions(field=recipe.field), workers)
        document = {"recipe": asdict(recipe), "inputs": inputs, "evaluation_sets": _evaluation_sets(recipe)}
        document |= {"steps": journal["steps"], "sha256": file_sha256(output / OUTPUT)}
        fsio.write_json(output / REPORT, document)
        for number, name in enumerate(names[:-1]):
            fsio.remove_file(output / f"{number + 1}-{name}.jsonl")
    return document


def _names(recipe: CorpusRecipe) -> list[str]:
    """Return the steps of a recipe, in order."""
    found = [name for name in ("filter", "dedup", "decontaminate") if getattr(recipe, name) is not None]
    if not found:
        raise ConfigError("the recipe has no step; give filter, dedup or decontaminate")
    return found


def _make(config: Section, given: list[str], target: Path, how: _How) -> dict[str, Any]:
    """Do one step, and return its counts."""
    dropped = target.parent / f"dropped-{how.name}.jsonl"
    match config:
        case FilterConfig():
            return filter_corpus(given, target, config, how.reading, how.report, dropped=dropped).as_dict()
        case DedupConfig():
            sketching = SketchOptions(config.documents, config.lines is not None, config.passages)
            grouping = GroupOptions(config.similarity, config.keep, config.lines, how.memory_bytes, config.most_dropped)
            rest: dict[str, Any] = {"against": config.against, "dropped": dropped, "work": target.parent / "work"}
            return asdict(dedup(given, target, sketching, grouping, how.reading, how.report, **rest))
        case DecontaminateConfig():
            if config.action == "report":  # the documents go on as they are
                write_documents(how.reading.documents(given), target)
            return asdict(decontaminate(given, target, config, how.reading, how.report, hits=dropped))
    raise AssertionError(config)


def _facts(inputs: tuple[str, ...], options: TextOptions) -> list[dict[str, Any]]:
    """Return name and sha256 of each input. DataError for a stream, which cannot be read twice."""
    found = []
    for source in find_sources(inputs, options):
        if source.path is None or source.stream is not None:
            raise DataError(f"{source.name}: a recipe reads files, to be able to go on; save it to a file")
        found.append({"name": source.name, "sha256": file_sha256(source.path)})
    return found


def _evaluation_sets(recipe: CorpusRecipe) -> list[dict[str, Any]]:
    against = (
        *(recipe.dedup.against if recipe.dedup else ()),
        *(recipe.decontaminate.against if recipe.decontaminate else ()),
    )
    return _facts(against, TextOptions()) if against else []


def _journal(output: Path, key: str, *, force: bool) -> dict[str, Any]:
    """Return the journal of an output, a new one where there is none of this recipe."""
    path = output / "journal.json"
    if path.is_file():
        journal = fsio.read_json(path)
        if isinstance(journal, dict) and journal.get("key") == key:
            return journal
        if not force:
            raise RefusedError(
                f"{escape(str(output))}: made by another recipe or of other inputs; pass --force, or name another"
            )
    elif holds_others(output):
        raise RefusedError(f"{escape(str(output))}: holds other files than gptcli makes there; name another output")
    journal = {"key": key, "steps": {}}
    fsio.write_json(path, journal)
    return journal


def _is_done(journal: dict[str, Any], name: str, target: Path) -> bool:
    """Return whether a step's result is there, whole; after the last step those before it are gone."""
    done = journal["steps"].get(name)
    if done is None:
        return False
    if not target.is_file():
        return target.name != OUTPUT and (target.parent / REPORT).is_file()
    return bool(done["sha256"] == file_sha256(target))
