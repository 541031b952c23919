"""A job of the worker as an HTTP answer, whole or as server-sent events; a client that goes away ends the job."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from gptcli.api.serve.problems import Aborted, Problem, dumps
from gptcli.api.serve.shapes import Head, TokenFacts, finish_of, usage
from gptcli.api.serve.worker import Job, Piece, Worker

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from gptcli.api.serve.metrics import Metrics
    from gptcli.api.serve.service import Prepared

HEAD_SECONDS = 10.0  # the head of a stream is sent after so long even if no token came
PUT_BYTES = 1 << 16  # of events made and sent together
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Answer:
    """An ASGI application that answers one request for text."""

    def __init__(
        self,
        worker: Worker,
        job: Job,
        head: Head,
        metrics: Metrics,
        facts: dict[str, Any],
        prepared: Prepared,
        *,
        ping: float,
        interval: float,
    ) -> None:
        self.worker, self.job, self.head, self.metrics, self.facts = worker, job, head, metrics, facts
        self.ask, self.chat, self.prepared = head.ask, head.chat, prepared
        self.ping, self.interval = ping, interval
        self.began = time.monotonic()
        self.sent: dict[int, int] = {}  # characters of each text
        self.token_facts: dict[int, TokenFacts] = {}
        self.ended: set[int] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        gone = asyncio.create_task(wait_for_disconnect(receive))
        work = asyncio.create_task(self._stream(send) if self.ask.stream else self._whole(send))
        try:
            await asyncio.wait((gone, work), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            if self.job.unfinished:
                self.worker.cancel(self.job)
            for task in (gone, work):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
            self._count()

    async def _pieces(self, *, first_wait: float | None = None, interval: float = 0.0) -> AsyncIterator[list[Piece]]:
        """Yield what steps did, at most once an interval, empty lists where nothing came for a while; a problem before
        any text is raised."""
        loop = asyncio.get_running_loop()
        wait, told_at = first_wait, -math.inf
        while len(self.ended) < len(self.job.completions):
            await self._change(wait if wait is not None else self.ping)
            if (rest := told_at + interval - loop.time()) > 0:
                await asyncio.sleep(rest)  # what comes meanwhile goes out together
            self.job.changed.clear()
            pieces = [*self.job.newest.values()]
            self.job.newest.clear()
            wait, told_at = None, loop.time()
            for piece in pieces:
                if piece.problem is not None:
                    raise piece.problem
                if piece.tokens and "first" not in self.facts:
                    self.facts["first"] = True
                    self.metrics.first_token.observe(time.monotonic() - self.began)
                if piece.finish_reason is not None:
                    self.ended.add(piece.index)
            yield pieces

    async def _change(self, seconds: float) -> None:
        """Return when a step did something, or after so many seconds; 0: never."""
        timer = asyncio.get_running_loop().call_later(seconds, self.job.changed.set) if seconds else None
        try:
            await self.job.changed.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def _whole(self, send: Send) -> None:
        last: dict[int, Piece] = {}
        async for pieces in self._pieces():
            last |= {piece.index: piece for piece in pieces}
        choices = [
            self.head.whole(
                index,
                self._echoed(index) + piece.text,
                finish_of(piece.finish_reason or ""),
                self._logprobs(index, piece, whole=True),
            )
            for index, piece in sorted(last.items())
        ]
        content = dumps(self.head.wrap(choices, usage=self._usage(), **self._extra(last)))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _extra(self, last: dict[int, Piece]) -> dict[str, Any]:
        extra: dict[str, Any] = {"dropped_turns": self.prepared.dropped_turns} if self.chat else {}
        if any(piece.finish_reason == "timeout" for piece in last.values()):
            extra["timeout"] = True
        return extra

    def _echoed(self, index: int) -> str:
        return self.prepared.texts[index // self.ask.n] if self.ask.echo else ""

    def _usage(self) -> dict[str, Any]:
        return usage([found for found in self.job.completions if found is not None], self.ask.n)

    def _logprobs(self, index: int, piece: Piece, *, whole: bool = False) -> dict[str, Any] | None:
        """Return the entries of the tokens that came since the last time."""
        if self.ask.logprobs is None:
            return None
        completion, service = self.job.completions[index], self.worker.service
        assert completion is not None
        assert service is not None
        first = index not in self.token_facts
        if first:
            prompt = "" if self.chat else self.prepared.texts[index // self.ask.n]
            self.token_facts[index] = TokenFacts(
                service.tokenizer, completion, self.ask, chat=self.chat, prompt_text=prompt
            )
        facts = self.token_facts[index]
        made = facts.next(piece.text, piece.tokens)
        if first and self.ask.echo:
            before = facts.prompt()
            made = before if made is None else {name: before[name] + made[name] for name in before}
        return facts.empty() if whole and made is None else made

    async def _stream(self, send: Send) -> None:
        started = False
        last: dict[int, Piece] = {}

        async def put(content: bytes) -> None:
            await send({"type": "http.response.body", "body": content, "more_body": True})

        try:
            async for pieces in self._pieces(first_wait=HEAD_SECONDS, interval=self.interval):
                last |= {piece.index: piece for piece in pieces}
                if not started:
                    await send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS})
                    started = True
                elif not pieces:
                    await put(b": waiting\n\n")
                for events in _together(self._events(pieces)):
                    await put(events)
            if self.ask.include_usage:
                await put(_event(self.head.wrap([], usage=self._usage(), **self._extra(last))))
            await put(b"data: [DONE]\n\n")
            await send({"type": "http.response.body", "body": b""})
        except Problem as problem:
            if not started:
                raise
            await put(_event(problem.as_dict()))
            raise Aborted from None

    def _events(self, pieces: list[Piece]) -> Iterator[bytes]:
        newest = {piece.index: piece for piece in pieces}
        for index, piece in newest.items():
            first = index not in self.sent
            if first and self.chat:
                yield _event(self.head.chunk(index, "", first=True))
            before = self._echoed(index) if first else ""
            text = before + piece.text[self.sent.get(index, 0) :]
            self.sent[index] = len(piece.text)
            logprobs = self._logprobs(index, piece)
            if text or logprobs:
                yield _event(self.head.chunk(index, text, logprobs=logprobs))
            if piece.finish_reason is not None:
                yield _event(self.head.chunk(index, "", finish=finish_of(piece.finish_reason)))

    def _count(self) -> None:
        found = [completion for completion in self.job.completions if completion is not None]
        if not found:
            return
        facts = usage(found, self.ask.n)
        self.facts["tokens"] = facts["completion_tokens"]
        self.metrics.tokens.inc(facts["completion_tokens"])
        self.metrics.prompt_tokens.inc(facts["prompt_tokens"])
        self.metrics.cached_tokens.inc(facts["prompt_tokens_details"]["cached_tokens"])


def _together(events: Iterable[bytes]) -> Iterator[bytes]:
    """Join events into parts of PUT_BYTES or a little more; the next are made when those before have been taken."""
    part = bytearray()
    for event in events:
        part += event
        if len(part) >= PUT_BYTES:
            yield bytes(part)
            part.clear()
    if part:
        yield bytes(part)


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + dumps(document) + b"\n\n"


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
