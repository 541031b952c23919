"""Listening, loading, draining: from a run to an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.api.serve.app import Settings, make_app
from gptcli.api.serve.guard import Rules
from gptcli.api.serve.http import Server, make_server
from gptcli.api.serve.worker import Worker
from gptcli.base.errors import ConfigError, GptcliError, RefusedError
from gptcli.base.escape import escape
from gptcli.base.report import Report

if TYPE_CHECKING:
    from gptcli.api.serve.service import Service

LOOPBACK = ("127.0.0.1", "localhost", "::1")
END_SECONDS = 1.0  # for telling that an answer is cut
LOG_LINES = 10_000  # that wait where stderr is slow; more are lost, and no answer waits for them
MOST_CONNECTIONS = 2000
SWITCH_SECONDS = 5e-4  # between threads: the engine's gives way at each operation, and waits so long for its next turn
SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103


@dataclass(frozen=True)
class Place:
    """The place to listen at: a host and port, or a unix socket."""

    host: str = "127.0.0.1"
    port: int = 8000
    unix_socket: str | None = None
    keys: tuple[str, ...] = ()
    needs_key: bool = True  # elsewhere than on the loopback
    share_prefix: bool = False  # of prompts, among clients
    allowed_hosts: Sequence[str] = ()
    allowed_origins: Sequence[str] = ()

    def rules(self) -> Rules:
        """Return who may ask."""
        if self.unix_socket is not None:
            return Rules(self.keys, frozenset(), frozenset(self.allowed_origins))
        own = {"localhost", "127.0.0.1", "::1", self.host.lower()} - {"0.0.0.0", "::"}
        return Rules(
            self.keys, frozenset(own | {host.lower() for host in self.allowed_hosts}), frozenset(self.allowed_origins)
        )


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
    limits: Limits,
    given: dict[str, Any],
    how: dict[str, Any],
    *,
    name: str,
    announce: Callable[[str], None],
    bug: Callable[[BaseException], None],
    report: Report,
) -> int:
    """Serve a run until a signal; return the exit code. `given` are options of drawing for requests that name none.

    `announce` gets the URL as soon as the server listens, before the model is loaded; `bug` gets an error that nobody
    expected, of one request, which is answered 500. RefusedError where the place is
    taken, ConfigError where it would be open to others without a key.
    """
    if place.unix_socket is None and place.host not in LOOPBACK and not place.keys and place.needs_key:
        raise ConfigError(
            f"--host {escape(place.host)}: others can reach it; give --api-key-file, or --no-key to serve without one"
        )
    _raise_file_limit()
    sys.setswitchinterval(SWITCH_SECONDS)
    listener = _unix_listener(place.unix_socket) if place.unix_socket is not None else _listener(place)
    try:
        return asyncio.run(
            _serve(run, place, limits, given, how, listener, name=name, announce=announce, bug=bug, report=report)
        )
    finally:
        listener.close()
        if place.unix_socket is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(place.unix_socket)


async def _serve(
    run: str,
    place: Place,
    limits: Limits,
    given: dict[str, Any],
    how: dict[str, Any],
    listener: socket.socket,
    *,
    name: str,
    announce: Callable[[str], None],
    bug: Callable[[BaseException], None],
    report: Report,
) -> int:
    loop = asyncio.get_running_loop()

    def load() -> Service:
        from gptcli.api.serve.service import Service

        return Service(run, given, how, report)

    worker = Worker(load, loop, queue_limit=limits.queue, timeout=limits.timeout)
    log = _Log(report.message)
    settings = Settings(run, name, place.rules(), ping=limits.ping, share_prefix=place.share_prefix)
    server = make_server(make_app(worker, settings, log.add, bug), most_connections=MOST_CONNECTIONS)
    ending = _Ending(worker, server, limits.grace, report)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, ending.signalled, number)
    worker.thread.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    announce(_url(place, listener))
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


def _listener(place: Place) -> socket.socket:
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # a part of the name has more than 63 characters
        raise ConfigError(f"--host {escape(place.host)}: {getattr(error, 'strerror', 'no name of a host')}") from None
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        where = f"{escape(place.host)}:{place.port}"
        raise RefusedError(f"{where}: {error.strerror}; name another --port, or 0 for any") from None
    return listener


def _unix_listener(path: str) -> socket.socket:
    """Listen on a socket that only its owner can open; one that nobody listens on any more is replaced."""
    if not 0 < len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        raise ConfigError(f"--unix-socket {escape(path)}: want a path of 1 to {SOCKET_PATH_BYTES} bytes")
    listener = socket.socket(socket.AF_UNIX)
    old = Path(path)
    if old.exists() and stat.S_ISSOCK(old.stat().st_mode):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                old.unlink()
            except OSError:
                pass
    before = os.umask(0o177)
    try:
        listener.bind(path)
    except OSError as error:
        listener.close()
        raise RefusedError(f"{escape(path)}: {error.strerror}; name another --unix-socket") from None
    finally:
        os.umask(before)
    return listener


def _url(place: Place, listener: socket.socket) -> str:
    if place.unix_socket is not None:
        return f"unix:{place.unix_socket}"
    host, port = listener.getsockname()[:2]
    host = place.host if place.host not in ("0.0.0.0", "::") else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _raise_file_limit() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
