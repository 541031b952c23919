"""Tell the seconds of the first token of each line that comes on stdin, in an engine alone: for G4 of serve.py.

    python tests/bench/serve_alone.py RUN THREADS DTYPE

The process is set up as that of every command is: how its threads wait decides on milliseconds of a prompt.
"""

from __future__ import annotations

import itertools
import sys
import time

from gptcli.device.process import own_process

if __name__ == "__main__":
    own_process()  # before torch is imported

    from gptcli.cli.commands.options import ask_for_huge_pages

    ask_for_huge_pages()
    from gptcli.api.generate import Writer
    from gptcli.config.generate import GenerateOptions
    from gptcli.generate.engine import Request

    run, threads, dtype = sys.argv[1:]
    exact = dtype == "float32"
    writer = Writer(run, threads=int(threads), device="cpu", dtype="float32" if exact else "bfloat16")
    for text in itertools.chain(["a"], sys.stdin):
        request = Request(writer.engine.tokenizer.encode(text.strip()), GenerateOptions(max_tokens=1, top_k=50))
        began = time.perf_counter()
        list(writer.engine.run([request]))
        print(time.perf_counter() - began, flush=True)
