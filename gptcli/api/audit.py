"""The audit of a model: passages, canaries, membership, copies in samples, personal data, its vocabulary.

An audit finds what it looks for; a low figure is no proof that nothing was learnt.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from gptcli.api.open_model import DeviceOptions, open_model
from gptcli.base import fsio
from gptcli.base.errors import ConfigError, DataError
from gptcli.base.escape import escape
from gptcli.base.report import Report
from gptcli.config import yaml_file
from gptcli.config.data import TokenizerConfig
from gptcli.config.generate import GenerateOptions
from gptcli.config.train import PretrainConfig
from gptcli.data.filters.canaries import FORMAT, Canary
from gptcli.data.filters.pii import find_pii
from gptcli.data.leaks import leaking_tokens
from gptcli.data.prepared import prepare_parts
from gptcli.data.shards import TokenArray, read_index
from gptcli.evaluate.memorisation import (
    MEMBER_TOKENS,
    PREFIX,
    SUFFIX,
    canary_report,
    extraction,
    membership,
    windows,
)
from gptcli.evaluate.novelty import copied
from gptcli.generate.engine import Engine, Request
from gptcli.train.audits import FORMAT as AUDIT_FORMAT
from gptcli.train.audits import audit_path, audited_sha256
from gptcli.train.lineage import known_inputs, read_lineage
from gptcli.train.loaded_model import LoadedModel

SHOWN_TOKENS = 20  # of a leaking vocabulary
LINEAGE_TOLD = {
    True: "that of the lineage",
    False: "not that of the lineage; what is called training text here was not read in training, as far as is known",
    None: "as given: there is no lineage to hold it against",
}


@dataclass(frozen=True)
class AuditOptions:
    """The limits of an audit: how much is looked at."""

    prefixes: int = 200
    samples: int = 100
    sample_tokens: int = 200
    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Audit:
    """The findings, by what was looked for; a part that could not be done says why under `skipped`."""

    checkpoint: str
    found: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {"format": AUDIT_FORMAT, "checkpoint": self.checkpoint, **self.found, "figures": self.figures()}

    def figures(self) -> dict[str, float]:
        """Return one number for each thing that --fail-above can hold a model to."""
        found, figures = self.found, dict[str, float]()
        if passages := found.get("extraction"):
            figures["extraction"] = passages["training"]["rate"] or 0.0
        if planted := [group for group in found.get("canaries", ()) if group["repeats"]]:
            figures["canaries"] = max(group["extracted"] / group["canaries"] for group in planted)
            exposed = [group["exposure_bits"] for group in planted if group["exposure_bits"] is not None]
            figures.update({"exposure": max(exposed)} if exposed else {})
        if members := found.get("membership"):
            figures["membership"] = max(score["auc"] for score in members.values())
        if novelty := found.get("novelty"):
            copies = next(size for size in novelty["samples"] if size["tokens"] == 25)
            figures["copied"] = copies["texts_with_a_run"] / max(1, copies["texts"])
        if "pii" in found:
            figures["pii"] = sum(found["pii"]["found"].values()) / max(1, found["pii"]["samples"])
        figures["vocabulary"] = found["vocabulary"]["leaking_tokens"]
        return figures

    def lines(self) -> list[tuple[str, str]]:
        """Return (name, value) pairs for a person."""
        found, lines = self.found, list[tuple[str, str]]()
        if "of_the_lineage" in found:
            lines.append(("text", LINEAGE_TOLD[found["of_the_lineage"]]))
        for name, each in (found.get("extraction") or {}).items():
            low, high = each["interval"]
            lines.append((f"passages of {name} text", f"{each['whole']} of {each['passages']} recited whole "
                          f"({low:.1%} to {high:.1%}), at most {each['longest']} of {SUFFIX} tokens"))  # fmt: skip
        for group in found.get("canaries", ()):
            name = f"{group['kind']}, {group['repeats']} x" if group["repeats"] else f"{group['kind']}, control"
            bits = "" if group["exposure_bits"] is None else f", exposure {group['exposure_bits']:.1f} of 8 bits"
            lines.append((f"canaries: {name}", f"{group['extracted']} of {group['canaries']} came out{bits}"))
        for name, score in (found.get("membership") or {}).items():
            low, high = score["interval"]
            title = {"loss": "loss", "min_k_plus_plus": "Min-K%++"}[name]
            lines.append((f"membership by {title}", f"AUC {score['auc']:.3f} ({low:.3f} to {high:.3f}), 0.5 is chance"))
        for name, sizes in (found.get("novelty") or {}).items():
            for each in sizes:
                title = f"{name} with {each['tokens']} tokens of the training text"
                lines.append((title, f"{each['texts_with_a_run']} of {each['texts']}"))
        if "pii" in found:
            kinds = ", ".join(f"{count} {kind}" for kind, count in found["pii"]["found"].items()) or "none"
            lines.append((f"personal data in {found['pii']['samples']} samples", kinds))
        leaks = found["vocabulary"]
        some = f": {', '.join(map(escape, leaks['tokens'][:5]))}" if leaks["tokens"] else ""
        lines.append(("tokens with a long number or an @", f"{leaks['leaking_tokens']}{some}"))
        lines += [(f"skipped: {name}", why) for name, why in found["skipped"].items()]
        return [*lines, ("checkpoint", self.checkpoint)]


def audit(
    run: str | Path,
    *,
    data: str | None = None,
    canaries: str | None = None,
    options: AuditOptions | None = None,
    report: Report,
    **how: Unpack[DeviceOptions],
) -> Audit:
    """Audit a checkpoint, and keep the findings beside it for its model card and `gptcli lineage`.

    `data`: a prepared directory; without one the run's own text, where it is still there. `canaries`: the key file.
    """
    options = options or AuditOptions()
    planted = None if canaries is None else read_canaries(canaries)
    loaded = open_model(run, **how)
    skipped: dict[str, str] = {}
    found: dict[str, Any] = {
        "weights_sha256": audited_sha256(loaded.directory),
        "options": vars(options),
        "skipped": skipped,
    }
    if loaded.metadata.labels:
        raise DataError(f"{escape(str(loaded.directory))}: a classifier, which writes nothing; audit its base")
    directories = _directories(loaded, data, skipped, report)
    splits = _splits(loaded, directories)
    samples = _samples(loaded, options, report)
    if splits:
        found["of_the_lineage"] = of_lineage = _of_the_lineage(loaded, directories)
        if of_lineage is False:
            report.warning(f"{', '.join(escape(str(path)) for path in directories)}: {LINEAGE_TOLD[False]}")
        found |= _against_text(loaded, splits, samples, options, skipped, report)
    if planted is not None:
        report.message("asking for canaries")
        found["canaries"] = canary_report(loaded, planted, options.seed)
        if unfit := len(planted) - sum(group["canaries"] for group in found["canaries"]):
            skipped["canaries"] = f"{unfit} of {len(planted)} are longer than the context"
    texts = [loaded.tokenizer.decode(ids) for ids in samples]
    try:
        kinds = Counter(span.kind for text in texts for span in find_pii(text))
        found["pii"] = {"samples": len(texts), "found": dict(sorted(kinds.items()))}
    except ConfigError as error:  # its library is an extra
        skipped["personal data"] = str(error)
    leaks = leaking_tokens(loaded.tokenizer)
    found["vocabulary"] = {"leaking_tokens": len(leaks), "tokens": leaks[:SHOWN_TOKENS]}
    result = Audit(str(loaded.directory), found)
    fsio.write_json(audit_path(loaded.directory), result.as_dict())
    return result


def _directories(loaded: LoadedModel, data: str | None, skipped: dict[str, str], report: Report) -> list[Path]:
    """Return the prepared directories of the model's text, part by part; none, and why, where it is not known."""
    if data is not None:
        return [Path(data)]
    below = loaded.directory.resolve().parent
    try:
        if below.name != "checkpoints":
            raise ConfigError("the checkpoint lies in no run")
        config = yaml_file.load(PretrainConfig, below.parent / "run.yaml").value
        given = TokenizerConfig(path=str(loaded.directory / "tokenizer.json"))
        return prepare_parts(config.data, given, report)[1]
    except (ConfigError, DataError) as error:
        skipped["training text"] = f"name it with --data PREPARED ({error})"
        return []


