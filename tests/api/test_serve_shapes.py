"""The shapes of answers, from texts that an engine wrote."""

from __future__ import annotations

import json

import torch
from random_models import randomized

from gptcli.api.serve.fields import Ask
from gptcli.api.serve.shapes import TokenFacts
from gptcli.config.generate import GenerateOptions
from gptcli.config.model import ModelConfig
from gptcli.data.tokenizer import Tokenizer, learn_merges
from gptcli.device.runtime import Runtime
from gptcli.generate.engine import Engine, Request
from gptcli.model.gpt import GPT


def test_a_chat_has_an_entry_for_each_token_where_texts_begin_with_a_space() -> None:
    document = json.loads(learn_merges([" the cat sat"] * 3, vocab_size=280).plain_content)
    document["pre_tokenizer"]["add_prefix_space"] = True
    tokenizer = Tokenizer(json.dumps(document).encode())
    assert tokenizer.prefix == b" "
    shape = {"num_layers": 1, "num_heads": 2, "hidden_size": 32, "context_length": 64}
    model = randomized(GPT(ModelConfig(**shape, vocab_size=tokenizer.vocab_size)), 0.4)
    engine = Engine(model, tokenizer, Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1), slots=1)
    options = GenerateOptions(regex="[a-z]{9}", logprobs=1)  # of the text as it is shown
    (completion,) = engine.run([Request([5], options, first=())])
    assert len(completion.text) == 9
    ask = Ask(options, 1, stream=False, include_usage=False, logprobs=0, model=None, seed=0)
    told = TokenFacts(tokenizer, completion, ask, chat=True, prompt_text="")
    entries = told.next(completion.text, len(completion.ids))
    assert entries is not None
    assert len(entries["content"]) == len(completion.ids)
