"""Labels: the measures agree with scikit-learn, the objective with its definition, dropped tokens with their share."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.config.finetune import ClassifyConfig, FinetuneConfig, Pooling, RowsConfig
from gptcli.config.model import ModelConfig
from gptcli.data.batches import IGNORE
from gptcli.data.example import Example, label_text
from gptcli.data.packing import ExampleBatches, group_by_tokens, pack
from gptcli.data.tokenizer import learn_merges
from gptcli.device.runtime import Runtime
from gptcli.evaluate.classification import Labelled
from gptcli.evaluate.classification_head import label_probabilities
from gptcli.model.gpt import GPT
from gptcli.tasks.classify import LabelObjective, classify
from gptcli.train.metadata import ModelMetadata

CPU = Runtime(torch.device("cpu"), torch.float32, 1)
CONFIG = ModelConfig(num_layers=1, hidden_size=16, num_heads=2, context_length=16, vocab_size=40)


def classifier() -> GPT:
    model = GPT(CONFIG, labels=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.5, generator=generator)
    return model


def examples(count: int = 5) -> list[Example]:
    return [Example(f"f:{n}", [0, *range(1, 3 + n)], [False] * (3 + n), n % 3, False) for n in range(count)]


@pytest.mark.parametrize("count", [1, 3, 30])
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(count: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(20):
        found, wanted = torch.randint(4, (2, count), generator=torch.Generator().manual_seed(seed))
        labelled = Labelled(tuple("abcd"), wanted.numpy(), found.numpy(), torch.ones(count).numpy())
        accuracy, macro_f1 = labelled.accuracy_and_macro_f1()
        assert accuracy == pytest.approx(metrics.accuracy_score(wanted, found))
        assert macro_f1 == pytest.approx(metrics.f1_score(wanted, found, average="macro"))


def test_the_loss_is_the_weighted_cross_entropy_of_each_last_token_and_that_of_the_text_beside_it() -> None:
    model, rows = classifier(), examples()
    weights = torch.tensor([1.0, 2.0, 0.5])
    found = LabelObjective(weights, 0.1, 0.25, 0.3, blank=0)(model, pack(rows), CPU)
    wanted, text, tokens = torch.zeros(()), torch.zeros(()), 0
    for row in rows:
        assert row.label is not None
        hidden = model.hidden(torch.tensor([row.ids]))[0]
        logits = F.linear(hidden[-1:], model.label_head.weight)  # type: ignore[union-attr]
        label = torch.tensor([row.label])
        wanted = wanted + 0.75 * F.cross_entropy(logits, label, weight=weights, label_smoothing=0.1, reduction="sum")
        for state in hidden:
            logits = F.linear(state[None], model.label_head.weight)  # type: ignore[union-attr]
            nats = F.cross_entropy(logits, label, weight=weights, label_smoothing=0.1, reduction="sum")
            wanted = wanted + 0.25 * nats / len(hidden)
        text = text + F.cross_entropy(model.logits(hidden)[:-1], torch.tensor(row.ids[1:]), reduction="sum")
        tokens += len(row.ids) - 1
    torch.testing.assert_close(found, wanted + 0.3 * len(rows) * text / tokens)


@pytest.mark.parametrize("pooling", ["last", "average"])
def test_probabilities_are_those_of_each_text_alone(pooling: Pooling) -> None:
    model, rows = classifier().eval(), examples()
    together = label_probabilities(model, [row.ids for row in rows], CPU, pooling=pooling)
    alone = torch.cat([label_probabilities(model, [row.ids], CPU, pooling=pooling) for row in rows])
    torch.testing.assert_close(together, alone)


def test_the_last_token_names_the_label_or_its_mean_with_what_all_tokens_say_does() -> None:
    model, row = classifier().eval(), examples()[2]
    with torch.no_grad():
        logits = F.linear(model.hidden(torch.tensor([row.ids]))[0], model.label_head.weight)  # type: ignore[union-attr]
    last, all_tokens = logits[-1:].softmax(-1), logits.mean(0, keepdim=True).softmax(-1)
    torch.testing.assert_close(label_probabilities(model, [row.ids], CPU, pooling="last"), last)
    torch.testing.assert_close(label_probabilities(model, [row.ids], CPU, pooling="average"), (last + all_tokens) / 2)


def test_a_classifier_reads_a_text_from_a_space_on() -> None:
    assert [label_text(text) for text in ("good", " good", "\tgood", "")] == [" good", " good", "\tgood", " "]


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 40))
def test_an_epoch_has_every_example_once_whatever_the_batch_size(batch_size: int, tokens: int) -> None:
    rows = [Example(f"f:{n}", [n], [False], n, False) for n in range(batch_size * 3)]
    batches = ExampleBatches(rows, batch_size=batch_size, micro_batch_tokens=tokens, seed=1)
    labels = [[int(label) for batch in batches(step).micro_batches for label in batch.targets[0]] for step in range(6)]
    first_epoch, second_epoch = (list(itertools.chain(*part)) for part in (labels[:3], labels[3:]))
    assert sorted(first_epoch) == sorted(second_epoch) == list(range(len(rows)))
    assert first_epoch != second_epoch or len(rows) < 8


def test_targets_stand_where_the_token_before_them_is() -> None:
    rows = [
        Example("f:1", [5, 6, 7], [False, False, True], None, False),
        Example("f:2", [8, 9], [True] * 2, None, False),
    ]
    batch = pack(rows)
    assert batch.inputs.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.targets.tolist() == [[IGNORE, 7, IGNORE, 9, IGNORE]]
    assert batch.lengths == (3, 2)


def test_the_share_of_dropped_tokens_is_the_one_asked_for_and_the_same_when_asked_again() -> None:
    rows = [Example("f:1", [1] * 1000, [False] * 1000, 0, False)] * 4
    batches = ExampleBatches(rows, batch_size=4, micro_batch_tokens=8192, seed=1, token_dropout=0.25, blank=0)
    (first,), (again,) = batches(3).micro_batches, batches(3).micro_batches
    assert torch.equal(first.inputs, again.inputs)
    assert float((first.inputs == 0).float().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(("imported", "asked", "dropped"), [(False, None, 0.3), (True, None, 0.0), (True, 0.1, 0.1)])
def test_words_of_an_imported_model_are_not_dropped_unless_asked_for(
    tmp_path: Path, imported: bool, asked: float | None, dropped: float
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\ngood,yes\nbad,no\n")
    options = ClassifyConfig(token_dropout=asked)
    config = FinetuneConfig(
        run_dir="r", base="b", task="classify", data=RowsConfig(train=(str(rows),)), classify=options
    )
    base = ModelMetadata(origin={"config.json": "{}"} if imported else {})
    assert classify(config, learn_merges(["a"], vocab_size=257), base, 64).token_dropout == dropped


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 20))
def test_groups_hold_all_items_in_order_within_their_size(lengths: list[int], most: int) -> None:
    groups = list(group_by_tokens(lengths, most, lambda length: length))
    assert [length for group in groups for length in group] == lengths
    assert all(sum(group) <= most or len(group) == 1 for group in groups)


def test_a_levelled_embedding_is_the_same_to_a_model_with_a_norm_after_it() -> None:
    model = classifier().eval()
    ids = torch.tensor([[1, 5, 9, 3]])
    with torch.no_grad():
        model.embedding.weight.mul_(torch.linspace(0.5, 9, 40)[:, None])
        before = model(ids)
    model.level_embedding()
    torch.testing.assert_close(model.embedding.weight.square().mean(1), torch.ones(40))
    torch.testing.assert_close(model(ids), before, rtol=1e-4, atol=1e-4)
