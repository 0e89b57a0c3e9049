"""The one door to bytes: names, whole and ranged reads, and commits that appear whole or not at all.

A URL is a local path or `scheme://...` with a scheme of `SCHEMES`. `pipe:` (a shell) and chained `::` URLs (two
meanings in this ecosystem) are refused. Remote stores go through fsspec; local files through plain system calls,
because a commit on disk needs `link` and `fsync`, which fsspec doesn't offer.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import braceexpand
import fsspec

from rhostream.errors import (
    AccessError,
    AlreadyExistsError,
    MissingExtraError,
    NotFoundError,
    NotWritableError,
    StorageError,
    UsageError,
)

SCHEMES = ("file", "s3", "gs", "https", "memory")
EXTRA_OF = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "https": ("aiohttp", "https")}
TRIES = 4
SPOOL_BYTES = 16 << 30
_PIECE = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one version of an object from the next: its size and its ETag (or mtime in ns on a disk)."""

    size: int
    tag: str


# -- names -----------------------------------------------------------------------------------------------------------


def redact(url: str) -> str:
    """The URL without user, password and query: presigned URLs are secrets."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def resolve(url: str | os.PathLike[str]) -> str:
    """The canonical form: an absolute path for local files, else the URL as given.

    Raises UsageError for a scheme that is not allowed.
    """
    text = os.fspath(url)
    if text.startswith("pipe:"):
        # Not its text: a URL that is cut in the middle can't be redacted.
        raise UsageError(f"'pipe:...' is a shell command, not a shard; allowed: paths, {', '.join(SCHEMES)}")
    if "::" in text:
        raise UsageError(f"'::' in {redact(text)!r} has two meanings; give several shards as separate arguments")
    if "://" not in text:
        return os.path.abspath(os.path.expanduser(text))
    scheme, rest = text.split("://", 1)
    if scheme not in SCHEMES:
        raise UsageError(f"scheme {scheme!r} of {redact(text)!r} is not allowed; allowed: {', '.join(SCHEMES)}")
    return os.path.abspath(rest) if scheme == "file" else text.rstrip("/")


def is_local(url: str) -> bool:
    """Whether a resolved URL is a path of this machine."""
    return "://" not in url


def join(url: str, *names: str) -> str:
    """`url/name/...`, for paths and URLs alike."""
    return "/".join([url.rstrip("/"), *names])


def expand(urls: Iterable[str | os.PathLike[str]], suffix: str = ".tar") -> list[str]:
    """The shards that the arguments mean, resolved, in order, each once.

    An argument is a shard, a brace range (`train-{000..059}.tar`), a pattern (`*.tar`) or a folder (every `*.tar`
    below it, sorted). Raises UsageError when an argument matches nothing or a shard is named twice.
    """
    found: list[str] = []
    for argument in urls:
        text = os.fspath(argument)
        for one in braceexpand.braceexpand(text) if "{" in text else [text]:
            found += _expand_one(resolve(one), suffix)
    if not found:
        raise UsageError("no shards were given")
    seen: set[str] = set()
    for shard in found:
        if shard in seen:
            raise UsageError(f"shard {redact(shard)} is named twice: every sample must be planned once")
        seen.add(shard)
    return found


def _expand_one(url: str, suffix: str) -> list[str]:
    if "*" in url.rsplit("?", 1)[0]:
        fs, path = filesystem(url)
        matches = sorted(str(fs.unstrip_protocol(p)) if not is_local(url) else str(p) for p in fs.glob(path))
    elif is_local(url) and os.path.isdir(url):
        matches = list_files(url, suffix)
    else:
        return [url]
    if not matches:
        raise UsageError(f"no file matches {redact(url)}")
    return matches


# -- reading ---------------------------------------------------------------------------------------------------------


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path inside it."""
    scheme = "file" if is_local(url) else url.split("://", 1)[0]
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as exc:
        raise MissingExtraError.of(*EXTRA_OF.get(scheme, (scheme, scheme))) from exc
    return fs, path


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    """Foreign errors, in our words, without the secrets that their texts may hold."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NotFoundError(f"{redact(url)} does not exist") from exc
    except PermissionError as exc:
        raise AccessError(f"{redact(url)}: permission denied; check the credentials") from exc
    except IsADirectoryError as exc:
        raise UsageError(f"{redact(url)} is a folder, expected a file") from exc


def _retried(url: str, action: Callable[[], T]) -> T:
    """Run `action`; transient failures of a store are tried again with exponential backoff and jitter."""
    jitter = random.Random(os.getpid() ^ time.monotonic_ns())
    for attempt in range(TRIES):
        try:
            with _translated(url):
                return action()
        except (OSError, TimeoutError) as exc:
            if is_local(url) or attempt == TRIES - 1:
                reason = os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else type(exc).__name__
                raise StorageError(f"{redact(url)}: {reason} (tried {attempt + 1} times)") from exc
            time.sleep((2**attempt) * (0.5 + jitter.random()) * 0.5)
    raise AssertionError("unreachable")


def identity(url: str) -> Identity:
    """Size and version of an object. Raises NotFoundError, AccessError, StorageError."""
    if is_local(url):
        with _translated(url):
            stat = os.stat(url)
            return Identity(stat.st_size, str(stat.st_mtime_ns))
    fs, path = filesystem(url)
    info = _retried(url, lambda: fs.info(path))
    tag = next((info[k] for k in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created") if info.get(k)), "")
    return Identity(int(info["size"]), str(tag).strip('"'))


def exists(url: str) -> bool:
    """Whether there is such an object."""
    try:
        identity(url)
    except NotFoundError:
        return False
    return True


def read_bytes(url: str) -> bytes:
    """The whole object."""
    if is_local(url):
        with _translated(url):
            return Path(url).read_bytes()
    fs, path = filesystem(url)
    return bytes(_retried(url, lambda: fs.cat_file(path)))


def list_files(url: str, suffix: str) -> list[str]:
    """Every object below a folder that ends in `suffix`, sorted; names that start with a dot are not results."""
    if is_local(url):
        found = [os.path.join(folder, name) for folder, _, names in os.walk(url) for name in names]
    else:
        fs, path = filesystem(url)
        found = [fs.unstrip_protocol(p) for p in _retried(url, lambda: fs.find(path))]
    return sorted(f for f in found if f.endswith(suffix) and not os.path.basename(f).startswith("."))


class Reader:
    """A file held open for reads at offsets. `pread`, not a map: a mapped file that is cut kills the process."""

    def __init__(self, path: str, url: str) -> None:
        self.url, self._fd = url, -1
        with _translated(url):
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            self.size = os.fstat(self._fd).st_size

    def pread(self, n: int, offset: int) -> bytes:
        """Up to `n` bytes from `offset`; fewer only at the end of the file."""
        n = max(min(n, self.size - offset), 0)  # what a table claims must not be allocated before it is found missing
        data = os.pread(self._fd, n, offset)
        while len(data) < n and (more := os.pread(self._fd, n - len(data), offset + len(data))):
            data += more
        return data

    def unchanged(self) -> bool:
        """Whether the open file still has the size it had when it was opened."""
        return os.fstat(self._fd).st_size == self.size

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    __del__ = close


class RangeReader(Reader):
    """An object too large for the spool, read by ranges."""

    def __init__(self, url: str, size: int) -> None:
        self.url, self.size, self._fd = url, size, -1
        self._fs, self._path = filesystem(url)

    def pread(self, n: int, offset: int) -> bytes:
        end = min(offset + n, self.size)
        if end <= offset:
            return b""
        return bytes(_retried(self.url, lambda: self._fs.cat_file(self._path, start=offset, end=end)))

    def unchanged(self) -> bool:
        return identity(self.url).size == self.size


def open_reader(url: str, spool_bytes: int = SPOOL_BYTES) -> Reader:
    """Open a shard for reads at offsets.

    A remote object comes in one GET into the spool (a folder of bounded size that the processes of a machine share);
    one larger than a quarter of `spool_bytes` is read by ranges instead.
    """
    if is_local(url):
        return Reader(url, url)
    version = identity(url)
    if version.size * 4 > spool_bytes:
        return RangeReader(url, version.size)
    return Reader(_spooled(url, version, spool_bytes), url)


def sha256_of(reader: Reader) -> str:
    """The hash of the whole object; "" for one that is read by ranges: that would be a second download."""
    if isinstance(reader, RangeReader):
        return ""
    digest, at = hashlib.sha256(), 0
    while data := reader.pread(4 << 20, at):
        digest.update(data)
        at += len(data)
    return digest.hexdigest()


def digest_of(url: str) -> tuple[int, str]:
    """Size and sha256 of an object; a local file goes by in pieces, so its size in memory is that of one."""
    if not is_local(url):
        data = read_bytes(url)
        return len(data), hashlib.sha256(data).hexdigest()
    digest, size, piece = hashlib.sha256(), 0, bytearray(_PIECE)
    with _translated(url), open(url, "rb", buffering=0) as file:
        while n := file.readinto(piece):
            digest.update(memoryview(piece)[:n])
            size += n
    return size, digest.hexdigest()


def _spooled(url: str, version: Identity, spool_bytes: int) -> str:
    folder = Path(os.environ.get("RHOSTREAM_SPOOL") or Path(tempfile.gettempdir()) / f"rhostream-spool-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The name is a hash of the whole URL and version: shards of two buckets may share a basename.
    name = hashlib.sha256(f"{url}\0{version.size}\0{version.tag}".encode()).hexdigest()
    path = folder / name
    if path.exists():
        with contextlib.suppress(OSError):
            os.utime(path)
        return str(path)
    data = read_bytes(url)
    if len(data) != version.size:
        raise StorageError(f"{redact(url)}: got {len(data):,} bytes, expected {version.size:,}; try again")
    plain_md5 = len(version.tag) == 32 and _is_hex(version.tag)  # a multipart ETag holds a dash
    if plain_md5 and hashlib.md5(data, usedforsecurity=False).hexdigest() != version.tag:
        raise StorageError(f"{redact(url)}: the checksum of the bytes is not the store's ETag; try again")
    _evict(folder, spool_bytes - len(data))
    temporary = folder / f".{uuid.uuid4().hex}"
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return str(path)


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdef" for c in text)


def _evict(folder: Path, keep_bytes: int) -> None:
    """Unlink the longest unused files beyond `keep_bytes`; whoever holds one open keeps reading it."""
    files = []
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= keep_bytes:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        total -= size


# -- writing ---------------------------------------------------------------------------------------------------------


def create(url: str, data: bytes) -> None:
    """Make `data` visible under a new name in one act, durable on return.

    Disk: a temporary file in the same folder, fsync, `link` (which fails when the name exists), unlink, fsync of the
    folder. Store: one conditional PUT of finished bytes. Raises AlreadyExistsError, NotWritableError.
    """
    if is_local(url):
        return _commit_local(url, data, os.link)
    fs, path = filesystem(url)
    try:
        _retried(url, lambda: fs.pipe_file(path, data, mode="create"))
    except FileExistsError as exc:
        raise AlreadyExistsError(f"{redact(url)} exists already") from exc
    except StorageError as exc:
        if isinstance(exc.__cause__, FileExistsError):
            raise AlreadyExistsError(f"{redact(url)} exists already") from exc
        raise


def replace(url: str, data: bytes) -> None:
    """Like `create`, but over whatever has the name: only for `verify --repair` and summaries that can be redone."""
    if is_local(url):
        return _commit_local(url, data, os.replace)
    fs, path = filesystem(url)
    _retried(url, lambda: fs.pipe_file(path, data))


def _commit_local(path: str, data: bytes, publish: Callable[[str, str], None]) -> None:
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
        folder_fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(folder_fd)
        finally:
            os.close(folder_fd)
    except FileExistsError as exc:
        raise AlreadyExistsError(f"{path} exists already") from exc
    except OSError as exc:
        hint = "; free some space" if exc.errno == errno.ENOSPC else ""
        raise NotWritableError(f"can't write {path}: {os.strerror(exc.errno or 0)}{hint}") from exc
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def delete(url: str) -> None:
    """Remove one object; none of that name is all right."""
    if is_local(url):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(url)
        return
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError, NotFoundError):
        _retried(url, lambda: fs.rm_file(path))


def probe_writable(url: str) -> None:
    """Prove before any work that results can be committed below `url`, and that a second commit is refused.

    Raises NotWritableError with the reason, or when the store overwrites what a conditional PUT must not.
    """
    probe = join(url, f".probe-{uuid.uuid4().hex}")
    try:
        create(probe, b"rhostream")
        try:
            create(probe, b"rhostream")
        except AlreadyExistsError:
            return
        raise NotWritableError(f"{redact(url)} ignores create-only writes: two jobs could overwrite each other")
    except (StorageError, OSError) as exc:
        raise NotWritableError(f"can't write below {redact(url)}: {exc}") from exc
    finally:
        delete(probe)
