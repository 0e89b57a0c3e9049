"""The one door to bytes: names, whole and ranged reads, and commits that appear whole or not at all.

    names > settings > store (s3, gcs, web, memory) > retry > spool, reading, ahead > commits, expand

A URL is a local path or `scheme://...` with a scheme of `SCHEMES`. `pipe:` (a shell) and chained `::` URLs (two
meanings in this ecosystem) are refused. Remote stores go through the clients of fsspec's family; local files through
plain system calls, because a commit on disk needs `link` and `fsync`, which fsspec doesn't offer.
"""

from rhostream.storage.ahead import ReadAhead, spooled
from rhostream.storage.clients import EXTRA_OF
from rhostream.storage.commits import create, delete, new_folder, probe_writable, replace, writing
from rhostream.storage.expand import expand
from rhostream.storage.faults import add_retried, retried, retried_since, take_retried
from rhostream.storage.folders import list_entries, list_files
from rhostream.storage.names import SCHEMES, is_local, join, listed, redact, resolve, text_of
from rhostream.storage.ranged import RangedFile
from rhostream.storage.reading import (
    RangeReader,
    Reader,
    SpooledReader,
    digest_of,
    exists,
    identity,
    modified,
    open_once,
    open_reader,
    read_bytes,
    read_tail,
    sha256_of,
)
from rhostream.storage.settings import SPOOL_BYTES, Carried, Retry, configure, configure_retry, configure_spool
from rhostream.storage.spool import PROOFS
from rhostream.storage.spool import folder as spool_folder
from rhostream.storage.store import Identity

__all__ = [
    "EXTRA_OF",
    "PROOFS",
    "SCHEMES",
    "SPOOL_BYTES",
    "Carried",
    "Identity",
    "RangeReader",
    "RangedFile",
    "ReadAhead",
    "Reader",
    "Retry",
    "SpooledReader",
    "add_retried",
    "configure",
    "configure_retry",
    "configure_spool",
    "create",
    "delete",
    "digest_of",
    "exists",
    "expand",
    "identity",
    "is_local",
    "join",
    "list_entries",
    "list_files",
    "listed",
    "modified",
    "new_folder",
    "open_once",
    "open_reader",
    "probe_writable",
    "read_bytes",
    "read_tail",
    "redact",
    "replace",
    "resolve",
    "retried",
    "retried_since",
    "sha256_of",
    "spool_folder",
    "spooled",
    "take_retried",
    "text_of",
    "writing",
]
