"""Objects behind https, read only: presigned URLs of any store, mirrors, file servers that know ranges."""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp

from rhostream.errors import NotWritableError, UsageError
from rhostream.storage.faults import StatusError
from rhostream.storage.names import redact
from rhostream.storage.settings import Retry
from rhostream.storage.store import PIECE, Data, Entry, Found, Identity, Span, byte_range

_ERROR_BYTES = 64 << 10
_XML_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")


class Answer:
    """The body of an aiohttp response."""

    def __init__(self, response: aiohttp.ClientResponse, found: Found | None) -> None:
        self._response, self.found = response, found
        encoded = response.headers.get("Content-Encoding", "identity") != "identity"
        self.length = None if encoded else response.content_length

    async def read(self) -> bytes:
        return await self._response.content.read(PIECE)


async def answered(response: aiohttp.ClientResponse, code: Callable[[bytes], str]) -> None:
    """Raise StatusError for an answer that is none."""
    if response.status >= 300:
        body = await response.content.read(_ERROR_BYTES)
        raise StatusError(response.status, code(body), response.headers.get("Retry-After"))


class Web:
    """Options: `headers`, `ca_file` (PEM certificates to trust besides the system's), `trust_env` (use its proxies)."""

    def __init__(self, options: Mapping[str, Any], retry: Retry) -> None:
        unknown = set(options) - {"headers", "ca_file", "trust_env"}
        if unknown:
            raise UsageError(f"storage option {sorted(unknown)[0]!r} of https: expected headers, ca_file or trust_env")
        self._options, self._ssl = dict(options), ssl.create_default_context()
        if "ca_file" in options:
            self._ssl.load_verify_locations(options["ca_file"])
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=retry.connect, sock_read=retry.socket)

    @contextlib.asynccontextmanager
    async def _request(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        from yarl import URL

        session = aiohttp.ClientSession(
            timeout=self._timeout,
            trust_env=bool(self._options.get("trust_env", True)),
            headers=self._options.get("headers"),
        )
        sent = {"Accept-Encoding": "identity", **headers}
        # A presigned query must reach the server as it was signed.
        url = URL(f"https://{path}", encoded="%" in path)
        async with session, session.get(url, headers=sent, ssl=self._ssl) as response:
            await answered(response, _xml_code)
            yield response

    async def info(self, path: str) -> Found:
        """By a read of one byte: a URL that is signed for GET refuses HEAD."""
        async with self._request(path, {"Range": "bytes=0-0"}) as response:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            size = int(total) if response.status == 206 and total.isdigit() else response.content_length
            if size is None or (response.status == 206 and not total.isdigit()):
                raise UsageError(f"{redact('https://' + path)}: the server doesn't say how large it is; copy it first")
            return Found(Identity(size, _tag(response.headers)))

    @contextlib.asynccontextmanager
    async def get(self, path: str, span: Span | None, tag: str) -> AsyncIterator[Answer]:
        headers = {"Range": byte_range(span)} if span else {}
        async with self._request(path, headers) as response:
            if span and span[0] >= 0 and response.status != 206:
                raise UsageError(f"{redact('https://' + path)}: the server doesn't know ranges; copy the file first")
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            whole = response.content_length if response.status != 206 else None
            size = int(total) if total.isdigit() else whole
            yield Answer(response, None if size is None else Found(Identity(size, _tag(response.headers))))

    async def put(self, path: str, data: Data, once: str) -> None:
        raise NotWritableError(f"{redact('https://' + path)}: https is read only; write to disk, s3:// or gs://")

    async def find(self, path: str, after: str) -> tuple[list[Entry], str]:
        raise UsageError(
            f"{redact('https://' + path)}: what lies there can't be listed; name each file, as in "
            "train-{000..059}.tar"
        )

    async def delete(self, path: str) -> None:
        raise NotWritableError(f"{redact('https://' + path)}: https is read only")


def _tag(headers: Mapping[str, str]) -> str:
    return (headers.get("ETag") or headers.get("Last-Modified") or "").strip('"')


def _xml_code(body: bytes) -> str:
    match = _XML_CODE.search(body)
    return match[1].decode() if match else ""
