"""rhostream: training-time data selection for web-scale pipelines, with a ledger of every decision.

The names below are the public face; each is imported when first used, so that `import rhostream` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rhostream.audit.export import export
    from rhostream.audit.report import write_report
    from rhostream.audit.views import open_ledger
    from rhostream.candidates import Candidates, Reason
    from rhostream.config.offline import ComputeILConfig, FitILConfig, IndexConfig
    from rhostream.config.shards import ShardsConfig
    from rhostream.config.train import TrainConfig
    from rhostream.errors import RhostreamError
    from rhostream.integrations.webdataset import join_il
    from rhostream.irreducible import compute_il, fit_il, index, keep_fields
    from rhostream.making.job import make_shards
    from rhostream.models.pairs import TwoTowers
    from rhostream.runs.run import Run
    from rhostream.samples.kind import FieldSpec, Kind
    from rhostream.selection.selector import Selection, Selector
    from rhostream.stream.open import open_stream
    from rhostream.training.start import train

    __version__: str

_HOME = {
    "Candidates": "rhostream.candidates",
    "ComputeILConfig": "rhostream.config.offline",
    "FieldSpec": "rhostream.samples.kind",
    "FitILConfig": "rhostream.config.offline",
    "IndexConfig": "rhostream.config.offline",
    "Kind": "rhostream.samples.kind",
    "Reason": "rhostream.candidates",
    "RhostreamError": "rhostream.errors",
    "Run": "rhostream.runs.run",
    "Selection": "rhostream.selection.selector",
    "Selector": "rhostream.selection.selector",
    "TwoTowers": "rhostream.models.pairs",
    "ShardsConfig": "rhostream.config.shards",
    "TrainConfig": "rhostream.config.train",
    "compute_il": "rhostream.irreducible",
    "export": "rhostream.audit.export",
    "fit_il": "rhostream.irreducible",
    "index": "rhostream.irreducible",
    "join_il": "rhostream.integrations.webdataset",
    "keep_fields": "rhostream.irreducible",
    "make_shards": "rhostream.making.job",
    "open_ledger": "rhostream.audit.views",
    "open_stream": "rhostream.stream.open",
    "train": "rhostream.training.start",
    "write_report": "rhostream.audit.report",
}
__all__ = [
    "Candidates",
    "ComputeILConfig",
    "FieldSpec",
    "FitILConfig",
    "IndexConfig",
    "Kind",
    "Reason",
    "RhostreamError",
    "Run",
    "Selection",
    "Selector",
    "ShardsConfig",
    "TrainConfig",
    "TwoTowers",
    "compute_il",
    "export",
    "fit_il",
    "index",
    "join_il",
    "keep_fields",
    "make_shards",
    "open_ledger",
    "open_stream",
    "train",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("rhostream")
    if name not in _HOME:
        raise AttributeError(f"module 'rhostream' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
