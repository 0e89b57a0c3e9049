"""IL models, tables and runs as older versions made them, with options that are gone: they stay readable."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rhostream.config.call import config_with
from rhostream.config.offline import ComputeILConfig
from rhostream.irreducible.accounts import Summary


def divide_logits(il_model: str | Path, temperature: Sequence[float]) -> None:
    """Make an IL model one of `fit-il --temperature`: its logits are divided, by one number for each fold."""
    path = Path(il_model) / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": list(temperature)}))


def in_float16(shards: Sequence[str], il_model: str, out: str, **options: Any) -> Summary:
    """A table of `compute-il --il-dtype float16`."""
    from rhostream.irreducible.compute import scored_into

    asked = {"shards": shards, "il_model": il_model, "out": out, **options}
    return scored_into(config_with(ComputeILConfig, None, asked), "float16")


def begun_with(run: str | Path, option: str, value: str, pinned: str) -> None:
    """Make a run one that was begun with an option of before, which it pinned as `pinned`."""
    path = Path(run) / "run.json"
    record = json.loads(path.read_text())
    for part, said in (("fingerprints", pinned), ("settings", value), ("config", value), ("arguments", value)):
        record[part][option] = said
    path.write_text(json.dumps(record))
