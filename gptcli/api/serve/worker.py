"""The thread that owns the engine: takes jobs in turns by owner, computes steps, tells the event loop once a step.

Only this thread touches the model. The event loop hands it messages by a queue and is woken by call_soon_threadsafe.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gptcli.api.serve.fields import pattern_field
from gptcli.api.serve.problems import Problem, invalid, retry_later
from gptcli.base.errors import ConfigError, GptcliError, is_out_of_memory
from gptcli.config.generate import GenerateOptions

if TYPE_CHECKING:
    from gptcli.api.serve.service import Service
    from gptcli.generate.engine import Completion, Request

State = Literal["loading", "ready", "draining", "failed"]
STUCK_SECONDS = 30.0  # without any work of the thread while there is something to write: it counts as dead
WATCH_SECONDS = 1.0
QUEUE_SECONDS = 60.0


@dataclass(frozen=True)
class Piece:
    """The result of a step for one text of a job: all its text so far and how many of its tokens count."""

    index: int
    text: str
    tokens: int
    finish_reason: str | None
    problem: Exception | None = None  # to be told instead; what is no Problem is a bug


@dataclass(eq=False)
class Job:
    """The texts of one HTTP request. `newest` and `changed` are the event loop's; all else is the worker's."""

    owner: str
    waiting: deque[tuple[int, Request]]
    completions: list[Completion | None]
    unfinished: int
    newest: dict[int, Piece] = field(default_factory=dict)  # of each text, since the loop looked last
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    queued_at: float = field(default_factory=time.monotonic)
    has_begun: bool = False


class Running(NamedTuple):
    """A text that the engine writes."""

    job: Job
    number: int  # of the text in the job
    began_at: float


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
        self.running: dict[Completion, Running] = {}
        self.measuring: deque[Callable[[], bool]] = deque()  # work in parts, of which one is done after each step
        self.pending = 0  # texts submitted and not yet given to the engine
        self.pending_of: Counter[str] = Counter()  # those of each owner
        self.counting = threading.Lock()  # of both, which both threads do
        self.row_seconds = 1.0  # of a text, averaged
        self.cpu_seconds: Callable[[], float] = time.monotonic  # of the engine's thread; before it begins, it is alive
        self.cut = 0  # texts ended by the server before they were done
        self.thread = threading.Thread(target=self._run, name="gptcli-engine", daemon=True)

    # ------------------------------------------------------------------------------------------- the event loop's side

    def check_room(self, owner: str) -> Service:
        """Return the service; Problem where there is none, or where the owner's texts or too many others wait.

        Whoever has none that wait may add some: one client cannot take the queue from the others.
        """
        service = self.available()
        limit, own = self.queue_limit or 4 * service.engine.count, self.pending_of[owner]
        if own and self.pending >= limit:
            seconds = self.pending / service.engine.count * self.row_seconds
            raise retry_later(429, "queue_full", f"{self.pending} texts wait already; try again later", seconds)
        return service

    def submit(self, requests: Sequence[Request], owner: str) -> Job:
        """Queue a job; Problem where there is no room, or no service."""
        self.check_room(owner)
        job = Job(owner, deque(enumerate(requests)), [None] * len(requests), len(requests))
        self._count_pending(owner, len(requests))
        self.inbox.put(lambda: self._begin(job))
        return job

    def cancel(self, job: Job) -> None:
        """Give up a job, whatever state it is in."""
        self.inbox.put(lambda: self._drop(job))

    async def call(self, work: Generator[None, None, Any], owner: str) -> Any:
        """Return what `work` returns, computed in the engine's thread: between two steps as far as its next yield."""
        future: asyncio.Future[Any] = self.loop.create_future()

        def set_result(result: Any) -> None:
            if not future.done():
                future.set_result(result)

        def set_exception(error: Exception) -> None:
            if not future.done():
                future.set_exception(error)

        def go_on() -> bool:
            if future.done():  # nobody waits for it any more
                return False
            try:
                next(work)
            except StopIteration as ended:
                result = ended.value
                self._post(lambda: set_result(result))
            except Exception as error:
                found = as_problem(error)
                self._post(lambda: set_exception(found))
            else:
                return True
            return False

        with self.counted(owner):
            self.inbox.put(lambda: self.measuring.append(go_on))
            return await future

    @contextlib.contextmanager
    def counted(self, owner: str) -> Iterator[None]:
        """Count one more that waits, among an owner's, for as long as it takes."""
        self._count_pending(owner, 1)
        try:
            yield
        finally:
            self._count_pending(owner, -1)

    def available(self) -> Service:
        """Return the service; Problem 503 while it loads, drains or after it failed."""
        if self.state != "ready" or self.service is None:
            what = {"loading": "the model is loading", "draining": "the server ends"}.get(
                self.state, "the engine failed"
            )
            code = "engine_failed" if self.state == "failed" else self.state
            raise retry_later(503, code, what, 1 if self.state == "loading" else 30)
        return self.service

    async def watch(self) -> None:
        """Return when the engine has failed, or does nothing any more though there is something to write.

        A step may take as long as it likes: what tells life is the thread's time on a CPU, however slow that is.
        """
        idle, before = 0.0, 0.0
        while not self.failed.is_set() and idle < STUCK_SECONDS:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.failed.wait(), WATCH_SECONDS)
            with contextlib.suppress(OSError):  # the thread has just ended
                now = self.cpu_seconds()
                idle = idle + WATCH_SECONDS if self.running and now == before else 0.0
                before = now

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
        if hasattr(time, "pthread_getcpuclockid"):  # not on macOS
            clock = time.pthread_getcpuclockid(threading.get_ident())
            self.cpu_seconds = lambda: time.clock_gettime(clock)
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
        told = {running.job for running in self.running.values()} | {job for jobs in self.jobs.values() for job in jobs}
        for job in told:
            self._refuse(job, problem)
        self._post(self.ready.set)
        self._post(self.failed.set)

    def _work(self) -> None:
        """Take messages, hand texts to the engine, compute a step, tell what changed, measure a part."""
        assert self.service is not None
        engine = self.service.engine
        if not engine.busy and not self.turns and not self.measuring:
            if self.inbox.empty():
                engine.rest()
            self.inbox.get()()
        while True:
            try:
                self.inbox.get_nowait()()
            except queue.Empty:
                break
        self._admit()
        self._time_out()
        if engine.busy:
            self._step()
        if self.measuring:
            part = self.measuring.popleft()
            if part():
                self.measuring.append(part)

    def _step(self) -> None:
        assert self.service is not None
        by_job: dict[Job, list[Piece]] = {}
        for completion in self.service.engine.step():
            if completion in self.running:
                job, piece = self._piece(completion)
                by_job.setdefault(job, []).append(piece)
        if by_job:
            self._post(lambda: _hand_out(by_job))

    def _piece(self, completion: Completion) -> tuple[Job, Piece]:
        job, index, began_at = self.running[completion]
        problem: Exception | None = None
        if completion.finish_reason is not None:
            del self.running[completion]
            job.unfinished -= 1
            if completion.error is not None:
                problem = problem_of(completion.error, completion.request.options)
            elif completion.finish_reason == "cancelled":
                problem = retry_later(503, "draining", "the server ends", 30)
            self.row_seconds += 0.1 * (time.monotonic() - began_at - self.row_seconds)
        return job, Piece(index, completion.text, len(completion.ids), completion.finish_reason, problem)

    def _begin(self, job: Job) -> None:
        """Queue a job behind those of its owner."""
        if self.state == "draining":
            self._count_pending(job.owner, -len(job.waiting))
            job.waiting.clear()
            self._refuse(job, retry_later(503, "draining", "the server ends", 30))
            return
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
            self._count_pending(owner, -1)
            job.has_begun = True
            try:
                completion = engine.add(request)
            except Exception as error:  # of this job alone: the others go on
                self._drop(job)
                self._refuse(job, as_problem(error))
                continue
            job.completions[index] = completion
            self.running[completion] = Running(job, index, time.monotonic())

    def _drop(self, job: Job) -> None:
        """Take a job's waiting texts out of the queue, and its running ones out of the engine."""
        assert self.service is not None
        if job.waiting:
            self._count_pending(job.owner, -len(job.waiting))
            job.waiting.clear()
            jobs = self.jobs.get(job.owner, deque())
            if job in jobs:
                jobs.remove(job)
            if not jobs and job.owner in self.jobs:
                del self.jobs[job.owner]
                self.turns.remove(job.owner)
        for completion in [found for found, running in self.running.items() if running.job is job]:
            del self.running[completion]
            self.service.engine.cancel(completion)

    def _time_out(self) -> None:
        """End texts that take too long: those in the making as they are, those that wait with a refusal."""
        assert self.service is not None
        now = time.monotonic()
        for completion, running in list(self.running.items()):
            if now - running.began_at > self.timeout:
                self.service.engine.cancel(completion, "timeout")
                self._tell(*self._one(completion))
        for job in [job for jobs in self.jobs.values() for job in jobs]:
            if not job.has_begun and now - job.queued_at > QUEUE_SECONDS:
                self._drop(job)
                self._refuse(job, Problem(504, "timeout", "no row was free in time"))

    def _one(self, completion: Completion) -> tuple[Job, list[Piece]]:
        job, piece = self._piece(completion)
        return job, [piece]

    def _refuse_waiting(self) -> None:
        for job in [job for jobs in self.jobs.values() for job in jobs]:
            if not job.has_begun:
                self._drop(job)
                self._refuse(job, retry_later(503, "draining", "the server ends", 30))

    def _end_running(self) -> None:
        assert self.service is not None
        for completion in list(self.running):
            self.cut += 1
            self.service.engine.cancel(completion)
            self._tell(*self._one(completion))

    def _refuse(self, job: Job, problem: Exception) -> None:
        self._tell(job, [Piece(-1, "", 0, "error", problem)])

    def _tell(self, job: Job, pieces: list[Piece]) -> None:
        self._post(lambda: _hand_out({job: pieces}))

    def _count_pending(self, owner: str, texts: int) -> None:
        with self.counting:
            self.pending += texts
            self.pending_of[owner] += texts
            if not self.pending_of[owner]:
                del self.pending_of[owner]


def _hand_out(by_job: dict[Job, list[Piece]]) -> None:
    """Give each job what a step did, in the event loop."""
    for job, pieces in by_job.items():
        job.newest |= {piece.index: piece for piece in pieces}
        job.changed.set()


def problem_of(error: GptcliError, options: GenerateOptions) -> Problem:
    """Return what is told about a text that could not be written: its own pattern may be why."""
    if options.constrained and isinstance(error, ConfigError):
        return invalid(pattern_field(options), str(error), "invalid_schema")
    return Problem(500, "engine_error", str(error))


def as_problem(error: Exception) -> Exception:
    """Return what is told about an error: that of a text or of memory as a problem, a bug as it is."""
    if is_out_of_memory(error):
        return Problem(500, "engine_error", "out of memory; ask for less at once")
    return Problem(500, "engine_error", str(error)) if isinstance(error, GptcliError) else error
