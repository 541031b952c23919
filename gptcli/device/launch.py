"""Start the processes of a run on this machine, forward signals to them, and say how they ended.

The processes are those of PyTorch (torch.distributed.elastic.multiprocessing), which ends all where one fails. They
meet at a store in this process, so that no port is chosen that another program may take meanwhile.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

from gptcli.base.errors import GptcliError, LostProcess
from gptcli.base.signals import handled
from gptcli.device.cpus import available_cpus
from gptcli.device.world import BY_GPTCLI

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing import PContext

LOOK_SECONDS = 0.1  # between looks at the processes
HOST = "127.0.0.1"


def launch(arguments: Sequence[str], count: int) -> int:
    """Run `gptcli ARGUMENTS` in `count` processes until all have ended -> the exit code that one process would have.

    A signal to this process goes to all of them, which save and end. Where one is killed the others are ended: by
    SIGTERM and, 30 seconds later, by SIGKILL. GptcliError says which process ended how, where it could not itself.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    for name in ("torch.distributed.elastic", "torch.distributed.elastic.multiprocessing.api"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # the others are forwarded
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    common = _environment(count, store.port)
    with _forwarding_signals() as forward_to:
        context = start_processes(
            name="gptcli",
            entrypoint=sys.executable,
            args=dict.fromkeys(range(count), ("-m", "gptcli", *arguments)),
            envs={rank: {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)},
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        )
        forward_to(context)
        ended = context.wait(period=LOOK_SECONDS)
    failures = {} if ended is None else ended.failures
    return _exit_code({rank: failure.exitcode for rank, failure in failures.items()}, count)


def _environment(count: int, port: int) -> dict[str, str]:
    """Return what all processes are told: where they meet, and their share of the CPUs."""
    given = {
        "OMP_NUM_THREADS": str(max(1, available_cpus() // count)),
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    return {
        **{name: os.environ.get(name, value) for name, value in given.items()},
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        BY_GPTCLI: str(os.getpid()),
    }


@contextmanager
def _forwarding_signals() -> Iterator[Callable[[PContext], None]]:
    """Pass signals on within the block to the processes that it names, which decide what becomes of the run."""
    contexts: list[PContext] = []
    early: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if not contexts:
            early.append(number)
        for context in contexts:
            for pid in context.pids().values():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

    def forward_to(context: PContext) -> None:
        contexts.append(context)
        for number in early:
            forward(number, None)

    with handled(forward):
        yield forward_to


def _exit_code(failed: dict[int, int], count: int) -> int:
    """Return the exit code of the process that failed for a reason of its own; GptcliError where that was killed.

    `failed`: the codes of those that did not end with 0, a negative one for a signal. Where one has said why it fails,
    PyTorch ends the others: by SIGTERM, and those that hang by SIGKILL.
    """
    others = (LostProcess.exit_code, -signal.SIGTERM)
    causes = {rank: code for rank, code in failed.items() if code not in others}
    stopped = (128 + signal.SIGTERM, 128 + signal.SIGINT)
    rank = min(causes, key=lambda rank: (causes[rank] in stopped, causes[rank] < 0, rank), default=None)
    if rank is None:
        return 1 if failed else 0
    if causes[rank] < 0:
        how = signal.Signals(-causes[rank]).name
        memory = ", as the kernel does where memory runs out" if causes[rank] == -signal.SIGKILL else ""
        raise GptcliError(f"process {rank} of {count} was ended by {how}{memory}; go on with --resume")
    return causes[rank]
