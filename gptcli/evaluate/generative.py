"""Answers in a model's own words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gptcli.base.errors import DataError
from gptcli.base.report import Report
from gptcli.config.generate import GenerateOptions
from gptcli.data.conversation import Message
from gptcli.evaluate import answers
from gptcli.evaluate.few_shot import SEPARATOR, Shots, join
from gptcli.evaluate.items import Item
from gptcli.evaluate.options import RowOptions
from gptcli.evaluate.result import Outcome, TruncationCounts, means
from gptcli.generate.engine import Engine, Request
from gptcli.train.loaded_model import LoadedModel


def write(
    loaded: LoadedModel, items: Sequence[Item], options: RowOptions, shots: Shots | None, report: Report
) -> Outcome:
    """Answer the items in the model's own words; in the form of its conversations where it was tuned to converse."""
    cuts, records = TruncationCounts(), list[dict[str, Any]]()
    stop = options.stop or ((SEPARATOR,) if shots else ())
    drawing = GenerateOptions(max_tokens=options.max_tokens, temperature=options.temperature, stop=stop,
                              seed=options.seed, truncate=options.truncate)  # fmt: skip
    engine = Engine(loaded.model, loaded.tokenizer, loaded.runtime)
    form = loaded.metadata.conversation
    ends = frozenset[int]() if form is None else form.stop_ids(loaded.tokenizer)
    first = None if form is None else tuple(form.first(loaded.tokenizer))

    def encode(text: str) -> list[int]:
        return loaded.tokenizer.encode(text) if form is None else form.prompt([Message("user", text)], loaded.tokenizer)

    def requests() -> Iterator[Request]:
        for number, item in enumerate(items):
            before = shots.before(item, number) if shots else []
            context = join(before, item.prompt, lambda text: len(encode(text)) + options.max_tokens - 1 <= loaded.room)
            cuts.count(context)
            ids = encode(context.text)
            try:
                fitting = engine.fit(ids, drawing)
            except DataError as error:
                raise DataError(f"{item.place}: {error}") from None
            cuts.rows_truncated += len(fitting) < len(ids)
            yield Request(fitting, drawing, stop_ids=ends, first=first)

    for item, completion in zip(items, engine.run(requests()), strict=True):
        text = completion.text.strip()
        records.append(
            {
                "place": item.place,
                "prompt": item.prompt,
                "references": list(item.answers),
                "text": text,
                "finish_reason": completion.finish_reason,
                "exact_match": answers.exact_match(text, item.answers),
                "token_f1": answers.token_f1(text, item.answers),
            }
        )
        report.progress("evaluate", len(records), len(items))
    scores = {name: np.array([record[name] for record in records]) for name in ("exact_match", "token_f1")}
    details = {**vars(cuts), "normalisation": answers.NORMALISATION, "max_tokens": options.max_tokens,
               "temperature": options.temperature, "stop": list(stop)}  # fmt: skip
    return means(scores, {"exact_match"}, records, details)
