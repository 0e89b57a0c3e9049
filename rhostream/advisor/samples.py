"""A few samples of the user's shards, as bytes with labels, and what it cost to find and read them.

    storage.open_reader > scan (the walk of `index`) > pread of the image members

The walk has touched the bytes before they are read, so the page cache holds them: the read is a warm one. Whether the
walk itself met a cold disk can't be known from here, and can't be chosen without rights over the machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rhostream import storage
from rhostream.errors import RhostreamError, UsageError
from rhostream.samples import registry
from rhostream.samples.decoders import Sides
from rhostream.samples.kind import Kind
from rhostream.samples.wanted import Wanted
from rhostream.stream.label_from import LabelFrom
from rhostream.stream.look import look
from rhostream.stream.scan import Chunk, ScanSettings, scan
from rhostream.tables import il as il_table

SHARDS = 4  # looked into
ASKED = 64  # whose sizes are asked for, when the samples of all are guessed


@dataclass(frozen=True)
class Samples:
    """Images (or texts) as stored, and seconds a sample."""

    image: list[bytes]
    label: list[int]
    read: float  # the download's share included for a store
    walk: float
    total: int  # samples in all shards
    counted: bool  # by a table; else guessed from sizes
    sizes: list[Sides]  # of images that can be read
    content: str = registry.IMAGES.name
    failed: dict[str, str] = field(default_factory=dict)  # shards that couldn't be walked
    urls: list[str] = field(default_factory=list)  # shards that were


def require_built_in(table: il_table.Table) -> None:
    """Raise UsageError for samples of somebody's own kind, or of several members, which no estimate is of."""
    measured = [name for name in registry.BUILT_IN if len(registry.undecided(name).members) == 1]
    if table.info.content not in measured:
        raise UsageError(
            f"{storage.redact(table.url)} holds samples of {table.info.content}, and only built-in kinds of one member "
            f"are measured: {', '.join(measured)}"
        )


def some(items: list[Any], n: int) -> list[Any]:
    """At most n of the items, evenly spread, the first one among them."""
    return items if len(items) <= n else [items[i * len(items) // n] for i in range(n)]


def draw(
    shards: Iterable[str],
    wanted: int,
    table: il_table.Table | None = None,
    seconds: float = 5.0,
    content: str | None = None,
    unlabelled: bool = False,
) -> Samples:
    """At most `wanted` usable samples of at most 4 shards, fewer where `seconds` are over. UsageError: there is none.

    What they are is the table's word, or the caller's, else what most of those looked at are.
    """
    urls = storage.expand(shards)
    image, label, failed, looked = list[bytes](), list[int](), dict[str, str](), list[str]()
    walked, walking, reading, fetching, per_byte = 0, 0.0, 0.0, 0.0, 0.0
    chosen = some(urls, SHARDS)
    content = table.info.content if table else content or _content_of(chosen)
    kind = table.info.kind_of_samples() if table else registry.undecided(content)
    deadline = time.monotonic() + seconds
    for url in chosen:
        started = time.perf_counter()
        try:
            with storage.open_reader(url) as reader:
                fetched = time.perf_counter() - started
                settings = ScanSettings(
                    kind=kind,
                    decodes=False,
                    unlabelled=unlabelled,
                    label=LabelFrom.from_json(table.info.label if table else None),
                )
                found, seen, took, end = _walk(url, settings, -(-wanted // len(chosen)), deadline)
                if not seen:
                    continue
                looked.append(url)
                walked, walking, per_byte = walked + seen, walking + took, max(per_byte, seen / max(end, 1))
                fetching += fetched / (reader.size * seen / max(end, 1)) * len(found)
                for offset, length, number in found:
                    started = time.perf_counter()
                    data = reader.pread(length, offset)
                    reading += time.perf_counter() - started
                    image.append(data)
                    label.append(number)
        except RhostreamError as exc:
            failed[storage.redact(url)] = str(exc)
        if image and time.monotonic() > deadline:
            break
    probed = [kind.probe(lambda n, data=data: data[:n], len(data)) for data in image[:wanted]]  # type: ignore[misc]
    sizes = [size for _, size in probed if size is not None]
    if not any(usable for usable, _ in probed):
        why = f"; {next(iter(failed.values()))}" if failed else ""
        raise UsageError(f"no usable {content} in {len(chosen)} of {len(urls)} shards{why}; see `rhostream index`")
    total, counted = (int(table.counts.sum()), True) if table else (_guess(urls, per_byte), False)
    return Samples(
        image[:wanted],
        label[:wanted],
        (reading + fetching) / len(image),
        walking / walked,
        total,
        counted,
        sizes,
        content,
        failed,
        looked,
    )


def _content_of(urls: list[str]) -> str:
    found = look([(url, url) for url in urls], decode=False)  # a shard that can't be read is told when it is walked
    content = found.content or registry.IMAGES.name
    found.say_mixed(content)
    return content


def _walk(url: str, settings: ScanSettings, wanted: int,
          deadline: float) -> tuple[list[tuple[int, int, int]], int, float, int]:  # fmt: skip
    """(offset, size, label) of usable images (texts); samples seen, seconds, and the byte that the walk came to."""
    found: list[tuple[int, int, int]] = []
    seen, end, started = 0, 0, time.perf_counter()
    for message in scan([(url, url)], settings):
        if not isinstance(message, Chunk):
            if message.error is not None:
                raise message.error
            end = message.identity.size  # the whole shard was walked
            break
        seen += len(message)
        rows = message.rows.select(["members"]).to_pylist()
        for row, label, ok in zip(rows, message.label.tolist(), message.ok.tolist(), strict=True):
            end = max([end, *(m["offset"] + m["size"] for m in row["members"])])
            images = [m for m in row["members"] if m["ext"] in settings.kind.main]
            if ok and images and images[0]["size"]:
                found.append((images[0]["offset"], images[0]["size"], label))
        if len(found) >= wanted or time.monotonic() > deadline:
            break
    return found[:wanted], seen, time.perf_counter() - started, end


def _guess(urls: list[str], per_byte: float) -> int:
    sizes = [storage.identity(url).size for url in some(urls, ASKED)]
    return max(1, round(sum(sizes) / len(sizes) * len(urls) * per_byte))


def preprocess_for(
    samples: Samples,
    table: il_table.Table | None,
    image_size: int | None,
    tokenizer: str | None = None,
    text_length: int | None = None,
    task: str = "label",
    channels: int | None = None,
    resize: str | None = None,
) -> Kind:
    """As given, else as the table says, else as most images are. Raises UsageError for options of another kind."""
    wanted = Wanted(image_size=image_size, channels=channels, resize=resize, tokenizer=tokenizer,
                    text_length=text_length, task=task)  # fmt: skip
    known = None if table is None else table.info.kind_of_samples()
    where = "the first shard" if table is None else storage.redact(table.url)
    return registry.made(samples.content, wanted, known, lambda: samples.sizes, where)
