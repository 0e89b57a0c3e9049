"""A look at a few samples of D before any work: what they are, how large, whether in colour; never one sample alone.

    some shards by chance > some of their first samples > headers of images > a kind, a size, channels, a geometry

The choice is a function of the shards' names and their bytes: the same D, the same choice, in whatever order it is
listed and wherever it lies. Stores are asked for a few ranges, and for whole shards only by a job that reads all of
them anyway.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from rhostream import storage
from rhostream.errors import AccessError, BudgetError, RhostreamError, UsageError
from rhostream.randomness import generator
from rhostream.samples.decoders import Sides
from rhostream.samples.kind import OK, Kind
from rhostream.samples.registry import BUILT_IN, IMAGES, takes
from rhostream.samples.statuses import NEIGHBOURS
from rhostream.storage import RangeReader, Reader
from rhostream.stream.batch import TarSample
from rhostream.stream.inflate import GZIP, plain
from rhostream.stream.tar import TarWalk
from rhostream.stream.windows import Windows

LOG = logging.getLogger("rhostream")
SAMPLES, SHARDS = 64, 8  # looked at, at most
ROWS, BYTES = 256, 2 << 20  # the beginning of a shard of which its samples are drawn
LEAST = SAMPLES // SHARDS  # of a shard, however large they are


@dataclass(frozen=True)
class Look:
    """What was seen."""

    looked: int = 0  # samples
    shards: int = 0  # that they are of
    kinds: Counter[str] = field(default_factory=Counter)  # samples by the name of their kind
    sizes: tuple[Sides, ...] = ()  # of each image that can be read
    several: int = 0  # samples with more than one image
    images: tuple[str, ...] = ()  # the extensions of those images
    unusable: tuple[str, ...] = ()  # the first members of samples that are of no kind
    error: RhostreamError | None = None  # of the first shard that could not be read

    @property
    def content(self) -> str | None:
        """What most samples are; of two as frequent ones the one that was seen first. None: none is usable."""
        return self.kinds.most_common(1)[0][0] if self.kinds else None

    @property
    def member(self) -> str:
        """Which image of a sample is meant where there are several: the fixed order; "" where there are none."""
        return ",".join(IMAGES.main) if self.several else ""

    def say_mixed(self, content: str, member: str | None = None) -> None:
        """Warn where samples taken as `content` differ in kind, or have several images and no `member` was named."""
        if len(self.kinds) > 1:
            counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
            LOG.warning(
                "samples differ in kind (%d looked at: %s); taken as %s, the others can't be used (index: "
                "--content says otherwise)",
                self.looked,
                counts,
                content,
            )
        if takes(content, "member") and self.several and not member:
            LOG.warning(
                "%d of %d samples looked at have several images (%s): the first of %s that is there is taken; "
                "say which is meant with --image-member",
                self.several,
                self.looked,
                ", ".join(f".{extension}" for extension in self.images),
                ", ".join(IMAGES.main),
            )

    def require_of(self, kind: Kind) -> None:
        """Raise the error of a shard, or UsageError where no sample is of the kind that was asked for."""
        if self.kinds:
            return
        if self.error is not None and not self.looked:
            raise self.error
        members = " and ".join(f"one of {', '.join(extensions)}" for extensions in kind.members.values())
        raise UsageError(
            f"--content {kind.name}: of {self.looked} samples looked at none has {members} that can be used (their "
            f"members: {'; '.join(self.unusable) or 'none'}){kind.otherwise}"
        )

    def require_usable(self) -> str:
        """What the samples are. Raises the error of a shard, or BudgetError where nothing can be used."""
        if (content := self.content) is None:
            if self.error is not None and not self.looked:
                raise self.error
            why = f", whose members are {'; '.join(self.unusable)}" if self.unusable else ""
            labels_alone = bool(self.unusable) and all({*one.split(", ")} <= {"cls", "json"} for one in self.unusable)
            raise BudgetError(
                f"no sample can be used: no readable image, no text and no array of ids among "
                f"{self.looked} samples of {self.shards} shards{why}; "
                + (
                    f"where their images lie apart: {NEIGHBOURS}"
                    if labels_alone
                    else "`rhostream index` says why of each"
                )
            )
        return content


def look(
    shards: Iterable[tuple[str, str]],
    *,
    kind: Kind | None = None,
    decode: bool = True,
    once: bool = False,
    allow_compressed: bool = False,
    accept_missing_eof: bool = False,
) -> Look:
    """Look at up to 64 samples of up to 8 of the shards ((URL, name) pairs), drawn by their names.

    With `kind` only samples of it are looked for. A sample with an image is an image, whatever its caption; of one
    without, the text counts, then the array. Without `decode` an image isn't looked into; `once`: a store is asked
    once, for whole shards that are about to be read.
    A shard that can't be read is passed over, another one is looked at instead. Raises AccessError of a store.
    """
    named = sorted(shards, key=lambda shard: shard[1])
    rng = generator("look", len(named))
    order = [named[i] for i in rng.permutation(len(named)).tolist()[: 4 * SHARDS]]
    each = -(-SAMPLES // max(1, min(len(named), SHARDS)))
    state, opened = _State(kind, decode), 0
    error: RhostreamError | None = None
    lenient = {"allow_compressed": allow_compressed, "accept_missing_eof": accept_missing_eof}
    for url, name in order:
        if opened == SHARDS:
            break
        try:
            opened += state.add_shard(url, name, each, once, **lenient)
        except AccessError as exc:
            if not storage.is_local(url):
                raise
            error = error or exc
        except (RhostreamError, OSError) as exc:
            error = error or (exc if isinstance(exc, RhostreamError) else None)
    return Look(
        state.looked,
        opened,
        state.kinds,
        tuple(state.sizes),
        state.several,
        tuple(e for e in IMAGES.main if e in state.images),
        tuple(state.unusable),
        error,
    )


class _State:
    """What was seen so far."""

    def __init__(self, kind: Kind | None, decode: bool) -> None:
        self._wanted = [kind] if kind else [known() for known in BUILT_IN.values() if known.guessed]
        self._decode = decode
        self.looked = self.several = 0
        self.kinds, self.sizes = Counter[str](), list[Sides]()
        self.images, self.unusable = set[str](), list[str]()

    def add_shard(
        self, url: str, name: str, wanted: int, once: bool, *, allow_compressed: bool, accept_missing_eof: bool
    ) -> bool:
        """Up to `wanted` samples of the shard's beginning, by chance. Returns whether there was one."""
        try:
            # By ranges, where it lies in a store; a job that reads every shard anyway finds it in the spool again.
            shard, start = _begun(storage.open_once(url) if once else storage.open_reader(url, 0))
        except UsageError:
            if once or storage.is_local(url):
                raise
            shard, start = _begun(storage.open_reader(url))  # a server that doesn't know ranges
        with shard, plain(shard, name) if allow_compressed and start == GZIP else shard as reader:
            near = Windows(_Part(reader) if isinstance(reader, RangeReader) else reader)
            rows = list(_beginning(near, name, wanted, accept_missing_eof))  # offsets, no images
            drawn = generator("look", name).permutation(len(rows))[:wanted].tolist()
            for row in sorted(drawn):
                self.add(rows[row], near)
        return bool(rows)

    def add(self, sample: TarSample, reader: Reader) -> None:
        """One more sample."""
        self.looked += 1
        images = {extension for extension, _, _ in sample.members if extension in IMAGES.main}
        if len(images) > 1:
            self.several += 1
            self.images |= images
        for kind in self._wanted:
            held = _held(sample, kind)
            if (main := next(iter(kind.members))) not in held:
                continue
            # A sample with an image is an image, and one that can't be used says nothing of the others.
            usable = kind.examine({name: size for name, (_, size) in held.items()}) == OK
            if usable and self._decode:
                offset, size = held.pop(main)
                usable, sides = kind.probe(partial(reader.pread, offset=offset), size)
                usable = usable and all(kind.meant(name, reader.pread(n, at)) for name, (at, n) in held.items())
                self.sizes += [sides] if sides else []
            if usable:
                self.kinds[kind.name] += 1
                return
            break
        if len(self.unusable) < 3:
            self.unusable.append(", ".join(e for e, _, _ in sample.members[:4]) or "none that is used")


