"""The offline wing end to end against what it can't do without: the bare decode and the bare forward of the samples.

One side is `compute_il`. The other two are the decoder in a loop over bytes in memory into a reused buffer, and the
network in a loop over the same chunks of pixels in memory, with the same threads; their seconds are added. Tar, tables
and commits are ours alone. With workers the question is another: what share of their CPU time is the decoder's.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import data
from benchmarks.measure import Figure, cpu_seconds, interleave, ratios, timed
from rhostream import storage
from rhostream.il_model.networks import ILModel, load_il_model
from rhostream.irreducible import compute_il, fit_il
from rhostream.samples.decoders import decoder
from rhostream.samples.fields import Fields
from rhostream.samples.image import EXTENSIONS as IMAGE_EXTENSIONS
from rhostream.samples.image import ImageKind
from rhostream.stream.scan import Chunk, ScanSettings, scan
from rhostream.stream.tar import TarWalk

# (model, shards, samples a shard, target): the heavier the model, the fewer samples a side needs to be timed well
CASES = [
    ("small-cnn", 60, 100, 0.98),
    ("small-cnn", 12, 1000, 0.95),
    ("resnet18-small", 4, 100, 0.95),
    ("mlp-256", 60, 100, None),
]
BUSY = 0.9


def run(pairs: int) -> list[Figure]:
    """Throughput of compute-il over decode and forward, model by model; then the decoder's share of the workers."""
    figures, runs = list[Figure](), itertools.count()
    for name, count, samples, target in CASES:
        shards = data.drawings(max(count, 60 if samples == 100 else 0), samples)
        own = shards[:count]
        with tempfile.TemporaryDirectory() as folder:
            fit_il(own[:1], f"{folder}/model", model=name, holdout=shards[-1:], classes=data.CLASSES, fit_samples=100,
                   resize="crop", epochs=1)  # fmt: skip
            model = load_il_model(f"{folder}/model")
            chunks, encoded = pixels(own, model), images(own)
            network = model.networks[0].to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            sides = [
                lambda folder=folder, own=own: compute_il(  # type: ignore[misc]
                    own, f"{folder}/model", f"{folder}/il{next(runs)}"
                ),
                partial(decode, encoded, model.preprocess, model.info.decoder),
                partial(forward, network, model, chunks),
            ]
            sides[0](), forward(network, model, chunks[:2])
            ours, decoding, forwarding = interleave([partial(timed, side) for side in sides], pairs)
        paid = [a + b for a, b in zip(decoding, forwarding, strict=True)]
        line = partial(Figure, "offline", f"{name}, {count} shards of {samples:,}")
        figures += [
            line("samples/s over bare decode + bare forward", ratios(paid, ours), target),
            line("samples/s over bare forward", ratios(forwarding, ours)),
            line("compute-il", tuple(count * samples / s for s in ours), unit="samples/s"),
            line("bare decode", tuple(count * samples / s for s in decoding), unit="samples/s"),
            line("bare forward", tuple(count * samples / s for s in forwarding), unit="samples/s"),
        ]
    return figures + busy(pairs)


def busy(pairs: int) -> list[Figure]:
    """The decoder's share of the workers' CPU time, with nobody slower behind them."""
    figures = []
    small, large = ImageKind(image_size=28, channels=1), ImageKind(image_size=224)
    cases = [
        ("28-pixel PNGs", data.drawings(12, 1000), small, "pillow", 4),
        ("256-pixel JPEGs to 224", data.photos(), large, "pillow", 1),
        ("256-pixel JPEGs to 224", data.photos(), large, "simplejpeg", 1),
    ]
    for (case, shards, preprocess, name, times), workers in itertools.product(cases, (1, 2)):
        encoded = images(shards[:2])
        sides = [partial(bare_cpu, encoded, preprocess, name), partial(worker_cpu, shards * times, preprocess, name,
                                                                       workers)]  # fmt: skip
        bare, scanned = interleave(sides, pairs)
        line = partial(Figure, "offline", f"{case}, {name}, {workers} workers")
        figures += [
            line("decoder's share of the workers' CPU", ratios(bare, scanned), BUSY),
            line("bare decode", tuple(1e6 * s for s in bare), unit="us CPU a sample"),
            line("worker", tuple(1e6 * s for s in scanned), unit="us CPU a sample"),
        ]
    return figures


def images(shards: list[str]) -> list[bytes]:
    """The bytes of every sample's image."""
    found = []
    for shard in shards:
        with storage.open_reader(shard) as reader:
            for sample in TarWalk(reader, shard):
                found += [reader.pread(n, at) for extension, at, n in sample.members if extension in IMAGE_EXTENSIONS]
    return found


def decode(encoded: list[bytes], preprocess: ImageKind, name: str) -> None:
    """The first floor: the decoder and a buffer that is used again."""
    buffer, into = np.empty((512, *preprocess.fields()["pixels"].shape), np.uint8), decoder(name)[1]
    for number, image in enumerate(encoded):
        into(image, buffer[number % 512])


def bare_cpu(encoded: list[bytes], preprocess: ImageKind, name: str) -> float:
    """CPU seconds a sample of the first floor."""
    start = time.process_time()
    decode(encoded, preprocess, name)
    return (time.process_time() - start) / len(encoded)


def worker_cpu(shards: list[str], preprocess: ImageKind, name: str, workers: int) -> float:
    """CPU seconds a sample of a scan's workers, from their first chunk on."""
    settings, rows, started = ScanSettings(kind=preprocess.with_decoder(name)), 0, 0.0
    for message in scan([(url, str(number)) for number, url in enumerate(shards)], settings, workers=workers):
        if isinstance(message, Chunk):
            rows += len(message)
            if not started:
                # What the workers have done by now is about one more chunk each than what has come.
                started, rows = cpu_seconds() - time.process_time(), -workers * len(message)
            last = cpu_seconds() - time.process_time()
    return (last - started) / rows


def pixels(shards: list[str], model: ILModel) -> list[Tensor]:
    """The chunks that compute-il forwards, as uint8 tensors in memory."""
    settings = ScanSettings(kind=model.preprocess)
    chunks = []
    for message in scan([(shard, shard) for shard in shards], settings):
        if isinstance(message, Chunk):
            chunks.append(message.fields["pixels"].clone())
    return chunks


@torch.inference_mode()
def forward(network: nn.Module, model: ILModel, chunks: list[Tensor]) -> None:
    """The second floor: normalise and forward, nothing else."""
    for chunk in chunks:
        network(model.preprocess.inputs(Fields({"pixels": chunk})))
