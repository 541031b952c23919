"""Every architecture of GGUF files that is read and written: the logits of transformers, in gptcli and in llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gptcli

pytest.importorskip("transformers")
pytest.importorskip("gguf")
import gguf
import transformers
from hugging_face import CONFIGS, SHAPE, hf_directory, some_ids

from gptcli.api.export_model import export_gguf
from gptcli.api.import_model import import_model
from gptcli.base.errors import DataError
from gptcli.base.report import Report
from gptcli.interop.gguf_names import ARCHITECTURES

_ALTERNATING = ["sliding_attention", "full_attention"] * 3
_SIXTH = ["sliding_attention"] * 5 + ["full_attention"]
_SIX = {**SHAPE, "num_hidden_layers": 6, "num_key_value_heads": 2, "head_dim": 16}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WRITTEN = {
    **{name: CONFIGS[name] for name in (
        "gpt2", "llama", "llama-gqa-tied-theta", "llama-linear", "mistral", "qwen2", "qwen3", "gemma", "phi3", "olmo",
        "olmo2", "granite", "stablelm", "stablelm-parallel", "gpt-neox", "gpt-neox-serial", "phi", "bloom",
        "bloom-six-heads",
    )},
    "gemma2": transformers.Gemma2Config(**_SIX, sliding_window=9, query_pre_attn_scalar=16, attn_logit_softcapping=5.0,
                                        layer_types=_ALTERNATING),
    "gemma3": transformers.Gemma3TextConfig(**_SIX, sliding_window=9, query_pre_attn_scalar=16, layer_types=_SIXTH),
    "gemma3-scaled": transformers.Gemma3TextConfig(
        **_SIX, sliding_window=9, query_pre_attn_scalar=16, layer_types=_SIXTH,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "starcoder2": transformers.Starcoder2Config(**SHAPE, num_key_value_heads=2, sliding_window=None),
    "llama3": transformers.LlamaConfig(**SHAPE, rope_parameters={**_LLAMA3, "original_max_position_embeddings": 8192}),
}  # fmt: skip
# GELU by erf in the class and by tanh in llama.cpp
APPROXIMATED = ("gpt-neox", "gpt-neox-serial")
UNWRITTEN = {
    "mistral-window": "sliding_window: 7",
    "phi3-window-partial": "sliding_window: 6",
    "starcoder2": "sliding_window: 10",
    "gemma3-scaled": "sliding_window",
    "gpt2-variants": "attention_scale_by_layer: True",
    "llama-yarn": "rope_scaling: yarn",
    "gpt-neo": "sliding_window: 7",
}


def test_all_architectures_are_tried() -> None:
    families = {config.architectures[0] if config.architectures else "" for config in WRITTEN.values()}
    kinds = {config.model_type for config in WRITTEN.values()} | families
    assert {architecture.family.model_type for architecture in ARCHITECTURES.values()} <= kinds


def llama_logits(file: Path, ids: list[int]) -> torch.Tensor:
    llama_cpp = pytest.importorskip("llama_cpp")
    theirs = llama_cpp.Llama(str(file), n_ctx=64, n_threads=1, n_batch=64, logits_all=True, verbose=False,
                             type_k=0, type_v=0)  # fmt: skip
    theirs.eval(ids)
    return torch.tensor(theirs.scores[: len(ids)])


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = hf_directory(tmp_path / "hf", WRITTEN[name])
    import_model(tmp_path / "hf", tmp_path / "ours", report=Report())
    export_gguf(tmp_path / "ours", tmp_path / "gguf", dtype="float32", report=Report())
    file = tmp_path / "gguf" / "model.gguf"
    import_model(file, tmp_path / "back", report=Report())
    back, _ = gptcli.load(tmp_path / "back")
    ids = some_ids(40)
    with torch.no_grad():
        wanted = theirs(ids).logits
        assert float((back(ids) - wanted).abs().max()) < 1e-4
        if name in APPROXIMATED:
            for block in back.blocks:
                block.mlp.activation = "gelu"
            wanted = back(ids)
    largest = float((llama_logits(file, ids[0].tolist()) - wanted[0]).abs().max())
    assert largest < 2e-3 * float(wanted.abs().max())  # activations are of 16 bits there


@pytest.mark.parametrize("name", UNWRITTEN)
def test_what_llama_cpp_does_not_do_there_is_refused(name: str, tmp_path: Path) -> None:
    hf_directory(tmp_path / "hf", CONFIGS[name])
    import_model(tmp_path / "hf", tmp_path / "ours", report=Report())
    with pytest.raises(DataError, match=UNWRITTEN[name]):
        export_gguf(tmp_path / "ours", tmp_path / "gguf", report=Report())


def rewritten(source: Path, target: Path, architecture: str, **facts: Any) -> Path:
    """The file with other metadata."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(name, facts.pop(name.replace(".", "_"), field.contents()), kind,
                                 field.types[-1] if len(field.types) > 1 else None)  # fmt: skip
    for name, given in facts.items():
        writer.add_string(name.replace("__", "."), given)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_what_a_file_says_that_cannot_be_held_is_refused(tmp_path: Path) -> None:
    hf_directory(tmp_path / "hf", CONFIGS["llama"])
    import_model(tmp_path / "hf", tmp_path / "ours", report=Report())
    export_gguf(tmp_path / "ours", tmp_path / "gguf", dtype="float32", report=Report())
    source = tmp_path / "gguf" / "model.gguf"
    for facts, word in (
        ({"llama__rope__scaling__type": "yarn"}, "rope.scaling.type yarn: .*Hugging Face directory"),
        ({"llama_attention_value_length": 8}, "values of 8"),
        ({"llama_block_count": 0}, "block_count 0: must be >= 1"),
        ({"llama_attention_head_count_kv": 3}, "3 does not divide"),
    ):
        file = rewritten(source, tmp_path / "other.gguf", "llama", **facts)
        with pytest.raises(DataError, match=word):
            import_model(file, tmp_path / "back", report=Report())
