"""Pictures of a WebDataset, trained with FSDP2 and torch.distributed.checkpoint: nothing in it knows of rhostream.

    torchrun --nproc-per-node 2 train.py --shards shards --test test --epochs 4

bf16, activation checkpointing, accumulation, clipping, a schedule, torch.compile, validation, a folder for each
checkpoint. `selected.patch` beside it is what selection, ledger and exact resume change.
"""

import argparse
import glob
import itertools
import os
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import webdataset as wds
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

parser = argparse.ArgumentParser()
parser.add_argument("--shards", default="shards")
parser.add_argument("--test", default="test")
parser.add_argument("--out", default="out")
parser.add_argument("--model", default="mlp", choices=["mlp", "cnn"])
parser.add_argument("--classes", type=int, default=4)
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--batch-size", type=int, default=32, help="of all processes together")
parser.add_argument("--accumulate", type=int, default=2)
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--compile", action="store_true")
parser.add_argument("--checkpoint-activations", action="store_true")
parser.add_argument("--save-every", type=int, default=20, help="batches; a multiple of --accumulate")


def pictures(folder: str, epochs: int = 1) -> wds.WebDataset:
    """(x, label) in the order of the shards, of this rank's shards; x float32 (1, H, W)."""
    shards = sorted(glob.glob(f"{folder}/*.tar"))
    data = wds.WebDataset(shards, shardshuffle=False, nodesplitter=wds.split_by_node, empty_check=False)
    data = data.decode("torchl").to_tuple("png", "cls").map_tuple(lambda x: (x[None] - 0.5) / 0.5, int)
    return data.repeat(nepochs=epochs)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU())
        self.outer = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.inner(x))


def network(name: str, classes: int, pixels: int) -> nn.Sequential:
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 32), Block(32), Block(32), nn.Linear(32, classes))
    layers = [nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16)]
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, classes)]
    return nn.Sequential(*layers, *head)


class AppState(Stateful):
    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def accuracy(model: nn.Module, test: list[tuple[Tensor, Tensor]]) -> float:
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == label).sum()) for x, label in test)
    model.train()
    return right / sum(len(label) for _, label in test)


def main() -> None:
    args = parser.parse_args()
    n_b, k, cuda = args.batch_size, args.accumulate, torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    torch.manual_seed(0)
    model = network(args.model, args.classes, 16 * 16).to(device)
    half = torch.bfloat16 if args.bf16 else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, output_dtype=torch.float32)
    for at, layer in enumerate(model):
        if isinstance(layer, Block):
            if args.checkpoint_activations:
                model[at] = layer = checkpoint_wrapper(layer)
            if args.compile:
                layer.compile()
            fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 20, gamma=0.9)
    alone = wds.WebDataset(sorted(glob.glob(f"{args.test}/*.tar")), shardshuffle=False, nodesplitter=None)
    rows = list(alone.decode("torchl").to_tuple("png", "cls"))
    x, label = torch.stack([x[None] for x, _ in rows]), torch.tensor([int(label) for _, label in rows])
    test = [(((x - 0.5) / 0.5).to(device), label.to(device))]
    train = DataLoader(pictures(args.shards, args.epochs), batch_size=n_b // dist.get_world_size(), drop_last=True)
    parts: dict[str, Any] = {"app": AppState(model, optimizer, scheduler)}

    # A checkpoint whose metadata isn't there is one that a killed save left.
    step, saved = 0, sorted(os.path.dirname(path) for path in glob.glob(f"{args.out}/step_*/.metadata"))
    if saved:
        dcp.load(parts, checkpoint_id=saved[-1])
        step = int(saved[-1].rpartition("_")[2])
    for x, label in itertools.islice(train, step, None):
        step += 1
        closing = step % k == 0
        model.set_requires_gradient_sync(closing)
        loss = cross_entropy(model(x.to(device)), label.to(device))
        (loss / k).backward()
        if closing:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if step % args.save_every == 0:
            dcp.save(parts, checkpoint_id=f"{args.out}/step_{step:06d}")
    if step % args.save_every:
        dcp.save(parts, checkpoint_id=f"{args.out}/step_{step:06d}")
    right = accuracy(model, test)
    if dist.get_rank() == 0:
        print(f"{step} steps: {right:.3f} of the test set", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
