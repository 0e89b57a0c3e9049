"""An ordinary project on Hugging Face's Trainer: a classifier of the images of webdataset shards.

    torchrun --nproc-per-node 2 train.py --output_dir out --max_steps 200 --per_device_train_batch_size 32

The model's config lies in model/, the shards in shards/ and test/. `selection.patch` is what it takes to train on the
images that a rule keeps: `git apply selection.patch`.
"""

from __future__ import annotations

import glob
import sys
from typing import Any

import torch
import webdataset
from transformers import AutoConfig, AutoModelForImageClassification, HfArgumentParser, Trainer, TrainingArguments


def images(folder: str) -> Any:
    """Of the shards of a folder, pixels in -1 to 1 beside the label."""
    return (
        webdataset.WebDataset(sorted(glob.glob(f"{folder}/*.tar")), shardshuffle=False, empty_check=False)
        .decode("torchl")
        .map(lambda sample: {"pixel_values": sample["png"] * 2 - 1, "labels": int(sample["cls"])})
    )


def accuracy(predicted: Any) -> dict[str, float]:
    """Of the test images."""
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


def main(options: list[str]) -> None:
    """Train, from the newest checkpoint where there is one."""
    [args] = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(options)
    torch.manual_seed(args.seed)
    model = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained("model"))
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=images("shards").shuffle(1000),
        eval_dataset=list(images("test")),
        compute_metrics=accuracy,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or None)
    print(trainer.evaluate())


if __name__ == "__main__":
    main(sys.argv[1:])
