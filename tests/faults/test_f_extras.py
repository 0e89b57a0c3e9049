"""F8: what isn't installed is named, with the line that brings it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rhostream import storage
from rhostream.errors import MissingExtraError
from rhostream.storage import clients


@pytest.mark.parametrize(
    ("url", "packages", "module", "extra"),
    [
        ("s3://bucket/a.tar", ["s3fs"], "s3", "s3"),
        ("gs://bucket/a.tar", ["gcsfs", "gcsfs.core"], "gcs", "gcs"),
        ("https://host/a.tar", ["aiohttp"], "web", "https"),
    ],
)
def test_F8_a_store_without_its_client_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, url: str, packages: list[str], module: str, extra: str
) -> None:
    """A URL of a store whose client isn't installed is one sentence with the pip line that brings it."""
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"rhostream.storage.{module}", raising=False)
    monkeypatch.setattr(clients, "_open", {})
    for ask in (
        storage.identity,
        storage.read_bytes,
        storage.open_reader,
        storage.probe_writable,
        lambda u: storage.create(u, b""),
        lambda u: storage.list_files(u, ""),
    ):
        with pytest.raises(MissingExtraError, match=rf"pip install 'rhostream\[{extra}\]'"):
            ask(url)


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_F8_a_report_without_its_extra_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str) -> None:
    """So is a report without the packages that draw it."""
    monkeypatch.setitem(sys.modules, package, None)
    for name in ("render", "plots", "report"):
        monkeypatch.delitem(sys.modules, f"rhostream.audit.{name}", raising=False)
    from rhostream.audit.report import write_report

    with pytest.raises(MissingExtraError, match=r"pip install 'rhostream\[report\]'"):
        write_report(str(tmp_path), str(tmp_path / "report.html"))
