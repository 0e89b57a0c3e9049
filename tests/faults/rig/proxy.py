"""A proxy that misbehaves on request, between a client and a real store: HTTP/1.1 in, HTTP/1.1 out, faults between.

    with Proxy(server.port) as proxy:
        proxy.inject("reset", method="GET", path="/a.tar", times=2)      exactly these requests
        proxy.one_in(20, seed=3)                                         a fault on one request in twenty, of any kind

Requests are passed on as they came, the Host header included, because the client has signed it. Each request that
reached the proxy is in `seen`, with the fault that it met.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qs, quote

ERRORS = {  # fault -> status, code in the XML
    "500": (500, "InternalError"), "502": (502, ""), "503": (503, "SlowDown"), "429": (429, "TooManyRequests"),
    "403": (403, "AccessDenied"), "expired": (400, "ExpiredToken"), "expired_403": (403, "ExpiredToken"),
    "skew": (403, "RequestTimeTooSkewed"),
    "404": (404, "NoSuchKey"), "409": (409, "ConditionalRequestConflict"), "412": (412, "PreconditionFailed"),
}  # fmt: skip
ON_BODIES = ("cut", "short", "flip", "slow", "hang_body")  # of answers that have one; else they are a reset
TRANSIENT = ("500", "503", "429", "reset", "cut", "short", "flip", "lost", "hang_body", "409")


@dataclass
class Request:
    """One request, as it came."""

    method: str
    target: str
    headers: dict[str, str]  # names in lower case
    body: bytes = field(repr=False, default=b"")
    fault: str = ""
    answered: int = 0  # bytes of the body that went back

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass
class Rule:
    fault: str
    method: str
    path: str
    times: float
    skip: int
    settings: dict[str, Any]

    def meets(self, request: Request) -> bool:
        if self.times <= 0 or (self.method and request.method != self.method) or self.path not in request.target:
            return False
        if self.settings.get("signed_by", "") not in request.headers.get("authorization", ""):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class Proxy:
    """Runs in a thread of its own; a context manager."""

    def __init__(self, upstream: int, host: str = "127.0.0.1", delay: float = 0.0) -> None:
        self._upstream, self.host, self.port = upstream, host, 0
        self.delay = delay  # seconds that every request takes on its way
        self._rules: list[Rule] = []
        self._lottery: tuple[int, int, Sequence[str]] | None = None
        self.seen: list[Request] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    # What tests ask for.

    def inject(
        self, fault: str, *, method: str = "", path: str = "", times: float = 1, skip: int = 0, **settings: Any
    ) -> None:
        """The next `times` requests of that method whose target holds `path`, after the first `skip` of them.

        Settings: retry_after (seconds, for errors), rate (bytes a second, for slow), hook (called before the request
        is passed on, for "hook"), signed_by (only requests that were signed with that key).
        """
        self._rules.append(Rule(fault, method, path, times, skip, settings))

    def one_in(self, n: int, seed: int, faults: Sequence[str] = TRANSIENT) -> None:
        """One request in `n`, drawn by its number, meets one of the faults."""
        self._lottery = n, seed, faults

    def calm(self) -> None:
        """No more faults, and forget what was seen."""
        self._rules, self._lottery = [], None
        self.seen.clear()

    def count(self, method: str = "", path: str = "", fault: str | None = None) -> int:
        return sum((not method or r.method == method) and path in r.target and (fault is None or r.fault == fault)
                   for r in list(self.seen))  # fmt: skip

    # The proxy.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._client, self.host, 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            with contextlib.suppress(Exception):
                writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection goes on."""
        request = await self._head(reader)
        settings = self._draw(request)
        if request.headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.fault == "hang_upload":
            await self._half_an_upload(request, reader)
            return False
        request.body = await _body(reader, request.headers)
        fault = request.fault
        if self.delay:
            await asyncio.sleep(self.delay)
        if fault == "hang":
            await self._until_gone(reader)
            return False
        if fault in ERRORS:
            writer.write(_error(*ERRORS[fault], settings.get("retry_after"), request.method == "HEAD"))
            await writer.drain()
            return True
        if fault == "reset":
            return _reset(writer)
        if fault == "hook":
            await asyncio.to_thread(settings["hook"])
        if fault == "no_condition" and request.headers.get("if-none-match"):
            await asyncio.to_thread(settings["hook"], request.path)
        status, headers, body = await self._pass_on(request)
        request.answered = len(body)
        if fault == "lost":
            return _reset(writer)
        return await self._answer(request, settings, reader, writer, status, headers, body)

    def _draw(self, request: Request) -> dict[str, Any]:
        self.seen.append(request)
        for rule in self._rules:
            if rule.meets(request):
                request.fault = rule.fault
                return rule.settings
        if self._lottery is not None:
            n, seed, faults = self._lottery
            drawn = int.from_bytes(hashlib.sha256(f"{seed} {len(self.seen)}".encode()).digest()[:8], "big")
            if drawn % n == 0:
                request.fault = faults[drawn // n % len(faults)]
        return {}

    async def _answer(
        self,
        request: Request,
        settings: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        status: str,
        headers: list[tuple[str, str]],
        body: bytes,
    ) -> bool:
        fault, promised = request.fault, len(body)
        if fault in ON_BODIES and (request.method != "GET" or not body or status[:1] != "2"):
            return _reset(writer)
        if fault == "flip" and ("range" in request.headers or "list-type" in request.target):
            return _reset(writer)  # only the checksum of a whole object can tell
        if fault == "short":
            promised, body = promised // 2, body[: promised // 2]
        elif fault in ("cut", "hang_body"):
            body = body[: promised // 2]
        elif fault == "flip":
            at = len(body) // 2
            body = body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]
        kept = [(k, v) for k, v in headers if k.lower() not in ("connection", "transfer-encoding", "content-length")]
        length = dict((k.lower(), v) for k, v in headers).get("content-length")
        kept.append(("Content-Length", length if request.method == "HEAD" and length else str(promised)))
        head = "".join(f"{k}: {v}\r\n" for k, v in kept)
        writer.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1"))
        if fault == "slow":
            rate = settings["rate"]
            for at in range(0, len(body), max(rate // 10, 1)):
                writer.write(body[at : at + max(rate // 10, 1)])
                await writer.drain()
                await asyncio.sleep(0.1)
        else:
            writer.write(body)
        await writer.drain()
        if fault == "hang_body":
            await self._until_gone(reader)
        return fault not in ("cut", "hang_body")

    async def _head(self, reader: asyncio.StreamReader) -> Request:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        return Request(method, target, headers)

    async def _pass_on(self, request: Request) -> tuple[str, list[tuple[str, str]], bytes]:
        reader, writer = await asyncio.open_connection(self.host, self._upstream)
        try:
            sent = {k: v for k, v in request.headers.items() if k not in ("expect", "connection", "transfer-encoding")}
            sent |= {"connection": "close", "content-length": str(len(request.body))}
            head = "".join(f"{k}: {v}\r\n" for k, v in sent.items())
            writer.write(f"{request.method} {request.target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + request.body)
            await writer.drain()
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = [(n.strip(), v.strip()) for n, colon, v in (line.partition(":") for line in lines[1:]) if colon]
            names = {n.lower(): v for n, v in headers}
            body = b"" if request.method == "HEAD" else await _body(reader, names, to_the_end=True)
            return lines[0].split(" ", 1)[1], headers, body
        finally:
            writer.close()

    async def _half_an_upload(self, request: Request, reader: asyncio.StreamReader) -> None:
        """Pass on half of the body, then wait for the client to die, then break the connection to the store."""
        half = await reader.readexactly(int(request.headers["content-length"]) // 2)
        _, writer = await asyncio.open_connection(self.host, self._upstream)
        sent = {k: v for k, v in request.headers.items() if k != "expect"}
        head = "".join(f"{k}: {v}\r\n" for k, v in sent.items())
        writer.write(f"{request.method} {request.target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + half)
        await writer.drain()
        request.body = half
        await self._until_gone(reader)
        _reset(writer)

    async def _until_gone(self, reader: asyncio.StreamReader) -> None:
        while await reader.read(1 << 16):
            pass


class GenerationProxy(Proxy):
    """Keeps ifGenerationMatch=0 for a GCS emulator that doesn't: 412 for a name that is taken, as Google's says."""

    async def _pass_on(self, request: Request) -> tuple[str, list[tuple[str, str]], bytes]:
        asks = parse_qs(request.target.partition("?")[2])
        if request.method == "POST" and asks.get("ifGenerationMatch") == ["0"]:
            bucket = request.path.split("/b/")[1].split("/")[0]
            target = f"/storage/v1/b/{bucket}/o/{quote(asks['name'][0], safe='')}"
            status, _, _ = await super()._pass_on(Request("GET", target, {"host": request.headers["host"]}))
            if status.startswith("200"):
                return "412 Precondition Failed", [], b'{"error": {"errors": [{"reason": "conditionNotMet"}]}}'
        return await super()._pass_on(request)


def _reset(writer: asyncio.StreamWriter) -> bool:
    """Break the connection with a RST."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


def _error(status: int, code: str, retry_after: float | None, head: bool) -> bytes:
    xml = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>"
    body = xml.encode() if code and not head else b""
    extra = f"Retry-After: {retry_after}\r\n" if retry_after is not None else ""
    return (
        f"HTTP/1.1 {status} Injected\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    ).encode() + body


async def _body(reader: asyncio.StreamReader, headers: dict[str, str], to_the_end: bool = False) -> bytes:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        pieces = []
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            pieces.append(await reader.readexactly(size))
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
        return b"".join(pieces)
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await reader.read() if to_the_end else b""


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port where connections are never taken: its queue is full, so that a SYN has no answer."""
    with contextlib.ExitStack() as held:
        deaf = held.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(deaf.getsockname())
        yield deaf.getsockname()[1]
