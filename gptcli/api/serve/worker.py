"""The thread that owns the engine: takes jobs in turns by owner, computes steps, tells the event loop once a step.

Only this thread touches the model. The event loop hands it messages by a queue and is woken by call_soon_threadsafe.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gptcli.api.serve.fields import Ask
from gptcli.api.serve.problems import Problem, retry_later
from gptcli.base.errors import GptcliError

if TYPE_CHECKING:
    from gptcli.api.serve.service import Service
    from gptcli.generate.engine import Completion, Request

State = Literal["loading", "ready", "draining", "failed"]
STUCK_SECONDS = 30.0  # without a step while there is something to write: the engine counts as dead
QUEUE_SECONDS = 60.0


@dataclass(frozen=True)
class Piece:
    """What a step did to one text of a job: all its text so far and how many of its tokens count."""

    index: int
    text: str
    tokens: int
    finish_reason: str | None
    problem: Problem | None = None


@dataclass(eq=False)
class Job:
    """The texts of one HTTP request. The event loop reads `pieces`; all else is the worker's."""

    ask: Ask
    owner: str
    pieces: asyncio.Queue[list[Piece]]
    texts: list[str] = field(default_factory=list)  # the prompts
    dropped_turns: int = 0
    completions: list[Completion | None] = field(default_factory=list)
    waiting: deque[tuple[int, Request]] = field(default_factory=deque)
    unfinished: int = 0
    queued_at: float = field(default_factory=time.monotonic)
    began_at: float | None = None


