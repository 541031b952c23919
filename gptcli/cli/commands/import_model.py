"""gptcli import"""

from __future__ import annotations

from pathlib import Path

import click

from gptcli.cli.commands import options


@click.command("import", no_args_is_help=True)
@click.argument("source", type=click.Path(path_type=Path), metavar="SOURCE")
@click.option("-o", "--output", required=True, type=options.Output(path_type=Path), help="The checkpoint to make.")
@click.option("--base", metavar="RUN", help="The model that a PEFT adapter was trained on.")
@options.as_json
@options.force
@options.quiet
def import_model(source: Path, output: Path, base: str | None, as_json: bool, force: bool, quiet: bool) -> None:
    """Import a pretrained model from a transformers directory or a GGUF file.

    A directory must hold safetensors; a GGUF file may be of any type that the package gguf dequantizes. The result
    computes the same logits. The tokenizer, the tokens that begin and end a text, and the chat template are imported
    too. A PEFT adapter (LoRA) is merged into the checkpoint of its model, --base. Nothing is downloaded, and nothing in
    the files is run but the template, in a sandbox.

    \b
    Examples:
      gptcli import SmolLM2-135M-Instruct.Q4_1.gguf -o runs/smol && gptcli chat runs/smol
      gptcli import gpt2/ -o runs/gpt2
      gptcli import adapter/ --base runs/smol -o runs/tuned
    """
    from gptcli.api.import_model import import_model as run
    from gptcli.cli import console

    imported = run(source, output, base=base, force=force, report=console.ConsoleReport("import", quiet=quiet))
    if as_json:
        console.write_json(imported.as_dict())
    else:
        console.write_facts(imported.lines())
