"""Where the server listens. Imports little, so that it listens at once: who connects waits until the rest is there."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptcli.base.errors import ConfigError, RefusedError
from gptcli.base.escape import escape

LOOPBACK = ("127.0.0.1", "localhost", "::1")
BACKLOG = 1024  # connections that wait to be accepted
SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103


@dataclass(frozen=True)
class Place:
    """The place to listen at, and who may ask there: a host and port, or a unix socket."""

    host: str = "127.0.0.1"
    port: int = 8000
    unix_socket: str | None = None
    keys: tuple[str, ...] = ()
    needs_key: bool = True  # elsewhere than on the loopback
    share_prefix: bool = False  # of prompts, among clients
    allowed_hosts: Sequence[str] = ()
    allowed_origins: Sequence[str] = ()

    @contextlib.contextmanager
    def listening(self) -> Iterator[socket.socket]:
        """Listen. RefusedError where the place is taken, ConfigError where it would be open to others without a key."""
        if self.unix_socket is None and self.host not in LOOPBACK and not self.keys and self.needs_key:
            mend = "give --api-key-file, or --no-key to serve without one"
            raise ConfigError(f"--host {escape(self.host)}: others can reach it; {mend}")
        with _unix_listener(self.unix_socket) if self.unix_socket is not None else _listener(self) as listener:
            try:
                listener.listen(BACKLOG)
                yield listener
            finally:
                if self.unix_socket is not None:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.unix_socket)

    def url(self, listener: socket.socket) -> str:
        """Return the address for clients."""
        if self.unix_socket is not None:
            return f"unix:{self.unix_socket}"
        host, port = listener.getsockname()[:2]
        host = self.host if self.host not in ("0.0.0.0", "::") else host
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
    """Bind a socket that only its owner can open; one that nobody listens on any more is replaced."""
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
