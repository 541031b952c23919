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

from gptcli.api.serve.guard import HEAD_BYTES
from gptcli.api.serve.problems import Problem

HEAD_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 120


class Protocol(H11Protocol):
    """uvicorn's, which waits for ever for the rest of a request's head and refuses in plain text."""

    head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._expect_head()
        elif self.conn.their_state is not h11.IDLE:
            self._unset_head_timer()

    def _expect_head(self) -> None:
        if self.head_timer is None:
            self.head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _unset_head_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _head_is_late(self) -> None:
        self.head_timer = None
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        if self.conn.trailing_data[0]:
            problem = Problem(408, "request_timeout", f"the head did not come within {HEAD_SECONDS:.0f} s")
            self._refuse(problem, "Request Timeout")
        else:
            self.transport.close()

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
        content = problem.content()
        head = (
            f"HTTP/1.1 {problem.status} {reason}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's, without its own signal handlers, which end the process by the signal."""

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
