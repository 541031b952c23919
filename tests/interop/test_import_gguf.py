"""`gptcli import` of a GGUF file: the weights, the tokenizer and the template that it carries."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from conftest import RunCli
from hypothesis import given, settings
from hypothesis import strategies as st
from test_export_gguf import OURS, TEXTS, our_tokenizer, save
from tokenizers import pre_tokenizers

import gptcli
from gptcli.api.export_model import export_gguf, export_hf
from gptcli.api.import_model import import_model
from gptcli.base.errors import DataError, GptcliError
from gptcli.base.report import Report
from gptcli.interop.gguf_names import ARCHITECTURES
from gptcli.interop.gguf_read import read_gguf
from gptcli.interop.gguf_shape import _KEYS, _PATTERN, _ROTARY, read_shape
from gptcli.interop.gguf_vocabulary import adds_begin, read_vocabulary
from gptcli.train.metadata import read_metadata

gguf = pytest.importorskip("gguf")
IDS = torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", OURS)
def test_a_file_comes_back_as_the_model_it_was_made_of(name: str, tmp_path: Path) -> None:
    model, tokenizer = save(OURS[name], tmp_path / "ours")
    export_gguf(tmp_path / "ours", tmp_path / "out", dtype="float32", report=Report())
    import_model(tmp_path / "out" / "model.gguf", tmp_path / "back", report=Report())
    again, its_tokenizer = gptcli.load(tmp_path / "back")
    with torch.inference_mode():
        assert float((again(IDS) - model(IDS)).abs().max()) < 1e-5
    assert its_tokenizer.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert (its_tokenizer.begin, its_tokenizer.ends) == (tokenizer.begin, tokenizer.ends)


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2"])
def test_its_tokenizer_splits_text_as_before(pattern: str, tmp_path: Path) -> None:
    config = dataclasses.replace(OURS["llama"])
    _, tokenizer = save(config, tmp_path / "ours", our_tokenizer(pattern))
    export_gguf(tmp_path / "ours", tmp_path / "out", report=Report())
    back = read_gguf(tmp_path / "out" / "model.gguf").tokenizer
    assert back.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)


KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]


def rewritten(source: Path, target: Path, kind: str, **changed: Any) -> dict[str, Any]:
    """The file with its matrices of another type, and other texts in its metadata; the values that they stand for."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if name in changed:
            writer.add_key_value(name, changed[name], gguf.GGUFValueType.STRING)
        elif not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(
                name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    values = {}
    for tensor in reader.tensors:
        wanted = getattr(gguf.GGMLQuantizationType, kind if len(tensor.shape) > 1 else "F32")
        content = gguf.quants.quantize(gguf.quants.dequantize(tensor.data, tensor.tensor_type), wanted)
        values[tensor.name] = gguf.quants.dequantize(content, wanted)
        writer.add_tensor(tensor.name, content, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_every_type_are_those_they_stand_for(kind: str, tmp_path: Path) -> None:
    save(OURS["llama"], tmp_path / "ours")
    export_gguf(tmp_path / "ours", tmp_path / "out", dtype="float32", report=Report())
    values = rewritten(tmp_path / "out" / "model.gguf", tmp_path / "other.gguf", kind)
    model = read_gguf(tmp_path / "other.gguf").read_model()
    assert torch.equal(model.embedding.weight, torch.tensor(values["token_embd.weight"]))
    up = torch.cat([torch.tensor(values[f"blk.1.ffn_{name}.weight"]) for name in ("gate", "up")])
    assert torch.equal(model.blocks[1].mlp.up.weight, up)


def test_what_is_not_a_gguf_file_is_named_with_the_way_out(tmp_path: Path, run_cli: RunCli) -> None:
    for name, words in {
        "model.bin": ("torch, or llama2.c", "save_pretrained"),
        "ckpt.pt": ("nanoGPT",),
        "model.safetensors": ("give the directory",),
        "notes.txt": ("neither",),
    }.items():
        (tmp_path / name).write_bytes(b"anything")
        run_cli("import", tmp_path / name, "-o", tmp_path / "out").error(3, "import", name, *words)
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    run_cli("import", tmp_path / "cut.gguf", "-o", tmp_path / "out").error(3, "import", "not a whole GGUF file")
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(b"GGUF")
    with pytest.raises(DataError, match=r"one of several parts; join them"):
        read_gguf(tmp_path / "m-00001-of-00002.gguf")


def test_a_damaged_file_is_an_error_of_ours(tmp_path: Path) -> None:
    save(OURS["llama"], tmp_path / "ours")
    export_gguf(tmp_path / "ours", tmp_path / "out", report=Report())
    content = (tmp_path / "out" / "model.gguf").read_bytes()
    for place in range(4, len(content), len(content) // 20):
        (tmp_path / "cut.gguf").write_bytes(content[:place])
        with pytest.raises(GptcliError):
            import_model(tmp_path / "cut.gguf", tmp_path / "back", report=Report(), force=True)


@pytest.mark.parametrize("key", ["tokenizer.ggml.tokens", "tokenizer.ggml.merges", "llama.rope.freq_base",
                                 "llama.block_count", "llama.attention.key_length"])  # fmt: skip
def test_a_damaged_key_is_named(key: str, tmp_path: Path, run_cli: RunCli) -> None:
    save(OURS["llama"], tmp_path / "ours")
    export_gguf(tmp_path / "ours", tmp_path / "out", dtype="float32", report=Report())
    rewritten(tmp_path / "out" / "model.gguf", tmp_path / "damaged.gguf", "F32", **{key: "x"})
    wanted = ("import", "damaged.gguf", key.removeprefix("llama."))
    run_cli("import", tmp_path / "damaged.gguf", "-o", tmp_path / "back").error(3, *wanted)


SCALARS = st.one_of(
    st.integers(-(2**63), 2**63), st.floats(width=32), st.booleans(), st.sampled_from(["", "x", "yarn"])
)
ANYTHING = SCALARS | st.lists(SCALARS | st.lists(SCALARS, max_size=2), max_size=3)
KEYS = [*_KEYS.values(), *_ROTARY.values(), _PATTERN, "attention.layer_norm_rms_epsilon", "attention.sliding_window",
        "rope.scaling.type", "rope.scaling.factor", "attention.value_length", "logit_scale", "attention.scale",
        "final_logit_softcapping", "rope.freq_base_swa", "use_parallel_residual"]  # fmt: skip
PLAIN = {"embedding_length": 64, "block_count": 2, "attention.head_count": 4, "attention.layer_norm_rms_epsilon": 1e-5}


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(ARCHITECTURES)), st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=3))
def test_a_shape_of_any_metadata_is_one_error_or_a_config(family: str, damaged: dict[str, Any]) -> None:
    architecture = ARCHITECTURES[family]
    facts = {f"{architecture.name}.{key}": value for key, value in (PLAIN | damaged).items()}
    with contextlib.suppress(DataError):
        read_shape(facts, {"token_embd.weight": SimpleNamespace(shape=np.array([64, 300]))}, architecture, "file")


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(["gpt2", "llama"]), st.dictionaries(
    st.sampled_from(["tokens", "token_type", "scores", "merges", "pre", "model", "bos_token_id", "add_bos_token"]),
    ANYTHING, max_size=2))  # fmt: skip
