"""The settings of a process: gptcli's own is set up as its work needs, a caller's is left alone.

The command line says that it is: threads, how they wait, the allocator, garbage collection and PyTorch's choice of
kernels are the whole process's. The Python API changes none of them, but for a number of threads that its caller
names. Imports no torch.
"""

from __future__ import annotations

import gc
import os
from collections.abc import MutableMapping

# Turns of a waiting thread before it sleeps. GNU's OpenMP (PyTorch's on Linux) makes 300,000, some milliseconds, which
# on a busy machine are taken from the thread that is waited for, at each of a step's thousands of operations.
# So few bridge most gaps between two operations; fewer make one stream of a small model sleep in them, more cost a
# busy machine more. tests/bench/busy.py measures both sides. Intel's and LLVM's OpenMP (PyTorch's on macOS) count
# milliseconds, 200 where none are given.
WAITING = {"GOMP_SPINCOUNT": "2500", "KMP_BLOCKTIME": "1"}

# Kernels that oneDNN keeps, and PyTorch beside it, each for a number of rows: prompts and batches have hundreds, so
# that a server's memory grows until both keep the 1,024 that they may by default. The names are oneDNN's and ideep's.
KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}

# Objects made, less those freed, before young ones are searched for cycles while modules load. PyTorch's make 170,000
# that stay; Python's default of 700 looks through all of them several times.
LOADING_OBJECTS = 100_000

_own = False
_collection: tuple[int, int, int] | None = None  # Python's own thresholds, until the modules are loaded


def own_process(environment: MutableMapping[str, str] = os.environ) -> None:
    """Take this process for gptcli's own. To be called before torch is imported, which loads OpenMP.

    A waiting policy, or a number of kernels, that the environment names stays.
    """
    global _own, _collection
    _own, _collection = True, gc.get_threshold()
    gc.set_threshold(LOADING_OBJECTS)
    if not any(name in environment for name in ("OMP_WAIT_POLICY", *WAITING)):
        environment.update(WAITING)
    for name, number in KERNELS.items():
        environment.setdefault(name, number)


def is_own_process() -> bool:
    """Return whether the settings of the whole process may be changed."""
    return _own


def modules_are_loaded() -> None:
    """Collect garbage as Python does by default from now on, without what is there now: modules and their functions,
    which stay, and through which every full collection would go while nothing else runs.

    Does nothing in a caller's process, or a second time.
    """
    global _collection
    if _collection is not None:
        gc.freeze()
        gc.set_threshold(*_collection)
        _collection = None
