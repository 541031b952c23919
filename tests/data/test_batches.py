"""Batches: every token once an epoch, in an order that depends on seed and step alone."""

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.base.errors import DataError
from gptcli.data.batches import TokenBatches, derived_seed, permute
from gptcli.data.shards import ResidentTokens, SplitIndex, SplitWriter, TokenArray, near, token_dtype, write_index

FIRST = 65_000  # the id that begins every row; the tokens of a test are their own positions


@contextmanager
def tokens_on_disk(count: int, shards: int = 1, *, vocab_size: int = FIRST + 1) -> Iterator[TokenArray]:
    """The sequence 0, 1, ..., count - 1 in as many shards."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        writer = SplitWriter(directory, "train", token_dtype(vocab_size))
        for part in np.array_split(np.arange(count), shards):
            writer.append(part.tolist(), text_bytes=len(part), starts_document=True)
            writer.flush()
        write_index(directory, vocab_size=vocab_size, splits={"train": writer.index, "validation": SplitIndex()})
        yield TokenArray(directory, "train")


@pytest.fixture(scope="module")
def tokens() -> Iterator[TokenArray]:
    with tokens_on_disk(1000, shards=3) as array:
        yield array


def make_batches(tokens: TokenArray, **changes: Any) -> TokenBatches:
    options = {"context_length": 16, "batch_size": 6, "micro_batch_size": 3, "first_token": FIRST, "seed": 7}
    return TokenBatches(tokens, **{**options, **changes})


def first_targets(batches: TokenBatches, steps: int) -> list[int]:
    """Position of the first token of every row of the first `steps` steps, in order."""
    return [int(row[0]) for step in range(steps) for batch in batches(step).micro_batches for row in batch.targets]


def epoch_starts(batches: TokenBatches, epoch: int) -> list[int]:
    first = epoch * batches.rows
    steps = -(-(first + batches.rows) // batches.batch_size)
    return first_targets(batches, steps)[first : first + batches.rows]


# --------------------------------------------------------------------------------------------------- permutation


@settings(deadline=None, max_examples=200)
@given(size=st.integers(1, 5000), seed=st.integers(0, 2**63 - 1))
def test_permute_is_a_bijection(size: int, seed: int) -> None:
    image = permute(np.arange(size, dtype=np.uint64), size, seed)
    assert np.array_equal(np.sort(image), np.arange(size, dtype=np.uint64))


@settings(deadline=None, max_examples=50)
@given(size=st.integers(1, 2**48), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_the_image_of_an_index_does_not_depend_on_the_others(size: int, seed: int, data: st.DataObject) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    together = permute(np.array(indices, dtype=np.uint64), size, seed)
    apart = [int(permute(np.array([index], dtype=np.uint64), size, seed)[0]) for index in indices]
    assert together.tolist() == apart
    assert len(set(apart)) == len(apart)
    assert max(apart) < size


def test_permute_leaves_its_argument_alone() -> None:
    index = np.arange(100, dtype=np.uint64)
    permute(index, 100, 1)
    assert np.array_equal(index, np.arange(100))


def test_permutations_look_random() -> None:
    """Over many seeds every index goes everywhere about equally often, and neighbours do not stay together."""
    size, seeds = 10, 4000
    images = np.stack([permute(np.arange(size, dtype=np.uint64), size, seed) for seed in range(seeds)]).astype(int)
    counts = np.stack([np.bincount(images[:, place], minlength=size) for place in range(size)])
    assert np.abs(counts - seeds / size).max() < 5 * np.sqrt(seeds / size)
    neighbours = (np.diff(images, axis=1) == 1).mean()
    assert neighbours == pytest.approx(1 / size, abs=0.02)


def test_seeds_for_different_purposes_differ() -> None:
    seeds = [derived_seed(*numbers) for numbers in ((1, 23), (12, 3), (1, "23"), ("order", 1), ("phase", 1), (1,))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


# -------------------------------------------------------------------------------------------------------- epochs


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(4, 400),
    context=st.integers(2, 40),
    batch=st.integers(1, 9),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2),
)
def test_an_epoch_has_every_token_once_but_for_two_rows_at_the_ends(
    count: int, context: int, batch: int, seed: int, epoch: int
) -> None:
    count = max(count, context)
    with tokens_on_disk(count, shards=1 + count % 3) as tokens:
        batches = make_batches(tokens, context_length=context, batch_size=batch, micro_batch_size=batch, seed=seed)
        starts = sorted(epoch_starts(batches, epoch))
    covered = [token for start in starts for token in range(start, start + context)]
    assert covered == list(range(starts[0], starts[0] + len(starts) * context))  # each once, without a gap
    assert covered[-1] < count
    assert len(covered) > count - 2 * context


@pytest.mark.parametrize("count", [16, 17, 31, 32, 47, 48, 100])
def test_every_token_is_learnt_in_some_epoch(count: int) -> None:
    with tokens_on_disk(count) as tokens:
        batches = make_batches(tokens, batch_size=50, micro_batch_size=50)
        starts = set(first_targets(batches, 50))
    assert {token for start in starts for token in range(start, start + 16)} == set(range(count))


def test_rows_are_runs_of_the_text_and_inputs_lag_behind_by_one(tokens: TokenArray) -> None:
    for batch in make_batches(tokens)(3).micro_batches:
        assert torch.equal(batch.targets, batch.targets[:, :1] + torch.arange(16))
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
        assert (batch.inputs[:, 0] == FIRST).all()
        assert batch.inputs.dtype == batch.targets.dtype == torch.int64


def test_epochs_have_different_orders_and_phases(tokens: TokenArray) -> None:
    batches = make_batches(tokens, context_length=20)  # divides the tokens, and still the phase varies
    epochs = [epoch_starts(batches, epoch) for epoch in range(4)]
    orders = [tuple(np.argsort(starts)) for starts in epochs]
    assert len(set(orders)) == 4
    assert len({min(starts) for starts in epochs}) > 1


def test_seeds_have_different_orders(tokens: TokenArray) -> None:
    assert epoch_starts(make_batches(tokens, seed=1), 0) != epoch_starts(make_batches(tokens, seed=2), 0)


@settings(deadline=None, max_examples=30)
@given(step=st.integers(0, 10**6))
def test_a_batch_depends_on_seed_and_step_alone(tokens: TokenArray, step: int) -> None:
    used = make_batches(tokens)
    used(0)
    used(step + 1)
    for ours, theirs in zip(used(step).micro_batches, make_batches(tokens)(step).micro_batches, strict=True):
        assert torch.equal(ours.inputs, theirs.inputs)
        assert torch.equal(ours.targets, theirs.targets)
        assert ours.place == theirs.place


def test_a_batch_that_memory_would_not_hold_is_made_piece_by_piece(tokens: TokenArray) -> None:
    step = make_batches(tokens, batch_size=1 << 40, micro_batch_size=2)(1)
    assert step.targets == 16 << 40
    some = list(itertools.islice(step.micro_batches, 3))
    assert [batch.inputs.shape for batch in some] == [(2, 16)] * 3


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 6, 12])
def test_micro_batches_make_the_same_rows_whatever_their_size(tokens: TokenArray, micro_batch: int) -> None:
    whole = make_batches(tokens, batch_size=12, micro_batch_size=12)
    parts = make_batches(tokens, batch_size=12, micro_batch_size=micro_batch)
    for step in (0, 4, 5, 11):  # the 61 rows of an epoch end within step 5
        assert [len(batch.targets) for batch in parts(step).micro_batches] == [micro_batch] * (12 // micro_batch)
        for name in ("inputs", "targets"):
            joined = torch.cat([getattr(batch, name) for batch in parts(step).micro_batches])
            assert torch.equal(joined, getattr(next(iter(whole(step).micro_batches)), name))


def test_the_place_of_a_batch_names_shard_and_offset(tokens: TokenArray) -> None:
    for batch in make_batches(tokens)(0).micro_batches:
        file, offset = batch.place.split(":")
        shard = [f"train-0000{number}.bin" for number in range(3)].index(file)
        assert tokens.starts[shard] + int(offset) == batch.targets[0, 0]


def test_fewer_tokens_than_a_context_are_refused_with_both_numbers(tokens: TokenArray) -> None:
    with pytest.raises(DataError, match="has 1000 tokens, fewer than one context of 1001"):
        make_batches(tokens, context_length=1001)


# ------------------------------------------------------------------------------------------- the tokens on a device


@pytest.mark.parametrize("vocab_size", [65_536, 100_000])
def test_resident_tokens_are_the_same(vocab_size: int) -> None:
    """All ids of 16 bits, and of 32, across the borders of shards."""
    with tokens_on_disk(min(vocab_size, 70_000), shards=3, vocab_size=vocab_size) as array:
        resident = ResidentTokens(array, torch.device("cpu"))
        assert len(resident) == len(array)
        starts = np.arange(0, len(array) - 700, 611)
        assert torch.equal(resident.rows(starts, 700), array.rows(starts, 700))
        for step in (0, 9):
            pairs = zip(
                make_batches(array)(step).micro_batches, make_batches(resident)(step).micro_batches, strict=True
            )
            for ours, theirs in pairs:
                assert torch.equal(ours.inputs, theirs.inputs)
                assert torch.equal(ours.targets, theirs.targets)
                assert ours.place == theirs.place


def test_a_cpu_reads_tokens_where_they_are(tokens: TokenArray) -> None:
    assert near(tokens, torch.device("cpu")) is tokens