def _of_the_lineage(loaded: LoadedModel, directories: Sequence[Path]) -> bool | None:
    """Return whether the model, or a base of it, was made of the inputs of prepared text; None where either says
    nothing."""
    known = known_inputs(read_lineage(loaded.directory))
    given = {fact["sha256"] for path in directories for fact in read_index(path)["inputs"]}
    return given <= known if given and known else None


def _splits(loaded: LoadedModel, directories: Sequence[Path]) -> list[tuple[TokenArray, TokenArray]]:
    """Return the training and held-out tokens of prepared text, part by part."""
    splits = [(TokenArray(path, "train"), TokenArray(path, "validation")) for path in directories]
    size = loaded.tokenizer.vocab_size
    if any(tokens.index.max_id >= size for pair in splits for tokens in pair):
        raise DataError(f"{escape(str(directories[0]))}: prepared with another tokenizer than the model's")
    return splits


def _samples(loaded: LoadedModel, options: AuditOptions, report: Report) -> list[list[int]]:
    """Write texts from nothing, which is how a model shows what it would say by itself."""
    engine = Engine(loaded.model, loaded.tokenizer, loaded.runtime)
    length = min(options.sample_tokens, loaded.room)
    drawing = GenerateOptions(max_tokens=length, temperature=options.temperature, seed=options.seed, stop_at_eos=False)
    prompt = [] if engine.bos_ids else loaded.tokenizer.encode("\n")
    samples = []
    for completion in engine.run(Request(prompt, drawing, number) for number in range(options.samples)):
        completion.check()
        samples.append(completion.ids)
        report.progress("write samples", len(samples), options.samples)
    return samples


