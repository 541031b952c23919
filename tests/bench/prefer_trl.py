"""The peer of prefer.py: TRL trains the exported MODEL on the rows of PAIRS in their order, and writes it to OUT.

Prints JSON: the loss of every step and its seconds, which are those of forward, backward and update. Needs trl.
ORPO's likelihood of the better answer is taken as its paper has it, of the answer alone and per answer; TRL's own takes
the prompt along.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


class Clock(TrainerCallback):
    """The seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)


def recording(trainer: type, losses: list[float]) -> type:
    """The trainer, which notes the loss of every step."""

    class Recording(trainer):
        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            losses.append(float(loss))
            return loss

        def concatenated_forward(self, *arguments: Any, **options: Any) -> tuple:
            found = list(super().concatenated_forward(*arguments, **options))
            if trainer.__name__ == "ORPOTrainer":
                found[4] = -found[0].mean()  # chosen_logps are per token
            return tuple(found)

    return Recording


def trainer_of(loss: str, beta: float) -> tuple[type, type, dict[str, Any]]:
    """The classes of a loss, and its options."""
    if loss == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig, {"beta": beta}
    if loss == "simpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOTrainer, CPOConfig, {"loss_type": "simpo", "beta": beta, "simpo_gamma": 1.0, "cpo_alpha": 0.0}
    from trl import DPOConfig, DPOTrainer

    kind = {"dpo": "sigmoid", "ipo": "ipo"}[loss]
    return DPOTrainer, DPOConfig, {"loss_type": [kind], "beta": beta, "precompute_ref_log_probs": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out")
    parser.add_argument("--loss", required=True)
    parser.add_argument("--beta", type=float, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--batch", type=int, required=True)
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    rows = [json.loads(line) for line in given.pairs.read_text(encoding="utf-8").splitlines()]
    rows = [{**row, "prompt": tokenizer.bos_token + row["prompt"]} for row in rows]
    trainer, options, of_loss = trainer_of(given.loss, given.beta)
    arguments = options(
        output_dir=given.out, per_device_train_batch_size=given.batch, num_train_epochs=1, learning_rate=given.rate,
        adam_beta1=0.9, adam_beta2=0.98, adam_epsilon=1e-8, weight_decay=0.0, max_grad_norm=1.0,
        lr_scheduler_type="linear", warmup_steps=0, train_sampling_strategy="sequential", seed=1, use_cpu=True,
        bf16=False, fp16=False, gradient_checkpointing=False, report_to=[], logging_steps=1, save_strategy="no",
        disable_tqdm=True, max_length=256, **of_loss,
    )  # fmt: skip
    losses: list[float] = []
    clock = Clock()
    training = recording(trainer, losses)(
        model=AutoModelForCausalLM.from_pretrained(given.model, dtype="float32"), args=arguments,
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[clock],
    )  # fmt: skip
    training.train()
    training.save_model(given.out)
    print("\n" + json.dumps({"losses": losses, "step_seconds": clock.seconds}))


if __name__ == "__main__":
    main()
