"""gptcli export"""

from __future__ import annotations

from pathlib import Path

import click

from gptcli.cli.commands import options


@click.command("export", no_args_is_help=True)
@click.argument("run")
@click.option("-o", "--output", required=True, type=options.Output(path_type=Path), help="The directory to make.")
@click.option(
    "--to",
    "form",
    required=True,
    type=click.Choice(["hf", "gguf"]),
    help="Format: that of transformers, or of llama.cpp.",
)
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16", "q8_0"]),
              help="Dtype of the weights; q8_0 for gguf.  [default: float32 for hf, float16 for gguf]")  # fmt: skip
@options.as_json
@options.force
@options.quiet
def export_model(run: str, output: Path, form: str, dtype: str | None, as_json: bool, force: bool, quiet: bool) -> None:
    """Export a model for other programs.

    `--to hf` makes a directory that AutoModelForCausalLM and AutoTokenizer of transformers load, with a model card;
    logits and ids are equal. `--to gguf` makes one with model.gguf for llama.cpp, of models with the shape of GPT-2,
    Llama or Qwen 3. If the other program cannot represent the model, the reason is named and nothing is written.

    \b
    Examples:
      gptcli export runs/demo -o demo-hf --to hf
      gptcli export runs/gpt2 -o gpt2-gguf --to gguf --dtype q8_0
    """
    from gptcli.api import export_model as runs
    from gptcli.cli import console

    report = console.ConsoleReport("export", quiet=quiet)
    run_export = runs.export_hf if form == "hf" else runs.export_gguf
    given = {} if dtype is None else {"dtype": dtype}
    exported = run_export(run, output, **given, force=force, report=report)
    if as_json:
        console.write_json(exported.as_dict())
    else:
        console.write_facts(exported.lines())
