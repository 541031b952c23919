"""Loading, answering, draining: from a run and a listener to an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptcli.api.serve.app import Settings, make_app
from gptcli.api.serve.guard import Rules
from gptcli.api.serve.http import Server, make_server
from gptcli.api.serve.place import Place
from gptcli.api.serve.worker import Worker
from gptcli.base.errors import GptcliError
from gptcli.base.escape import escape
from gptcli.base.report import Report

if TYPE_CHECKING:
    from gptcli.api.serve.service import Service

END_SECONDS = 1.0  # for telling that an answer is cut
LOG_LINES = 10_000  # that wait where stderr is slow; more are lost, and no answer waits for them
MOST_CONNECTIONS = 2000
SWITCH_SECONDS = 5e-4  # between threads: the engine's gives way at each operation, and waits so long for its next turn


@dataclass(frozen=True)
class Limits:
    """The limits of what is taken on at once."""

    queue: int | None = None
    timeout: float = 600.0
    grace: float = 30.0
    ping: float = 15.0


def serve(
    run: str,
    place: Place,
    listener: socket.socket,
    limits: Limits,
    given: dict[str, Any],
    how: dict[str, Any],
    *,
    name: str,
    bug: Callable[[BaseException], None],
    report: Report,
) -> int:
    """Serve a run on a place's listener until a signal; return the exit code.

    `given` are options of drawing for requests that name none; `bug` gets an error that nobody expected, of one
    request, which is answered 500.
    """
    _raise_file_limit()
    sys.setswitchinterval(SWITCH_SECONDS)
    return asyncio.run(_serve(run, place, listener, limits, given, how, name=name, bug=bug, report=report))


async def _serve(
    run: str,
    place: Place,
    listener: socket.socket,
    limits: Limits,
    given: dict[str, Any],
    how: dict[str, Any],
    *,
    name: str,
    bug: Callable[[BaseException], None],
    report: Report,
) -> int:
    loop = asyncio.get_running_loop()

    def load() -> Service:
        from gptcli.api.serve.service import Service

        return Service(run, given, how, report)

    worker = Worker(load, loop, queue_limit=limits.queue, timeout=limits.timeout)
    log = _Log(report.message)
    settings = Settings(run, name, _rules(place), ping=limits.ping, share_prefix=place.share_prefix)
    server = make_server(make_app(worker, settings, log.add, bug), most_connections=MOST_CONNECTIONS)
    ending = _Ending(worker, server, limits.grace, report)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, ending.signalled, number)
    worker.thread.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    watching = asyncio.create_task(_watch(worker, ending, report, name))
    await serving
    watching.cancel()
    log.close()
    if ending.error is not None:
        raise ending.error
    return ending.exit_code


async def _watch(worker: Worker, ending: _Ending, report: Report, name: str) -> None:
    """Tell when the model is loaded; end the server where its engine fails or answers no more."""
    await worker.ready.wait()
    if (service := worker.service) is not None and worker.state == "ready":
        report.message(
            f"{escape(name)}: {service.task}, {service.parameters:,} parameters, context of {service.context_length} "
            f"tokens, {service.engine.count} texts at once"
        )
    await worker.watch()
    error = getattr(worker, "error", None) or GptcliError("the engine does nothing any more")
    ending.fail(error)


class _Ending:
    """The end of the server: at a signal after the answers in hand, or where the engine failed."""

    def __init__(self, worker: Worker, server: Server, grace: float, report: Report) -> None:
        self.worker, self.server, self.grace, self.report = worker, server, grace, report
        self.signal: int | None = None
        self.error: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.unsent = 0  # answers that their clients did not take in time

    @property
    def exit_code(self) -> int:
        """Return 0, or 128 + the signal where an answer was cut."""
        return 128 + (self.signal or 0) if self.worker.cut or self.unsent else 0

    def signalled(self, number: int) -> None:
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        self.report.message("no new requests; answers in hand are finished, a second signal cuts them")
        self.worker.drain()
        self.task = asyncio.get_running_loop().create_task(self._finish())

    async def _finish(self) -> None:
        """Close the listener and idle connections, wait for answers as long as the grace, then cut them.

        The server ends by itself as soon as the last connection is closed.
        """
        self.server.end()
        await asyncio.sleep(self.grace)
        self.worker.end()
        await asyncio.sleep(END_SECONDS)
        self.unsent = len(self.server.server_state.connections)
        self.server.end(at_once=True)

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.server.end(at_once=True)


class _Log:
    """Lines of the log, written by a thread of their own, so that a slow stderr holds up nobody."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.lines: queue.Queue[str | None] = queue.Queue(LOG_LINES)
        self.write = write
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def add(self, line: str) -> None:
        with contextlib.suppress(queue.Full):
            self.lines.put_nowait(line)

    def close(self) -> None:
        with contextlib.suppress(queue.Full):
            self.lines.put_nowait(None)
        self.thread.join(0.5)

    def _run(self) -> None:
        while (line := self.lines.get()) is not None:
            try:
                self.write(line)
            except (OSError, ValueError):
                return


def _rules(place: Place) -> Rules:
    """Return who may ask."""
    if place.unix_socket is not None:
        return Rules(place.keys, frozenset(), frozenset(place.allowed_origins))
    own = {"localhost", "127.0.0.1", "::1", place.host.lower()} - {"0.0.0.0", "::"}
    hosts = own | {host.lower() for host in place.allowed_hosts}
    return Rules(place.keys, frozenset(hosts), frozenset(place.allowed_origins))


def _raise_file_limit() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
