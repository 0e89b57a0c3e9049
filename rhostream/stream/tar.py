"""The strict tar walk: every sample of a shard with its offsets, or an error; never a silently shorter list.

Common readers (tarfile, webdataset and those built on them) take a cut tar, a corrupt header or a zeroed hole for the
end of the archive. Three rules catch all of these: every header's checksum matches, two zero blocks end the archive,
and only zeros follow. The plain header, the plain name and the pax header that webdataset's own writer makes are read
in one loop; whatever differs in one bit goes to the functions of `headers`, which decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from zlib import adler32

from rhostream.errors import ShardError
from rhostream.samples.registry import IMAGES, USED_EXTENSIONS
from rhostream.storage import Reader, redact
from rhostream.stream.batch import MAX_CLS, Batch, TarSample, samples_of
from rhostream.stream.headers import (
    CHECKSUMS,
    MAX_EXTENDED,
    bad_header,
    checksum_matches,
    compressed_error,
    dots_error,
    kinds_of,
    link_of,
    pax_records,
    pax_size,
    plain_name,
    remember_checksum,
    remember_kind,
    size_of,
    swallowed,
    too_long,
)
from rhostream.stream.windows import Windows

BLOCK = 512
_ZERO = bytes(BLOCK)
_REGULAR = frozenset(b"0\x007")
_LINKS, _LINKS_AND_DEVICES = frozenset(b"12"), frozenset(b"123456")


class TarWalk:
    """Walks an open shard once, by `batches` or sample by sample; the counters are final when the iteration has ended.

    Raises ShardError (while iterating) for anything that is not a complete, plain tar; `shard` is its name in errors.

    `members_seen = members_used + members_ignored` (directories, links, devices, names without a key or an
    extension, extensions that are not used). A key that comes again, adjacent or not, is a sample of its own: the
    caller decides what a duplicate is. Of those ignored, `pickles` have an extension that other readers unpickle, and
    `links` are names of other members' (or files') data. `several` samples have more than one main member.

    A shard in which samples would be members of another one, for the dots in their names, is an error (see
    `headers.swallowed`): none of them goes without a row unsaid.

    With `accept_missing_eof` an archive may end without its end marker, right behind a whole member, and
    `missing_eof` says so: nothing tells it from one that was cut there.

    `members`: the extensions of each member of a sample; the first ones are those of the main member.
    `label`: the extension of the member whose bytes, at most `label_bytes`, are each row's `cls`; "" for none.
    """

    def __init__(
        self,
        reader: Reader,
        shard: str,
        *,
        accept_missing_eof: bool = False,
        label: str = "cls",
        label_bytes: int = MAX_CLS,
        members: Sequence[Sequence[str]] = (IMAGES.main,),
    ) -> None:
        self._main = tuple(members[0])
        self._used = USED_EXTENSIONS.union(*members)
        self._source = reader if isinstance(reader, Windows) else Windows(reader)
        self._shard, self._accept = shard, accept_missing_eof
        self._label, self._label_bytes = label, label_bytes
        self.members_seen = self.members_ignored = self.samples_seen = self.pickles = 0
        self.links = self.several = self.rest = 0  # a tar has no rest; see `FlatWalk`
        self._swallowed = 0
        self._first_swallowed: tuple[bytes, str] | None = None
        self.missing_eof = False
        self._torn = Batch()

    def __iter__(self) -> Iterator[TarSample]:
        try:
            for batch in self.batches(64):
                yield from samples_of(batch)
        except Exception:
            self._torn.pop()
            yield from samples_of(self._torn)
            raise

    def batches(self, rows: int) -> Iterator[Batch]:
        """The samples, `rows` at a time. Raises ShardError; the rows of a batch that was not full are lost then."""
        # One loop without a call of our own for a plain member: at 200,000 headers a second a call is a tenth of it.
        at_window, size_of_file = self._source.at, self._source.size
        window, start, end, position = b"", 0, 0, 0  # of the window: bytes, offset of its first and last whole block
        checksums, kinds = CHECKSUMS, kinds_of(self._label, self._main, self._used)
        label_bytes = self._label_bytes
        long_name: bytes | None = None
        long_size: int | None = None
        current: bytes | None = None  # the key of the open row
        own = set[str]()  # its extensions
        dotted = False  # whether one of them would end at another dot
        several = -1  # the row that was last found to have several main members
        linked: list[tuple[bytes, str]] = []  # key and extension of links before the first member of their row
        self._torn = batch = Batch()
        add_extension, add_offset, add_size = batch.extension.append, batch.offset.append, batch.size.append
        while True:
            if position >= end:
                window, start = at_window(position)
                end = start + len(window) // BLOCK * BLOCK
                if position >= end:
                    if self._accept and position >= size_of_file > 0 and long_name is None and long_size is None:
                        break
                    raise self._incomplete(position + 2 * BLOCK, size_of_file, window if not position else b"")
            at = position - start
            header = window[at : at + BLOCK]
            if adler32(header) & 0xFFFF != checksums.get(header[148:156]):
                if header == _ZERO:
                    break
                if not checksum_matches(header):
                    raise bad_header(self._shard, position, header)
                remember_checksum(header)
            digits = header[124:135]
            try:
                plain = digits.isdigit() and header[135] in b"\0 "
                size = int(digits, 8) if plain else size_of(header[124:136], self._shard, position)
            except ValueError:
                size = size_of(header[124:136], self._shard, position)
            kind, data = header[156], position + BLOCK
            if data + size > size_of_file:
                raise self._incomplete(data + (size + 511 & -BLOCK) + 2 * BLOCK, size_of_file)
            position = data + (size + 511 & -BLOCK)
            if kind not in _REGULAR:
                if kind in b"xgL":
                    body = window[at + BLOCK : at + BLOCK + size] if data + size <= end else self._extended(data, size)
                    # `NN mtime=...` and nothing else, whole: what webdataset's writer puts before every member.
                    if (
                        kind == 120
                        and body[2:9] == b" mtime="
                        and body[:2] == b"%d" % size
                        and body.find(10) == size - 1
                    ):
                        continue
                    if size > MAX_EXTENDED:
                        raise too_long(self._shard, data, size)
                    if kind == ord("L"):
                        long_name = body.rstrip(b"\0")
                        continue
                    records = pax_records(body, self._shard, data)
                    if kind == ord("x"):
                        long_name = records.get(b"path", long_name)
                        long_size = pax_size(records, long_size, self._shard, data)
                elif kind in _LINKS_AND_DEVICES:
                    if kind in _LINKS:
                        self.links += 1
                        link = link_of(long_name or plain_name(header))
                        if link[0] == current:
                            batch.ignore(len(batch.key) - 1, link[1])
                        else:
                            linked = [*linked[-3:], link]
                    long_name = long_size = None
                    self.members_seen += 1
                    self.members_ignored += 1
                elif kind != ord("K"):
                    raise ShardError(
                        f"shard {redact(self._shard)}: member type {chr(kind)!r} at offset "
                        f"{data - BLOCK:,} is not supported (sparse or vendor extension); write it again "
                        "as a plain tar"
                    )
                continue
            name = long_name
            if not name:
                if header[345]:
                    name = plain_name(header)
                else:
                    stop = header.find(0, 0, 100)
                    name = header[:stop] if stop >= 0 else header[:100]
            if long_size is not None and long_size != size:
                # A pax size overrides the header's, which holds 0 or a truncated number then.
                if data + long_size > size_of_file:
                    raise self._incomplete(data + (long_size + 511 & -BLOCK) + 2 * BLOCK, size_of_file)
                size, position = long_size, data + (long_size + 511 & -BLOCK)
            long_name = long_size = None
            self.members_seen += 1
            # webdataset's naming rule: the key ends at the first dot of the basename, the rest is the extension.
            base = name.rfind(47) + 1
            dot = name.find(46, base)
            raw = name[dot + 1 :]
            if dot <= base or not raw or (name[0] == 95 and name[:2] == b"__" == name[-2:]):
                self.members_ignored += 1
                continue
            key = name[:dot]
            try:
                extension, role = kinds[raw]
            except KeyError:
                extension, role = remember_kind(raw, kinds, self._label, self._main, self._used)
            if key != current or extension in own:
                if current is not None:
                    self.samples_seen += 1
                    if dotted:
                        self._swallow(current, own)
                        dotted = False
                    if len(batch.key) == rows:
                        yield batch
                        self._torn = batch = Batch()
                        add_extension, add_offset = batch.extension.append, batch.offset.append
                        add_size = batch.size.append
                batch.key.append(key)
                batch.first.append(len(batch.size))
                batch.main.append(-1)
                batch.json.append(-1)
                batch.cls.append(None)
                current, own = key, {extension}
                if linked:
                    for link in linked:
                        if link[0] == key:
                            batch.ignore(len(batch.key) - 1, link[1])
                    linked = []
            else:
                own.add(extension)
            if role <= 0:
                self.members_ignored += 1
                self.pickles += role == -1
                dotted = dotted or role == -2
                batch.ignore(len(batch.key) - 1, extension)
                continue
            if role == 1:
                if batch.main[-1] < 0:
                    batch.main[-1] = len(batch.size)
                elif several != self.samples_seen:
                    several = self.samples_seen
                    self.several += 1
            elif role == 2:
                if size <= label_bytes:
                    batch.cls[-1] = (
                        window[data - start : data - start + size]
                        if data + size <= end
                        else self._source.pread(size, data)
                    )
            elif role == 3:
                batch.json[-1] = len(batch.size)
            add_extension(extension)
            add_offset(data)
            add_size(size)
        self._require_end(position)
        if current is not None:
            self.samples_seen += 1
            if dotted:
                self._swallow(current, own)
            if self._first_swallowed is not None:
                raise dots_error(self._shard, self._swallowed, *self._first_swallowed)
            yield batch

    def _swallow(self, key: bytes, extensions: set[str]) -> None:
        """Count the samples that lie in a row of another one."""
        self._swallowed += (samples := swallowed(extensions))
        if samples and self._first_swallowed is None:
            dotted = [e for e in extensions if "." in e]
            self._first_swallowed = key, min([e for e in dotted if not e.endswith((".cls", ".json"))] or dotted)

    def _extended(self, offset: int, size: int) -> bytes:
        if size > MAX_EXTENDED:
            raise too_long(self._shard, offset, size)
        return self._source.pread(size, offset)

    def _require_end(self, position: int) -> None:
        size = self._source.size
        if position + 2 * BLOCK > size:
            if not self._accept:
                raise self._incomplete(position + 2 * BLOCK, size)
            self.missing_eof = True
        while position < size:
            window, start = self._source.at(position)
            rest = window[position - start :]
            if not rest:
                raise ShardError(f"shard {redact(self._shard)} shrank while it was read")
            if rest.count(0) != len(rest):
                raise ShardError(
                    f"shard {redact(self._shard)}: {self.members_seen} members, then zeros at offset "
                    f"{position:,} and more data behind them: a hole, or tars joined end to end; write "
                    "it again"
                )
            position += len(rest)

    def _incomplete(self, wanted: int, size: int, first: bytes = b"") -> ShardError:
        """`wanted`: the bytes that a whole archive has that goes on as this one begins; `first`: those of the file."""
        if size == 0:
            return ShardError(f"shard {redact(self._shard)} is empty (0 bytes): not a tar")
        if (compressed := compressed_error(self._shard, first)) is not None:
            return compressed
        samples = self.samples_seen + (1 if self.members_seen > self.members_ignored else 0)
        return ShardError(
            f"shard {redact(self._shard)} incomplete: {samples} samples, end marker missing "
            f"({size:,} of at least {wanted:,} bytes); copy it again"
        )
