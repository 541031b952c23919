"""Text as a task: its loss on held-out text, and a sample of what the model writes."""

from __future__ import annotations

from gptcli.config.generate import GenerateOptions
from gptcli.config.train import TrainConfig
from gptcli.data.tokenizer import Tokenizer
from gptcli.device.runtime import Runtime
from gptcli.evaluate.perplexity import score_documents
from gptcli.generate.engine import Engine, Request
from gptcli.model.gpt import GPT
from gptcli.train.run import Validation


def validate_text(model: GPT, tokenizer: Tokenizer, ids: list[int], runtime: Runtime) -> Validation | None:
    """Measure the loss on held-out text, None where there is none.

    Without overlap: as many forward passes as tokens need, the same measure at every step of every run.
    """
    if not ids:
        return None
    (score,) = score_documents(model, tokenizer, [ids], runtime, stride=model.config.context_length)
    if not score.tokens:
        return None
    record = {"loss_nats": score.loss_nats, "perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte}
    text = f"validation loss {score.loss_nats:.4f} nats, {score.bits_per_byte:.4f} bits per byte"
    return Validation(score.bits_per_byte, record, text, f"validation {score.bits_per_byte:.3f} bits/byte")


def write_sample(model: GPT, tokenizer: Tokenizer, runtime: Runtime, config: TrainConfig, *, seed: int) -> str:
    """Write on from the run's sample prompt; the prompt is included."""
    engine = Engine(model, tokenizer, runtime, slots=1)
    options = GenerateOptions(max_tokens=config.sample_tokens, seed=seed, truncate="left")
    prompt = engine.fit(tokenizer.encode(config.sample_prompt), options)
    capacity = len(prompt) + 1 + config.sample_tokens
    (completion,) = engine.run([Request(prompt, options)], capacity=capacity)
    return config.sample_prompt + completion.text
