"""`gptcli import`: the logits and ids of transformers, and one line for whatever cannot be had."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunCli
from safetensors.torch import load_file, save_file

import gptcli

pytest.importorskip("transformers")
import transformers
from hugging_face import CONFIGS, edit_config, hf_directory, made_tokenizer, made_up_text, some_ids
from tokenizers import normalizers

from gptcli.api.import_model import import_model
from gptcli.base.errors import DataError, GptcliError, RefusedError
from gptcli.base.report import Report
from gptcli.config.generate import GenerateOptions
from gptcli.device.runtime import Runtime
from gptcli.generate.engine import Engine, Request


def imported(source: Path, output: Path, **how: Any) -> Any:
    import_model(source, output, report=Report(), **how)
    return gptcli.load(output)


def largest_difference(theirs: Any, ours: Any) -> float:
    ids = some_ids()
    with torch.no_grad():
        return float((theirs(ids).logits - ours(ids)).abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_an_imported_model_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = hf_directory(tmp_path / "hf", CONFIGS[name])
    ours, _ = imported(tmp_path / "hf", tmp_path / "ours")
    assert largest_difference(theirs, ours) < 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_an_imported_model_writes_what_transformers_writes(name: str, tmp_path: Path) -> None:
    theirs = hf_directory(tmp_path / "hf", CONFIGS[name])
    ours, tokenizer = imported(tmp_path / "hf", tmp_path / "ours")
    engine = Engine(ours, tokenizer, Runtime(device=torch.device("cpu"), dtype=torch.float32, threads=1))
    ids = some_ids(10)[0].tolist()
    (written,) = engine.run([Request(ids, GenerateOptions(temperature=0, max_tokens=12))])
    wanted = theirs.generate(torch.tensor([[0, *ids]]), max_new_tokens=12, do_sample=False)[0, 11:].tolist()
    assert written.ids == wanted[: len(written.ids)]
    assert len(written.ids) == 12 or wanted[len(written.ids)] == 0  # both end at the same token


@pytest.mark.parametrize("pattern", ["gpt2", "llama3", "qwen2", "digits", "nanochat"])
def test_an_imported_tokenizer_gives_the_ids_of_transformers(pattern: str, tmp_path: Path) -> None:
    hf_directory(tmp_path / "hf", CONFIGS["gpt2"], made_tokenizer(pattern))
    _, ours = imported(tmp_path / "hf", tmp_path / "ours")
    texts = made_up_text(10_000, seed=3)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert ours.encode_batch(texts) == theirs(texts, add_special_tokens=False)["input_ids"]
    assert ours.end_of_text == 0


def test_a_normalizer_that_composes_characters_is_kept(tmp_path: Path) -> None:
    hf_directory(tmp_path / "hf", CONFIGS["gpt2"], made_tokenizer("qwen2", normalizer=normalizers.NFC()))
    _, ours = imported(tmp_path / "hf", tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    texts = made_up_text(1000, seed=4)
    assert ours.encode_batch(texts) == theirs(texts, add_special_tokens=False)["input_ids"]


def test_a_vocabulary_with_merges_is_the_same_tokenizer(tmp_path: Path) -> None:
    tokenizer = made_tokenizer()
    hf_directory(tmp_path / "hf", CONFIGS["gpt2"], tokenizer)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "hf" / name).unlink()
    tokenizer.model.save(str(tmp_path / "hf"))
    _, ours = imported(tmp_path / "hf", tmp_path / "ours")
    texts = made_up_text(1000, seed=5)
    assert ours.encode_batch(texts) == [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    assert ours.end_of_text == 0


def test_shards_with_an_index_are_one_model(tmp_path: Path) -> None:
    theirs = hf_directory(tmp_path / "hf", CONFIGS["llama"], max_shard_size="100KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    ours, _ = imported(tmp_path / "hf", tmp_path / "ours")
    assert largest_difference(theirs, ours) < 1e-4


def test_names_without_the_prefix_and_old_buffers_are_read(tmp_path: Path) -> None:
    theirs = hf_directory(tmp_path / "hf", CONFIGS["gpt2"])
    path = tmp_path / "hf" / "model.safetensors"
    weights = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    save_file(weights | {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.0.attn.masked_bias": torch.zeros(1)}, path)
    ours, _ = imported(tmp_path / "hf", tmp_path / "ours")
    assert largest_difference(theirs, ours) < 1e-4


def test_half_precision_weights_are_kept_to_the_bit(tmp_path: Path) -> None:
    hf_directory(tmp_path / "hf", CONFIGS["gpt2"])
    path = tmp_path / "hf" / "model.safetensors"
    weights = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(weights, path)
    ours, _ = imported(tmp_path / "hf", tmp_path / "ours")
    assert torch.equal(ours.embedding.weight, weights["transformer.wte.weight"].float())


def test_the_old_spelling_of_rotary_parameters_is_read(tmp_path: Path) -> None:
    theirs = hf_directory(tmp_path / "hf", CONFIGS["llama-gqa-tied-theta"])
    edit_config(tmp_path / "hf", rope_parameters=None, rope_theta=500.0, rope_scaling=None)
    ours, _ = imported(tmp_path / "hf", tmp_path / "ours")
    assert largest_difference(theirs, ours) < 1e-4


def test_a_snapshot_that_links_into_its_cache_is_read(tmp_path: Path) -> None:
    hf_directory(tmp_path / "hf", CONFIGS["gpt2"])
    snapshot, blobs = tmp_path / "models--a" / "snapshots" / "1", tmp_path / "models--a" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.move(tmp_path / "hf", blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    imported(snapshot, tmp_path / "ours")


def test_the_result_is_a_checkpoint_that_commands_take(tmp_path: Path, run_cli: RunCli) -> None:
    hf_directory(tmp_path / "hf", CONFIGS["gpt2"])
    result = run_cli("import", tmp_path / "hf", "-o", tmp_path / "run", "--json")
    assert (result.code, json.loads(result.out)["architecture"]) == (0, "GPT2LMHeadModel"), result.err
    text = run_cli("generate", tmp_path / "run", "--max-tokens", 3, "--temperature", 0, input="the")
    assert text.code == 0, text.err


# ------------------------------------------------------------------------------------------------------ bad inputs


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "hf"
    hf_directory(path, CONFIGS["llama"])
    return path


@pytest.fixture
def bad(good: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(good, tmp_path / "hf"))


def cut_weights(hf: Path) -> None:
    path = hf / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def write_index(hf: Path, name: str) -> None:
    tensors = load_file(hf / "model.safetensors")
    (hf / "model.safetensors").rename(hf / "other.safetensors")
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))


def index_upwards(hf: Path) -> None:
    write_index(hf, "../other.safetensors")


def index_to_nothing(hf: Path) -> None:
    write_index(hf, "model-00001-of-00002.safetensors")


def index_to_a_link(hf: Path) -> None:
    write_index(hf, "part.safetensors")
    (hf / "other.safetensors").rename(hf.parent / "outside.safetensors")
    (hf / "part.safetensors").symlink_to(hf.parent / "outside.safetensors")


def index_of_too_much(hf: Path) -> None:
    write_index(hf, "other.safetensors")
    path = hf / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"one.more": "other.safetensors"}}))


def pickle_only(hf: Path) -> None:
    (hf / "model.safetensors").rename(hf / "pytorch_model.bin")


def no_weights(hf: Path) -> None:
    (hf / "model.safetensors").unlink()


def no_tokenizer(hf: Path) -> None:
    (hf / "tokenizer.json").unlink()


def sentencepiece(hf: Path) -> None:
    (hf / "tokenizer.json").rename(hf / "tokenizer.model")


def larger_tokenizer(hf: Path) -> None:
    document = json.loads((hf / "tokenizer.json").read_text())
    document["added_tokens"].append({**document["added_tokens"][0], "id": 999, "content": "<|more|>"})
    (hf / "tokenizer.json").write_text(json.dumps(document))


def not_finite(hf: Path) -> None:
    weights = load_file(hf / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, hf / "model.safetensors")


def quantised(hf: Path) -> None:
    weights = load_file(hf / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.int8)
    save_file(weights, hf / "model.safetensors")


SPOILT = {
    cut_weights: ("model.safetensors: not a safetensors file", "cut"),
    index_upwards: ("../other.safetensors leads out of the directory",),
    index_to_nothing: ("model-00001-of-00002.safetensors is not there",),
    index_to_a_link: ("part.safetensors: leads out of the directory",),
    index_of_too_much: ("does not hold one.more",),
    pickle_only: ("pytorch_model.bin: a pickle", "save_pretrained"),
    no_weights: ("no model.safetensors",),
    no_tokenizer: ("no tokenizer.json",),
    sentencepiece: ("SentencePiece",),
    larger_tokenizer: ("tokenizer has 1000 tokens and the model {V}",),
    not_finite: ("model.norm.weight", "not finite"),
    quantised: ("model.norm.weight", "I8"),
}


@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_spoilt_directory_is_named_and_nothing_is_written(spoil: Any, bad: Path, tmp_path: Path) -> None:
    vocab_size = str(json.loads((bad / "config.json").read_text())["vocab_size"])
    spoil(bad)
    with pytest.raises(GptcliError) as raised:
        import_model(bad, tmp_path / "out", report=Report())
    for word in SPOILT[spoil]:
        assert word.replace("{V}", vocab_size) in str(raised.value)
    assert not (tmp_path / "out").exists()


CONFIG_CHANGES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"architectures": ["MambaForCausalLM"]}, ("MambaForCausalLM", "GPT2LMHeadModel, LlamaForCausalLM, Qwen2")),
    ({"architectures": None, "model_type": None}, ("no architecture",)),
    ({"hidden_act": "gelu"}, ("hidden_act 'gelu'", "want silu")),
    ({"rope_parameters": {"rope_type": "longrope", "factor": 8.0}}, ("rope_parameters", "longrope")),
    ({"rope_parameters": {"rope_type": "linear", "factor": -1}}, ("factor: must be > 0",)),
    ({"quantization_config": {"bits": 4}}, ("quantization_config",)),
    ({"layer_types": ["sliding_attention", "full_attention"]}, ("layer_types",)),
    ({"num_hidden_layers": "2"}, ("num_hidden_layers: must be an integer, got '2'",)),
    ({"layer_types": 3}, ("layer_types",)),
    ({"rope_parameters": {"rope_theta": 10**400}}, ("config.json",)),
    ({"num_key_value_heads": 3}, ("num_kv_heads: 3 does not divide num_heads 4",)),
    ({"hidden_size": 64}, ("lm_head.weight has shape ({V}, 48), want ({V}, 64)",)),
    ({"num_hidden_layers": 3}, ("model.layers.2.", "is missing")),
    ({"num_hidden_layers": 1}, ("model.layers.1.", "has no place")),
    ({"attention_bias": True}, ("bias is missing",)),
]


@pytest.mark.parametrize(("changes", "words"), CONFIG_CHANGES, ids=lambda value: next(iter(value)))
def test_a_config_that_cannot_be_held_names_its_keys(
    changes: dict[str, Any], words: tuple[str, ...], bad: Path, tmp_path: Path
) -> None:
    vocab_size = str(json.loads((bad / "config.json").read_text())["vocab_size"])
    edit_config(bad, **changes)
    with pytest.raises(DataError) as raised:
        import_model(bad, tmp_path / "out", report=Report())
    for word in words:
        assert word.replace("{V}", vocab_size) in str(raised.value)


def test_all_keys_that_cannot_be_held_are_named_at_once(bad: Path, tmp_path: Path) -> None:
    edit_config(bad, hidden_act="gelu", quantization_config={"bits": 4})
    with pytest.raises(DataError) as raised:
        import_model(bad, tmp_path / "out", report=Report())
    assert len(raised.value.problems) == 2


def test_the_command_says_what_is_wrong_on_one_line(bad: Path, tmp_path: Path, run_cli: RunCli) -> None:
    pickle_only(bad)
    result = run_cli("import", bad, "-o", tmp_path / "out")
    assert len(result.error(3, "import", *SPOILT[pickle_only])) == 1


VALUES = [None, True, 0, -1, 2**40, float("nan"), 3.5, "", "x", "../x", [], [None], {}, {"content": 1}]


def spoil_anything(path: Path, draw: random.Random) -> None:
    """Another value somewhere in a JSON file, or other bytes in any file."""
    if path.suffix == ".json" and draw.random() < 0.7:
        document = json.loads(path.read_text())
        place = document
        while isinstance(place, dict) and place:
            key = draw.choice(list(place))
            if isinstance(place[key], dict) and draw.random() < 0.8:
                place = place[key]
            else:
                place[key], place = draw.choice(VALUES), None
        path.write_text(json.dumps(document))
        return
    content = bytearray(path.read_bytes())
    place = draw.randrange(min(len(content), 3000))  # of safetensors, the header is what can be wrong
    content[place : place + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 3))
    path.write_bytes(content if draw.random() < 0.8 else content[:place])


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_wrong_in_the_files_is_an_error_of_ours(seed: int, good: Path, tmp_path: Path) -> None:
    draw = random.Random(seed)
    for number in range(20):
        bad = Path(shutil.copytree(good, tmp_path / f"{number}"))
        names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
        spoil_anything(bad / draw.choice(names), draw)
        with suppress(GptcliError):  # any other exception is a bug
            import_model(bad, tmp_path / "out", report=Report(), force=True)


class Warnings(Report):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warning(self, text: str) -> None:
        self.said.append(text)


def test_code_of_the_model_is_named_and_never_run(bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_config(bad, auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    (bad / "modeling.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    report = Warnings()
    import_model(bad, tmp_path / "out", report=report)
    assert "auto_map" in report.said[0]
    assert not (tmp_path / "ran").exists()


def test_what_is_left_behind_is_said(tmp_path: Path) -> None:
    hf_directory(tmp_path / "hf", CONFIGS["gpt2"])
    edit_config(tmp_path / "hf", attn_pdrop=0.3)
    (tmp_path / "hf" / "chat_template.jinja").write_text("{{ messages[0]['content' }}")
    report = Warnings()
    import_model(tmp_path / "hf", tmp_path / "out", report=report)
    assert [
        word for word, said in zip(("attn_pdrop", "chat template"), report.said, strict=True) if word not in said
    ] == []


def test_a_name_that_is_no_directory_is_a_mistake_of_usage(tmp_path: Path, run_cli: RunCli) -> None:
    run_cli("import", "gpt2", "-o", tmp_path / "out", cwd=tmp_path).error(2, "import", "does not download")


def test_an_output_is_replaced_only_by_force_and_only_a_checkpoint(good: Path, tmp_path: Path) -> None:
    imported(good, tmp_path / "out")
    with pytest.raises(RefusedError, match="--force"):
        import_model(good, tmp_path / "out", report=Report())
    imported(good, tmp_path / "out", force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RefusedError, match=r"manifest\.json"):
        import_model(good, tmp_path / "mine", report=Report(), force=True)
