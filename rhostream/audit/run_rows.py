"""The rows of the view `runs`: what each run was and what it cost."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from rhostream.audit.alike import digest_of, setting_of
from rhostream.audit.runs import RunFolder

RUNS = pa.schema(
    [
        ("run", pa.string()), ("rule", pa.string()), ("model", pa.string()), ("buffer_size", pa.int64()),
        ("batch_size", pa.int64()), ("seed", pa.int64()), ("loss_cap", pa.bool_()), ("steps", pa.int64()),
        ("last_step", pa.int64()), ("complete", pa.bool_()), ("forward_units", pa.float64()),
        ("il_units", pa.float64()), ("macs", pa.int64()), ("il_accuracy", pa.float64()),
        ("keep_list_units", pa.float64()), ("setting", pa.string()),
    ]
)  # fmt: skip


def run_row(run: RunFolder) -> dict[str, Any]:
    settings, cost = run.settings, run.cost
    return {
        **{name: settings.get(name) for name in ("rule", "model", "buffer_size", "batch_size", "seed")},
        "run": run.name, "loss_cap": bool(settings.get("loss_cap")), "last_step": run.last_step,
        "steps": run.steps, "complete": run.complete,
        "forward_units": cost.get("forward_units"), "il_units": cost.get("il_units"), "macs": cost.get("macs"),
        "il_accuracy": run.il_model.get("accuracy"), "keep_list_units": cost.get("keep_list_units"),
        "setting": digest_of(setting_of(run)),
    }  # fmt: skip
