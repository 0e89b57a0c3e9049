"""See that the idx.gz files of Fashion-MNIST are on this machine: `python -m shards.fetch_fashion_mnist`.

    system folder > the repository's data folder > Debian's package, unpacked without root > download

The files are pinned by SHA-256, so all four ways give the same bytes. Prints the folder that has them.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import click

from rhostream.errors import RhostreamError, UsageError

PACKAGE = "dataset-fashion-mnist"
SYSTEM = Path("/usr/share/datasets/fashion-mnist")
DATA = Path(__file__).resolve().parents[1] / "data" / "fashion-mnist"
WEB = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
TIMEOUT_SECONDS = 30
APT_SECONDS = 300


def find_or_download(data: Path = DATA, *, system: Path = SYSTEM, web: str = WEB) -> Path:
    """The folder with the files: the system's, else `data`, else `data` after a checksummed download.

    Raises UsageError with every way out when there are none.
    """
    found = _find(system, data)
    if found:
        return found
    try:
        download(data, web)
    except (OSError, ValueError, http.client.HTTPException) as exc:
        raise _none(system, data, exc) from exc
    return data


def fetch(data: Path = DATA, *, system: Path = SYSTEM, web: str = WEB, apt: bool = True) -> Path:
    """Like `find_or_download`, and tries Debian's package before the download."""
    found = _find(system, data)
    if found:
        return found
    if apt and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        try:
            unpack_package(data)
            return data
        except (OSError, ValueError, subprocess.SubprocessError) as exc:
            print(f"{PACKAGE} could not be had from apt ({_reason(exc)}); trying a download", file=sys.stderr)
    return find_or_download(data, system=system, web=web)


def unpack_package(data: Path) -> None:
    """Download Debian's package and put its four files into `data`; needs no root and changes nothing else.

    Raises OSError, ValueError or subprocess.SubprocessError.
    """
    with tempfile.TemporaryDirectory(prefix="fashion-mnist-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # apt drops to its own user when root calls it
        try:
            _run(["apt-get", "-qq", "download", PACKAGE], folder)
        except subprocess.SubprocessError:
            # A fresh machine has no package lists, and only root may write the system's: so lists of our own.
            (folder / "lists" / "partial").mkdir(parents=True)
            own = ["-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]
            own += ["-o", "APT::Sandbox::User=root"]
            _run(["apt-get", "-qq", *own, "update"], folder)
            _run(["apt-get", "-qq", *own, "download", PACKAGE], folder)
        archives = sorted(folder.glob(f"{PACKAGE}_*.deb"))
        if not archives:
            raise ValueError(f"apt-get download left no {PACKAGE}_*.deb")
        _run(["dpkg-deb", "-x", str(archives[0]), str(folder / "unpacked")], folder)
        inside = folder / "unpacked" / SYSTEM.relative_to("/")
        for name in SHA256:
            _keep(data / name, (inside / name).read_bytes())


def download(data: Path, web: str = WEB) -> None:
    """Get the files below the address `web` into `data`.

    Raises OSError or http.client.HTTPException for the network, ValueError for a wrong checksum.
    """
    for name in SHA256:
        with urllib.request.urlopen(f"{web}/{name}", timeout=TIMEOUT_SECONDS) as answer:
            _keep(data / name, answer.read())


def _find(system: Path, data: Path) -> Path | None:
    return next((folder for folder in (system, data) if all((folder / name).is_file() for name in SHA256)), None)


def _keep(path: Path, content: bytes) -> None:
    got = hashlib.sha256(content).hexdigest()
    if got != SHA256[path.name]:
        raise ValueError(f"{path.name} has SHA-256 {got[:12]}..., expected {SHA256[path.name][:12]}...")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=APT_SECONDS)


def _reason(exc: BaseException) -> str:
    """The line of a foreign error that says most."""
    if isinstance(exc, subprocess.CalledProcessError):
        lines = [line for line in str(exc.stderr).splitlines() if line.startswith("E:")]
        return lines[0][2:].strip() if lines else f"{exc.cmd[0]} ended with {exc.returncode}"
    if isinstance(exc, urllib.error.URLError):
        return str(exc.reason)
    return str(exc)


def _none(system: Path, data: Path, exc: BaseException) -> UsageError:
    return UsageError(
        f"Fashion-MNIST is neither in {system} nor in {data}, and the download failed ({_reason(exc)}); run "
        f"`apt-get install {PACKAGE}`, or `python -m shards.fetch_fashion_mnist`, or give the folder of the "
        "four idx.gz files as --source"
    )


@click.command(help=__doc__.split("\n\n")[0] if __doc__ else None)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=DATA,
    help="Where to put them. [default: data/fashion-mnist]",
)
@click.option("--system", type=click.Path(path_type=Path), default=SYSTEM, show_default=True, help="Looked at first.")
@click.option("--web", default=WEB, show_default=True, help="Where to download from, at last.")
@click.option("--apt/--no-apt", default=True, show_default=True, help="Try Debian's package before the download.")
def main(data: Path, system: Path, web: str, apt: bool) -> None:
    """The command line."""
    try:
        print(fetch(data, system=system, web=web, apt=apt))
    except RhostreamError as exc:
        print(f"error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)


if __name__ == "__main__":
    main()
