"""Pictures of a WebDataset, trained with Hugging Face Accelerate: nothing in it knows of rhostream.

    accelerate launch train.py --shards shards --test test --epochs 4

accumulation, bf16, clipping, an average of the weights, a schedule, validation, checkpoints that are whole or absent.
`selected.patch` beside it is what selection, ledger and exact resume change.
"""

import argparse
import glob
import os

import torch
import webdataset as wds
from accelerate import Accelerator, DataLoaderConfiguration
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

parser = argparse.ArgumentParser()
parser.add_argument("--shards", default="shards")
parser.add_argument("--test", default="test")
parser.add_argument("--out", default="out")
parser.add_argument("--model", default="mlp", choices=["mlp", "cnn"])
parser.add_argument("--classes", type=int, default=4)
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--steps", type=int, default=200, help="of the learning rate's schedule")
parser.add_argument("--batch-size", type=int, default=32, help="of all processes together")
parser.add_argument("--accumulate", type=int, default=2)
parser.add_argument("--precision", default="no", choices=["no", "bf16"])
parser.add_argument("--save-every", type=int, default=20, help="batches; a multiple of --accumulate")


def pictures(folder: str, epochs: int = 1) -> wds.WebDataset:
    """(x, label) in the order of the shards, x float32 (1, H, W)."""
    shards = sorted(glob.glob(f"{folder}/*.tar"))
    data = wds.WebDataset(shards, shardshuffle=False, nodesplitter=None).decode("torchl").to_tuple("png", "cls")
    return data.map_tuple(lambda x: (x[None] - 0.5) / 0.5, int).repeat(nepochs=epochs)


def network(name: str, classes: int) -> nn.Module:
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(64), nn.ReLU(), nn.Linear(64, classes))
    layers = [nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16)]
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, classes)]
    return nn.Sequential(*layers, *head)


def accuracy(accelerator: Accelerator, model: nn.Module, test: DataLoader) -> float:
    model.eval()
    right, seen = 0, 0
    with torch.no_grad():
        for x, label in test:
            guess, label = accelerator.gather_for_metrics((model(x).argmax(1), label))
            right, seen = right + int((guess == label).sum()), seen + len(label)
    model.train()
    return right / seen


def save(accelerator: Accelerator, folder: str) -> None:
    if os.path.exists(folder):
        return
    accelerator.save_state(folder + ".part")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.rename(folder + ".part", folder)
    accelerator.wait_for_everyone()


def main() -> None:
    args = parser.parse_args()
    # Batches are those of all processes, so a prepared scheduler steps once for each.
    loaders = DataLoaderConfiguration(split_batches=True)
    accelerator = Accelerator(
        mixed_precision=args.precision, gradient_accumulation_steps=args.accumulate, dataloader_config=loaders
    )
    torch.manual_seed(0)
    model = network(args.model, args.classes)
    model(torch.zeros(2, 1, 16, 16))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99)).to(accelerator.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps // args.accumulate + 1)
    test = DataLoader(pictures(args.test), batch_size=args.batch_size)
    model, optimizer, scheduler, test = accelerator.prepare(model, optimizer, scheduler, test)
    train = accelerator.prepare(DataLoader(pictures(args.shards, args.epochs), batch_size=args.batch_size))
    accelerator.register_for_checkpointing(average)

    step, saved = 0, [path for path in sorted(glob.glob(f"{args.out}/step_*")) if not path.endswith(".part")]
    if saved:
        accelerator.load_state(saved[-1])
        step = int(saved[-1].rpartition("_")[2])
        train = accelerator.skip_first_batches(train, step)
    for x, label in train:
        step += 1
        with accelerator.accumulate(model):
            loss = cross_entropy(model(x), label)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            average.update_parameters(accelerator.unwrap_model(model))
        if step % args.save_every == 0:
            right = accuracy(accelerator, average, test)
            accelerator.print(f"step {step}: {right:.3f} of the test set", flush=True)
            save(accelerator, f"{args.out}/step_{step:06d}")
    save(accelerator, f"{args.out}/step_{step:06d}")
    accelerator.print(f"{step} steps: {accuracy(accelerator, average, test):.3f} of the test set", flush=True)
    accelerator.end_training()


if __name__ == "__main__":
    main()
