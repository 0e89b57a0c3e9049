"""What this machine and this installation are: versions, extras, decoders, devices, room; no secret among it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rhostream import storage
from rhostream.errors import UsageError
from rhostream.selection.hardware import bf16_supported, cores
from rhostream.stream.decode import DECODERS, decoder

PACKAGES = ("rhostream", "torch", "webdataset", "pyarrow", "duckdb", "pillow", "fsspec")
EXTRAS = {"s3": ("s3fs",), "gcs": ("gcsfs",), "https": ("aiohttp",), "jpeg": ("simplejpeg",), "png": ("imagecodecs",),
          "report": ("jinja2", "matplotlib"), "tensorboard": ("tensorboard",)}
OWN, CREDENTIALS = "RHOSTREAM_", ("AWS_", "GOOGLE_")
SECRET_WORDS = ("KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIAL", "OPTIONS")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The facts that `rhostream doctor` prints."""

    versions: dict[str, str]  # "" for what isn't installed
    extras: dict[str, str]  # version of its package, or the pip line that brings it
    decoder: str  # what "auto" takes
    decoders: list[str]  # what can be asked for
    cpu: str
    cores: int  # that this process may use
    threads: int  # of torch
    bfloat16: dict[str, bool]  # by device
    cuda: list[str]
    spool: str  # where shards of a store are kept for the time of a run
    spool_free: int  # bytes
    shm_free: int | None  # bytes; the loader's shared slots live there
    settings: dict[str, str]  # RHOSTREAM_*
    credentials: list[str]  # names alone, of AWS_* and GOOGLE_*

    @property
    def problems(self) -> list[str]:
        """What will stop a run here, or surprise one."""
        found = [f"{name} is not installed" for name, version in self.versions.items() if not version]
        if self.shm_free is not None and self.shm_free < 64 << 20:
            found.append(f"/dev/shm has {self.shm_free >> 20} MiB free: loader workers share their slots there; in "
                         "Docker give --shm-size or --ipc=host, or use --workers 0")
        if self.spool_free < 1 << 30:
            found.append(f"the spool {self.spool} has {self.spool_free >> 20} MiB free: set RHOSTREAM_SPOOL to a "
                         "folder with room for a few shards of a store")
        return found

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "problems": self.problems}


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def examine_environment() -> Environment:
    """Look around; writes nothing and asks no network."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    spool = os.environ.get("RHOSTREAM_SPOOL") or str(Path(tempfile.gettempdir()) / f"rhostream-spool-{os.getuid()}")
    return Environment(
        versions={"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        extras={name: _extra(name, packages) for name, packages in EXTRAS.items()},
        decoder=decoder("auto")[0], decoders=[name for name in DECODERS if _can_decode(name)],
        cpu=cpu_name(), cores=cores(), threads=torch.get_num_threads(),
        bfloat16={name: bf16_supported(torch.device(name))
                  for name in ("cpu", *(f"cuda:{i}" for i in range(len(cuda))))},
        cuda=cuda, spool=spool, spool_free=_free(spool) or 0, shm_free=_free("/dev/shm"),
        settings={k: _shown(k, v) for k, v in sorted(os.environ.items()) if k.startswith(OWN)},
        credentials=sorted(k for k in os.environ if k.startswith(CREDENTIALS)),
    )  # fmt: skip


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _extra(name: str, packages: tuple[str, ...]) -> str:
    if all(importlib.util.find_spec(package) for package in packages):
        return ", ".join(f"{package} {_version(package)}".strip() for package in packages)
    return f"pip install 'rhostream[{name}]'"


def _can_decode(name: str) -> bool:
    try:
        return decoder(name)[0] == name
    except UsageError:
        return False


def _free(folder: str) -> int | None:
    """Free bytes where the folder is or would be made; None when there is no such place."""
    place = Path(folder)
    while not place.exists():
        if folder == "/dev/shm" or place == place.parent:
            return None
        place = place.parent
    return shutil.disk_usage(place).free


def _shown(name: str, value: str) -> str:
    return "(set)" if any(word in name.upper() for word in SECRET_WORDS) else storage.redact(value)
