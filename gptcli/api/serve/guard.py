"""The checks that every request passes before its route: limits, Host, Origin, key; and its line of the log."""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from gptcli.api.serve.problems import Aborted, Problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"content-security-policy", PAGE_POLICY.encode()),
]
HEAD_BYTES, MAX_HEADERS = 16 << 10, 64
METHODS = ("GET", "HEAD", "POST", "OPTIONS")
OPEN_PATHS = ("/health", "/", "/page.css", "/page.js")  # without a key: the page asks for it


@dataclass(frozen=True)
class Rules:
    """The rules of who may ask."""

    keys: tuple[str, ...] = ()
    hosts: frozenset[str] = frozenset()  # names, without ports; empty: any, on a unix socket
    origins: frozenset[str] = frozenset()  # other sites that a browser may ask from


class Guard:
    """An ASGI application around another."""

    def __init__(
        self,
        app: ASGIApp,
        rules: Rules,
        *,
        log: Callable[[str], None],
        count: Callable[[str, int, float], None],
        draining: Callable[[], bool],
        bug: Callable[[BaseException], None],
    ) -> None:
        self.app, self.rules, self.log, self.count, self.draining, self.bug = app, rules, log, count, draining, bug

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        origin = headers.get("origin")
        facts: dict[str, Any] = {"tokens": 0, "owner": "", "bytes": 0}
        scope["state"] = {**scope.get("state", {}), "facts": facts}
        path = scope["path"]
        if len(path) > 1 and path.endswith("/"):
            scope = {**scope, "path": path.rstrip("/") or "/"}

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"x-request-id", request_id.encode()), *SECURITY_HEADERS]
                if self.draining():
                    more.append((b"connection", b"close"))
                if origin is not None and origin in self.rules.origins:
                    more += [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        try:
            try:
                if (preflight := self._check(scope, headers, origin, facts)) is not None:
                    await send_with_headers({"type": "http.response.start", "status": 204, "headers": preflight})
                    await send_with_headers({"type": "http.response.body", "body": b""})
                else:
                    await self.app(scope, receive, send_with_headers)
            except Problem as problem:
                if status:
                    raise
                await respond(problem, send_with_headers)
        except BaseException as error:
            if not isinstance(error, (asyncio.CancelledError, ClientDisconnect, Aborted, Problem)):
                self.bug(error)
            raise
        finally:
            seconds = time.monotonic() - began
            route = facts.get("route", "other")
            self.count(route, status, seconds)
            peer = (scope.get("client") or ("-",))[0]
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.log(
                f"{peer or '-'} {method} {route} {status or 'cut'} {facts['tokens']} tokens {seconds:.3f} s "
                f"{request_id}"
            )

    def _check(
        self, scope: Scope, headers: dict[str, str], origin: str | None, facts: dict[str, Any]
    ) -> list[tuple[bytes, bytes]] | None:
        """Refuse who may not ask; return the headers of the answer to a preflight, None for other requests."""
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"]) + len(scope["raw_path"])
        if size > HEAD_BYTES or len(scope["headers"]) > MAX_HEADERS:
            raise Problem(431, "head_too_large", f"the head is larger than {HEAD_BYTES} bytes or {MAX_HEADERS} lines")
        if "transfer-encoding" in headers and "content-length" in headers:
            raise Problem(400, "invalid_request", "Transfer-Encoding and Content-Length exclude each other")
        host = headers.get("host", "")
        if self.rules.hosts and _host_name(host) not in self.rules.hosts:
            raise Problem(403, "forbidden_host", "this Host is not served here; see --allow-host")
        if origin is not None and not self._own(origin, host) and origin not in self.rules.origins:
            raise Problem(403, "forbidden_origin", "this Origin may not ask here; see --allow-origin")
        if scope["method"] == "OPTIONS":
            methods = ", ".join(METHODS).encode()
            return [
                (b"allow", methods),
                (b"access-control-allow-methods", methods),
                (b"access-control-allow-headers", b"authorization, content-type, x-request-id"),
                (b"access-control-max-age", b"600"),
            ]
        facts["owner"] = (scope.get("client") or ("",))[0]
        if self.rules.keys and scope["path"] not in OPEN_PATHS:
            facts["owner"] = self._owner(headers.get("authorization", ""))
        return None

    @staticmethod
    def _own(origin: str, host: str) -> bool:
        return origin in (f"http://{host}", f"https://{host}")

    def _owner(self, authorization: str) -> str:
        """Return which of the keys was given, as its place."""
        scheme, _, given = authorization.partition(" ")
        found = ""
        for number, key in enumerate(self.rules.keys):  # all of them, so that the time tells nothing
            if hmac.compare_digest(given.strip().encode("latin-1", "replace"), key.encode()):
                found = f"key {number}"
        if scheme.lower() != "bearer" or not found:
            raise Problem(
                401, "invalid_api_key", "want Authorization: Bearer KEY", headers={"www-authenticate": "Bearer"}
            )
        return found


def _host_name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return name.strip("[]").lower().rstrip(".")


async def respond(problem: Problem, send: Send, *, close: bool = False) -> None:
    """Send a problem as the whole answer."""
    content = problem.content()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in problem.headers.items()]
    if close or problem.closes:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
