"""`gptcli import` of a GGUF file: the weights, the tokenizer and the template that it carries."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from conftest import RunCli
from test_export_gguf import OURS, TEXTS, our_tokenizer, save
from tokenizers import pre_tokenizers

import gptcli
from gptcli.api.export_model import export_gguf, export_hf
from gptcli.api.import_model import import_model
from gptcli.base.errors import DataError, GptcliError
from gptcli.base.report import Report
from gptcli.interop.gguf_read import read_gguf
from gptcli.interop.gguf_vocabulary import read_vocabulary
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


def rewritten(source: Path, target: Path, kind: str) -> dict[str, Any]:
    """The file with its matrices of another type; the values that they stand for."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
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
