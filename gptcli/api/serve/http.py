"""uvicorn's HTTP/1.1 with deadlines for heads, refusals as JSON, and an end that is the caller's to choose."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gptcli.api.serve.guard import HEAD_BYTES, respond
from gptcli.api.serve.problems import Problem, retry_later

HEAD_SECONDS = 10.0
REST_SECONDS = 30.0  # for the rest of a body that was refused before it was there
STALL_SECONDS = 60.0  # a client that takes nothing for so long is gone
KEEP_ALIVE_SECONDS = 120


class Protocol(H11Protocol):
    """uvicorn's, which waits for ever for heads, refused bodies and slow readers, and refuses in plain text."""

    deadline: asyncio.TimerHandle | None = None  # for what has to come
    stall: asyncio.TimerHandle | None = None  # for what has to go

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # whatever is unsent counts, and an event waits for the one before it
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            self.app = too_many_connections
        self.limit_concurrency = None
        self._expect(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        self._unset_keepalive_if_required()
        if self.stall is not None:
            self.stall.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            if self.deadline is None:
                self._expect(HEAD_SECONDS)
        elif not self._refused_early():
            self._expect(None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._refused_early():
            self._expect(REST_SECONDS)

    def _refused_early(self) -> bool:
        """Return whether a body is still to come whose request is answered; it is read and thrown away."""
        return self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE

    def _expect(self, seconds: float | None) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        self.deadline = None if seconds is None else self.loop.call_later(seconds, self._is_late)

    def _is_late(self) -> None:
        self.deadline = None
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            problem = Problem(408, "request_timeout", f"the head did not come within {HEAD_SECONDS:.0f} s")
            self._refuse(problem, "Request Timeout")
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.stall is not None:
            self.stall.cancel()

    def _watch_writing(self) -> None:
        self.stall = self.loop.call_later(STALL_SECONDS, self._check_writing, self.transport.get_write_buffer_size())

    def _check_writing(self, before: int) -> None:
        if self.transport.get_write_buffer_size() >= before:
            self.transport.abort()
        else:
            self._watch_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what h11 could not read, with the status that it hints at."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        if status == 431:
            problem = Problem(431, "head_too_large", f"the head is larger than {HEAD_BYTES} bytes")
        else:
            problem = Problem(400, "invalid_request", f"this is no HTTP request that can be answered ({error or msg})")
        self._refuse(problem, "Bad Request" if status != 431 else "Request Header Fields Too Large")

    def _refuse(self, problem: Problem, reason: str) -> None:
        """Send a refusal of what is no request, and close; between answers only."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        content = problem.content()
        head = (
            f"HTTP/1.1 {problem.status} {reason}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()


async def too_many_connections(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer every request of a connection that is one too many."""
    await respond(retry_later(503, "too_many_connections", "too many connections", 1), send, close=True)


class Server(uvicorn.Server):
    """uvicorn's, without its own signal handlers, which end the process by the signal, and with fewer ticks."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ending = asyncio.Event()

    def end(self, *, at_once: bool = False) -> None:
        """Close the listener and idle connections; end when the others are closed, or at once."""
        self.should_exit, self.force_exit = True, at_once
        self.ending.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # which writes the time of the Date header
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.ending.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: Any, *, most_connections: int) -> Server:
    """Make a server of the application; it logs nothing by itself."""
    for name in ("uvicorn.error", "uvicorn.access", "uvicorn.asgi", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [logging.NullHandler()], False
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=HEAD_BYTES,
        limit_concurrency=most_connections,
        backlog=1024,
    )
    return Server(config)
