"""The results file: all settings tried, all evaluations of all runs, all comparisons with every seed, and claims.

`<out>/results/<experiment>-<scale>.parquet`, one row a thing, told apart by `kind`; columns of other kinds are null.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import rhostream
from jobs.reproduce.compare import Comparison, verdict
from jobs.reproduce.measure import Curve
from jobs.reproduce.settings import Arm, Claim, Experiment, Scale

SCHEMA = pa.schema(
    [
        ("kind", pa.string()),  # setting, evaluation, comparison, claim
        ("experiment", pa.string()), ("scale", pa.string()), ("world", pa.string()), ("arm", pa.string()),
        ("seed", pa.int32()), ("run", pa.string()),
        ("state", pa.string()),  # of a setting: complete, diverged, or why it isn't available
        ("settings", pa.string()),  # JSON
        ("step", pa.int64()), ("passes", pa.float64()), ("forward_units", pa.float64()), ("il_units", pa.float64()),
        ("test_accuracy", pa.float64()), ("test_loss", pa.float64()), ("worst_class_accuracy", pa.float64()),
        ("baseline", pa.string()), ("metric", pa.string()), ("seeds", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float64())),  # one a seed; null: not reached
        ("middle", pa.float64()),  # a mean, or a censored median; null: not reached
        ("differences", pa.list_(pa.float64())), ("difference", pa.float64()),
        ("low", pa.float64()), ("high", pa.float64()),  # 95 % interval of the paired difference
        ("budget", pa.int64()),  # steps within which a target had to be reached
        ("claim", pa.string()), ("paper", pa.string()), ("version", pa.string()),
    ]
)  # fmt: skip


def setting_rows(
    arms: Sequence[Arm], states: Mapping[tuple[str, int], str], seeds: int, missing: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One row for each arm and seed, those that can't be had here too."""
    rows = []
    for arm in arms:
        il = arm.world.ils[arm.il]
        told = json.dumps({"train": arm.settings, "steps": arm.steps, "eval_every": arm.eval_every,
                           "shards": arm.world.train.arguments, "test": arm.world.test.arguments, "il": dict(il.fit),
                           "holdout": il.holdout.arguments if il.holdout else None,
                           "says": arm.world.says})  # fmt: skip
        for seed in range(seeds):
            state = missing.get(arm.label) or states.get((arm.label, seed), "not run")
            rows.append({"kind": "setting", "world": arm.world.name, "arm": arm.name, "seed": seed, "state": state,
                         "run": arm.folder(seed), "settings": told})  # fmt: skip
    return rows


def evaluation_rows(arm: Arm, seed: int, curve: Curve) -> list[dict[str, Any]]:
    """One row for each evaluation of a run."""
    return [
        {"kind": "evaluation", "world": arm.world.name, "arm": arm.name, "seed": seed, "run": arm.folder(seed),
         "step": step, "passes": arm.passes(step), "forward_units": units, "il_units": curve.il_units,
         "test_accuracy": accuracy, "test_loss": loss, "worst_class_accuracy": worst}
        for step, accuracy, loss, worst, units in zip(curve.steps, curve.accuracy, curve.loss, curve.worst,
                                                      curve.units, strict=True)
    ]  # fmt: skip


def comparison_rows(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One row for each comparison, with every seed."""
    return [
        {"kind": "comparison", "world": one.world, "arm": one.arm, "baseline": one.baseline, "metric": one.metric,
         "seeds": list(one.seeds), "values": list(one.values), "middle": one.middle, "claim": one.claim,
         "budget": one.budget,
         **({} if one.difference is None else
            {"differences": list(one.difference.values), "difference": one.difference.mean,
             "low": one.difference.low, "high": one.difference.high})}
        for one in found
    ]  # fmt: skip


def claim_rows(claims: Sequence[Claim], found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One row for each claim of the paper, with our verdict in `state`."""
    rows = []
    for claim in claims:
        one, words = verdict(claim, found)
        rows.append({"kind": "claim", "world": claim.world, "arm": claim.arm, "baseline": claim.baseline,
                     "metric": claim.metric, "claim": claim.says, "paper": claim.paper, "state": words,
                     "middle": one.middle if one else None,
                     "difference": one.difference.mean if one and one.difference else None})  # fmt: skip
    return rows


def write(out: str, experiment: str, scale: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the file whole, replacing an older one of the same name; returns its path."""
    path = Path(out, "results", f"{experiment}-{scale}.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    common = {"experiment": experiment, "scale": scale, "version": rhostream.__version__}
    table = pa.Table.from_pylist([{**common, **row} for row in rows], SCHEMA)
    part = path.with_suffix(f".{os.getpid()}.tmp")
    pq.write_table(table, part)
    os.replace(part, path)
    return str(path)


def stated(experiment: Experiment, name: str, scale: Scale, missing: Mapping[str, str]) -> str:
    """A scale in words: its worlds, arms, seeds, and what can't be had here."""
    lines = [f"{experiment.title} ({experiment.where}), {name}: {scale.says}; {scale.seeds} seeds"]
    for world in scale.worlds:
        lines.append(f"  {world.name}: {world.says}")
        for arm in scale.arms:
            if arm.world.name == world.name:
                shown = ", ".join(f"{k}={v}" for k, v in arm.settings.items())
                il = arm.world.ils[arm.il].fit["model"]
                lines.append(f"    {arm.name}: {arm.steps:,} steps ({arm.passes(arm.steps):.3g} passes), {shown}; "
                             f"il: {il}")  # fmt: skip
    lines += [f"  note: {note}" for note in experiment.notes]
    lines += [f"  left out: {why}" for why in missing.values()]
    return "\n".join(lines)
