"""Processes that work on one run together, over torch.distributed: gloo between CPUs, NCCL between GPUs.

All of them call the same functions in the same order. One process alone is the ordinary case, in which every function
here gives back what it was given, and torch.distributed is not imported.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from gptcli.base.errors import ConfigError, GptcliError, LostProcess
from gptcli.base.grouping import grouped
from gptcli.base.signals import Stopped
from gptcli.config.parallel import ParallelConfig
from gptcli.config.train import RuntimeConfig
from gptcli.device.world import BY_GPTCLI, World, claim_speech, world

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
PATIENT = timedelta(days=30)  # for what the first process does alone, as preparing the text; a dead one ends it at once
MEETING = timedelta(minutes=15)  # for all processes to start, on machines that may be slow
ROUND = 32  # items of each process, such as answers written side by side, between looks whether the work is to end
ANSWER_SECONDS = 5.0  # for the process that has the store, the first, to say who was the first with an error
PARENT_SECONDS = 0.2  # between looks whether the process that started this one is there
CLAIM = "gptcli/error"  # in the store: the process that says what went wrong


@dataclass(frozen=True)
class Processes:
    """This process among those of a run. `patient`: the group for waits on what the first does alone."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    config: ParallelConfig = field(default_factory=ParallelConfig)
    patient: ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Return whether this process speaks, writes and decides."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Return whether there are no others."""
        return self.count == 1

    def share(self, value: Any = None, *, by: int = 0, in_step: bool = False) -> Any:
        """Return what one process gives, by default the first, anything that JSON holds, to all.

        The others wait as long as it takes, `in_step` no longer than in a step; who gives never waits longer for them.
        """
        if self.alone:
            return value
        gives = self.rank == by
        limit = timedelta(seconds=self.config.timeout_seconds) if gives or in_step else PATIENT
        content = json.dumps(value).encode() if gives else b""
        size = torch.tensor([len(content)])
        self._broadcast(size, by, limit)
        found = torch.frombuffer(bytearray(content), dtype=torch.uint8) if gives else None
        if found is None:
            found = torch.empty(int(size), dtype=torch.uint8)
        self._broadcast(found, by, limit)
        return value if gives else json.loads(bytes(found.tolist()))

    def _broadcast(self, tensor: Tensor, by: int, limit: timedelta) -> None:
        import torch.distributed as dist

        assert self.patient is not None
        options = dist.BroadcastOptions()
        options.rootRank, options.timeout = by, limit
        self.patient.broadcast([tensor], options).wait()

    def largest(self, number: int) -> int:
        """Return the largest of the numbers that the processes give."""
        if self.alone:
            return number
        import torch.distributed as dist

        found = torch.tensor([number])
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def largest_of_each(self, numbers: Tensor) -> Tensor:
        """Return the largest of what the processes give at each place (N,), on the CPU."""
        import torch.distributed as dist

        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return numbers

    def gather(self, numbers: Tensor) -> Tensor:
        """Return the numbers (...) of every process, (count, ...), on the CPU."""
        found = torch.empty(self.count, *numbers.shape, dtype=numbers.dtype)
        spread_parts(numbers.reshape(-1), found)
        return found

    def meet(self) -> None:
        """Wait for all the others, as long as it takes."""
        if not self.alone:
            import torch.distributed as dist

            dist.barrier(group=self.patient)

    def by_first(self, work: Callable[[], object]) -> None:
        """Let the first process do something while the others wait; Stopped there is raised in all."""
        if self.alone:
            work()
            return
        stopped = False
        if self.is_first:
            try:
                work()
            except Stopped:
                stopped = True
        if self.share(stopped):
            raise Stopped

    def held_by_first(self, context: AbstractContextManager[T]) -> AbstractContextManager[T | None]:
        """Return a context manager that only the first process enters."""
        return context if self.is_first else nullcontext()


ALONE = Processes()


@dataclass(frozen=True)
class Together:
    """Processes that compute something together in rounds. All call `check` before each; it raises the same in all of
    them where the work is to end."""

    processes: Processes = ALONE
    check: Callable[[], None] = lambda: None
    lockstep: bool = False  # who has nothing to compute in a round goes through the model with the others

    def compute(self, items: Iterable[T], work: Callable[[T], Tensor]) -> Iterator[tuple[T, Tensor]]:
        """Yield each item, in order, with the numbers (N,) that `work` makes of it, on the CPU.

        Of several processes, which all call this, each computes every n-th item, and all get the same.
        """
        processes = self.processes
        for group in grouped(items, processes.count):
            self.check()
            if processes.alone:
                yield group[0], work(group[0])
                continue
            there = processes.rank < len(group)
            own = work(group[processes.rank if there else 0]) if there or self.lockstep else torch.empty(0)
            about = processes.gather(torch.tensor([len(own), own.dtype == torch.float64]))
            dtype = torch.float64 if about[0, 1] else torch.float32  # the first always has an item
            padded = torch.zeros(int(about[:, 0].max()), dtype=torch.float64)
            padded[: len(own)] = own
            for item, numbers, size in zip(group, processes.gather(padded), about[:, 0].tolist(), strict=False):
                yield item, numbers[:size].to(dtype)

    def spread(
        self, items: Sequence[T], work: Callable[[Sequence[T]], list[Any]], *, of_model: bool = True
    ) -> list[Any]:
        """Return what `work` makes of each item, anything that JSON holds, in order.

        Of several processes each does every n-th item, and all get the same; in lockstep all do all of them, unless
        the work is not `of_model`.
        """
        processes = self.processes
        if processes.alone:
            return work(items)
        alike = self.lockstep and of_model
        found: list[Any] = []
        for group in grouped(items, ROUND * (1 if alike else processes.count)):
            self.check()
            if alike:
                found += work(group)
                continue
            own, of_all = work(group[processes.rank :: processes.count]), [None] * len(group)
            for rank in range(processes.count):
                given = own if rank == processes.rank else None
                of_all[rank :: processes.count] = processes.share(given, by=rank, in_step=True)
            found += of_all
        return found