def _against_text(
    loaded: LoadedModel,
    splits: Sequence[tuple[TokenArray, TokenArray]],
    samples: Sequence[list[int]],
    options: AuditOptions,
    skipped: dict[str, str],
    report: Report,
) -> dict[str, Any]:
    """Return what needs the training text: extraction, membership, novelty; held-out text stands beside each."""
    mark, count, seed = loaded.tokenizer.end_of_text, -(-options.prefixes // len(splits)), options.seed

    def drawn(split: int, length: int) -> list[list[int]]:
        parts = (windows(pair[split], count, length, mark, seed) for pair in splits)
        return list(itertools.chain.from_iterable(parts))

    found: dict[str, Any] = {}
    if loaded.room >= PREFIX + SUFFIX:
        report.message("reciting passages")
        passages = {name: drawn(split, PREFIX + SUFFIX) for split, name in enumerate(("training", "held-out"))}
        if passages["training"]:
            found["extraction"] = {name: extraction(loaded, ids).as_dict() for name, ids in passages.items() if ids}
        else:
            skipped["passages"] = f"no document of the training text has the {PREFIX + SUFFIX} tokens of a passage"
    else:
        skipped["passages"] = f"the context has {loaded.room} tokens, and a passage {PREFIX + SUFFIX}"
    length = min(MEMBER_TOKENS, loaded.room)
    members, others = drawn(0, length), drawn(1, length)
    if len(members) > 1 and len(others) > 1:
        report.message("telling training text from held-out text")
        found["membership"] = {
            name: score.as_dict() for name, score in membership(loaded, members, others, seed).items()
        }
    else:
        skipped["membership"] = "there is no held-out text to compare with"
    report.message("looking for the samples in the training text")
    held_out = drawn(1, len(samples[0])) if samples and samples[0] else []
    texts = {"samples": samples, **({"held-out texts": held_out[: len(samples)]} if held_out else {})}
    found["novelty"] = {name: _copied(ids, splits) for name, ids in texts.items() if ids}
    return found


def _copied(texts: Sequence[list[int]], splits: Sequence[tuple[TokenArray, TokenArray]]) -> list[dict[str, Any]]:
    if len(splits) == 1:
        return copied(texts, splits[0][0])
    parts = [copied(texts, train) for train, _ in splits]  # of a mixture: what the part that has most of them has
    return [max(sizes, key=lambda each: each["texts_with_a_run"]) for sizes in zip(*parts, strict=True)]


def read_canaries(path: str) -> list[Canary]:
    """Return the canaries of a key file of `gptcli corpus canaries`; DataError where it is none."""
    document = fsio.read_json(Path(path))
    try:
        if document["format"] != FORMAT:
            raise ValueError
        fields = Canary.__annotations__
        return [Canary(**{name: each[name] for name in fields}) for each in document["canaries"]]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{escape(path)}: no key file of gptcli corpus canaries; name its key.json") from None
