"""Corpus work on planted data, beside datatrove and presidio where another Python has them.

    python tests/bench/corpus.py near|memory|passages|language|pii|overlap|pipe|kills|all [--mb 20] [--peers PYTHON]

Every set is made by a seed: what is planted is known, so that recall and precision are counted and not judged. Speeds
are MB of UTF-8 text per second of CPU time, of one process; peers run in the same call.

Seen on two cores of a server:
  - passages: 100 MB, 5,289 of 5,289 found, 12.9 MB/s (10.4 to 12.9, 3 rounds), 134 MB of memory; 20 MB, 1,061 of 1,061,
    8.0 to 10.5 MB/s by the state of the machine: by these two sizes 1.1 s of a process do not grow with the text.
  - kills: of each of the six commands 20 of 20 the same bytes, no file left over.
  - near, 22 MB: all of 605 pairs of Jaccard 0.8 or more, nothing dropped below 0.5, 12.7 to 14.3 MB/s, 72 MB;
    datatrove 0.10.1 in the same runs: 0.9901, 0.32 to 0.37 MB/s, 138 MB. It wants the extras `processing` and `io`, and
    orjson. 110 MB beside other work: all of 2,993, 13.2 MB/s, 92 MB.
  - memory: 500 MB at most 106 MB, 1 GB 144 MB, 2 GB (592,566 documents) 231 MB, 23.3 MB/s.
  - pipe, 1 GB: 451 and 572 s beside other work, all exit codes 0, 6 to 34 lines told by each; at most 51 MB in filter,
    150 in dedup and 826 in prepare with its workers, whose pages in common are counted for each (150 MB of text: 50,
    97 and 681). Before `head -n 1` filter ended after 0.4 and 0.6 s and dedup after 1.3 and 2.0, with 141 and quiet.
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