BY_ONE = Together()


@contextmanager
def joined(config: ParallelConfig, runtime: RuntimeConfig) -> Iterator[Processes]:
    """Join the other processes of this run, where there are some; GPUs talk by NCCL, all else by gloo."""
    place = world()
    if config.replicate not in (None, place.count):
        started = "1 process was" if place.count == 1 else f"{place.count} processes were"
        raise ConfigError(
            f"parallel.replicate: {config.replicate}, but {started} started; start as many "
            f"(--nproc {config.replicate}), or leave it out"
        )
    if place.count == 1:
        yield ALONE
        return
    import torch.distributed as dist

    end_with_parent()
    on_gpus = runtime.device.startswith("cuda") or (runtime.device == "auto" and torch.cuda.is_available())
    store = _meet(place, config, "cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    try:
        patient = dist.new_group(backend="gloo", timeout=PATIENT)  # fails where another is through and ends at once
        yield Processes(place.rank, place.count, place.local_rank, config, patient)
    except BaseException as error:
        raise _as_one_of_many(error, store, place, config) from None
    dist.destroy_process_group()


def _meet(place: World, config: ParallelConfig, backend: str) -> Any:
    """Connect to the other processes -> the store that all of them see."""
    import torch.distributed as dist

    by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            place.address,
            place.port,
            place.count,
            is_master=place.rank == 0 and not by_launcher,
            timeout=MEETING,
            wait_for_workers=False,
        )
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("gptcli", store),  # type: ignore[attr-defined]
            rank=place.rank,
            world_size=place.count,
            timeout=timedelta(seconds=config.timeout_seconds),
        )
    except (RuntimeError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise GptcliError(
            f"the processes did not meet at {place.address}:{place.port} ({what}); start all of them, with the same "
            "MASTER_ADDR and MASTER_PORT"
        ) from None
    return store


def _is_connection(error: RuntimeError) -> bool:
    """Return whether an error is that of a collective whose other end is gone or silent."""
    import torch.distributed as dist

    text = str(error).lower()
    words = ("connection", "timed out", "timeout", "gloo", "socket", "nccl", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in text for word in words)


def _as_one_of_many(error: BaseException, store: Any, place: World, config: ParallelConfig) -> BaseException:
    """Return the error for the first process that meets one, LostProcess for those that end with it."""
    if isinstance(error, LostProcess):
        return error
    if isinstance(error, RuntimeError) and _is_connection(error):
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            error = GptcliError(
                f"a process was silent for {config.timeout_seconds} s (parallel.timeout_seconds); look whether its "
                "machine is overloaded or it hangs, and go on with --resume"
            )
        elif BY_GPTCLI in os.environ:  # the launcher knows which process ended, and how
            return LostProcess()
        else:
            error = GptcliError("another process has ended without a word, as by a kill; go on with --resume")
    if not _claim(store, place.rank):
        return LostProcess()
    claim_speech()
    return error


def _claim(store: Any, rank: int) -> bool:
    """Return whether this is the process that says what went wrong: the first that asks."""
    first: list[str] = []

    def ask() -> None:
        with suppress(RuntimeError):  # the store is gone, and with it the process that had it
            first.append(store.compare_set(CLAIM, "", str(rank)).decode())

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    return first == [str(rank)] or (not first and rank == (1 if asking.is_alive() else 0))


def end_with_parent() -> None:
    """End this process as by SIGTERM, with a checkpoint, where the process that started it is killed.

    The kernel's own way (PR_SET_PDEATHSIG) sends the signal once for each thread of the parent, and the second of two
    signals ends a run at once.
    """
    parent = int(os.environ.get(BY_GPTCLI, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def exchange_parts(parts: Tensor, found: Tensor) -> None:
    """Send row r of `parts` (count, N) to process r, and put what process r sends here into row r of `found`."""
    import torch.distributed as dist

    dist.all_to_all_single(found, parts)


def spread_parts(own: Tensor, found: Tensor) -> None:
    """Put the `own` (N,) of process r into row r of every process's `found` (count, N)."""
    import torch.distributed as dist

    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the older name until torch 2.12
    gather(found.view(-1), own)


def collect(tensors: Sequence[Tensor], owner: int, processes: Processes) -> None:
    """Copy tensors of `owner` into those of the first process; both call it."""
    import torch.distributed as dist

    for tensor in tensors:
        if owner == processes.rank:
            dist.send(tensor, 0)
        elif processes.is_first:
            dist.recv(tensor, owner)


def exchange_uneven(parts: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    """Send the flat parts[r] to process r -> what all of them sent here, end to end; of process r lengths[r]."""
    import torch.distributed as dist

    found = parts[0].new_empty(sum(lengths))
    dist.all_to_all_single(found, torch.cat(list(parts)), list(lengths), [len(part) for part in parts])
    return found
