"""The offline wing end to end against the forward alone: what tar, decode, tables and commits cost on top of a model.

One side is `compute_il` over shards of 28-pixel PNGs; the other a loop over the same pixels in memory, normalised and
run through the same network in the same chunks with the same threads.
"""

from __future__ import annotations

import itertools
import tempfile
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import data
from benchmarks.measure import Figure, interleave, ratios, timed
from rhostream.irreducible import compute_il, fit_il
from rhostream.irreducible.model import ILModel, load_il_model
from rhostream.stream.scan import Chunk, ScanSettings, scan

# (model, shards, samples a shard, target): the heavier the model, the fewer samples a side needs to be timed well
CASES = [
    ("small-cnn", 60, 100, 0.9),
    ("small-cnn", 12, 1000, 0.9),
    ("resnet18-small", 8, 100, 0.9),
    ("mlp-256", 60, 100, None),
]


def run(pairs: int) -> list[Figure]:
    """Throughput of compute-il over that of the bare forward loop, model by model; starting a worker counts."""
    figures, runs = list[Figure](), itertools.count()
    for name, count, samples, target in CASES:
        shards = data.drawings(max(count, 60 if samples == 100 else 0), samples)
        own, rounds = shards[:count], pairs if name != "resnet18-small" else min(pairs, 3)
        with tempfile.TemporaryDirectory() as folder:
            fit_il(own[:1], f"{folder}/model", model=name, holdout=shards[-1:], classes=data.CLASSES, fit_samples=100,
                   epochs=1)  # fmt: skip
            model = load_il_model(f"{folder}/model")
            chunks = pixels(own, model)
            network = model.networks[0].to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            forward(network, model, chunks[:2])
            for workers in (0, 1):
                sides = [
                    lambda folder=folder, own=own, workers=workers: compute_il(  # type: ignore[misc]
                        own, f"{folder}/model", f"{folder}/il{next(runs)}", workers=workers
                    ),
                    partial(forward, network, model, chunks),
                ]
                ours, bare = interleave([partial(timed, side) for side in sides], rounds)
                line = partial(Figure, "offline", f"{name}, {count} shards of {samples:,}, {workers} workers")
                figures += [
                    line("samples/s over bare forward", ratios(bare, ours), None if workers else target),
                    line("compute-il", tuple(count * samples / s for s in ours), unit="samples/s"),
                    line("bare forward", tuple(count * samples / s for s in bare), unit="samples/s"),
                ]
    return figures


def pixels(shards: list[str], model: ILModel) -> list[Tensor]:
    """The chunks that compute-il forwards, as uint8 tensors in memory."""
    settings = ScanSettings(preprocess=model.preprocess, decoder_name=model.info.decoder)
    chunks = []
    for message in scan([(shard, shard) for shard in shards], settings):
        if isinstance(message, Chunk) and message.image is not None:
            chunks.append(message.image.clone())
    return chunks


@torch.inference_mode()
def forward(network: nn.Module, model: ILModel, chunks: list[Tensor]) -> None:
    """The floor: normalise and forward, nothing else."""
    for chunk in chunks:
        network(model.preprocess.normalize(chunk))
