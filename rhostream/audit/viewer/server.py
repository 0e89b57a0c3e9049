"""The page's server: this machine alone, whoever has the token, and nothing that changes a byte.

    GET /, /main.js, ...     the page's files, which hold no data and ask for no token
    POST /api/NAME           JSON in, JSON out, with `Authorization: Bearer TOKEN`

The token stands behind the `#` of the address, which a browser sends to nobody; the page puts it into that header,
which no other site's page can (it would need our leave, by CORS, and gets none). A request whose Host isn't ours, as
another name that was made to point here would have it, is refused, and so is one from another origin. The page's
policy lets in scripts and styles of these files alone.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import json
import logging
import secrets
import socket
import socketserver
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from rhostream.errors import RhostreamError, UsageError

ADDRESS = "127.0.0.1"
PAGE = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
MOST_BYTES, MOST_DROPPED = 1 << 20, 16 << 20  # of a request: what is read, and what is read to be dropped
IDLE_SECONDS = 60.0  # that a connection may say nothing
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Answer = Callable[[Mapping[str, Any]], Any]
log = logging.getLogger(__name__)


class Server(ThreadingHTTPServer):
    """Serves the page and the answers by name, a thread a connection."""

    daemon_threads = False  # `server_close` waits for them

    def __init__(self, answers: Mapping[str, Answer], port: int = 0) -> None:
        """Raises UsageError for a port that can't be had."""
        self.answers, self.token = dict(answers), secrets.token_urlsafe(24)
        self.files = {
            "/" + ("" if path.name == "index.html" else path.name): (_TYPES[path.suffix], path.read_bytes())
            for path in PAGE.iterdir()
            if path.suffix in _TYPES
        }
        self._open: set[Any] = set()  # connections, which a browser keeps open
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as exc:
            raise UsageError(f"port {port} of {ADDRESS} {_why(exc)}; --port 0 takes one that is free") from exc
        self.hosts = {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}

    @property
    def url(self) -> str:
        """The whole address, with the token."""
        return f"http://{ADDRESS}:{self.server_port}/#{self.token}"

    def server_bind(self) -> None:
        """Without asking a name server what this machine is called, as http.server does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    def finish_request(self, request: Any, client_address: Any) -> None:
        """A connection from its first request to its last."""
        self._open.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            self._open.discard(request)

    def server_close(self) -> None:
        """End all connections and wait for their threads: what they asked must have been stopped."""
        for connection in [*self._open]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        super().server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error; the rest is one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            log.warning("a request failed: %s", type(error).__name__)


def _why(exc: Exception) -> str:
    number = getattr(exc, "errno", None)
    if number == errno.EADDRINUSE:
        return "is in use"
    return "may not be taken" if number == errno.EACCES else f"can't be taken ({exc})"


class _Refused(Exception):
    """A request that gets this status and nothing else."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(status, why)
        self.status, self.why = status, why


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "rhostream", ""
    timeout = IDLE_SECONDS
    server: Server

    def do_GET(self) -> None:
        """A file of the page."""
        self._answer(self._file)

    def do_POST(self) -> None:
        """An answer, in JSON."""
        self._answer(self._asked)

    def _answer(self, what: Callable[[], tuple[str, bytes]]) -> None:
        self._unread = self._length() or 0
        try:
            self._require_ours()
            kind, body = what()
            self._send(HTTPStatus.OK, kind, body)
        except _Refused as refused:
            self.close_connection = True
            self._drop_body()
            self._send(refused.status, "application/json", json.dumps({"error": refused.why}).encode())

    def _require_ours(self) -> None:
        if self.headers.get("Host", "") not in self.server.hosts:
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to its own address alone")
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            raise _Refused(HTTPStatus.FORBIDDEN, "this server answers to its own page alone")

    def _file(self) -> tuple[str, bytes]:
        kind, body = self.server.files.get(self.path.partition("?")[0], ("", b""))
        if not kind:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        return f"{kind}; charset=utf-8", body

    def _asked(self) -> tuple[str, bytes]:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.server.token.encode()):
            raise _Refused(HTTPStatus.UNAUTHORIZED, "open the whole address that `rhostream view` printed")
        answer = self.server.answers.get(self.path.removeprefix("/api/")) if self.path.startswith("/api/") else None
        if answer is None:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such answer")
        try:
            return "application/json", json.dumps(answer(self._body()), allow_nan=False).encode()
        except RhostreamError as exc:
            raise _Refused(HTTPStatus.BAD_REQUEST, str(exc)) from exc
        except _Refused:
            raise
        except Exception as exc:
            log.warning("internal error: %s; the page was told so", type(exc).__name__, exc_info=exc)
            raise _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, f"internal error: {type(exc).__name__}") from exc

    def _length(self) -> int | None:
        """Bytes of the request's body; None where it doesn't say."""
        length = self.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() and len(length) <= 15 else None

    def _drop_body(self) -> None:
        """Read what came along with a refused request: a connection that is closed before takes the answer with it."""
        left = min(self._unread, MOST_DROPPED)
        while left > 0 and (dropped := self.rfile.read(min(left, 1 << 16))):
            left -= len(dropped)

    def _body(self) -> Mapping[str, Any]:
        length = self._length()
        if length is None or length > MOST_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has up to {MOST_BYTES:,} bytes")
        body, self._unread = self.rfile.read(length), 0
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise _Refused(HTTPStatus.BAD_REQUEST, "a request is JSON") from exc
        if not isinstance(asked, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, "a request is a JSON object")
        return asked

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each brush would hide what matters."""
