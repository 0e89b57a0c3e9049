"""Small real shards, and an IL table made of them by the product itself.

No torch at import: of several processes that share a run, the one that reports imports this file and waits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

import rhostream
from tests.faults.tally import (  # noqa: F401  # hooks
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
)
from tests.stores.servers import gcs_server, s3_server  # noqa: F401  # fixtures
from tests.support import forks  # noqa: F401  # whoever starts the fork server, it imports these
from tests.support.shards import make_shards
from tests.support.tiny_towers import clip_folder, siglip_folder  # noqa: F401  # fixtures

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Processes that share a run share the cores: a run's threads are as many as there are cores, and those of two runs
    at once would wait for each other. So each process computes as on a machine of one core; what it starts says so too
    (`crash_server`, `ranks`)."""
    if hasattr(config, "workerinput") and hasattr(os, "sched_getaffinity"):
        os.sched_getaffinity = lambda pid: {0}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Files that use the same server share a process."""
    from tests.support.shares import Shares

    return Shares(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """What a test logged of a folder whose name is no Unicode goes from process to process as escapes: nothing else can
    be sent, and the whole session would end there."""
    report = (yield).get_result()  # type: ignore[misc]
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def the_search_path_as_it_was() -> Iterator[None]:
    """The command line keeps the current folder out of imports for the rest of its process; here others come after."""
    path, safe = sys.path[:], os.environ.get("PYTHONSAFEPATH")
    yield
    sys.path[:] = path
    if safe is None:
        os.environ.pop("PYTHONSAFEPATH", None)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Networks that are too small for more."""
    from rhostream.selection.hardware import threads

    with threads(1):
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shards/ (7 of unequal size, 1,003 samples), test/, il-model/, il/. Shards are named by a root of their own, since
    draws go by names: what is drawn is the same in every run of the tests, wherever their folders lie."""
    root = tmp_path_factory.mktemp("world")
    return _made(root, {"world": str(root)})


@pytest.fixture(scope="session")
def plain_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with shards that are named by their paths."""
    return _made(tmp_path_factory.mktemp("plain-world"), None)


def _made(root: Path, roots: dict[str, str] | None) -> Path:
    make_shards(root / "shards", [200, 150, 97, 256, 1, 199, 100])
    make_shards(root / "test", [120], seed=1)
    shards, keep = [str(root / "shards")], {"is_noisy": "bool", "true_label": "int"}
    rhostream.fit_il(shards, str(root / "il-model"), model="mlp-64", epochs=4, seed=0, roots=roots)
    rhostream.compute_il(shards, str(root / "il-model"), str(root / "il"), keep=keep, roots=roots)
    return root


@pytest.fixture
def trained(world: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train on the world in a fresh run folder and return it."""

    def run(name: str = "run", **options: object) -> Path:
        folder = tmp_path / name
        settings = {"buffer_size": 40, "batch_size": 8, "model": "mlp-64", "steps": 30, **options}
        rhostream.train([str(world / "shards")], str(world / "il"), str(folder), **settings)
        return folder

    return run
