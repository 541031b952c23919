"""The goldfish loss: the same targets of a passage are left out, wherever a row cuts it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RunCli, Tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.config.loss import GoldfishConfig
from gptcli.data.batches import IGNORE, TokenBatches
from gptcli.data.example import Example
from gptcli.data.goldfish import dropped
from gptcli.data.packing import pack, without_dropped
from gptcli.data.shards import SplitIndex, SplitWriter, TokenArray, token_dtype, write_index

GOLDFISH = GoldfishConfig()
VOCABULARY = 1000


def split(directory: Path, ids: list[int]) -> TokenArray:
    writer = SplitWriter(directory, "train", token_dtype(VOCABULARY))
    writer.append(ids, text_bytes=len(ids), starts_document=True)
    writer.flush()
    write_index(directory, vocab_size=VOCABULARY, splits={"train": writer.index, "validation": SplitIndex()})
    return TokenArray(directory, "train")


def random_ids(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()


def make(tokens: TokenArray, **changes: Any) -> TokenBatches:
    options: dict[str, Any] = {"context_length": 32, "batch_size": 8, "micro_batch_size": 4, "first_token": 0}
    return TokenBatches(tokens, **{**options, "seed": 3, "goldfish": GOLDFISH, **changes})


def test_a_passage_lacks_the_same_targets_at_any_place_of_any_row(tmp_path: Path) -> None:
    """Planted 64 times at random places; rows walk over it with a new phase each epoch."""
    passage = random_ids(60, 1)
    ids = random_ids(200, 2)
    for number in range(64):
        ids += passage + random_ids(50 + number % 7, 100 + number)
    text = np.array(ids)
    batches = make(split(tmp_path, ids))
    wanted: dict[int, bool] = {}
    seen = 0
    starts = [place for place in range(len(ids) - 60) if ids[place : place + 60] == passage]
    assert len(starts) == 64
    for step in range(60):
        for batch in batches(step).micro_batches:
            for row, targets in zip(batch.inputs, batch.targets, strict=True):
                known = row[1:].numpy()
                windows = np.lib.stride_tricks.sliding_window_view(text, len(known))
                (place,) = np.flatnonzero((windows == known).all(1))[:1]
                for start in starts:
                    for offset in range(GOLDFISH.context, 60):
                        column = start + offset - int(place)
                        if 0 <= column < 32:
                            left_out = int(targets[column]) == IGNORE
                            assert wanted.setdefault(offset, left_out) == left_out
                            seen += 1
    assert seen > 5000
    assert len(wanted) == 60 - GOLDFISH.context
    assert 3 <= sum(wanted.values()) <= 24  # a quarter of them, by chance


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(1, 20), st.integers(0, 1000))
def test_one_of_k_is_dropped_by_the_tokens_before_it_alone(drop_every: int, context: int, seed: int) -> None:
    goldfish = GoldfishConfig(drop_every=drop_every, context=context)
    ids = torch.tensor([random_ids(context + 4000, seed)])
    found = dropped(ids, goldfish)
    assert found.shape == (1, 4000)
    assert abs(float(found.float().mean()) - 1 / drop_every) < 0.04
    assert torch.equal(dropped(ids[:, 37:], goldfish), found[:, 37:])


def test_a_step_counts_the_targets_that_are_learnt_and_inputs_stay(tmp_path: Path) -> None:
    tokens = split(tmp_path, random_ids(5000, 5))
    with_it, without = make(tokens)(4), make(tokens, goldfish=None)(4)
    batches = list(with_it.micro_batches)
    assert with_it.targets == sum(int((batch.targets != IGNORE).sum()) for batch in batches)
    assert 0.6 < with_it.targets / without.targets < 0.9
    for batch, plain in zip(batches, without.micro_batches, strict=True):
        assert torch.equal(batch.inputs, plain.inputs)
        kept = batch.targets != IGNORE
        assert torch.equal(batch.targets[kept], plain.targets[kept])


def test_rows_at_the_beginning_of_the_text_have_less_before_them(tmp_path: Path) -> None:
    ids = random_ids(200, 7)
    source = make(split(tmp_path, ids)).source
    rows = torch.tensor([ids[5:37], ids[0:32], ids[50:82]])
    found = source._learnt(np.array([5, 0, 50]), rows, GOLDFISH)
    padded = torch.tensor([[0] * GOLDFISH.context + ids])
    whole = dropped(padded, GOLDFISH)[0]
    for row, start in zip(found, (5, 0, 50), strict=True):
        assert ((row == IGNORE) == whole[start : start + 32]).all()


def test_examples_of_fine_tuning_are_hashed_each_by_itself() -> None:
    one, other = random_ids(40, 8), random_ids(30, 9)
    examples = [Example("", ids, [False] + [True] * (len(ids) - 1), None, False) for ids in (one, other)]
    both = without_dropped(pack(examples), GOLDFISH).targets[0]
    alone = [without_dropped(pack([example]), GOLDFISH).targets[0] for example in examples]
    assert torch.equal(both, torch.cat(alone))
    assert 0 < int((both == IGNORE).sum()) - 2 < 40  # two have no target after them


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_it_is_an_option_of_both_kinds_of_training(command: str, tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    if command == "pretrain":
        asked = [command, tiny.run_file, "-s", "train.steps=3"]
    else:
        rows = "".join(
            f'{{"prompt": "Where was {n}?", "completion": "It was by the river, {n}."}}\n' for n in range(30)
        )
        (tmp_path / "rows.jsonl").write_text(rows)
        (tmp_path / "tune.yaml").write_text(
            f"run_dir: x\nbase: {tiny.run}\ntask: instruct\ndata: {{train: [{tmp_path}/rows.jsonl]}}\n"
            "train: {epochs: 1}\nruntime: {device: cpu, threads: 1}\n"
        )
        asked = [command, tmp_path / "tune.yaml"]
    losses = []
    for name, more in (("plain", []), ("fish", ["-s", "loss.goldfish.drop_every=2"])):
        done = run_cli(*asked, "-s", f"run_dir={tmp_path / name}", "-q", *more)
        assert done.code == 0, done.err
        losses.append((tmp_path / name / "metrics.jsonl").read_text())
    assert losses[0] != losses[1]
    assert "drop_every: 2" in (tmp_path / "fish" / "run.yaml").read_text()


def test_labels_have_no_goldfish_loss(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "tune.yaml").write_text(
        f"run_dir: {tmp_path}/x\nbase: {tiny.run}\ntask: classify\ndata: {{train: [rows.jsonl]}}\n"
        "loss: {goldfish: {}}\n"
    )
    run_cli("finetune", tmp_path / "tune.yaml").error(2, "finetune", "loss", "classify")
