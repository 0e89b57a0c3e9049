"""Shards and IL tables of a world, made once below `--out`: the same command again finds what is there.

<out>/shards/<recipe>-<digest>/   and .json beside it when it is whole
<out>/il/<recipe>-<model>-<digest>/   model/, table/
"""

from __future__ import annotations

import ctypes
import functools
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import rhostream
from jobs.reproduce.settings import Arm, Shards, World
from rhostream.errors import UsageError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def shards_of(out: str, shards: Shards) -> str:
    """The folder of a set of shards."""
    return str(Path(out, "shards", shards.folder))


def table_of(out: str, world: World, il: str) -> str:
    """The IL table's folder."""
    return str(Path(out, "il", world.il_folder(il), "table"))


def model_of(out: str, world: World, il: str) -> str:
    """The IL model's folder."""
    return str(Path(out, "il", world.il_folder(il), "model"))


def make_shards(out: str, shards: Shards, sources: Mapping[str, str]) -> bool:
    """Make a set unless it is whole already; returns whether there was anything to do. Raises UsageError."""
    folder = Path(shards_of(out, shards))
    done = folder.with_suffix(".json")
    if done.exists():
        return False
    if shards.source is None:
        fetch_fashion_mnist()
    # The recipes are programs of the repository; a job stands on the library alone, so it calls them as one does.
    asked = [sys.executable, "-m", "shards.make", *shards.arguments, "--out", str(folder)]
    asked += [word for option, name in shards.files.items() for word in (option, sources[name])]
    made = subprocess.run(asked, capture_output=True, text=True)
    if made.returncode:
        said = (made.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UsageError(f"python -m shards.make {' '.join(shards.arguments)} failed: {said}")
    done.write_text(json.dumps({"arguments": shards.arguments, "summary": made.stdout.splitlines()}, indent=1))
    return True


@functools.cache
def fetch_fashion_mnist() -> None:
    """Find or fetch the one set that needs no files of the user's. Raises UsageError."""
    got = subprocess.run([sys.executable, "-m", "shards.fetch_fashion_mnist"], capture_output=True, text=True)
    if got.returncode:
        said = (got.stderr.strip().splitlines() or ["Fashion-MNIST can't be had"])[-1]
        raise UsageError(said.removeprefix("error: "))


@dataclass(frozen=True)
class MakeIL:
    """Fits and scores one IL table; a value, so that another process can do it."""

    out: str
    world: World
    il: str

    def __call__(self) -> str:
        """Returns what the model is worth, in one line."""
        quiet()
        own_threads()
        asked, train = self.world.ils[self.il], [shards_of(self.out, self.world.train)]
        # Shards are known by name: with a named root order and folds are the same wherever the folder lies.
        roots = {"reproduce": str(Path(self.out).resolve())}
        holdout = None if asked.holdout is None else [shards_of(self.out, asked.holdout)]
        model = model_of(self.out, self.world, self.il)
        info = rhostream.fit_il(train, model, holdout=holdout, roots=roots, **asked.fit)
        code = str(asked.fit["model"])
        named = {"model": code} if ":" in code else {}  # a file doesn't decide whose code is run: it is named again
        rhostream.compute_il(train, model, table_of(self.out, self.world, self.il), keep=self.world.keep, roots=roots,
                             **named)  # fmt: skip
        return f"il {self.world.name}/{self.il}: {info.architecture}, accuracy {info.accuracy:.4f} on labels as given"


def to_make(out: str, arms: list[Arm]) -> tuple[list[Shards], list[MakeIL]]:
    """What the arms need, each once: sets of shards, and IL tables."""
    shards: dict[str, Shards] = {}
    tables: dict[str, MakeIL] = {}
    for arm in arms:
        il = arm.world.ils[arm.il]
        for one in (arm.world.train, arm.world.test, *([il.holdout] if il.holdout else [])):
            shards[one.folder] = one
        tables[arm.world.il_folder(arm.il)] = MakeIL(out, arm.world, arm.il)
    return list(shards.values()), list(tables.values())


def own_threads() -> int | None:
    """The threads of a process that is one of several: one on a CPU, which is set; None (torch's own) with a GPU."""
    import torch

    if torch.cuda.is_available():
        return None
    torch.set_num_threads(1)
    return 1


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees; nothing happens where the C library isn't glibc.

    glibc hands blocks above 32 MiB back and takes them again page by page: activations of 320 images of 32 pixels cost
    a small CNN's forward a third of its time on a CPU.
    """
    try:
        adjust = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 1 << 28)):
        adjust(parameter, value)


def quiet() -> None:
    """In a process that works for the program: its progress is told by the program."""
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("rhostream").setLevel(logging.WARNING)
    warnings.simplefilter("ignore", UserWarning)
