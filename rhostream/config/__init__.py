"""One frozen, keyword-only value a verb: what the command line, run.json, resumes, reports and the docs are made of.

    a field of a config (`rhostream.setting`) > options of the command line | a file of --config | keywords of Python

Each is imported when first used: `--help` of a verb needs one of them, and `rhostream --help` none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rhostream.config.estimate import EstimateConfig
    from rhostream.config.init import InitConfig
    from rhostream.config.offline import ComputeILConfig, FitILConfig, IndexConfig
    from rhostream.config.shards import ShardsConfig
    from rhostream.config.train import TrainConfig

_HOME = {
    "ComputeILConfig": "rhostream.config.offline",
    "EstimateConfig": "rhostream.config.estimate",
    "FitILConfig": "rhostream.config.offline",
    "IndexConfig": "rhostream.config.offline",
    "InitConfig": "rhostream.config.init",
    "ShardsConfig": "rhostream.config.shards",
    "TrainConfig": "rhostream.config.train",
}
__all__ = [
    "ComputeILConfig",
    "EstimateConfig",
    "FitILConfig",
    "IndexConfig",
    "InitConfig",
    "ShardsConfig",
    "TrainConfig",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rhostream.config' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
