"""Answers by log-probability: of the words of a label, or of one choice among several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gptcli.base.errors import DataError
from gptcli.base.report import Report
from gptcli.evaluate import multiple_choice
from gptcli.evaluate.few_shot import Shots, join
from gptcli.evaluate.items import Item, continuation
from gptcli.evaluate.options import RowOptions
from gptcli.evaluate.result import Outcome, TruncationCounts, classified, means
from gptcli.evaluate.scoring import Sequence as Scorable
from gptcli.evaluate.scoring import encode_pair, score_sequences
from gptcli.train.loaded_model import LoadedModel


def classify_by_words(
    loaded: LoadedModel,
    items: Sequence[Item],
    words: dict[str, str],
    options: RowOptions,
    shots: Shots | None,
    report: Report,
) -> Outcome:
    """Choose labels by the log-probability, after the prompt, of the words that stand for them."""
    cuts, found = TruncationCounts(), []
    for scored in score_answers(loaded, items, [tuple(words.values())] * len(items), options, shots, cuts):
        found.append(multiple_choice.probabilities([logprob for logprob, _ in scored]))
        report.progress("evaluate", len(found), len(items))
    details = {"method": "log-probability of the label's words", "label_words": words}
    return classified(items, tuple(words), np.array(found), details, cuts)


def choose(
    loaded: LoadedModel, items: Sequence[Item], options: RowOptions, shots: Shots | None, report: Report
) -> Outcome:
    """Return the choice with the greatest log-probability, raw and for its length."""
    cuts, records = TruncationCounts(), list[dict[str, Any]]()
    right: dict[str, list[float]] = {name: [] for name in multiple_choice.NORMALISATIONS}
    all_scored = score_answers(loaded, items, [item.choices for item in items], options, shots, cuts)
    for item, scored in zip(items, all_scored, strict=True):
        logprobs, tokens = zip(*scored, strict=True)
        preferred = multiple_choice.preferred(item.choices, logprobs, tokens)
        for name, index in preferred.items():
            right[name].append(float(item.choices[index] == item.answers[0]))
        facts = zip(item.choices, scored, strict=True)
        records.append(
            {
                "place": item.place,
                "answer": item.answers[0],
                "choices": [{"text": text, "logprob": logprob, "tokens": n} for text, (logprob, n) in facts],
                "preferred": {name: item.choices[index] for name, index in preferred.items()},
                "correct": item.choices[preferred["accuracy"]] == item.answers[0],
            }
        )
        report.progress("evaluate", len(records), len(items))
    scores = {name: np.array(values) for name, values in right.items()}
    details = {**vars(cuts), "log-probability_divided_by": multiple_choice.NORMALISATIONS}
    return means(scores, set(scores), records, details)


def score_answers(
    loaded: LoadedModel,
    items: Sequence[Item],
    choices: Sequence[Sequence[str]],
    options: RowOptions,
    shots: Shots | None,
    cuts: TruncationCounts,
) -> Iterator[list[tuple[float, int]]]:
    """Yield for each row (log-probability, tokens) of each of its choices after its prompt."""

    def sequences() -> Iterator[Scorable]:
        for number, (item, texts) in enumerate(zip(items, choices, strict=True)):
            yield from _sequences(loaded, item, texts, options, shots.before(item, number) if shots else [], cuts)

    scored = score_sequences(loaded.model, sequences(), loaded.runtime)
    for texts in choices:
        row = [next(scored) for _ in texts]
        yield [(-float(part.nats.double().sum()), len(part.nats)) for part in row]


def _sequences(
    loaded: LoadedModel,
    item: Item,
    texts: Sequence[str],
    options: RowOptions,
    before: list[str],
    cuts: TruncationCounts,
) -> list[Scorable]:
    """Return a row's choices behind its context. The last token of a choice is not fed, so it takes no room."""
    encode, first = loaded.tokenizer.encode, loaded.tokenizer.bos_ids
    ends = [continuation(item.prompt, text) for text in texts]
    longest = max(len(encode(end)) for end in ends) - 1
    context = join(before, item.prompt, lambda text: len(encode(text)) + longest <= loaded.room)
    cuts.count(context)
    pairs = [encode_pair(loaded.tokenizer, context.text, end) for end in ends]
    excess = max(len(ids) + len(after) - 1 - loaded.room for ids, after in pairs)
    if excess > 0:
        if options.truncate == "error" or excess > min(len(ids) for ids, _ in pairs):
            tokens = excess + loaded.room
            way = "shorten it or pass --truncate left" if options.truncate == "error" else "shorten its choices"
            raise DataError(f"{item.place}: takes {tokens} tokens and the context holds {loaded.room}; {way}")
        cuts.rows_truncated += 1
    kept = [(ids[max(0, excess) :], after) for ids, after in pairs]
    if not first and not all(ids for ids, _ in kept):
        raise DataError(f"{item.place}: no text before the choices, and the tokenizer has no <|endoftext|>; write one")
    return [Scorable(first + ids + after, len(first) + len(ids)) for ids, after in kept]
