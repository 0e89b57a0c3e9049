"""Google Cloud Storage: credentials, options and endpoint are those of gcsfs, requests of the JSON API our own.

gcsfs retries by itself for minutes and hides Retry-After, so its request method is not used.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import weakref
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from aiohttp import ClientSession, ClientTimeout
from gcsfs.core import GCSFileSystem

from rhostream.storage.faults import StatusError, VersionError
from rhostream.storage.private import only_once
from rhostream.storage.settings import Retry
from rhostream.storage.store import Data, Entry, Found, Identity, Span, byte_range
from rhostream.storage.web import Answer, answered


class GCS:
    """One client a process."""

    def __init__(self, options: Mapping[str, Any], retry: Retry) -> None:
        self._fs = GCSFileSystem(**{"use_listings_cache": False, **options, "skip_instance_cache": True})
        self._timeout = ClientTimeout(total=None, sock_connect=retry.connect, sock_read=retry.socket)
        self._session: ClientSession | None = None

    def _http(self) -> ClientSession:
        """A session of our own, on the loop that runs; closed when this store is let go."""
        if self._session is None:
            self._session = ClientSession(**self._fs.session_kwargs)
            only_once(self._session)
            weakref.finalize(self, GCSFileSystem.close_session, asyncio.get_running_loop(), self._session)
        return self._session

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, **asks: Any
    ) -> AsyncIterator[Any]:
        params = {name: value for name, value in asks.pop("params", {}).items() if value is not None}
        if payer := self._fs.requester_pays:
            params["userProject"] = payer if isinstance(payer, str) else self._fs.project
        sent = dict(headers or {})
        # It may ask for a new token and wait for it: not on the loop, where every other transfer would wait as well.
        await asyncio.to_thread(self._fs.credentials.apply, sent)
        # The path is quoted already, and a key may hold what a URL library would take for its own.
        async with self._http().request(
            method, _encoded(url), params=params, headers=sent, timeout=self._timeout, **asks
        ) as response:
            await answered(response, _code)
            yield response

    def _object(self, path: str) -> str:
        bucket, _, key = path.partition("/")
        return f"{self._fs.base}b/{quote(bucket, safe='')}/o/{quote(key, safe='')}"

    async def info(self, path: str) -> Found:
        async with self._request("GET", self._object(path)) as response:
            return _found(await response.json())

    @contextlib.asynccontextmanager
    async def get(self, path: str, span: Span | None, tag: str) -> AsyncIterator[Answer]:
        headers = {"Range": byte_range(span)} if span else {}
        params = {"alt": "media", "generation": tag if tag.isdigit() else None}
        try:
            async with self._request("GET", self._object(path), headers, params=params) as response:
                yield Answer(response, None if span and span[0] >= 0 else _found_in(response.headers))
        except StatusError as exc:
            # The tag is the generation: an older one is gone once the object was replaced.
            if tag and exc.status == 404:
                raise VersionError from None
            raise

    async def put(self, path: str, data: Data, once: str) -> None:
        bucket, _, key = path.partition("/")
        params = {"uploadType": "media", "name": key, "ifGenerationMatch": "0" if once else None}
        url = f"{self._fs.base.removesuffix('storage/v1/')}upload/storage/v1/b/{quote(bucket, safe='')}/o"
        headers = {"Content-Type": "application/octet-stream"}
        body = io.BytesIO(data) if isinstance(data, bytes) else data.opened()
        async with self._request("POST", url, headers, params=params, data=body) as response:
            await response.read()

    async def find(self, path: str, after: str) -> tuple[list[Entry], str]:
        bucket, _, key = path.partition("/")
        params = {"prefix": f"{key.rstrip('/')}/" if key else None, "pageToken": after or None}
        url = f"{self._fs.base}b/{quote(bucket, safe='')}/o"
        async with self._request("GET", url, params=params) as response:
            page = await response.json()
        found = [(f"{bucket}/{entry['name']}", _found(entry).identity) for entry in page.get("items", [])]
        return found, page.get("nextPageToken", "")

    async def delete(self, path: str) -> None:
        async with self._request("DELETE", self._object(path)):
            pass


def _encoded(url: str) -> Any:
    from yarl import URL

    return URL(url, encoded=True)


def _code(body: bytes) -> str:
    """The reason that the JSON of an error gives."""
    import json

    with contextlib.suppress(ValueError, KeyError, TypeError, IndexError):
        return str(json.loads(body)["error"]["errors"][0]["reason"])
    return ""


def _found(record: Mapping[str, Any]) -> Found:
    if "size" not in record:
        raise StatusError(502, "no size in the answer")
    return Found(Identity(int(record["size"]), str(record.get("generation") or record.get("etag") or "")),
                 _decoded(record.get("md5Hash")), _decoded(record.get("crc32c")),
                 modified=_seconds(record.get("updated")))  # fmt: skip


def _seconds(text: Any) -> float | None:
    with contextlib.suppress(ValueError, TypeError):
        return datetime.fromisoformat(text).timestamp()
    return None


def _found_in(headers: Mapping[str, str]) -> Found | None:
    """From the headers of a download, where the store sends them; not of one that it unpacked on the way."""
    generation, size = headers.get("x-goog-generation"), headers.get("x-goog-stored-content-length")
    if not generation or not size or headers.get("x-goog-stored-content-encoding", "identity") != "identity":
        return None
    given = ",".join(_all(headers, "x-goog-hash")).split(",")
    sums = dict(part.strip().split("=", 1) for part in given if "=" in part)
    return Found(Identity(int(size), generation), _decoded(sums.get("md5")), _decoded(sums.get("crc32c")))


def _all(headers: Any, name: str) -> list[str]:
    return list(headers.getall(name, []))


def _decoded(text: str | None) -> bytes | None:
    return base64.b64decode(text) if text else None
