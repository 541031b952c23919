"""Several processes of one run, forked from the server of `faults`, as torchrun would start them."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from faults import CONTEXT, Ended, Home, Perform, Trial, metrics

from gptcli.base.errors import GptcliError
from gptcli.config.parallel import ParallelConfig
from gptcli.config.train import RuntimeConfig
from gptcli.device.processes import Processes, Together, joined
from gptcli.model.gpt import GPT

ONE_THREAD = ("-s", "runtime.threads=1")  # the bits of a matrix product may depend on the number of threads


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def place_of(rank: int, count: int, port: int) -> dict[str, str]:
    """The environment of one process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


class Ranks:
    """A gptcli command under way in `count` processes; a fault is that of one of them."""

    def __init__(self, home: Home, run: str, count: int, *more: str, fault: Perform | None = None, at: int = 0) -> None:
        port, command = free_port(), "pretrain" if home.task == "pretrain" else "finetune"
        arguments = [command, "run.yaml", "-s", f"run_dir={run}", *ONE_THREAD, *more]
        self.run = home.path / run
        self.trials = [
            Trial(arguments, home.path, {**home.env, **place_of(rank, count, port)}, fault if rank == at else None)
            for rank in range(count)
        ]

    def signal(self, number: int, *ranks: int) -> None:
        for rank in ranks or range(len(self.trials)):
            self.trials[rank].signal(number)

    def wait_for_step(self, step: int, seconds: float = 60) -> None:
        """Wait until the run has reported a step, or has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and any(trial.process.is_alive() for trial in self.trials):
            if (self.run / "metrics.jsonl").exists() and any(m[1] >= step for m in metrics_so_far(self.run)):
                return
            time.sleep(0.01)

    def end(self, seconds: float = 300) -> list[Ended]:
        return [trial.end(seconds) for trial in self.trials]

    def errors(self, ended: list[Ended]) -> list[str]:
        """The lines of errors that all the processes said together."""
        lines = [line for each in ended for line in each.err.splitlines()]
        assert not any("Traceback" in line for line in lines), lines
        return [line for line in lines if "error:" in line]


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run work(processes, *arguments), a function of a module, in processes that have joined -> what each returned."""
    port, results = free_port(), CONTEXT.Queue()
    ranks = [CONTEXT.Process(target=_join, args=(r, count, port, results, work, arguments)) for r in range(count)]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=300) for _ in ranks)
    for process in ranks:
        process.join()
    return [found[rank] for rank in range(count)]


def _join(rank: int, count: int, port: int, results: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(place_of(rank, count, port))
    torch.set_num_threads(1)
    found: Any = None
    try:
        with joined(ParallelConfig(timeout_seconds=20), RuntimeConfig(device="cpu")) as processes:
            found = work(processes, *arguments)
    except GptcliError as error:
        found = f"{type(error).__name__}: {error}"
    results.put((rank, found))


class Counted:
    """How often a model was gone through here, and the rounds of the work that processes do `together`."""

    def __init__(self, processes: Processes) -> None:
        self.passes = self.rounds = 0
        self.together = Together(processes, self._check)

    def _check(self) -> None:
        self.rounds += 1


def counting(model: GPT, processes: Processes) -> Counted:
    """Count from now on what a model does in this process."""
    counted, hidden = Counted(processes), model.hidden

    def pass_on(*given: Any, **how: Any) -> Any:
        counted.passes += 1
        return hidden(*given, **how)

    model.hidden = pass_on  # type: ignore[method-assign]
    return counted


def assert_shares_of_one(work: Callable[..., tuple[Any, int, int]], argument: Any) -> int:
    """Hold work(processes, argument) -> (result, passes, rounds) of 2 and 3 processes to the result of one, of whose
    passes each makes a share -> the passes of one."""
    ((alone, all_passes, _),) = in_processes(1, work, argument)
    for count in (2, 3):
        ranks = in_processes(count, work, argument)
        assert all(found == alone for found, _, _ in ranks)
        assert sum(passes for _, passes, _ in ranks) == all_passes
        assert max(passes for _, passes, _ in ranks) <= -(-all_passes // count) + 1
        assert len({rounds for _, _, rounds in ranks}) == 1
    return int(all_passes)


def metrics_so_far(run: Path) -> list[tuple[str, int, dict[str, object]]]:
    try:
        return metrics(run)
    except ValueError:  # half a line
        return []


def run_in(home: Home, run: str, count: int, *more: str) -> None:
    """Run to the end; nothing is said twice, and no process fails."""
    ended = Ranks(home, run, count, *more).end()
    assert [each.code for each in ended] == [0] * count, ended
    assert all(each.err == "" for each in ended[1:]), ended


__all__ = ["ONE_THREAD", "Ranks", "assert_shares_of_one", "counting", "free_port", "in_processes", "metrics_so_far",
           "place_of", "run_in", "signal"]  # fmt: skip
