"""`.venv-open-clip`: the real open_clip for the slow tests, in an environment of its own that sees .venv's packages.

open_clip asks for torchvision, whose wheel of torch 2.13 is of CUDA: its compiled operators don't load beside a torch
of the CPU, and its import then fails at two operators that nothing here calls. So these two are declared, in the copy
that lies in this environment; torchvision's Python, of which open_clip takes transforms, is as it was published.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".venv-open-clip"
PYTHON, DONE = FOLDER / "bin" / "python", FOLDER / ".done"
PACKAGES = (
    "open_clip_torch==3.3.0", "timm==1.0.29", "ftfy==6.3.1", "wcwidth==0.9.1", "pandas==3.0.6",
    "python-dateutil==2.9.0.post0", "six==1.17.0", "torchvision==0.28.0",
)  # fmt: skip
SECONDS = 1200
DECLARED = """import torch
for _name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def make() -> str:
    """Make it unless it is there; "" or, when it could not be made, why."""
    wanted = "\n".join([*PACKAGES, DECLARED])
    if DONE.exists() and DONE.read_text() == wanted:
        return ""
    shutil.rmtree(FOLDER, ignore_errors=True)
    places = "import site; print(site.getsitepackages()[0])"
    try:
        _run(sys.executable, "-m", "venv", str(FOLDER))
        here, behind = (_run(python, "-c", places).strip() for python in (str(PYTHON), sys.executable))
        Path(here, "behind.pth").write_text(f"import site; site.addsitedir({behind!r})\n")
        _run(str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "-q", "--no-deps", *PACKAGES)
    except subprocess.CalledProcessError as exc:
        return next((line for line in exc.stderr.splitlines() if line.startswith("ERROR")), str(exc))
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    registrations = Path(here, "torchvision", "_meta_registrations.py")
    registrations.write_text(DECLARED + registrations.read_text())
    DONE.write_text(wanted)
    return ""


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS).stdout


if __name__ == "__main__":
    sys.exit(make() or None)
