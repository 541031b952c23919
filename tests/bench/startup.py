"""How long gptcli takes to answer: help, a mistake in a run file, and the first text of a model.

Wall clock of whole processes, from start to end: medians of ten (smallest..largest) after one that does not count, the
commands in turn with each other. `python -c "import torch"` stands beside them as what any command that computes must
pay. Where torch was imported for help or for a mistake, the program fails.

Run:
    python tests/bench/startup.py [RUN] [--rounds 10] [--json]      # RUN: a run directory or a checkpoint

Learnt:
  - gptcli ends its process without the interpreter's shutdown, and `import torch` alone pays for that, too: the
    difference between the two may come out near nothing, or below.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import harness

BAD = "run_dir: run\ndata: {train: [text.txt]}\nmodel: {num_layer: 4}\n"  # num_layers
IMPORTED = "import sys; from gptcli.cli.main import run; run(sys.argv[1:]); sys.exit('torch' in sys.modules)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="left out: `gptcli generate` is not measured")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    harness.warn_of_load()
    with tempfile.TemporaryDirectory() as name:
        bad = Path(name) / "bad.yaml"
        bad.write_text(BAD)
        for arguments in (["--help"], ["pretrain", bad]):
            harness.run([sys.executable, "-c", IMPORTED, *arguments])
        commands = {
            "gptcli --help": (harness.gptcli("--help"), 0),
            "gptcli pretrain bad.yaml": (harness.gptcli("pretrain", bad), 2),
            "import torch": ([sys.executable, "-c", "import torch"], 0),
        }
        if given.run:
            commands["gptcli generate"] = (harness.gptcli("generate", given.run, "The", "--max-tokens", "20"), 0)
        times: dict[str, list[float]] = {label: [] for label in commands}
        for number in range(given.rounds + 1):
            for label, (command, code) in commands.items():
                seconds = harness.run(command, code=code).seconds
                if number:
                    times[label].append(seconds)
    if given.run:
        pairs = zip(times["gptcli generate"], times["import torch"], strict=True)
        times["gptcli generate - import torch"] = [generate - torch for generate, torch in pairs]
    result = {label: harness.spread(found) for label, found in times.items()}
    if given.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(f"seconds, rounds: {given.rounds}")
    for label, found in result.items():
        print(f"{label:32}{harness.show(found, '.3f')}")
    print("torch is not imported for help or for a mistake in a run file")


if __name__ == "__main__":
    main()
