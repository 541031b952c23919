"""The routes of the server."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import weakref
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, ParamSpec, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from gptcli.api.serve.answer import Answer, wait_for_disconnect
from gptcli.api.serve.body import Fields, read_object
from gptcli.api.serve.fields import Ask, read_chat, read_completion, read_messages
from gptcli.api.serve.guard import Guard, Rules
from gptcli.api.serve.metrics import Metrics
from gptcli.api.serve.openapi import document as openapi_document
from gptcli.api.serve.problems import Problem, dumps, invalid
from gptcli.api.serve.shapes import Head
from gptcli.api.serve.worker import Worker

MAX_BODY_BYTES = 4 << 20
BODY_SECONDS = 30.0
POOL_BYTES = 8 << 10  # of a body, over which it is parsed and encoded beside the event loop
MAX_INPUTS = 1024
PAGE_TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}

P = ParamSpec("P")
T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Any]]


@dataclass(frozen=True)
class Settings:
    """The settings by which the server answers."""

    run: str
    name: str  # of the model
    rules: Rules
    ping: float = 15.0  # seconds of silence before a comment in a stream; 0: none
    interval: float = 0.02  # seconds between events of a stream
    share_prefix: bool = False  # computed beginnings of prompts are shared by all clients


class Routes:
    """The handlers, over one worker."""

    def __init__(self, worker: Worker, settings: Settings) -> None:
        self.worker, self.settings, self.in_turns = worker, settings, InTurns()
        self.metrics = Metrics(worker)

    # ------------------------------------------------------------------------------------------------------- writing

    async def completions(self, request: Request) -> Any:
        ask = await self._ask(request, read_completion)
        return await self._answer(request, ask, chat=False)

    async def chat(self, request: Request) -> Any:
        ask = await self._ask(request, read_chat)
        if self.worker.available().task != "chat":
            raise invalid(None, "this model was not tuned to converse; ask /v1/completions", "unsupported_route")
        return await self._answer(request, ask, chat=True)

    async def _ask(self, request: Request, read: Callable[..., Ask]) -> Ask:
        document, service = await self._object(request), self.worker.available()
        return await _in_pool(request.state.facts["bytes"], read, document, service.defaults, service.seed)

    async def _answer(self, request: Request, ask: Ask, *, chat: bool) -> Answer:
        self._check_model(ask.model)
        facts, how = request.state.facts, self.settings
        service = self.worker.check_room(facts["owner"])
        if service.task == "classify":
            raise invalid(None, "this model names labels; ask /v1/classify", "unsupported_route")
        shared = "" if how.share_prefix else facts["owner"]
        if ask.options.constrained:
            with self.worker.counted(facts["owner"]):
                prepared = await self.in_turns.do(facts["owner"], service.requests, ask, shared)
        else:
            prepared = await _in_pool(facts["bytes"], service.requests, ask, shared)
        job = self.worker.submit(prepared.requests, facts["owner"])
        head = Head(chat, how.name, service.fingerprint, ask)
        return Answer(self.worker, job, head, self.metrics, facts, prepared, ping=how.ping, interval=how.interval)

    def _check_model(self, given: str | None) -> None:
        """Take the model's name, its run's path, or none."""
        if given not in (None, "", self.settings.name, self.settings.run):
            message = f"no model {given[:80]!r} here; there is {self.settings.name!r}"
            raise Problem(404, "model_not_found", message, param="model")

    # ----------------------------------------------------------------------------------------------------- measuring

    async def classify(self, request: Request) -> Any:
        fields, texts = await self._inputs(request)
        fields.rest()
        service = self.worker.check_room(request.state.facts["owner"])
        found = await self._measure(request, service.classify, texts)
        data = [
            {"index": number, "label": service.labels[row.index(max(row))], "probs": row, "num_classes": len(row)}
            for number, row in enumerate(found)
        ]
        return {"object": "list", "model": self.settings.name, "labels": list(service.labels), "data": data}

    async def score(self, request: Request) -> Any:
        fields, texts = await self._inputs(request)
        if fields.take("text_1") is not None or fields.take("text_2") is not None:
            raise invalid("text_1", "scores of pairs are not supported; input takes texts", "unsupported_parameter")
        fields.rest()
        service = self.worker.check_room(request.state.facts["owner"])
        found = await self._measure(request, service.score, texts)
        data = [{"index": number} | row for number, row in enumerate(found)]
        return {"object": "list", "model": self.settings.name, "data": data}

    async def _measure(
        self, request: Request, begin: Callable[[Sequence[str]], Generator[None, None, Any]], texts: Sequence[str]
    ) -> Any:
        """Return what the work that begins with texts gives; it ends where the client goes away."""
        work = await _in_pool(request.state.facts["bytes"], begin, texts)
        measuring = asyncio.create_task(self.worker.call(work, request.state.facts["owner"]))
        gone = asyncio.create_task(wait_for_disconnect(request.receive))
        try:
            await asyncio.wait((measuring, gone), return_when=asyncio.FIRST_COMPLETED)
            if not measuring.done():
                raise ClientDisconnect
            return measuring.result()
        finally:
            measuring.cancel()
            gone.cancel()

    async def _inputs(self, request: Request) -> tuple[Fields, tuple[str, ...]]:
        fields = Fields(await self._object(request))
        self._check_model(fields.text("model"))
        texts = fields.texts("input", MAX_INPUTS, 1 << 20)
        if not texts:
            raise invalid("input", "must be a string or a list of strings")
        return fields, texts

    async def tokenize(self, request: Request) -> Any:
        fields = Fields(await self._object(request))
        self._check_model(fields.text("model"))
        prompt, messages = fields.text("prompt"), fields.take("messages")
        prompt = fields.text("content") if prompt is None else prompt
        special, words = fields.flag("add_special_tokens"), fields.flag("return_token_strs")
        fields.take("add_generation_prompt")
        fields.rest()
        service, size = self.worker.available(), request.state.facts["bytes"]
        if messages is not None:
            ids = await _in_pool(size, service.chat_tokens, await _in_pool(size, read_messages, messages))
        elif prompt is not None:
            ids = await _in_pool(size, service.tokens, prompt)
        else:
            raise invalid("prompt", "missing; give text, or messages")
        ids = [*service.tokenizer.bos_ids, *ids] if special else ids
        found = {"tokens": ids, "count": len(ids), "max_model_len": service.context_length}
        if words:
            found["token_strs"] = await _in_pool(size, service.token_texts, ids)
        return found

    async def detokenize(self, request: Request) -> Any:
        fields = Fields(await self._object(request))
        self._check_model(fields.text("model"))
        ids = fields.take("tokens")
        fields.rest()
        text = await _in_pool(request.state.facts["bytes"], self.worker.available().text_of, ids)
        return {"prompt": text, "content": text}

    async def tokenizer_info(self, _request: Request) -> Any:
        service = self.worker.available()
        return {
            "tokenizer_class": "gptcli",
            "vocab_size": service.tokenizer.vocab_size,
            "eos_token": None,  # text never becomes a control token, so that its name cannot be encoded
            "bos_token": None,
            "pad_token": None,
            "chat_template": None,
        }

    # ------------------------------------------------------------------------------------------------------- looking

    async def models(self, request: Request) -> Any:
        service = self.worker.available()
        defaults = service.defaults
        facts = {
            "id": self.settings.name,
            "object": "model",
            "created": service.created,
            "owned_by": "gptcli",
            "context_length": service.context_length,
            "max_model_len": service.context_length,
            "parameters": service.parameters,
            "task": service.task,
            "labels": list(service.labels),
            "defaults": {"temperature": defaults.temperature, "max_tokens": defaults.max_tokens},
        }
        if "model" in request.path_params:
            self._check_model(request.path_params["model"])
            return facts
        return {"object": "list", "data": [facts]}

    async def health(self, _request: Request) -> Response:
        state = self.worker.state
        headers = {} if state == "ready" else {"retry-after": "1"}
        body = dumps({"status": "ok" if state == "ready" else state})
        return _json(body, 200 if state == "ready" else 503, headers)

    async def show_metrics(self, _request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, _request: Request) -> Any:
        return openapi_document(self.settings.name)

    async def embeddings(self, _request: Request) -> Any:
        raise Problem(404, "not_found", "a GPT's states are no tested embeddings; there is no such route")

    async def page(self, request: Request) -> Response:
        name = request.path_params.get("name") or "index.html"
        content, etag = page_file(name)
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"etag": etag})
        headers = {"etag": etag, "cache-control": "no-cache"}
        return Response(content, media_type=f"{PAGE_TYPES[name]}; charset=utf-8", headers=headers)

    async def _object(self, request: Request) -> dict[str, Any]:
        """Return the body as a JSON object, read within limits of size and time."""
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Problem(415, "unsupported_encoding", "want Content-Type: application/json")
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Problem(415, "unsupported_encoding", "the body must not be compressed")
        given = request.headers.get("content-length", "0")
        too_large = Problem(413, "body_too_large", f"the body is larger than {MAX_BODY_BYTES} bytes")
        if len(given) > 9 or int(given) > MAX_BODY_BYTES:
            raise too_large
        content = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    content.extend(part)
                    if len(content) > MAX_BODY_BYTES:
                        raise too_large
        except TimeoutError:
            raise Problem(408, "request_timeout", f"the body did not come within {BODY_SECONDS:.0f} s") from None
        request.state.facts["bytes"] = len(content)
        return await _in_pool(len(content), read_object, bytes(content))


class InTurns:
    """A thread for work that may take seconds. Of each client one piece waits for it, so that they take turns."""

    def __init__(self) -> None:
        self.thread = concurrent.futures.ThreadPoolExecutor(1, "gptcli-patterns")
        self.locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def do(self, owner: str, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
        """Return what `work` gives."""
        async with self.locks.setdefault(owner, asyncio.Lock()):
            whole = functools.partial(work, *given, **named)
            return await asyncio.get_running_loop().run_in_executor(self.thread, whole)


async def _in_pool(size: int, work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """Return what `work` gives, in a thread where that takes long enough for others to notice."""
    if size <= POOL_BYTES:
        return work(*given, **named)
    return await asyncio.to_thread(work, *given, **named)


@functools.cache
def page_file(name: str) -> tuple[bytes, str]:
    """Return a file of the page with its ETag."""
    import hashlib

    content = resources.files("gptcli.api.serve").joinpath("page", name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:16]}"'


def _json(content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(content, status, headers=headers, media_type="application/json")


def make_app(
    worker: Worker, settings: Settings, log: Callable[[str], None], bug: Callable[[BaseException], None]
) -> Guard:
    """Make the ASGI application; `log` gets a line for each request, `bug` what nobody expected."""
    routes = Routes(worker, settings)
    table: list[tuple[str, str, Handler]] = [
        ("POST", "/v1/chat/completions", routes.chat),
        ("POST", "/v1/completions", routes.completions),
        ("GET", "/v1/models", routes.models),
        ("GET", "/v1/models/{model:path}", routes.models),
        ("POST", "/v1/classify", routes.classify),
        ("POST", "/classify", routes.classify),
        ("POST", "/v1/score", routes.score),
        ("POST", "/v1/embeddings", routes.embeddings),
        ("POST", "/tokenize", routes.tokenize),
        ("POST", "/detokenize", routes.detokenize),
        ("GET", "/tokenizer_info", routes.tokenizer_info),
        ("GET", "/health", routes.health),
        ("GET", "/metrics", routes.show_metrics),
        ("GET", "/openapi.json", routes.openapi),
        ("GET", "/", routes.page),
        *[("GET", f"/{name}", functools.partial(_page_part, routes, name)) for name in ("page.css", "page.js")],
    ]
    app = Starlette(
        routes=[Route(path, _answers(path, handler), methods=[method]) for method, path, handler in table],
        exception_handlers={404: _refuse, 405: _refuse, Problem: _tell, Exception: _tell_bug},
    )
    app.router.redirect_slashes = False

    def count(route: str, status: int, seconds: float) -> None:
        routes.metrics.requests.labels(route, str(status or "cut")).inc()
        routes.metrics.seconds.observe(seconds)

    draining = lambda: worker.state == "draining"  # noqa: E731
    return Guard(app, settings.rules, log=log, count=count, draining=draining, bug=bug)


def _answers(path: str, handler: Handler) -> Handler:
    """Return a handler whose objects are sent as JSON, and which names its route to the log."""

    async def answer(request: Request) -> Any:
        request.state.facts["route"] = path
        found = await handler(request)
        return _json(dumps(found)) if isinstance(found, dict) else found

    return answer


async def _refuse(_request: Request, error: Exception) -> Response:
    """Refuse a path that is none, or a method that a path does not take."""
    problem = Problem(404, "not_found", "no such route; see /openapi.json")
    if getattr(error, "status_code", 404) == 405:
        headers = dict(getattr(error, "headers", None) or {})
        allowed = " and ".join(sorted(headers.get("Allow", "").split(", ")))
        problem = Problem(405, "method_not_allowed", f"this route takes {allowed}", headers=headers)
    return _json(problem.content(), problem.status, problem.headers)


async def _tell(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    closes = {"connection": "close"} if error.closes else {}
    return _json(error.content(), error.status, {**error.headers, **closes})


async def _tell_bug(_request: Request, _error: Exception) -> Response:
    found = Problem(500, "internal_error", "this is a bug in gptcli")
    return _json(found.content(), 500, found.headers)


async def _page_part(routes: Routes, name: str, request: Request) -> Response:
    request.path_params["name"] = name
    return await routes.page(request)
