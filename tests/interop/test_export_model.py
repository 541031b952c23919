"""`gptcli export --to hf`: transformers loads it offline and gives the same logits and ids."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunCli, Tiny

pytest.importorskip("transformers")
import transformers
from hugging_face import CONFIGS, VOCABULARY, hf_directory, made_text_tokenizer, made_up_text, some_ids
from random_models import scrambled

import gptcli
from gptcli.api.export_model import export_hf
from gptcli.api.import_model import import_model
from gptcli.base.errors import ConfigError, DataError, NumericalError, RefusedError
from gptcli.base.report import Report
from gptcli.config.model import ModelConfig
from gptcli.data.conversation import Conversation, Message
from gptcli.data.tokenizer import Tokenizer
from gptcli.interop.chat_template import chat_template, conversation_of
from gptcli.interop.configs import family_for, problems
from gptcli.interop.families import FAMILIES
from gptcli.model.gpt import GPT
from gptcli.train import checkpoint
from gptcli.train.metadata import ModelMetadata, read_metadata

SHAPE: dict[str, Any] = {
    "num_layers": 2, "hidden_size": 48, "num_heads": 4, "context_length": 64, "vocab_size": VOCABULARY
}  # fmt: skip

OURS = {
    "modern": ModelConfig(**SHAPE),
    "modern-softcap-gqa-tied": ModelConfig(**SHAPE, logit_softcap=15.0, num_kv_heads=2, tie_embeddings=True),
    "modern-head-dim": ModelConfig(**SHAPE, head_dim=20, activation="gelu"),
    "gpt2": ModelConfig.from_preset("gpt2", **SHAPE),
    "gpt2-untied-no-bias": ModelConfig.from_preset("gpt2", **SHAPE, tie_embeddings=False, bias=False),
    "llama": ModelConfig.from_preset("llama", **SHAPE, num_kv_heads=1, rope_theta=777.0),
    "llama-bias-unweighted-norm": ModelConfig.from_preset("llama", **SHAPE, bias=True, norm_weight=False),
    "llama-qk-norm": ModelConfig.from_preset("llama", **SHAPE, qk_norm=True),
    "qwen3": ModelConfig.from_preset("llama", **SHAPE, qk_norm=True, qk_norm_weight=True, head_dim=16),
}


def random_gpt(config: ModelConfig, labels: int = 0) -> GPT:
    """Weights far from their initial values, norms and biases too."""
    torch.manual_seed(1)
    return scrambled(GPT(config, labels=labels))


def save(model: GPT, path: Path, tokenizer: Tokenizer | None = None, metadata: ModelMetadata | None = None) -> GPT:
    path.mkdir()
    checkpoint.save_model(model, tokenizer or made_text_tokenizer(), path, step=0, metadata=metadata)
    return model


def loaded(path: Path, kind: Any = transformers.AutoModelForCausalLM) -> Any:
    return kind.from_pretrained(path, local_files_only=True).eval()


@pytest.mark.parametrize("name", OURS)
def test_an_exported_model_gives_the_same_logits_in_transformers(name: str, tmp_path: Path) -> None:
    ours = save(random_gpt(OURS[name]), tmp_path / "ours")
    export_hf(tmp_path / "ours", tmp_path / "hf", report=Report())
    theirs = loaded(tmp_path / "hf")
    ids = some_ids()
    with torch.no_grad():
        assert float((theirs(ids).logits - ours(ids)).abs().max()) < 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_imported_goes_out_as_the_same_tensors(name: str, tmp_path: Path) -> None:
    theirs = hf_directory(tmp_path / "hf", CONFIGS[name])
    import_model(tmp_path / "hf", tmp_path / "ours", report=Report())
    export_hf(tmp_path / "ours", tmp_path / "again", report=Report())
    again = loaded(tmp_path / "again")
    assert type(again) is type(theirs)
    with torch.no_grad():
        assert float((theirs(some_ids()).logits - again(some_ids()).logits).abs().max()) < 1e-4
    first, second = (dict(model.named_parameters()) for model in (theirs, again))
    exact = "gemma" not in name  # there, 1 + weight is rounded
    for parameter, weight in first.items():
        unused = 2 if name == "opt" and "embed_positions" in parameter else 0  # rows before the first position's
        torch.testing.assert_close(second.pop(parameter)[unused:], weight[unused:], rtol=0, atol=0 if exact else 3e-7)
    assert not any(weight.any() for weight in second.values())  # biases of zero, where ours has all or none


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2"])
def test_an_exported_tokenizer_gives_the_same_ids_in_transformers(pattern: str, tmp_path: Path) -> None:
    tokenizer = made_text_tokenizer(pattern)
    save(random_gpt(OURS["gpt2"]), tmp_path / "ours", tokenizer)
    export_hf(tmp_path / "ours", tmp_path / "hf", report=Report())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", local_files_only=True)
    texts = made_up_text(10_000, seed=6)
    ids = tokenizer.encode_batch(texts)
    assert theirs(texts)["input_ids"] == ids
    assert [theirs.decode(row) for row in ids[:500]] == [tokenizer.decode(row) for row in ids[:500]]
    assert theirs.bos_token_id == theirs.eos_token_id == tokenizer.end_of_text


def test_greedy_text_is_the_same(tiny: Tiny, tmp_path: Path, run_cli: RunCli) -> None:
    result = run_cli("export", tiny.run, "-o", tmp_path / "hf", "--to", "hf", "--json")
    assert json.loads(result.out)["architecture"] == "NanoChatForCausalLM"
    ours = run_cli("generate", tiny.run, "--max-tokens", 12, "--temperature", 0, input="The miller")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    inputs = tokenizer(tokenizer.bos_token + "The miller", return_tensors="pt")
    ids = loaded(tmp_path / "hf").generate(**inputs, max_new_tokens=12, do_sample=False)
    new = ids[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True) == ours.text.removesuffix("\n")


def test_the_card_has_the_figures_of_the_run(tiny: Tiny, tmp_path: Path) -> None:
    export_hf(tiny.run, tmp_path / "hf", report=Report())
    card = (tmp_path / "hf" / "README.md").read_text()
    records = [json.loads(line) for line in (tiny.run / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record["kind"] == "validation"][-1]
    assert f"| validation bits per byte | {last['bits_per_byte']:.4g} |" in card
    assert "| training step | 6 |" in card
    assert "every window began with `<|endoftext|>`" in card
    assert str(tiny.root) not in card


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_what_was_asked_for(dtype: str, tmp_path: Path) -> None:
    save(random_gpt(OURS["llama"]), tmp_path / "ours")
    exported = export_hf(tmp_path / "ours", tmp_path / "hf", dtype=dtype, report=Report())
    assert loaded(tmp_path / "hf").dtype == getattr(torch, dtype)
    assert exported.bytes > (tmp_path / "hf" / "model.safetensors").stat().st_size


def test_a_weight_that_float16_cannot_hold_is_named(tmp_path: Path) -> None:
    model = random_gpt(OURS["llama"])
    with torch.no_grad():
        model.final_norm.weight[0] = 1e6
    save(model, tmp_path / "ours")
    with pytest.raises(NumericalError, match=r"model.norm.weight.*--dtype bfloat16"):
        export_hf(tmp_path / "ours", tmp_path / "hf", dtype="float16", report=Report())
    assert not (tmp_path / "hf").exists()


# ---------------------------------------------------------------------------------------- conversations and classes

CHAT = Conversation()
MESSAGES = [
    Message("system", "You are brief."),
    Message("user", "  Open on\nSunday? "),
    Message("assistant", "No.\n"),
    Message("user", "日本 <|im_end|> {{ 'x' }} \"quoted\""),
]


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer]:
    path = tmp_path_factory.mktemp("chat")
    tokenizer = made_text_tokenizer().with_specials(CHAT.specials)
    config = dataclasses.replace(OURS["gpt2"], vocab_size=tokenizer.vocab_size)
    save(random_gpt(config), path / "ours", tokenizer, ModelMetadata(conversation=CHAT))
    export_hf(path / "ours", path / "hf", report=Report())
    return path / "hf", tokenizer


@pytest.mark.parametrize("turns", range(1, 5))
def test_the_chat_template_gives_the_ids_of_the_conversation(turns: int, chat: tuple[Path, Tokenizer]) -> None:
    path, tokenizer = chat
    theirs = transformers.AutoTokenizer.from_pretrained(path)
    messages = [message._asdict() for message in MESSAGES[:turns]]
    begin = [tokenizer.end_of_text]
    whole = theirs.apply_chat_template(messages, return_dict=False)
    prompt = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert whole == begin + CHAT.example(MESSAGES[:turns], tokenizer)[0]
    assert prompt == begin + CHAT.prompt(MESSAGES[:turns], tokenizer)


@pytest.mark.parametrize("text", ["<|end|>", "a <|assistant|> b", "<|endoftext|>"])
def test_the_chat_template_refuses_text_that_spells_a_control_token(text: str, chat: tuple[Path, Tokenizer]) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(chat[0])
    with pytest.raises(Exception, match="control token"):
        theirs.apply_chat_template([{"role": "user", "content": text}])


def test_the_chat_template_holds_control_tokens_of_any_name() -> None:
    tokenizer = made_text_tokenizer().with_specials(("<|ROLES|>", "<|END|>", "<|ANSWER|>", "<|CONTROLS|>"))
    form = Conversation({"system": "<|ROLES|>", "user": "<|CONTROLS|>", "assistant": "<|ANSWER|>"}, "<|END|>")
    template = chat_template(form, tokenizer)
    assert template.count('"<|END|>"') == 2  # as the end, and among the control tokens
    assert conversation_of(template, tokenizer) == form


def test_generation_of_a_chat_model_ends_with_its_turn(chat: tuple[Path, Tokenizer]) -> None:
    settings = transformers.GenerationConfig.from_pretrained(chat[0])
    assert settings.eos_token_id == [chat[1].end_of_text, CHAT.end_id(chat[1])]


def test_the_form_of_conversations_comes_back_with_an_import(chat: tuple[Path, Tokenizer], tmp_path: Path) -> None:
    import_model(chat[0], tmp_path / "again", report=Report())
    assert read_metadata(tmp_path / "again").conversation == CHAT


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_a_classifier_gives_the_same_logits_of_its_labels(name: str, tmp_path: Path) -> None:
    model = random_gpt(OURS[name], labels=3)
    save(model, tmp_path / "ours", metadata=ModelMetadata(labels=("bad", "so-so", "good")))
    export_hf(tmp_path / "ours", tmp_path / "hf", report=Report())
    theirs = loaded(tmp_path / "hf", transformers.AutoModelForSequenceClassification)
    ids = some_ids(12)[:1].clamp(min=1)  # none is the token that pads
    with torch.no_grad():
        ours = model.label_head(model.hidden(ids)[:, -1])
        assert float((theirs(ids).logits - ours).abs().max()) < 1e-4
    assert theirs.config.id2label == {0: "bad", 1: "so-so", 2: "good"}
    import_model(tmp_path / "hf", tmp_path / "again", report=Report())
    again, _ = gptcli.load(tmp_path / "again")
    assert again.label_head is not None
    with torch.no_grad():
        assert float((again.label_head(again.hidden(ids)[:, -1]) - ours).abs().max()) < 1e-4
    assert read_metadata(tmp_path / "again").labels == ("bad", "so-so", "good")


def test_a_classifier_without_a_class_is_named(tmp_path: Path) -> None:
    save(random_gpt(OURS["modern"], labels=2), tmp_path / "ours", metadata=ModelMetadata(labels=("no", "yes")))
    with pytest.raises(DataError, match="classifier"):
        export_hf(tmp_path / "ours", tmp_path / "hf", report=Report())


# ------------------------------------------------------------------------------------------------------- bad inputs


def test_every_option_of_a_model_is_known_to_each_family() -> None:
    """A new field of ModelConfig needs a line in the tables of families, or is off by default."""
    for preset, architecture in (
        ("modern", "NanoChatForCausalLM"),
        ("llama", "LlamaForCausalLM"),
        ("gpt2", "GPT2LMHeadModel"),
    ):
        config = ModelConfig.from_preset(preset, **SHAPE)
        assert not list(problems(config, FAMILIES[architecture])), preset


def test_what_no_class_can_hold_is_named() -> None:
    config = ModelConfig.from_preset("gpt2", **SHAPE, qk_norm=True, logit_softcap=30.0)
    with pytest.raises(DataError) as raised:
        family_for(config, list(FAMILIES.values()), "{} of transformers")
    assert "model.qk_norm: True" in str(raised.value)
    assert "model.logit_softcap: 30.0" in str(raised.value)


def test_the_command_names_it_on_one_line(tmp_path: Path, run_cli: RunCli) -> None:
    save(random_gpt(dataclasses.replace(OURS["gpt2"], qk_norm=True)), tmp_path / "ours")
    result = run_cli("export", tmp_path / "ours", "-o", tmp_path / "hf", "--to", "hf")
    assert len(result.error(3, "export", "model.qk_norm", "GPT2LMHeadModel of transformers")) == 1
    assert not (tmp_path / "hf").exists()


def test_a_type_of_the_other_form_is_a_mistake_of_usage(tmp_path: Path) -> None:
    save(random_gpt(OURS["gpt2"]), tmp_path / "ours")
    with pytest.raises(ConfigError, match="q8_0"):
        export_hf(tmp_path / "ours", tmp_path / "hf", dtype="q8_0", report=Report())


def test_an_output_that_no_export_made_is_never_replaced(tmp_path: Path) -> None:
    save(random_gpt(OURS["gpt2"]), tmp_path / "ours")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RefusedError, match="--force does not replace"):
        export_hf(tmp_path / "ours", tmp_path / "mine", report=Report(), force=True)


def test_an_exported_directory_can_be_imported_again(tmp_path: Path) -> None:
    ours = save(random_gpt(OURS["modern"]), tmp_path / "ours")
    export_hf(tmp_path / "ours", tmp_path / "hf", report=Report())
    import_model(tmp_path / "hf", tmp_path / "again", report=Report())
    again, _ = gptcli.load(tmp_path / "again")
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True))
