"""Parallel selection, counted: rows, bytes and waits of ranks that train and ranks that score, and a simulated step.

    python -m benchmarks.scorers SHARDS IL          of Fashion-MNIST, such as make demo leaves

Two cores can't show a speed-up of more devices: the ranks here are gloo processes of one thread that share them, so
what they move and how long each half takes is counted, and the step of more devices is computed from measured parts
(rhostream/advisor/parallel.py), said to be so.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

MODEL, STEPS, N_B, N_b = "mlp-512", 60, 320, 32
RANKS = ((2, 1), (3, 1), (3, 2))  # in all, and of these scorers


def main() -> None:
    """Print a line for each division of the ranks, then the simulated steps."""
    shards, il = sys.argv[1:]
    for ranks, scoring in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            told = _together(folder, shards, il, ranks, scoring)
        training = told[0]
        moved = {key: sum(one["moved"][key] for one in told) / STEPS for key in training["moved"]}
        train, score = (median(values) for values in zip(*training["seconds"][5:], strict=True))
        print(
            f"{ranks - scoring} train, {scoring} score: a step moves {moved['rows']:.0f} rows "
            f"({moved['row bytes'] / 1e3:.1f} kB) and {moved['weight bytes'] / 1e6:.2f} MB of weights (received and "
            f"sent); training {1e3 * train:.1f} ms beside scoring {1e3 * score:.1f} ms, wait "
            f"{1e3 * abs(train - score):.1f} ms of the {'trainers' if score > train else 'scorers'} (medians)",
            flush=True,
        )
    _simulated(shards)


def _simulated(shards: str) -> None:
    from rhostream.advisor.estimate import estimate
    from rhostream.advisor.parallel import parallel

    found = estimate(shards, model=MODEL, buffer_size=N_B, batch_size=N_b, seconds=20)
    print(
        f"simulated: one score {1e6 * found.measured.score:.1f} us, a step of {N_b} {1e3 * found.measured.train:.2f} ms"
    )
    for ranks in (2, 8, 64):
        for gigabytes in (1.25, 12.5, 50.0):
            p = parallel(found.measured, found.setting, ranks, gigabytes * 1e9)
            assert p is not None
            print(
                f"  {ranks:2} devices, {gigabytes:5g} GB/s: all {1e3 * p.together:7.3f} ms, {p.scorers:2} scorers "
                f"{1e3 * p.apart:7.3f} ms, {p.together / p.apart:.2f}x"
            )


def _together(folder: str, shards: str, il: str, ranks: int, scoring: int) -> list[dict[str, Any]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_rank, args=(folder, shards, il, rank, ranks, scoring, port))
                 for rank in range(ranks)]  # fmt: skip
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(ranks)]


def _rank(folder: str, shards: str, il: str, rank: int, ranks: int, scoring: int, port: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    import torch

    import rhostream
    from rhostream.selection.scorers import Scorers

    torch.set_num_threads(1)
    seconds: list[tuple[float, float]] = []
    made: list[Scorers] = []

    class Watched(Scorers):
        def __post_init__(self) -> None:
            super().__post_init__()
            made.append(self)

        def _judge(self, told: list[float], step: int) -> None:
            seconds.append((max(told[: self.training]), max(told[self.training :])))
            super()._judge(told, step)

    from rhostream.training import parts

    parts.Scorers = Watched  # type: ignore[misc]
    rhostream.train([shards], il, f"{folder}/run", model=MODEL, buffer_size=N_B, batch_size=N_b, steps=STEPS, threads=1,
                    shortlist="predicted:3", scorers=scoring)  # fmt: skip
    Path(folder, f"{rank}.json").write_text(json.dumps({"moved": made[0].moved, "seconds": seconds}))


if __name__ == "__main__":
    main()