def _held(sample: TarSample, kind: Kind) -> dict[str, tuple[int, int]]:
    """(offset, size) of each of the kind's members that the sample has."""
    held = dict[str, tuple[int, int]]()
    for name, extensions in kind.members.items():
        first = next(((offset, size) for extension, offset, size in sample.members if extension in extensions), None)
        if first is not None:
            held[name] = first
    return held


class _Part(Reader):
    """A range reader that is asked for little at a time: a walk's windows of it are small ones."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self.url, self.size, self.version, self._fd = reader, reader.url, reader.size, reader.version, -1

    def pread(self, n: int, offset: int) -> bytes:
        """Up to `n` bytes from `offset`."""
        return self._reader.pread(n, offset)

    def unchanged(self) -> bool:
        """As the reader below."""
        return self._reader.unchanged()


def _beginning(reader: Reader, name: str, wanted: int, accept_missing_eof: bool) -> Iterator[TarSample]:
    """The first samples of a shard: 256, or those of its first 2 MiB where these are `wanted`; of large samples fewer,
    so that a look at 8 shards or at one has walked 16 MiB at most where 8 samples of each are within.
    """
    for row, sample in enumerate(TarWalk(reader, name, accept_missing_eof=accept_missing_eof)):
        yield sample
        end = max((offset + size for _, offset, size in sample.members), default=0)
        seen = row + 1
        if seen >= ROWS or (end >= BYTES and seen >= wanted) or (end >= BYTES * wanted // LEAST and seen >= LEAST):
            return


def _begun(shard: Reader) -> tuple[Reader, bytes]:
    """The shard and its first two bytes; closed where they can't be had."""
    try:
        return shard, shard.pread(2, 0)
    except BaseException:
        shard.close()
        raise
