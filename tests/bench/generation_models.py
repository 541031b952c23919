"""The models that generation.py measures with, made once: of random weights, since only the speed counts, or those of a
GGUF file."""

from __future__ import annotations

import math
from pathlib import Path

import harness
from safetensors import safe_open

VOCABULARY = 50257
SMALL = {"num_layers": 4, "num_heads": 6, "hidden_size": 192, "context_length": 256}  # as examples/quickstart.yaml


def make_large(directory: Path) -> None:
    """The same random GPT-2 124M for every engine."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from gptcli.config.model import ModelConfig
    from gptcli.data.tokenizer import Tokenizer as OwnTokenizer
    from gptcli.model.gpt import GPT
    from gptcli.train import checkpoint

    torch.manual_seed(1)
    transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(directory / "hf")
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*characters, *(f"t{n}" for n in range(50000))])}
    file = Tokenizer(models.BPE(vocabulary, [("t", "0")]))  # llama.cpp wants merges
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.decoder = decoders.ByteLevel()
    file.add_special_tokens(["<|endoftext|>"])
    named = transformers.PreTrainedTokenizerFast(tokenizer_object=file, eos_token="<|endoftext|>")
    named.save_pretrained(directory / "hf")
    model = GPT(ModelConfig.from_preset("gpt2", vocab_size=VOCABULARY))
    model.initialize(torch.Generator().manual_seed(1))
    (directory / "gptcli").mkdir()
    checkpoint.save_model(model, OwnTokenizer(file.to_str().encode()), directory / "gptcli", step=0)
    make_gguf(directory)
    try:
        make_ctranslate2(directory)
    except ImportError:
        harness.note("ctranslate2 is not installed")


def make_imported(directory: Path, file: Path) -> None:
    """The model of a GGUF file for every engine but CTranslate2."""
    harness.run(harness.gptcli("import", file, "-o", directory / "gptcli"))
    harness.run(harness.gptcli("export", directory / "gptcli", "-o", directory / "hf", "--to", "hf"))
    make_gguf(directory)


def make_gguf(directory: Path) -> None:
    """What llama.cpp reads, of 16, 8 and 4 bits; the last as llama.cpp itself makes it."""
    for dtype in ("bfloat16", "q8_0"):
        output = directory / f"gguf-{dtype}"
        harness.run(harness.gptcli("export", directory / "gptcli", "-o", output, "--to", "gguf", "--dtype", dtype))
    try:
        import llama_cpp
    except ImportError:
        harness.note("llama-cpp-python is not installed")
        return
    (directory / "gguf-q4_0").mkdir()
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    files = (str(directory / f"gguf-{dtype}" / "model.gguf").encode() for dtype in ("bfloat16", "q4_0"))
    if llama_cpp.llama_model_quantize(*files, how):
        harness.note("llama.cpp could not make a file of 4 bits")


def matrix_weights(run: Path) -> int:
    """How many weights of a checkpoint are read for every token: the matrices of the blocks, and the head."""
    with safe_open(run / "model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    tables = ["position_embedding.weight", *(["embedding.weight"] if "head.weight" in shapes else [])]
    return sum(math.prod(shape) for name, shape in shapes.items() if len(shape) == 2 and name not in tables)


def make_ctranslate2(directory: Path) -> None:
    from ctranslate2.converters.transformers import TransformersConverter

    class Converter(TransformersConverter):
        """Needs no tokenizer: tokens are called t0, t1, ..."""

        def load_tokenizer(self, *_: object, **__: object) -> object:
            class Names:
                def get_vocab(self) -> dict[str, int]:
                    return {f"t{n}": n for n in range(VOCABULARY)}

                bos_token, eos_token, unk_token = "t50256", "t50256", "t50256"

            return Names()

    Converter(str(directory / "hf")).convert(str(directory / "ct2"))


def make_small(directory: Path) -> None:
    """A model of quickstart's size for gptcli, and its export for transformers."""
    import torch

    from gptcli.config.model import ModelConfig
    from gptcli.data.tokenizer import learn_merges
    from gptcli.model.gpt import GPT
    from gptcli.train import checkpoint

    words = [path.read_text(encoding="utf-8") for path in sorted(harness.BENCH.glob("*.py"))]
    tokenizer = learn_merges(words, vocab_size=2048)
    model = GPT(ModelConfig.from_preset("gpt2", **SMALL, vocab_size=tokenizer.vocab_size))
    model.initialize(torch.Generator().manual_seed(1))
    (directory / "small").mkdir()
    checkpoint.save_model(model, tokenizer, directory / "small", step=0)
    harness.run(harness.gptcli("export", directory / "small", "-o", directory / "small-hf", "--to", "hf"))
