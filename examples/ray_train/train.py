"""`rhostream train` on the workers of Ray Train: one that dies is started again with the others, and the run goes on.

python examples/ray_train/train.py RUN SHARDS TABLE --workers 2
"""

from __future__ import annotations

import argparse
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

import rhostream


def loop(settings: dict[str, Any]) -> None:
    """Of each worker: Ray Train has made the process group, which `train` takes; the run folder is the checkpoint."""
    rhostream.train(**settings)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "shards", "table"):
        asked.add_argument(name, help="a path or URL that every worker sees")
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--gpu", action="store_true")
    asked.add_argument("--steps", type=int, default=200)
    given = asked.parse_args()
    settings = {
        "shards": given.shards, "il": given.table, "run": given.run, "model": "mlp-64", "steps": given.steps,
        "passes": 1000, "buffer_size": 80, "batch_size": 8, "checkpoint_every": 20,
    }  # fmt: skip
    TorchTrainer(
        loop,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=given.workers, use_gpu=given.gpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=3)),
    ).fit()


if __name__ == "__main__":
    main()
