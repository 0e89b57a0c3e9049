"""open_clip, timm and torchvision themselves, in an environment of their own: they are no dependency, and torchvision's
wheel would break others in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.shards import png, write_shard

# --no-deps, for they would bring another torch; these are what they import beside what is here.
PINNED = ("open_clip_torch==3.3.0", "timm==1.0.31", "torchvision==0.28.0", "ftfy==6.3.1", "wcwidth==0.9.4", "regex")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages. Skipped where they can't be had."""
    pytest.importorskip("transformers", reason="pip install 'rhostream[hf]'")
    folder = tmp_path_factory.mktemp("libraries")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target"]
    done = subprocess.run([*pip, str(folder), *PINNED], capture_output=True, text=True, timeout=170)
    if done.returncode:
        pytest.skip(f"{' '.join(PINNED)} can't be had: {done.stderr[-200:]}")
    return folder


@pytest.mark.slow
def test_models_of_open_clip_timm_and_torchvision_are_as_they_make_them_themselves(
    environment: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = [
        {"__key__": f"p{n:03d}", "png": png(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)), "cls": str(n % 4)}
        for n in range(40)
    ]
    write_shard(tmp_path / "shards" / "a.tar", rows)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(environment), str(ROOT)]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.real_libraries", str(tmp_path)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "as they make them themselves" in done.stdout
