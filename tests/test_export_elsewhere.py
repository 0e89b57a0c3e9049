"""What is exported is opened by the programs that it is for: the real packages, each in an environment of its own."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rhostream.audit.export import export
from rhostream.errors import UsageError
from tests.support import environments
from tests.support.audit_fixtures import World, make_rows, make_run, make_world


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def run(made: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run over hostile keys."""
    return make_run(made, str(tmp_path_factory.mktemp("runs") / "rho"), make_rows(made, 30))


def made_or_skip(name: str) -> None:
    if why := environments.make(name):
        pytest.skip(f"no environment with {name} can be made here: {why}")


def of_class(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("shard", "ordinal", "key", "il", "loss", "reason", "looks")}


@pytest.mark.slow
def test_embedding_atlas_serves_the_file_by_the_command_that_is_printed(run: str, tmp_path: Path) -> None:
    made_or_skip("embedding-atlas")
    done = export(run, str(tmp_path / "a b.parquet"), form="embedding-atlas", where="reason in ('kept', 'below')")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, *arguments = shlex.split(done.next)
    command = [str(Path(environments.python("embedding-atlas")).with_name(program)), *arguments]
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port), "--no-auto-port"], cwd=tmp_path,
                              env={**os.environ, "HOME": str(tmp_path)}, stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        table = pq.read_table(io.BytesIO(fetched(server, f"http://127.0.0.1:{port}/data/dataset.parquet")))
        props = json.loads(fetched(server, f"http://127.0.0.1:{port}/data/metadata.json"))["props"]
    finally:
        server.terminate()
        server.wait(30)
    ours = pq.read_table(tmp_path / "a b.parquet")
    assert [of_class(row) for row in table.to_pylist()] == [of_class(row) for row in ours.to_pylist()]
    assert table["image"].to_pylist() == ours["image"].to_pylist() and len(ours) == done.samples > 50
    assert {"il", "loss", "image"} <= {*re.findall(r'"(\w+)"', json.dumps(props))}


def fetched(server: subprocess.Popen[bytes], url: str) -> bytes:
    """What the server answers once it is up."""
    for _ in range(600):
        assert server.poll() is None, "embedding-atlas has ended"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return answer.read()  # type: ignore[no-any-return]
        except ConnectionError:
            time.sleep(0.1)
        except urllib.error.URLError as exc:
            if not isinstance(exc.reason, ConnectionError):
                raise
            time.sleep(0.1)
    raise AssertionError("embedding-atlas doesn't answer")


IMPORT = """
import json, sys
import fiftyone
from fiftyone.utils.csv import CSVDatasetImporter

class Dataset:
    @staticmethod
    def from_dir(folder, kind, fields):
        assert kind is fiftyone.types.CSVDataset
        importer = CSVDatasetImporter(folder, fields=fields)
        importer.setup()
        return list(importer)

fiftyone.Dataset = Dataset
names = ("filepath", "shard", "ordinal", "key", "il", "looks")
print(json.dumps([{name: sample[name] for name in names} for sample in eval(sys.argv[1])]))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)  # its environment has 79 packages
def test_fiftyone_reads_the_folder_by_the_line_that_is_printed(run: str, tmp_path: Path) -> None:
    """By its importer of this format; a dataset of it needs a MongoDB, which can't be had from a package index."""
    made_or_skip("fiftyone")
    done = export(run, str(tmp_path / "folder"), form="fiftyone", where="reason in ('kept', 'below')")
    export(run, str(tmp_path / "x.parquet"), where="reason in ('kept', 'below')", with_samples=True)
    environment = {**os.environ, "FIFTYONE_DATABASE_URI": "mongodb://127.0.0.1:1", "HOME": str(tmp_path)}
    said = subprocess.run([environments.python("fiftyone"), "-c", IMPORT, done.next], env=environment, check=True,
                          capture_output=True, text=True, timeout=170)  # fmt: skip
    samples, ours = json.loads(said.stdout.splitlines()[-1]), pq.read_table(tmp_path / "x.parquet").to_pylist()
    assert [(s["shard"], s["ordinal"], s["il"], s["looks"]) for s in samples] == [
        (row["shard"], row["ordinal"], row["il"], row["looks"]) for row in ours
    ]
    assert [Path(s["filepath"]).read_bytes() for s in samples] == [row["image"]["bytes"] for row in ours]


def test_a_folder_for_fiftyone_is_whole_or_not_there(run: str, made: World, tmp_path: Path) -> None:
    done = export(run, str(tmp_path / "folder"), form="fiftyone", where="true")
    table = (tmp_path / "folder" / "labels.csv").read_text().splitlines()
    files = sorted(str(f.relative_to(tmp_path / "folder" / "data")) for f in tmp_path.rglob("*.png"))
    assert [line.split(",")[0] for line in table] == ["filepath", *files] and len(files) == done.samples == 62
    assert done.bytes == sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}
    (tmp_path / "empty").mkdir()
    for name in ("folder", "empty"):
        with pytest.raises(UsageError, match="exists already"):
            export(run, str(tmp_path / name), form="fiftyone")
    with pytest.raises(UsageError, match="local path"):
        export(run, "memory://x/y", form="fiftyone")
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*") if f.name != "empty"} == before
