"""What `doctor` tells: versions, extras, decoders, devices and room of this machine, and what a store can do."""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import importlib.util
import os
import platform
import re
import resource
import shutil
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rhostream import storage
from rhostream.errors import RhostreamError, UsageError
from rhostream.inert import names_a_secret
from rhostream.models.libraries import LIBRARIES, needs
from rhostream.samples.decoders import DECODERS, decoder
from rhostream.selection.hardware import bf16_supported, cores

PACKAGES = ("rhostream", "torch", "webdataset", "pyarrow", "duckdb", "pillow", "fsspec")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
LIMITS = {
    "open files": resource.RLIMIT_NOFILE,
    "address space": resource.RLIMIT_AS,
    "file size": resource.RLIMIT_FSIZE,
    "processes": resource.RLIMIT_NPROC,
}
MIN_FILES = 512
EXTRAS = {
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
    "https": ("aiohttp",),
    "jpeg": ("simplejpeg",),
    "png": ("imagecodecs",),
    "report": ("jinja2", "matplotlib"),
    "tensorboard": ("tensorboard",),
    "hf": ("transformers",),
}
OWN, CREDENTIALS = "RHOSTREAM_", ("AWS_", "GOOGLE_")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The facts that `rhostream doctor` prints."""

    versions: dict[str, str]  # "" for what isn't installed
    extras: dict[str, str]  # version of its package, or the pip line that brings it
    models: dict[str, str]  # prefix of a model's name -> version of its library, or what it needs
    decoder: str  # what "auto" takes
    decoders: list[str]  # what can be asked for
    cpu: str
    cores: int  # that this process may use
    threads: int  # of torch
    bfloat16: dict[str, bool]  # by device
    cuda: list[str]
    spool: str  # where shards of a store are kept for the time of a run
    spool_free: int  # bytes
    spool_used: int  # bytes of what is in it now
    shm_free: int | None  # bytes; the loader's shared slots live there
    shm_size: int | None
    limits: dict[str, str]  # of this process: soft / hard
    settings: dict[str, str]  # RHOSTREAM_*
    unknown_settings: dict[str, str]  # RHOSTREAM_* that nothing reads, and the nearest that is read ("" for none)
    credentials: list[str]  # names alone, of AWS_* and GOOGLE_*
    proxies: dict[str, str]  # *_PROXY, without user and password

    @property
    def problems(self) -> list[str]:
        """What will stop a run here, or surprise one."""
        found = [f"{name} is not installed" for name, version in self.versions.items() if not version]
        if self.shm_free is not None and self.shm_free < 64 << 20:
            found.append(
                f"/dev/shm has {self.shm_free >> 20} MiB free: loader workers share their slots there; in "
                "Docker give --shm-size or --ipc=host, or use --workers 0"
            )
        if self.spool_free < 1 << 30:
            found.append(
                f"the spool {self.spool} has {self.spool_free >> 20} MiB free: set RHOSTREAM_SPOOL to a "
                "folder with room for a few shards of a store"
            )
        if 0 < int(self.limits["open files"].partition(" ")[0].replace("unlimited", "0")) < MIN_FILES:
            found.append(
                f"this process may open {self.limits['open files'].partition(' ')[0]} files: a stream holds "
                f"two a lane; raise it with `ulimit -n {MIN_FILES}`"
            )
        for name, near in self.unknown_settings.items():
            found.append(f"{name} is set and is no setting of rhostream" + (f" (did you mean {near}?)" if near else ""))
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
        models={name: needs(*library) for name, library in LIBRARIES.items()},
        decoder=decoder("auto")[0], decoders=[name for name in DECODERS if _can_decode(name)],
        cpu=cpu_name(), cores=cores(), threads=torch.get_num_threads(),
        bfloat16={name: bf16_supported(torch.device(name))
                  for name in ("cpu", *(f"cuda:{i}" for i in range(len(cuda))))},
        cuda=cuda, spool=spool, spool_free=_free(spool) or 0, spool_used=_used(spool), shm_free=_free("/dev/shm"),
        shm_size=shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else None, limits=_limits(),
        unknown_settings=_unknown_settings(), proxies=_proxies(),
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


def _used(folder: str) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except OSError:
        return 0


def _limits() -> dict[str, str]:
    def said(value: int) -> str:
        return "unlimited" if value == resource.RLIM_INFINITY else str(value)

    return {name: " / ".join(map(said, resource.getrlimit(number))) for name, number in LIMITS.items()}


def _unknown_settings() -> dict[str, str]:
    """What is set and never read: the settings are those that our own sources name."""
    known = set[str]()
    for source in Path(__file__).parent.rglob("*.py"):
        known |= set(re.findall(rf"\b{OWN}[A-Z_]+\b", source.read_text(encoding="utf-8")))
    names = [name for name in sorted(os.environ) if name.startswith(OWN) and name not in known]
    return {name: next(iter(difflib.get_close_matches(name, sorted(known), n=1)), "") for name in names}


def _proxies() -> dict[str, str]:
    """Each as it is set, but for what stands before the host's @."""
    found = {name: value for name, value in sorted(os.environ.items()) if name.upper() in PROXIES and value}
    return {name: storage.redact(v) if "://" in v else v.rpartition("@")[2] for name, v in found.items()}


