"""The heavy packages of slow tests, each in an environment of its own that sees .venv's packages behind its own.

    why = environments.make("ray")          "" or why it can't be made here
    environments.python("ray")              its interpreter

Nothing of `[dev]` is taken twice, so an environment is as many packages as it names here; each has its pins.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "open-clip": (
        "open_clip_torch==3.3.0", "timm==1.0.29", "ftfy==6.3.1", "wcwidth==0.9.1", "pandas==3.0.6",
        "python-dateutil==2.9.0.post0", "six==1.17.0", "torchvision==0.28.0",
    ),
    "lightning": (
        "lightning==2.6.6", "lightning-utilities==0.15.3", "pytorch-lightning==2.6.6", "torchmetrics==1.9.0",
        "setuptools==84.2.1",
    ),
    "accelerate": ("accelerate==1.15.0", "psutil==7.2.2"),
    "ray": (
        "ray==2.60.0", "jsonschema==4.26.0", "jsonschema-specifications==2025.9.1", "referencing==0.37.0",
        "rpds-py==2026.9.1", "pandas==3.1.1", "tensorboardX==2.6.5",
    ),
    "notebook": (  # what executes examples/notebooks
        "nbclient==0.11.0", "ipykernel==7.4.0", "asttokens==3.0.2", "comm==0.2.3", "debugpy==1.8.22",
        "executing==2.3.0",
        "fastjsonschema==2.22.3", "ipython==9.18.1", "ipython_pygments_lexers==1.1.1", "jedi==0.20.1",
        "jsonschema==4.26.0", "jsonschema-specifications==2025.9.1", "jupyter_client==8.10.0", "jupyter_core==5.9.1",
        "matplotlib-inline==0.2.2", "nbformat==5.11.1", "nest-asyncio2==1.7.4", "parso==0.8.7", "pexpect==4.9.0",
        "prompt_toolkit==3.0.53", "psutil==7.2.2", "ptyprocess==0.7.0", "pure_eval==0.2.4", "pyzmq==27.3.0",
        "referencing==0.37.0", "rpds-py==2026.9.1", "stack-data==0.6.3", "tornado==6.6.1", "traitlets==5.16.1",
        "wcwidth==0.9.4",
    ),
    "launch": (  # the schemas of launch files
        "kubernetes-validate==1.37.0", "kubeflow-trainer-api==2.3.0", "kubeflow-training==1.9.4", "skypilot==0.14.1",
        "colorama==0.4.6", "importlib-resources==7.1.0", "jsonschema==4.26.0", "jsonschema-specifications==2025.9.1",
        "referencing==0.37.0", "rpds-py==2026.9.1",
    ),
    "browser": ("playwright==1.65.2", "greenlet==3.5.6", "pyee==13.0.1"),  # drives the chromium of the system
}  # fmt: skip
SECONDS = 1200
# open_clip asks for torchvision, whose wheel of torch 2.13 is of CUDA: its compiled operators don't load beside a torch
# of the CPU, and its import then fails at two operators that nothing here calls. So these two are declared, in the copy
# that lies in that environment; torchvision's Python, of which open_clip takes transforms, is as it was published.
DECLARED = """import torch
for _name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def python(name: str) -> str:
    """The interpreter of an environment that `make` has made."""
    return str(_folder(name) / "bin" / "python")


def make(name: str) -> str:
    """Make an environment unless it is there; "" or, when it could not be made, why."""
    packages, folder = PACKAGES[name], _folder(name)
    declared = DECLARED if any(package.startswith("torchvision") for package in packages) else ""
    done, wanted = folder / ".done", "\n".join([*packages, declared])
    if done.exists() and done.read_text() == wanted:
        return ""
    shutil.rmtree(folder, ignore_errors=True)
    places = "import site; print(site.getsitepackages()[0])"
    try:
        _run(sys.executable, "-m", "venv", str(folder))
        here, behind = (_run(path, "-c", places).strip() for path in (python(name), sys.executable))
        Path(here, "behind.pth").write_text(f"import site; site.addsitedir({behind!r})\n")
        _run(python(name), "-m", "pip", "install", "--disable-pip-version-check", "-q", "--no-deps", *packages)
    except subprocess.CalledProcessError as exc:
        return next((line for line in exc.stderr.splitlines() if line.startswith("ERROR")), str(exc))
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    if declared:
        registrations = Path(here, "torchvision", "_meta_registrations.py")
        registrations.write_text(declared + registrations.read_text())
    done.write_text(wanted)
    return ""


def _folder(name: str) -> Path:
    return ROOT / f".venv-{name}"


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS).stdout


if __name__ == "__main__":
    sys.exit("\n".join(filter(None, map(make, sys.argv[1:] or PACKAGES))) or None)
