"""Projects of Lightning's, run by its environment's python: `lightning_loop.py SPECS`, a JSON list of fits.

A fit is a folder and what differs from the plain one. Each prints a line of what became of it, behind "FIT ".
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import callbacks as known
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from torch import nn
from torch.nn.functional import cross_entropy

from rhostream.errors import RhostreamError
from rhostream.integrations.lightning import SelectionData

warnings.filterwarnings("ignore")
# A job of one process, whose requeueing finds no scontrol.
SLURM = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "fit", "SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0",
         "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DiesWhileWriting(TorchCheckpointIO):
    """Half of a checkpoint reaches the disk, and the process is gone."""

    def __init__(self, step: int) -> None:
        self.step = step

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        super().save_checkpoint(checkpoint, path)
        if checkpoint["global_step"] == self.step:
            whole = Path(path).read_bytes()
            Path(path).write_bytes(whole[: len(whole) // 2])
            die()


class Module(L.LightningModule):
    def __init__(self, spec: dict[str, Any]) -> None:
        super().__init__()
        self.spec, self.validated, self.losses = spec, 0, 0
        self.automatic_optimization = "manual" not in spec
        torch.manual_seed(0)
        drop = nn.Dropout(spec.get("dropout", 0.2))
        if spec.get("net") == "cnn":
            parts = [nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), drop, nn.Linear(196, 4)]
        else:
            parts = [nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), drop, nn.Linear(16, 4)]
        self.net = nn.Sequential(*parts)

    def forward(self, x: Any) -> Any:
        scored = not self.training and self.trainer.training
        if self.spec.get("requeued") == ("scored" if scored else "trained") and self.global_step == self.spec["at"]:
            del self.spec["requeued"]
            os.kill(os.getpid(), signal.SIGUSR1)
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        at = self.spec.get("at", -1)
        if self.global_step == at and self.spec.get("kill") == "step":
            die()
        if self.global_step == at and "signal" in self.spec:
            os.kill(os.getpid(), getattr(signal, self.spec["signal"]))
        if self.global_step == at and "raises" in self.spec:
            raise ValueError("on purpose")
        if self.spec.get("none_at") == batch_idx:
            return None
        loss = cross_entropy(self(x), y)
        self.losses += 1
        if self.automatic_optimization:
            self.log("loss", loss)
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.spec["manual"] == 1 or batch_idx % 2:
            optimizer.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.validated += not self.trainer.sanity_checking
        if self.spec.get("kill") == "validation" and self.global_step == self.spec["at"]:
            die()
        self.log("accuracy", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        self.estimated = self.trainer.estimated_stepping_batches
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)
        steps = self.spec.get("schedule", max(int(self.estimated), 1))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(spec: dict[str, Any]) -> dict[str, Any]:
    folder, world = Path(spec["folder"]), spec["world"]
    saver = known.ModelCheckpoint(folder / "checkpoints", "{step}", save_top_k=-1, save_last=True,
                                  auto_insert_metric_name=False,
                                  **spec.get("saver", {"every_n_train_steps": 20}))  # fmt: skip
    if (scheduling := spec.get("scheduling")) is not None:
        spec.setdefault("callbacks", {})["GradientAccumulationScheduler"] = {
            "scheduling": {int(epoch): pieces for epoch, pieces in scheduling.items()}
        }
    more = [getattr(known, name)(**arguments) for name, arguments in spec.get("callbacks", {}).items()]
    plugins = [DiesWhileWriting(spec["at"])] if spec.get("kill") == "save" else []
    plugins += [AsyncCheckpointIO()] if "async" in spec else []
    if "requeued" in spec:
        os.environ |= SLURM
        plugins.append(SLURMEnvironment(auto_requeue=True))
    trainer = L.Trainer(
        accelerator="cpu", callbacks=[saver, *more], plugins=plugins, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
        **{"devices": 1, "max_epochs": 8, **spec.get("trainer", {})},
    )  # fmt: skip
    module = Module(spec)
    images = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    validation = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, torch.arange(20) % 4), batch_size=10
    )
    data = SelectionData(
        f"{world}/shards", f"{world}/il", folder / "run", data=validation,
        **{"batch_size": 8, "buffer_size": 40, "config": {"lr": 1e-2}, **spec.get("data", {})},
    )  # fmt: skip
    error, resumed = "", spec.get("resume")
    try:
        trainer.fit(
            module, datamodule=data, ckpt_path=str(folder / resumed) if resumed not in (None, "last") else resumed
        )
    except (RhostreamError, ValueError, L.pytorch.utilities.exceptions.SIGTERMException) as exc:
        error = f"{type(exc).__name__}: {exc}"
    if not error:
        trainer.save_checkpoint(folder / "end.ckpt")
        data.batches.confirm()  # nothing of the Trainer's comes after it
        trainer.validate(module, datamodule=data, verbose=False)
    for name in SLURM:
        os.environ.pop(name, None)
    return {
        "error": error, "steps": trainer.global_step, "epoch": trainer.current_epoch, "losses": module.losses,
        "validated": module.validated, "batches": trainer.num_training_batches,
        "estimated": getattr(module, "estimated", None),
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    for spec in json.loads(sys.argv[1]):
        print("FIT", json.dumps(fit(spec), default=str), flush=True)