def _shown(name: str, value: str) -> str:
    return "(set)" if names_a_secret(name) or "OPTIONS" in name.upper() else storage.redact(value)


def render_environment(e: Environment) -> str:
    """The doctor's facts for people."""
    bf16 = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in e.bfloat16.items())
    lines = ["Versions"] + [f"  {name:12} {version or 'not installed'}" for name, version in e.versions.items()]
    lines += ["Extras"] + [f"  {name:12} {found}" for name, found in e.extras.items()]
    lines += ["Models by name"] + [f"  {name:18} {found}" for name, found in e.models.items()]
    lines += [
        "Machine",
        f"  {'cpu':12} {e.cpu}, {e.cores} cores for this process, {e.threads} torch threads",
        f"  {'cuda':12} {', '.join(e.cuda) or 'none'}",
        f"  {'bfloat16':12} {bf16}",
        f"  {'decoder':12} {e.decoder} (there: {', '.join(e.decoders)})",
        f"  {'spool':12} {e.spool}, {_room(e.spool_free)} free, holds {_room(e.spool_used)}",
        f"  {'/dev/shm':12} "
        + (f"{_room(e.shm_free)} free of {_room(e.shm_size)}" if e.shm_free is not None else ": not there"),
    ]
    lines += ["Limits of this process (soft / hard)"] + [f"  {name:14} {value}" for name, value in e.limits.items()]
    lines += ["Settings"] + [f"  {name}={value}" for name, value in e.settings.items()]
    lines += [f"  {name}={value}" for name, value in e.proxies.items()]
    lines += [f"  {name} is set" for name in e.credentials] or ([] if e.settings or e.proxies else ["  none"])
    return "\n".join([*lines, *(f"Problem: {problem}." for problem in e.problems)]) + "\n"


def _room(bytes_: int | None) -> str:
    return "" if bytes_ is None else f"{bytes_ / 2**30:.1f} GiB"


# -- a store ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StoreReport:
    """What a probe found."""

    url: str  # without secrets
    writable: bool
    create_only: bool  # a second commit of the same name is refused
    why: str  # what is wrong; "" when nothing is

    @property
    def usable(self) -> bool:
        """Whether tables and runs may live there. Create-only isn't needed where one job at a time writes."""
        return self.writable

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "usable": self.usable}


def probe_store(url: str) -> StoreReport:
    """Commit a small object below `url`, try to commit it again, remove it.

    Raises UsageError for a URL that can never be a store (a shell command, an unknown scheme).
    """
    place = storage.resolve(url)
    shown = storage.redact(place)
    made = _missing_folders(place) if storage.is_local(place) else []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the report says it
            create_only = storage.probe_writable(place)
    except RhostreamError as exc:
        return StoreReport(url=shown, writable=False, create_only=False, why=str(exc))
    except Exception as exc:  # of whatever client library: a doctor reports, and its text may hold a secret
        return StoreReport(
            url=shown,
            writable=False,
            create_only=False,
            why=f"{type(exc).__name__} from the store's client; check the credentials and the address",
        )
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else has put something there
                os.rmdir(folder)
    why = "" if create_only else "the store ignores create-only writes: let one job at a time write there"
    return StoreReport(url=shown, writable=True, create_only=create_only, why=why)


def render_store(report: StoreReport) -> str:
    """Yes or no, and why not."""

    def yes(there: bool) -> str:
        return "yes" if there else "no"

    lines = [
        f"Store {report.url}",
        f"  {'writable':12} {yes(report.writable)}",
        f"  {'create-only':12} {yes(report.create_only)}",
        f"  {'usable':12} {yes(report.usable)}",
    ]
    return "\n".join(lines + ([f"  {report.why}"] if report.why else [])) + "\n"


def _missing_folders(path: str) -> list[Path]:
    """The folders that the probe will have to make, deepest first."""
    place, missing = Path(path), list[Path]()
    while not place.exists() and place != place.parent:
        missing.append(place)
        place = place.parent
    return missing
