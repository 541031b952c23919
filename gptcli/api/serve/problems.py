"""Refusals in the form of OpenAI's API: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
from typing import Any

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
TEXT_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))  # made once: it costs


class Aborted(Exception):
    """An answer is cut, so that a client that heeds no error event sees a broken connection."""


class Problem(Exception):
    """A request that is not answered as asked, with its HTTP status."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = headers or {}
        if status >= 500 and status not in (503, 504):
            self.headers.setdefault("x-should-retry", "false")

    @property
    def closes(self) -> bool:
        """Return whether the connection must be closed after it."""
        return self.status in (408, 431) or self.code == "invalid_request"

    def as_dict(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def content(self) -> bytes:
        """Return the body as JSON."""
        return dumps(self.as_dict())


def invalid(param: str | None, message: str, code: str = "invalid_value") -> Problem:
    """Make the refusal of a field, status 400."""
    return Problem(400, code, f"{param}: {message}" if param else message, param=param)


def retry_later(status: int, code: str, message: str, seconds: float) -> Problem:
    """Make a refusal that says when to come again."""
    whole = str(max(1, round(seconds)))
    return Problem(status, code, message, headers={"retry-after": whole, "retry-after-ms": str(int(seconds * 1000))})


def dumps(document: Any) -> bytes:
    """Return strict JSON; a lone surrogate is written as its escape."""
    try:
        return TEXT_ENCODER.encode(document).encode()
    except UnicodeEncodeError:
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
