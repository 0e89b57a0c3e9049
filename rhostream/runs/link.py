"""One commit of a run, a link of its chain: the value that readers use, its JSON, and where it lies.

    <run>/commits/attempt=K/BBBBBBBB/NNNNNNNNNN.json       create-only; N counts along the chain, B = N // 256
    <run>/commits/attempt=K/BBBBBBBB/NNNNNNNNNN.confirmed  beside one whose state was handed out: somebody has saved it

A link names the segments that are new since the one before it, or, when it is *whole*, all of its branch. It holds
the digest of the link before, so one digest proves all the chain behind it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from rhostream import storage
from rhostream.errors import NotFoundError, TableError
from rhostream.foreign import read_object
from rhostream.runs.claims import checked_link, checked_place

VERSION = 2
BLOCK = 256  # links in a folder: part of the format
OLD = -1  # the number of a checkpoint.json of before there were chains
KINDS = ("log", "steps", "shadow")
NAME = re.compile(r"commits/attempt=(\d+)/\d{8}/(\d{10})\.json\Z")
_NOT_WRITTEN = ("digest", "unconfirmed")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Names one commit for good: where it lies, and the sha256 of its bytes."""

    attempt: int
    number: int  # OLD for a checkpoint.json
    step: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Link:
    """What a commit says: position, segments, cost so far, and the sha256 of the tensors' files, none where another
    trainer keeps the state."""

    step: int
    pass_index: int
    buffer: int  # buffers of this pass that were consumed
    attempt: int
    complete: bool
    number: int = 0
    first: int = 0  # the number of this attempt's first link
    previous: Place | None = None
    whole: bool = True  # log, steps and shadow are those of the whole branch, else the new ones alone
    log: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    shadow: list[dict[str, Any]] = field(default_factory=list)
    merged: list[dict[str, Any]] = field(default_factory=list)  # of a whole one: path of a segment, and `of`: its parts
    cost: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # rows of the log by reason
    selector: dict[str, Any] = field(default_factory=dict)  # what choices hang on beside the weights
    changes: list[dict[str, Any]] = field(default_factory=list)  # on purpose: field, old, new, step, attempt
    files: dict[str, str] = field(default_factory=dict)  # path -> sha256
    handed_out: bool = False  # made for a state that another trainer saves
    held: bool = False  # a state was handed out here or before: only `prune` may remove what older links name
    version: int = VERSION
    digest: str = ""  # sha256 of its bytes; known once it is written or read
    unconfirmed: bool = False  # the state in force, handed out, and nobody has said that it was saved

    @property
    def place(self) -> Place:
        """The name under which the next link, and an attempt's note, know this one."""
        return Place(attempt=self.attempt, number=self.number, step=self.step, sha256=self.digest)

    @property
    def doubt(self) -> str:
        """One sentence where nobody has said yet that this state was saved, else ""."""
        return (
            f"step {self.step:,} was handed out to another trainer, which hasn't confirmed yet that it saved it"
            if self.unconfirmed
            else ""
        )

    def encode(self) -> bytes:
        """The bytes of its file."""
        record = {name: value for name, value in self.plain().items() if name not in _NOT_WRITTEN}
        return json.dumps(record, sort_keys=True).encode()

    def plain(self) -> dict[str, Any]:
        """JSON values for another rank (`told_link`), the digest with them."""
        before = None if self.previous is None else asdict(self.previous)
        return {**{one.name: getattr(self, one.name) for one in fields(self)}, "previous": before}


def of_plain(record: Mapping[str, Any]) -> Link:
    """A link of JSON values; fields that a later version may add are left out. Raises ValueError, TypeError."""
    known = {one.name for one in fields(Link)}
    given = {name: value for name, value in record.items() if name in known}
    previous = given.get("previous")
    if previous is not None:
        given["previous"] = place_of(previous)
    return checked_link(Link(**given))


def told_link(record: Mapping[str, Any]) -> Link:
    """A link that another rank has read or made, of its `plain` values; it shares nothing with them."""
    own = copy.deepcopy(dict(record))
    before = own["previous"]
    return Link(**{**own, "previous": None if before is None else Place(**before)})


def place_of(record: Any) -> Place:
    """A place of its JSON. Raises ValueError, TypeError."""
    if not isinstance(record, Mapping):
        raise ValueError(f"a place is a {type(record).__name__}, expected an object")
    given: dict[str, Any] = {name: record.get(name) for name in ("attempt", "number", "step", "sha256")}
    return checked_place(Place(**given))


def url_of(run: str, attempt: int, number: int) -> str:
    """Where a link lies."""
    return storage.join(run, f"commits/attempt={attempt}/{number // BLOCK:08d}/{number:010d}.json")


def mark_of(run: str, link: Link) -> str:
    """Where the mark lies that says that a state which was handed out was saved."""
    return url_of(run, link.attempt, link.number).removesuffix(".json") + ".confirmed"


def read_link(run: str, attempt: int, number: int, sha256: str = "") -> Link:
    """One link, its digest compared where one is given. Raises NotFoundError, TableError."""
    url = url_of(run, attempt, number)
    data = storage.read_bytes(url)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 and digest != sha256:
        raise TableError(
            f"{storage.redact(url)} isn't the link that was committed (sha256 {digest[:12]}, expected "
            f"{sha256[:12]}): it was damaged or replaced"
        )
    try:
        record = read_object(data)
        if int(record["version"]) > VERSION:
            raise TableError(f"{storage.redact(url)} was written by a newer rhostream; upgrade rhostream")
        link = of_plain({**{name: value for name, value in record.items() if name not in _NOT_WRITTEN}})
        if (link.attempt, link.number) != (attempt, number):
            raise ValueError(f"it says that it is link {link.number} of attempt {link.attempt}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise TableError(f"{storage.redact(url)} can't be understood: {exc}") from exc
    return replace(link, digest=digest)


def read_named(run: str, place: Place) -> Link:
    """The link of a place that another link or a note names. Raises TableError, for one that is gone too."""
    try:
        return read_link(run, place.attempt, place.number, place.sha256)
    except NotFoundError as exc:
        raise TableError(
            f"{storage.redact(url_of(run, place.attempt, place.number))} is named by a later commit but is gone"
        ) from exc
