"""How long processes wait for one another."""

import time
from dataclasses import replace

import pytest
from ranks import in_processes

from gptcli.config.parallel import ParallelConfig
from gptcli.device.processes import Processes

LATE = 4  # seconds, where a step may wait for one


def shared(processes: Processes, late: int, in_step: bool) -> str:
    processes = replace(processes, config=ParallelConfig(timeout_seconds=1))
    processes.meet()
    if processes.rank == late:
        time.sleep(LATE)
    return str(processes.share("a" if processes.is_first else None, in_step=in_step))


def silent(late: int, *, in_step: bool) -> bool:
    """Whether one of two processes was given up for being late; else both have what was shared."""
    ended = in_processes(2, shared, late, in_step)
    assert ended == ["a", "a"] or any("a process was silent" in text for text in ended), ended
    return ended != ["a", "a"]


@pytest.mark.parametrize("in_step", [False, True])
def test_the_one_that_gives_waits_for_no_one_that_hangs(in_step: bool) -> None:
    assert silent(1, in_step=in_step)


def test_the_others_wait_for_it_but_not_in_a_step() -> None:
    assert not silent(0, in_step=False)
    assert silent(0, in_step=True)
