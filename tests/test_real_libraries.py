"""open_clip, timm and torchvision themselves, in an environment of their own: they are no dependency, and torchvision's
wheel would break others in this one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.support import environments
from tests.support.shards import png, write_shard


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_models_of_open_clip_timm_and_torchvision_are_as_they_make_them_themselves(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="pip install 'rhostream[hf]'")
    if why := environments.make("open-clip"):
        pytest.skip(f"their environment can't be made here: {why}")
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = [
        {"__key__": f"p{n:03d}", "png": png(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)), "cls": str(n % 4)}
        for n in range(40)
    ]
    write_shard(tmp_path / "shards" / "a.tar", rows)
    done = subprocess.run(
        [environments.python("open-clip"), "-m", "tests.support.real_libraries", str(tmp_path)],
        cwd=environments.ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "as they make them themselves" in done.stdout
