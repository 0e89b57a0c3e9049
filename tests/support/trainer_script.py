"""Scripts of Hugging Face's Trainer as people write them, for the tests that run, kill and resume them.

    python -m tests.support.trainer_script '[{"world": ..., "out": ..., "kind": "image", ...}]'

`kill`: {"step": N} behind an update, {"substep": N} inside the one after N, {"save": N} in the middle of that
checkpoint; `stop`: {"substep": N}: the training ends inside the update after N.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from rhostream.errors import RhostreamError

IMAGE = {"image_size": 16, "num_channels": 1, "num_labels": 4}
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


class Plain(torch.nn.Module):
    """No model of transformers': it knows of no other keywords, and its loss is a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 4))

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.layers(pixel_values)
        return {"logits": logits} if labels is None else {
            "loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits
        }  # fmt: skip


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "plain":
        return Plain()
    if kind in ("image", "still"):
        return transformers.ViTForImageClassification(
            transformers.ViTConfig(**IMAGE, **SMALL, patch_size=4, hidden_dropout_prob=0.1 if kind == "image" else 0.0)
        )
    if kind == "resnet":
        return transformers.ResNetForImageClassification(
            transformers.ResNetConfig(**IMAGE, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        )
    if kind == "text":
        return transformers.BertForSequenceClassification(
            transformers.BertConfig(**SMALL, vocab_size=300, max_position_embeddings=64, num_labels=4)
        )
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=1, n_head=2, bos_token_id=0)
    )


class Kills(TrainerCallback):
    """Ends the process, or the training, where it was asked for."""

    def __init__(self, kill: dict[str, int], stop: dict[str, int]) -> None:
        self.kill, self.stop = kill, stop

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        if self.kill.get("step") == state.global_step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_substep_end(self, args: Any, state: Any, control: Any, **options: Any) -> Any:
        if self.kill.get("substep") == state.global_step:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.stop.get("substep") == state.global_step:
            control.should_training_stop = True
        return control


class Average(TrainerCallback):
    """Of the weights, as people keep it by a callback."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **options: Any) -> None:
        for name, value in model.state_dict().items():
            old = self.weights.setdefault(name, value.clone())
            old.mul_(0.9).add_(value, alpha=0.1)


class Test(torch.utils.data.Dataset[Any]):
    """Of test images or texts: the stream's own shards, decoded once."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.rows[row]


def test_images(folder: str) -> Test:
    import webdataset

    rows = []
    for sample in webdataset.WebDataset(sorted(map(str, Path(folder).glob("*.tar"))), shardshuffle=False).decode("l"):
        rows.append({"pixel_values": torch.tensor(sample["png"])[None] * 2 - 1, "labels": int(sample["cls"])})
    return Test(rows)


def accuracy(predicted: Any) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


def main(asked: dict[str, Any]) -> dict[str, Any]:
    from rhostream.integrations.huggingface import SelectionTrainer

    kind, kill, world = asked.get("kind", "image"), asked.get("kill", {}), asked["world"]

    class Mine(SelectionTrainer):
        def _save_rng_state(self, output_dir: str) -> None:
            if kill.get("save") == self.state.global_step:
                os.kill(os.getpid(), signal.SIGKILL)
            super()._save_rng_state(output_dir)

    given = {
        "per_device_train_batch_size": 8, "max_steps": 200, "save_steps": 50, "logging_steps": 5, "learning_rate": 2e-3,
        **asked.get("arguments", {}),
    }  # fmt: skip
    arguments = TrainingArguments(asked["out"], use_cpu=True, report_to=[], disable_tqdm=True, **given)
    average = Average()
    callbacks = [Kills(kill, asked.get("stop", {})), average]
    if asked.get("patience"):
        callbacks.append(EarlyStoppingCallback(asked["patience"]))
    test = test_images(f"{world}/test") if asked.get("evaluated") else None
    model = model_of(kind)
    trainer = Mine(
        model, arguments, shards=f"{world}/shards", il=f"{world}/il", eval_dataset=test, callbacks=callbacks,
        compute_metrics=accuracy if test is not None else None, **{"buffer_size": 40, **asked.get("options", {})},
    )  # fmt: skip
    result = trainer.train(resume_from_checkpoint=asked.get("resume"))
    if trainer.args.should_save:
        torch.save({"model": copy.deepcopy(model.state_dict()), "average": average.weights}, f"{asked['out']}/end.pt")
    return {"step": result.global_step, "history": trainer.state.log_history, "epoch": trainer.state.epoch}


if __name__ == "__main__":
    told = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    try:
        print(json.dumps([main(asked) for asked in told]))
    except RhostreamError as exc:
        sys.exit(f"{type(exc).__name__}: {exc}")