class Worker:
    """The engine's thread. `load` makes the service there, while the server already listens."""

    def __init__(
        self, load: Callable[[], Service], loop: asyncio.AbstractEventLoop, *, queue_limit: int | None, timeout: float
    ) -> None:
        self.load, self.loop, self.queue_limit, self.timeout = load, loop, queue_limit, timeout
        self.state: State = "loading"
        self.failure = ""
        self.failed = asyncio.Event()
        self.ready = asyncio.Event()
        self.service: Service | None = None
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.turns: deque[str] = deque()  # owners with texts that wait, the next to be served first
        self.jobs: dict[str, deque[Job]] = {}
        self.running: dict[Completion, tuple[Job, int]] = {}
        self.pending = 0  # texts submitted and not yet given to the engine
        self.row_seconds = 1.0  # of a text, averaged
        self.stepped_at = time.monotonic()
        self.cut = 0  # texts ended by the server before they were done
        self.thread = threading.Thread(target=self._run, name="gptcli-engine", daemon=True)

    # ------------------------------------------------------------------------------------------- the event loop's side

    def submit(self, ask: Ask, owner: str) -> Job:
        """Queue a job; Problem where there is no room, or no service."""
        service = self.available()
        limit = self.queue_limit or 4 * service.engine.count
        if self.pending >= limit:
            seconds = self.pending / service.engine.count * self.row_seconds
            raise retry_later(429, "queue_full", f"{self.pending} texts wait already; try again later", seconds)
        job = Job(ask, owner, asyncio.Queue())
        self.pending += max(1, len(ask.prompts)) * ask.n
        self.inbox.put(lambda: self._begin(job))
        return job

    def cancel(self, job: Job) -> None:
        """Give up a job, whatever state it is in."""
        self.inbox.put(lambda: self._drop(job))

    async def call(self, work: Callable[[Service], Any]) -> Any:
        """Return what `work` gives, computed in the engine's thread between two steps."""
        service = self.available()
        future: asyncio.Future[Any] = self.loop.create_future()

        def do() -> None:
            try:
                result = work(service)
            except (Problem, GptcliError) as error:
                problem = error if isinstance(error, Problem) else Problem(500, "engine_error", str(error))
                self._post(lambda: None if future.done() else future.set_exception(problem))
            else:
                self._post(lambda: None if future.done() else future.set_result(result))

        self.inbox.put(do)
        return await future

    def available(self) -> Service:
        """Return the service; Problem 503 while it loads, drains or after it failed."""
        if self.state == "ready" and self.stuck:
            raise retry_later(503, "engine_failed", "the engine does not answer", 30)
        if self.state != "ready" or self.service is None:
            what = {"loading": "the model is loading", "draining": "the server ends"}.get(
                self.state, "the engine failed"
            )
            code = "engine_failed" if self.state == "failed" else self.state
            raise retry_later(503, code, what, 1 if self.state == "loading" else 30)
        return self.service

    @property
    def stuck(self) -> bool:
        """Return whether the engine has something to write and took no step for long."""
        return bool(self.running) and time.monotonic() - self.stepped_at > STUCK_SECONDS

    def drain(self) -> None:
        """Take no more jobs, and refuse those that wait."""
        if self.state in ("ready", "loading"):
            self.state = "draining"
        self.inbox.put(self._refuse_waiting)

    def end(self) -> None:
        """End every text that is still in the making."""
        self.inbox.put(self._end_running)

    # ------------------------------------------------------------------------------------------------ the thread's side

    def _post(self, work: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(work)
        except RuntimeError:  # the loop is closed: nobody listens any more
            return

    def _run(self) -> None:
        try:
            self.service = self.load()
        except BaseException as error:
            self._fail(error)
            return
        if self.state == "loading":
            self.state = "ready"
        self._post(self.ready.set)
        try:
            while True:
                self._work()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Record the error that ends the thread, and tell every waiting request; the server ends with the error's exit
        code."""
        self.error: BaseException = error
        self.state = "failed"
        problem = Problem(500, "engine_failed", "the engine failed")
        told = {job for job, _ in self.running.values()} | {job for jobs in self.jobs.values() for job in jobs}
        for job in told:
            self._refuse(job, problem)
        self._post(self.ready.set)
        self._post(self.failed.set)

    def _work(self) -> None:
        """Take messages, hand texts to the engine, compute a step, tell what changed."""
        assert self.service is not None
        engine = self.service.engine
        idle = not engine.busy and not self.turns
        if idle:
            message = self.inbox.get()
            self.stepped_at = time.monotonic()  # no step was due before
            message()
        while True:
            try:
                self.inbox.get_nowait()()
            except queue.Empty:
                break
        self._admit()
        self._time_out()
        if not engine.busy:
            self.stepped_at = time.monotonic()
            return
        changed = engine.step()
        self.stepped_at = time.monotonic()
        by_job: dict[Job, list[Piece]] = {}
        for completion in changed:
            if completion in self.running:
                job, piece = self._piece(completion)
                by_job.setdefault(job, []).append(piece)
        if by_job:
            self._post(lambda: _hand_out(by_job))

    def _piece(self, completion: Completion) -> tuple[Job, Piece]:
        job, index = self.running[completion]
        problem = None
        if completion.finish_reason is not None:
            del self.running[completion]
            job.unfinished -= 1
            if completion.error is not None:
                problem = Problem(500, "engine_error", str(completion.error))
            elif completion.finish_reason == "cancelled":
                problem = retry_later(503, "draining", "the server ends", 30)
            took = time.monotonic() - (job.began_at or job.queued_at)
            self.row_seconds += 0.1 * (took - self.row_seconds)
        return job, Piece(index, completion.text, len(completion.ids), completion.finish_reason, problem)

    def _begin(self, job: Job) -> None:
        """Make a job's requests and queue them behind those of its owner."""
        assert self.service is not None
        claimed = max(1, len(job.ask.prompts)) * job.ask.n
        try:
            if self.state == "draining":
                raise retry_later(503, "draining", "the server ends", 30)
            requests, job.texts, job.dropped_turns = self.service.requests(job.ask, job.owner)
        except (Problem, GptcliError) as error:
            self.pending -= claimed
            problem = error if isinstance(error, Problem) else Problem(500, "engine_error", str(error))
            self._refuse(job, problem)
            return
        job.unfinished = len(requests)
        job.completions = [None] * len(requests)
        job.waiting = deque(enumerate(requests))
        if job.owner not in self.jobs:
            self.jobs[job.owner] = deque()
            self.turns.append(job.owner)
        self.jobs[job.owner].append(job)

    def _admit(self) -> None:
        """Give free rows to texts that wait, one from each owner in turn."""
        assert self.service is not None
        engine = self.service.engine
        while self.turns and engine.free_rows > len(engine.waiting):
            owner = self.turns.popleft()
            jobs = self.jobs[owner]
            job = jobs[0]
            index, request = job.waiting.popleft()
            if not job.waiting:
                jobs.popleft()
            if jobs:
                self.turns.append(owner)
            else:
                del self.jobs[owner]
            self.pending -= 1
            job.began_at = job.began_at or time.monotonic()
            try:
                completion = engine.add(request)
            except GptcliError as error:  # a pattern or schema that cannot be used
                self._drop(job)
                self._refuse(job, Problem(400, "invalid_schema", str(error)))
                continue
            job.completions[index] = completion
            self.running[completion] = job, index

    def _drop(self, job: Job) -> None:
        """Take a job's waiting texts out of the queue, and its running ones out of the engine."""
        assert self.service is not None
        if job.waiting:
            self.pending -= len(job.waiting)
            job.waiting.clear()
            jobs = self.jobs.get(job.owner, deque())
            if job in jobs:
                jobs.remove(job)
            if not jobs and job.owner in self.jobs:
                del self.jobs[job.owner]
                self.turns.remove(job.owner)
        for completion in [found for found, (of, _) in self.running.items() if of is job]:
            del self.running[completion]
            self.service.engine.cancel(completion)

    def _time_out(self) -> None:
        """End texts that take too long: those in the making as they are, those that wait with a refusal."""
        assert self.service is not None
        now = time.monotonic()
        for completion, (job, _) in list(self.running.items()):
            if job.began_at is not None and now - job.began_at > self.timeout:
                self.service.engine.cancel(completion, "timeout")
                self._tell(*self._one(completion))
        for job in [job for jobs in self.jobs.values() for job in jobs]:
            if job.began_at is None and now - job.queued_at > QUEUE_SECONDS:
                self._drop(job)
                self._refuse(job, Problem(504, "timeout", "no row was free in time"))

    def _one(self, completion: Completion) -> tuple[Job, list[Piece]]:
        job, piece = self._piece(completion)
        return job, [piece]

    def _refuse_waiting(self) -> None:
        for job in [job for jobs in self.jobs.values() for job in jobs]:
            if job.began_at is None:
                self._drop(job)
                self._refuse(job, retry_later(503, "draining", "the server ends", 30))

    def _end_running(self) -> None:
        assert self.service is not None
        for completion in list(self.running):
            self.cut += 1
            self.service.engine.cancel(completion)
            self._tell(*self._one(completion))

    def _refuse(self, job: Job, problem: Problem) -> None:
        self._tell(job, [Piece(-1, "", 0, "error", problem)])

    def _tell(self, job: Job, pieces: list[Piece]) -> None:
        self._post(lambda: job.pieces.put_nowait(pieces))


def _hand_out(by_job: dict[Job, list[Piece]]) -> None:
    """Give each job what a step did, in the event loop."""
    for job, pieces in by_job.items():
        job.pieces.put_nowait(pieces)
