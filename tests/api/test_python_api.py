"""The five lines of the README: load, encode, forward, loss, logits."""

from __future__ import annotations

import pytest
import torch
from conftest import Tiny

import gptcli
from gptcli.data.batches import IGNORE


def test_five_lines_load_a_model_and_give_loss_and_logits(tiny: Tiny) -> None:
    model, tokenizer = gptcli.load(tiny.run)
    ids = torch.tensor([tokenizer.encode("The miller found a lantern")])
    output = gptcli.forward(model, ids, labels=ids)
    output.loss.backward()
    print(output.loss, output.logits.shape)

    assert output.logits.shape == (1, ids.shape[1], tokenizer.vocab_size)
    assert all(weight.grad is not None for weight in model.parameters())


def test_the_loss_is_that_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, n_positions=16, vocab_size=40)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(40, (3, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.masked_fill(torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.4, IGNORE)
    ours = gptcli.forward(lambda ids: theirs(ids).logits, ids, labels=labels)
    assert torch.allclose(ours.loss, theirs(ids, labels=labels).loss, atol=1e-6)


def test_without_labels_there_is_no_loss_and_without_learnt_ones_it_is_zero(tiny: Tiny) -> None:
    model, _ = gptcli.load(tiny.run)
    ids = torch.zeros(1, 4, dtype=torch.long)
    assert gptcli.forward(model, ids).loss is None
    assert gptcli.forward(model, ids, labels=torch.full_like(ids, IGNORE)).loss == 0
