"""A second thread of Python, for work at the same time as the first."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import torch


def second_thread() -> ThreadPoolExecutor:
    """Return the process's second thread, which begins at the first call.

    To be called once before other threads have come and gone: glibc gives a new thread the heap of one that ended, and
    only the first thread's can hold blocks of 64 MB; elsewhere they are faulted in anew at every use.
    """
    return _begun(os.getpid())  # a fork has no threads


@functools.cache
def _begun(_process: int) -> ThreadPoolExecutor:
    executor = ThreadPoolExecutor(1)
    executor.submit(torch.get_num_threads).result()  # else its first operation sets the number of threads anew
    return executor