def test_a_vocabulary_of_any_metadata_is_one_error_or_a_tokenizer(kind: str, damaged: dict[str, Any]) -> None:
    tokens = ["<s>", "<unk>", *[f"<0x{byte:02X}>" for byte in range(256)], *gguf_alphabet()]
    facts = {"model": kind, "tokens": tokens, "token_type": [3, 2] + [1] * (len(tokens) - 2)} | damaged
    with contextlib.suppress(DataError):
        read_vocabulary({f"tokenizer.ggml.{key}": value for key, value in facts.items()}, "file")


@pytest.mark.parametrize(("pre", "adds"), [("llama-bpe", True), ("llama3", True), ("falcon3", True), ("gpt-2", False)])
def test_what_begins_a_text_where_the_file_does_not_say(pre: str, adds: bool) -> None:
    tokens = ["<s>", *gguf_alphabet()]
    facts = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.bos_token_id": 0,
             "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [3] + [1] * 256}  # fmt: skip
    theirs = tokenizers.Tokenizer.from_str(read_vocabulary(facts, "file").plain_content.decode())
    assert (theirs.encode("a").ids[0] == 0) == adds
    assert adds_begin(facts) == adds
    assert not adds_begin(facts | {"tokenizer.ggml.add_bos_token": False})


def test_what_it_came_with_goes_out_again(tmp_path: Path) -> None:
    save(OURS["llama"], tmp_path / "ours")
    export_gguf(tmp_path / "ours", tmp_path / "out", dtype="float32", report=Report())
    import_model(tmp_path / "out" / "model.gguf", tmp_path / "back", report=Report())
    origin = read_metadata(tmp_path / "back").origin
    assert json.loads(origin["tokenizer_config.json"])["eos_token"] == "<|endoftext|>"
    export_hf(tmp_path / "back", tmp_path / "hf", report=Report())
    export_gguf(tmp_path / "back", tmp_path / "again", dtype="float32", report=Report())
    first, second = (gguf.GGUFReader(tmp_path / name / "model.gguf") for name in ("out", "again"))
    facts = [{key: field.contents() for key, field in reader.fields.items()} for reader in (first, second)]
    changed = {key for key in facts[0] | facts[1] if facts[0].get(key) != facts[1].get(key)}
    assert {key for key in changed if not key.startswith("GGUF.")} <= {"tokenizer.ggml.padding_token_id"}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_transformers_puts_the_token_before_a_text_that_llama_cpp_does(kind: str) -> None:
    pieces = ["<s>", "<unk>", *[f"<0x{byte:02X}>" for byte in range(256)], "a"]
    tokens, types = (pieces, [3, 2, *[6] * 256, 1]) if kind == "llama" else (["<s>", *gguf_alphabet()], [3] + [1] * 256)
    facts = {"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types,
             "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.bos_token_id": 0}  # fmt: skip
    for adds in (True, False):
        ours = read_vocabulary(facts | {"tokenizer.ggml.add_bos_token": adds}, "file")
        theirs = tokenizers.Tokenizer.from_str(ours.plain_content.decode())
        a = tokens.index("a")
        assert (ours.encode("a"), theirs.encode("a").ids) == ([a], [0, a] if adds else [a])


def test_control_tokens_keep_their_ids_wherever_they_are() -> None:
    tokens = ["<|endoftext|>", "<|im_end|>", *gguf_alphabet()]
    facts = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
             "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2), "tokenizer.ggml.merges": []}  # fmt: skip
    tokenizer = read_vocabulary(facts, "file")
    assert tokenizer.specials == {"<|endoftext|>": 0, "<|im_end|>": 1}
    assert tokenizer.encode_rendered("a<|im_end|>")[0] == [tokens.index("a"), 1]
    assert not {0, 1} & set(tokenizer.encode("a<|im_end|>"))
    theirs = tokenizers.Tokenizer.from_str(tokenizer.plain_content.decode())
    assert theirs.encode("a<|im_end|>").ids == [tokens.index("a"), 1]


def gguf_alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())
