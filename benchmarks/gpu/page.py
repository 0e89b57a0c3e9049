"""docs/performance/gpu.md: how to run it, and what the newest record says, or that there is none."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.budget import SHARES
from benchmarks.gpu.record import Record

TITLES = {
    "tests": "The tests that need a GPU",
    "step": "Selection step over two bare passes",
    "copies": "Copies from pinned memory beside the computation",
    "idle": "How long the GPU is idle",
    "paper-clean": "The paper's CIFAR-10 row, clean",
    "paper-noise": "The paper's CIFAR-10 row, 10 % of the labels redrawn",
}
HOW = """\
# On a GPU

    python -m benchmarks.gpu --source cifar10=data/cifar10

One command, at most 25 minutes, for all that is to be known on a GPU; it writes a dated record into
`benchmarks/results/gpu` and this page. Every part has its share of the minutes; one that is out of time is stopped or
skipped, with a sentence, and what it leaves goes to the next ones. It needs the repository, in an environment with the
`dev` extra; torchvision for ResNet-50, else it times a ResNet-18.

{shares}

`--part NAME` does some of them (several times for several), `--minutes N` in less time: where a command may take ten
minutes, `--part paper-clean --minutes 9`. The same command again on the same day does what is still to be done, and
goes on with runs that were stopped (`--work` is their folder, `--out` that of the records). Without `--source` the
pictures are made up, in the form of CIFAR-10's files, and the record says so: speeds hold for them, accuracies say
nothing of the paper's. `--toy` goes through all of it in minutes at toy size, on a CPU as well, so that it is known to
work before a GPU is at hand; its record never comes onto this page.
"""
NONE = """\
## Not run yet on a GPU

No machine with a GPU has run this so far. It was run on a CPU with `--toy`: that proves the program, and no figure.
What needs a CUDA device in it (events of kernels, pinned copies, `tests/test_gpu.py`) was seen nowhere yet.
"""


def render(record: Record | None) -> str:
    """The page as Markdown."""
    minutes = "\n".join(f"| `{name}` | {TITLES[name]} | {share:g} |" for name, share in SHARES.items())
    how = HOW.format(shares=f"| part | what | minutes of 25 |\n|---|---|---|\n{minutes}")
    if record is None:
        return f"{how}\n{NONE}"
    parts = [_part(name, record["parts"][name]) for name in SHARES if name in record["parts"]]
    origin = (
        f"`{record['command']}` on {record['date']}, commit {record['commit']}, {record['device']}, "
        f"torch {record['torch']}, CUDA {record['cuda']}; data: {record['data']}."
    )
    return "\n".join([how, f"## Measured on {record['date']}\n", f"{origin}\n", *parts])


def _part(name: str, part: dict[str, Any]) -> str:
    lines = [f"### {TITLES[name]}\n", f"{part['state'].capitalize()}: {part['says']} ({part['seconds']:.0f} s)\n"]
    if figures := part["figures"]:
        rows = [f"| {what} | {_cell(value)} |" for what, value in figures.items() if not isinstance(value, dict)]
        lines += ["| figure | |\n|---|---|", *rows, ""]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
