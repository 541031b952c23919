"""Corpus work on planted data, beside datatrove and presidio where another Python has them.

    python tests/bench/corpus.py near|memory|passages|language|pii|overlap|pipe|kills|all [--mb 20] [--peers PYTHON]

Every set is made by a seed: what is planted is known, so that recall and precision are counted and not judged. Speeds
are MB of UTF-8 text per second of CPU time, of one process; peers run in the same call.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from corpus_flow import kills, pipe
from corpus_language import language
from corpus_overlap import overlap
from corpus_pii import pii
from corpus_repeats import memory, near, passages


def main() -> None:
    """Run the parts that are named, each in an empty directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"near": near, "memory": memory, "passages": passages, "language": language, "pii": pii}
    parts |= {"overlap": overlap, "pipe": pipe, "kills": kills}
    parser.add_argument("part", choices=[*parts, "all"])
    parser.add_argument("--mb", type=float, default=20)
    parser.add_argument("--peers", help="a Python with datatrove, presidio-analyzer, faker and django")
    parser.add_argument("--sentences", type=Path, help="a directory of sentences, CODE.txt of each language")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    parts["language"] = partial(language, sentences=given.sentences)
    for name in parts if given.part == "all" else [given.part]:
        with tempfile.TemporaryDirectory(prefix="corpus-bench-") as work:
            parts[name](given.mb, given.peers, Path(work))


if __name__ == "__main__":
    sys.exit(main())
