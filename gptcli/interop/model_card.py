"""The README.md of an exported model: what it is, the figures that its run recorded, how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptcli.base import fsio
from gptcli.base.escape import escape
from gptcli.data.tokenizer import Tokenizer
from gptcli.model.gpt import GPT
from gptcli.train.audits import read_audit
from gptcli.train.lineage import read_lineage
from gptcli.train.metadata import ModelMetadata
from gptcli.train.metrics import read_metrics

_USE = {
    "text": """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIR")
model = AutoModelForCausalLM.from_pretrained("DIR")
ids = tokenizer(BEGIN"Once upon a time", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=50, do_sample=True)[0]))
```
""",
    "chat": """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIR")
model = AutoModelForCausalLM.from_pretrained("DIR")
messages = [{"role": "user", "content": "Are you open on Sunday?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100)[0]))
```
""",
    "classify": """\
```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIR")
model = AutoModelForSequenceClassification.from_pretrained("DIR")
ids = tokenizer(BEGIN" Some text", return_tensors="pt").input_ids
print(model.config.id2label[int(model(ids).logits.argmax())])
```
""",
    "gguf": """\
```python
from llama_cpp import Llama

model = Llama("DIR/FILE", n_ctx=CONTEXT)
print(model("Once upon a time", max_tokens=50)["choices"][0]["text"])
```
""",
}


_FIGURES = {
    "extraction": "share of training passages recited: 25 tokens given, the next 25 right",
    "canaries": "share of planted canaries that came out, of the group that did most",
    "exposure": "bits of 8 by which planted codes stand out; about 1 is chance",
    "membership": "AUC of telling training text from held-out text; 0.5 is chance",
    "copied": "share of samples with 25 tokens of the training text in a row",
    "pii": "items of personal data for each sample; names of people are not found",
    "vocabulary": "tokens with five digits or more, or an @",
}
NEEDS = {"NanoChatForCausalLM": "transformers 5"}  # the others are in transformers 4 too


def model_card(name: str, checkpoint: Path, model: GPT, tokenizer: Tokenizer, metadata: ModelMetadata, *,
               architecture: str, dtype: str, gguf: str | None = None) -> str:  # fmt: skip
    """Write a model card in Markdown with front matter; its figures are those of training.json and metrics.jsonl, if
    present."""
    config = model.config
    use = "gguf" if gguf else "classify" if metadata.labels else "chat" if metadata.conversation else "text"
    task = "text-classification" if metadata.labels else "text-generation"
    library = "gguf" if gguf else "transformers"
    facts = {
        "architecture": architecture,
        **({"needs": NEEDS[architecture]} if architecture in NEEDS else {}),
        "parameters": f"{model.num_parameters():,}",
        "layers, width, heads": f"{config.num_layers}, {config.hidden_size}, {config.num_heads}",
        "context": f"{config.context_length:,} tokens",
        "vocabulary": f"{tokenizer.vocab_size:,} tokens",
        "stored as": dtype,
        **({"labels": ", ".join(map(escape, metadata.labels)).replace("|", "\\|")} if metadata.labels else {}),
        **recorded(checkpoint),
    }
    example = _USE[use].replace("FILE", gguf or "").replace("CONTEXT", str(config.context_length))
    mark = None if tokenizer.begin is None else tokenizer.decode([tokenizer.begin])
    return (
        f"---\nlibrary_name: {library}\npipeline_tag: {task}\ntags: [gptcli]\n---\n"
        f"# {escape(name)}\n\nMade with gptcli.\n\n| | |\n|---|---|\n"
        + "".join(f"| {key} | {value} |\n" for key, value in facts.items())
        + "\n## Use\n\n"
        + example.replace("BEGIN", "tokenizer.bos_token + " if mark else "")
        + (f"\n{_begins(mark, use)}\n" if mark else "")
        + audit_section(checkpoint)
        + lineage_section(checkpoint)
    )


def lineage_section(checkpoint: Path) -> str:
    """Return what the checkpoint comes from as a section; empty for one that does not say."""
    found = read_lineage(checkpoint)
    if found is None:
        return ""
    rows = {
        "recipe": found["recipe_sha256"],
        "tokenizer": found["tokenizer_sha256"],
        "code": f"{found['code_sha256']}, gptcli {found['gptcli']}",
    }
    rows |= {name: ", ".join(found[name]["sha256"]) for name in ("base", "teacher") if name in found}
    inputs = "".join(f"| input | {source['sha256']} |\n" for source in found["inputs"])
    return (
        "\n## Lineage\n\nHashes (sha256) of what the model was made of.\n\n| | |\n|---|---|\n"
        + "".join(f"| {name} | {value} |\n" for name, value in rows.items())
        + inputs
    )


def audit_section(checkpoint: Path) -> str:
    """Return the figures of the checkpoint's audit as a section; empty where there was none."""
    found = read_audit(checkpoint)
    if found is None:
        return ""
    rows = [
        f"| {name} | {value:.4g} | {_FIGURES[name]} |\n" for name, value in found["figures"].items() if name in _FIGURES
    ]
    return (
        "\n## Audit\n\nBy `gptcli audit`, which finds what it looks for: a low figure is no proof that nothing was "
        "learnt by heart.\n\n| figure | value | meaning |\n|---|---|---|\n" + "".join(rows)
    )


def _begins(mark: str, use: str) -> str:
    every = f"In training every window began with `{mark}`"
    match use:
        case "chat":
            return f"{every}; the chat template puts it there."
        case "gguf":
            return f"{every}; llama.cpp puts it there by itself (`add_bos_token`)."
        case _:
            return f"{every}. The tokenizer does not add it, so texts begin with `tokenizer.bos_token` as above."


def recorded(checkpoint: Path) -> dict[str, str]:
    """Return what a run wrote down of its training and of the validation of this checkpoint; empty for an imported
    model."""
    path = checkpoint / "training.json"
    training = fsio.read_json(path) if path.is_file() else None
    if not isinstance(training, dict):
        return {}
    facts = {
        f"training {name}": f"{training[name]:,}" for name in ("step", "tokens") if type(training.get(name)) is int
    }
    validation = _validation(checkpoint.resolve().parent.parent / "metrics.jsonl", training.get("step"))
    return facts | {f"validation {name}": f"{value:.4g}" for name, value in validation.items()}


def _validation(metrics: Path, step: Any) -> Mapping[str, float]:
    """Return the numbers of the last validation record of `step`."""
    found: dict[str, float] = {}
    for record in read_metrics(metrics, []):
        if (record["kind"], record["step"]) == ("validation", step):
            found = {
                name.replace("_", " "): value
                for name, value in record.items()
                if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
            }
    return found
