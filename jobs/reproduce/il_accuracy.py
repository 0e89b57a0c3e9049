"""How good IL models are on the clean test set: what a target's accuracy is to be seen beside.

rho can't teach a target what its IL model doesn't know: a target that ends where its IL model is has learned that.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.reproduce.prepare import model_of, shards_of
from rhostream.il_model.networks import ILModel, load_il_model
from rhostream.runs import retention, tensors
from rhostream.training.evaluate import TestSet

if TYPE_CHECKING:
    from jobs.reproduce.execute import Training


def by_pass(training: Training) -> list[float]:
    """Accuracy of the run's IL model on its test set: one figure, or where it learned along one a checkpoint.

    The mean over the folds' networks; what was measured once is kept beside the model or the run.
    """
    arm, folder = training.arm, model_of(training.out, training.arm.world, training.arm.il)
    model, test = load_il_model(folder, str(arm.world.ils[arm.il].fit["model"])), _test(training)
    frozen = _kept(Path(folder).parent / f"accuracy-{arm.world.test.folder}.json", model, test)
    found: list[float] = []
    for state in retention.kept(training.folder) if "il_model" in arm.needs else ():
        names = [name for name in tensors.others_of(state) if name.startswith("live-")]
        if not names or not 0 < state.step <= arm.steps:
            continue
        for network, name in zip(model.networks, names, strict=True):
            network.load_state_dict(tensors.load_other(training.folder, state, name)["model"])
        kept = Path(training.out, "live", f"{arm.folder(training.seed)}-{state.step}.json")
        found.append(_kept(kept, model, test))
    return found or [frozen]


def _test(training: Training) -> str:
    return shards_of(training.out, training.arm.world.test)


def _kept(path: Path, model: ILModel, shards: str) -> float:
    """What the file says, or the model's accuracy on those shards, which it then says."""
    if not path.exists():
        test = TestSet([shards], model.preprocess, model.info.classes, model.info.decoder, 0)
        each = [float(test.evaluate(network.eval()).accuracy or 0.0) for network in model.networks]
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.tmp")
        part.write_text(json.dumps({"accuracy": sum(each) / len(each)}))
        os.replace(part, path)
    return float(json.loads(path.read_text())["accuracy"])
