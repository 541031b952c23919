"""A function of many items in several processes, its results in the order of the items.

A worker gets an item when it owes no result: one that is writing a large result reads nothing meanwhile, and would wait
for ever for whoever waits to write to it.

A worker ends when its pipe does, so that none outlives the process that started it, however that ends.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from gptcli.base.errors import GptcliError

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 2  # items of each worker, at work or done, for which an earlier one may be waited for
Answer = tuple[Any, GptcliError | MemoryError | None]


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int = 1) -> Iterator[R]:
    """Yield `function` of each item, in order, computed by so many processes; by this one where it is one.

    A GptcliError or MemoryError of a worker is raised here in its place; a worker that dies is a GptcliError.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    team = _start(function, workers)
    idle, working = [pipe for _, pipe in team], dict[Connection, int]()
    answers: dict[int, Answer] = {}
    numbered, turn = enumerate(items), 0
    try:
        while True:
            while idle and len(working) + len(answers) < AHEAD * workers and (found := next(numbered, None)):
                working[idle[-1]], item = found
                _send(idle.pop(), item)
            if turn in answers:
                yield _result(answers.pop(turn))
                turn += 1
            elif working:
                for pipe in wait(list(working)):
                    assert isinstance(pipe, Connection)
                    answers[working.pop(pipe)] = _receive(pipe)
                    idle.append(pipe)
            else:
                return
    finally:
        for process, pipe in team:
            pipe.close()
            process.terminate()
        for process, _ in team:
            process.join()


def _start(function: Callable[[Any], Any], workers: int) -> list[tuple[Any, Connection]]:
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    team: list[tuple[Any, Connection]] = []
    for _ in range(workers):
        ours, theirs = context.Pipe()
        others = [pipe for _, pipe in team] + [ours]
        process = context.Process(target=_serve, args=(function, theirs, others), daemon=True)
        process.start()
        theirs.close()
        team.append((process, ours))
    return team


def _serve(function: Callable[[Any], Any], pipe: Connection, others: list[Connection]) -> None:
    """Answer items until the pipe ends. Signals of the terminal are the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in others:
        other.close()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            item = pipe.recv()
            try:
                answer: Answer = function(item), None
            except (GptcliError, MemoryError) as error:
                answer = None, error
            pipe.send(answer)


def _send(pipe: Connection, item: Any) -> None:
    try:
        pipe.send(item)
    except (BrokenPipeError, ConnectionResetError):
        raise _lost() from None


def _receive(pipe: Connection) -> Answer:
    try:
        answer: Answer = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise _lost() from None
    return answer


def _result(answer: Answer) -> Any:
    result, error = answer
    if error is not None:
        raise error
    return result


def _lost() -> GptcliError:
    return GptcliError("a worker process ended early, perhaps for want of memory; pass fewer --workers")
