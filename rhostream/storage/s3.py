"""S3 and what speaks like it: credentials, session and options are those of s3fs, requests those of its client.

A small object is one conditional PUT. A large one is a multipart upload whose completion is conditional.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import s3fs

from rhostream.storage import faults
from rhostream.storage.faults import VersionError, diagnose
from rhostream.storage.private import only_once, sessions_of
from rhostream.storage.retry import asked
from rhostream.storage.settings import Retry
from rhostream.storage.store import PIECE, Data, Entry, Found, Identity, Span, byte_range, seconds_since_1970

SINGLE_PUT = 64 << 20  # bytes; larger objects go up in parts of that size
PART_TRIES = 4  # a part that fails is sent again before the whole upload is
ONCE = "rhostream-commit"  # name of the metadata by which a commit whose answer was lost is known again
DIRECTORY_BUCKET = "--x-s3"  # its ETags are random


class S3:
    """One client a process."""

    def __init__(self, options: Mapping[str, Any], retry: Retry) -> None:
        given = dict(options)
        config = {
            "connect_timeout": retry.connect,
            "read_timeout": retry.socket,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": 64,
        }
        config |= given.pop("config_kwargs", {})
        given.setdefault("use_listings_cache", False)
        self._fs = s3fs.S3FileSystem(**given, config_kwargs=config, skip_instance_cache=True)
        self._retry, self._renewing = retry, asyncio.Lock()
        fixed = self._fs.anon or self._fs.key or "aws_access_key_id" in self._fs.client_kwargs
        self._from_chain = not fixed  # credentials that were found, and may be found anew
        for name in ("botocore", "aiobotocore"):  # at INFO, where our command line listens, they tell of themselves
            if logging.getLogger(name).level == logging.NOTSET:
                logging.getLogger(name).setLevel(logging.WARNING)

    async def _call(self, method: str, path: str, **asks: Any) -> Any:
        bucket, _, key = path.partition("/")
        return await self._ask(method, Bucket=bucket, Key=key, **asks)

    async def _ask(self, method: str, **asks: Any) -> Any:
        """One request; once more when the credentials expired and the place that they came from has others by now."""
        client = await self._fs.set_session()
        keys = await _keys(self._fs.session) if self._from_chain else None
        try:
            return await self._request(client, method, asks)
        except Exception as exc:
            if keys is None or diagnose(exc).kind != "expired" or not await self._renewed(keys):
                raise
        faults.count(f"s3://{asks['Bucket']}", "expired")
        return await self._request(await self._fs.set_session(), method, asks)

    async def _request(self, client: Any, method: str, asks: Mapping[str, Any]) -> Any:
        if self._fs.cache_regions:
            client = await self._fs.get_s3(asks["Bucket"])
        for session in sessions_of(client):
            only_once(session)
        operation = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[method])
        # What the options say of every request, as far as this one knows it.
        everywhere = {**self._fs.s3_additional_kwargs, **self._fs.req_kw}
        known = {name: value for name, value in everywhere.items() if name in operation.input_shape.members}
        return await getattr(client, method)(**{**known, **asks})

    async def _renewed(self, keys: Any) -> bool:
        """Look for credentials again, from the beginning of the chain, unless another request did; whether they aren't
        `keys` any more."""
        async with self._renewing:
            if keys == await _keys(self._fs.session):
                await self._fs.set_session(refresh=True)
            return bool(keys != await _keys(self._fs.session))

    async def info(self, path: str) -> Found:
        try:
            return _found(path, await self._call("head_object", path))
        except Exception as exc:
            if diagnose(exc).act not in ("denied", "final"):
                raise
        # A refused HEAD has no body, so it can't say whether a token expired or the clock is wrong; a GET can.
        (await self._call("get_object", path, Range="bytes=0-0"))["Body"].close()
        return _found(path, await self._call("head_object", path))  # with renewed credentials, perhaps

    @contextlib.asynccontextmanager
    async def get(self, path: str, span: Span | None, tag: str) -> AsyncIterator[_Body]:
        asks = {"IfMatch": f'"{tag}"'} if tag else {}
        if span:
            asks["Range"] = byte_range(span)
        try:
            answer = await self._call("get_object", path, **asks)
        except Exception as exc:
            if tag and diagnose(exc).act == "exists":  # here a 412 is about IfMatch
                raise VersionError from None
            raise
        body = _Body(answer, None if span and span[0] >= 0 else _found(path, answer))
        try:
            yield body
        finally:
            body.close()

    async def put(self, path: str, data: Data, once: str) -> None:
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if once else {}
        word = {"Metadata": {ONCE: once}} if once else {}
        if len(data) <= SINGLE_PUT:
            await self._call("put_object", path, Body=data[:], **word, **condition)
            return
        upload = (await self._call("create_multipart_upload", path, **word))["UploadId"]
        try:
            parts = []
            for number, start in enumerate(range(0, len(data), SINGLE_PUT), 1):
                etag = await self._part(path, upload, number, data[start : start + SINGLE_PUT])
                parts.append({"PartNumber": number, "ETag": etag})
            await self._call(
                "complete_multipart_upload", path, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
            )
        except BaseException:
            with contextlib.suppress(Exception):  # what went wrong before matters more
                await self._call("abort_multipart_upload", path, UploadId=upload)
            raise

    async def _part(self, path: str, upload: str, number: int, data: bytes) -> str:
        for tried in range(PART_TRIES):
            try:
                sending = self._call("upload_part", path, UploadId=upload, PartNumber=number, Body=data)
                sent = await asked(sending, self._retry, len(data))
                return str(sent["ETag"])
            except Exception as exc:
                if tried == PART_TRIES - 1 or diagnose(exc).act != "retry":
                    raise
        raise AssertionError("unreachable")

    async def find(self, path: str, after: str) -> tuple[list[Entry], str]:
        bucket, _, key = path.partition("/")
        asks = {"ContinuationToken": after} if after else {}
        below = f"{key.rstrip('/')}/" if key else ""
        page = await self._ask("list_objects_v2", Bucket=bucket, Prefix=below, **asks)
        found = [
            (f"{bucket}/{entry['Key']}", Identity(int(entry["Size"]), str(entry.get("ETag", "")).strip('"')))
            for entry in page.get("Contents", [])
        ]
        return found, str(page["NextContinuationToken"]) if page.get("IsTruncated") else ""

    async def delete(self, path: str) -> None:
        await self._call("delete_object", path)


async def _keys(session: Any) -> Any:
    """What a session would sign with now; None where it has nothing."""
    found = await session.get_credentials()
    return found and await found.get_frozen_credentials()


class _Body:
    def __init__(self, answer: Mapping[str, Any], found: Found | None) -> None:
        self._stream, self.found = answer["Body"], found
        self.length: int | None = answer.get("ContentLength")

    async def read(self) -> bytes:
        return bytes(await self._stream.read(PIECE))

    def close(self) -> None:
        self._stream.close()


def _found(path: str, answer: Mapping[str, Any]) -> Found:
    tag = str(answer.get("ETag") or answer.get("LastModified") or "").strip('"')
    # An ETag is the md5 of the bytes unless the object came in parts, or was encrypted with a key of its own.
    encrypted = answer.get("ServerSideEncryption") not in (None, "AES256") or answer.get("SSECustomerAlgorithm")
    plain = len(tag) == 32 and not encrypted and not path.partition("/")[0].endswith(DIRECTORY_BUCKET)
    try:
        md5 = bytes.fromhex(tag) if plain else None
    except ValueError:
        md5 = None
    once = str((answer.get("Metadata") or {}).get(ONCE, ""))
    modified = seconds_since_1970(answer.get("LastModified"))
    of_range = str(answer.get("ContentRange", "")).rpartition("/")[2]  # the size of the whole object
    size = int(of_range if of_range.isdigit() else answer["ContentLength"])
    return Found(Identity(size, tag), md5, once=once, modified=modified)
