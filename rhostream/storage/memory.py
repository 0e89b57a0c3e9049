"""fsspec's memory file system as a store: for tests, in one process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fsspec.implementations.memory import MemoryFileSystem

from rhostream.storage.store import Found, Identity, seconds_since_1970


class Memory:
    """Shared by the whole process, as fsspec's is."""

    def __init__(self) -> None:
        self._fs = MemoryFileSystem()

    async def info(self, path: str) -> Found:
        info = self._fs.info(path)
        if info["type"] == "directory":
            raise FileNotFoundError(path)
        created = info.get("created")
        identity = Identity(int(info["size"]), str(created or ""))
        return Found(identity, modified=seconds_since_1970(created))

    @contextlib.asynccontextmanager
    async def get(self, path: str, span: tuple[int, int] | None, tag: str) -> AsyncIterator[_Body]:
        found = await self.info(path)
        data = self._fs.cat_file(path, *(span or (None, None)))
        yield _Body(bytes(data), None if span else found)

    async def put(self, path: str, data: bytes, once: str) -> None:
        if once and self._fs.exists(path):
            raise FileExistsError(path)
        self._fs.pipe_file(path, data)

    async def find(self, path: str, after: str) -> tuple[list[str], str]:
        return [str(found).lstrip("/") for found in self._fs.find(path)], ""

    async def delete(self, path: str) -> None:
        self._fs.rm_file(path)


class _Body:
    def __init__(self, data: bytes, found: Found | None) -> None:
        self._data, self.found = data, found
        self.length: int | None = len(data)

    async def read(self) -> bytes:
        data, self._data = self._data, b""
        return data
