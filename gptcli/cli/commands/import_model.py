"""gptcli import"""

from __future__ import annotations

from pathlib import Path

import click

from gptcli.cli.commands import options


@click.command("import", no_args_is_help=True)
@click.argument("source", type=click.Path(path_type=Path), metavar="HF_DIR")
@click.option("-o", "--output", required=True, type=options.Output(path_type=Path), help="The checkpoint to make.")
@options.as_json
@options.force
@options.quiet
def import_model(source: Path, output: Path, as_json: bool, force: bool, quiet: bool) -> None:
    """Bring in a model from a directory that transformers wrote.

    GPT-2 (distilgpt2 and Cerebras-GPT too), Llama, Qwen 2 and 3, and NanoChat, from safetensors and with a byte-level
    BPE tokenizer. The result computes the same logits and is a checkpoint as any other. Nothing of the directory is
    run, and nothing is downloaded.

    \b
    Example:
      gptcli import gpt2/ -o runs/gpt2
      echo "Once upon a time" | gptcli generate runs/gpt2
    """
    from gptcli.api.import_model import import_model as run
    from gptcli.cli import console

    imported = run(source, output, force=force, report=console.ConsoleReport("import", quiet=quiet))
    if as_json:
        console.write_json(imported.as_dict())
    else:
        console.write_facts(imported.lines())
