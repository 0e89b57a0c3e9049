"""fsspec's memory file system as a store: for tests, in one process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fsspec.implementations.memory import MemoryFileSystem

from rhostream.storage.store import Data, Entry, Found, Identity, Span, seconds_since_1970


class Memory:
    """Shared by the whole process, as fsspec's is."""

    def __init__(self) -> None:
        self._fs = MemoryFileSystem()

    async def info(self, path: str) -> Found:
        return self._found(path)

    def _found(self, path: str) -> Found:
        info = self._fs.info(path)
        if info["type"] == "directory":
            raise FileNotFoundError(path)
        created = info.get("created")
        identity = Identity(int(info["size"]), str(created or ""))
        return Found(identity, modified=seconds_since_1970(created))

    @contextlib.asynccontextmanager
    async def get(self, path: str, span: Span | None, tag: str) -> AsyncIterator[_Body]:
        found = await self.info(path)
        start, end = span or (0, None)
        end = None if start < 0 else end
        data = bytes(self._fs.cat_file(path))[start:end]
        yield _Body(data, found if end is None else None)

    async def put(self, path: str, data: Data, once: str) -> None:
        if once and self._fs.exists(path):
            raise FileExistsError(path)
        self._fs.pipe_file(path, data[:])

    async def find(self, path: str, after: str) -> tuple[list[Entry], str]:
        found = [str(name).lstrip("/") for name in self._fs.find(path)]
        return [(name, self._found(name).identity) for name in found], ""

    async def delete(self, path: str) -> None:
        self._fs.rm_file(path)


class _Body:
    def __init__(self, data: bytes, found: Found | None) -> None:
        self._data, self.found = data, found
        self.length: int | None = len(data)

    async def read(self) -> bytes:
        data, self._data = self._data, b""
        return data
