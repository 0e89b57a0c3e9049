"""What lies below a local folder, linked folders included, each once whatever loops the links make."""

from __future__ import annotations

import errno
import heapq
import os
from dataclasses import dataclass, field

from rhostream.errors import AccessError


@dataclass
class Below:
    """Every file below a folder, and the linked folders that lead to one that is listed already (or to its own top)."""

    files: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)


def walk(top: str) -> Below:
    """List a folder: nothing where there is none. Real folders come first, so that a link to a neighbour is the one
    left out and files keep the names they have without it. Raises AccessError for a folder that can't be read."""
    found, waiting, links = Below(), [top], list[str]()
    seen = _above(top)
    while waiting or links:
        folder = waiting.pop() if waiting else heapq.heappop(links)
        try:
            stat = os.stat(folder)
            if (stat.st_dev, stat.st_ino) in seen:
                found.again.append(folder)
                continue
            with os.scandir(folder) as entries:
                inside = list(entries)
        except (FileNotFoundError, NotADirectoryError):
            continue  # nothing there, or gone since it was listed
        except OSError as exc:
            if exc.errno in (errno.EMFILE, errno.ENFILE):
                raise  # said by who knows what to do
            raise AccessError(
                f"{folder} can't be listed: {os.strerror(exc.errno or 0)}; make it readable, or name the "
                "shards that are"
            ) from exc
        seen.add((stat.st_dev, stat.st_ino))
        for entry in inside:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):
                heapq.heappush(links, entry.path)
            else:
                found.files.append(entry.path)
    return found


def _above(top: str) -> set[tuple[int, int]]:
    """Device and inode of the folders that hold `top`: a link back to one of them would list half a disk."""
    seen, folder = set[tuple[int, int]](), os.path.dirname(os.path.realpath(top))
    while True:
        try:
            stat = os.stat(folder)
            seen.add((stat.st_dev, stat.st_ino))
        except OSError:
            pass
        if folder == (folder := os.path.dirname(folder)):
            return seen
