"""One loader a function: each gives batches of 320 images decoded to 224 pixels, for ever or for one long epoch.

All decode with rhostream's own function, into a fresh array where the library has no buffers to reuse; "as used" is the
exception, Pillow and the default collate as most training scripts have it. Shuffling is on wherever it is usual.
Imports are inside: a peer needs only itself installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader

from rhostream.samples.decoders import decoder
from rhostream.samples.kind import OK

SHUFFLE = 1000  # samples in a shuffle buffer, where a library has one


@dataclass(frozen=True)
class Task:
    """What every side is given."""

    shards: list[str]
    folder: str  # holds the IL table `il`, and the peers' own copies of the images
    decoder: str = "pillow"
    workers: int = 2
    buffer_size: int = 320
    image_size: int = 224


def decode(task: Task, image: bytes) -> npt.NDArray[np.uint8]:
    """The decode function that all sides share, into a fresh array."""
    out = np.empty((task.image_size, task.image_size, 3), np.uint8)
    assert decoder(task.decoder)[1](image, out) == OK
    return out


def rhostream(task: Task) -> Iterator[Any]:
    """open_stream with the IL joined."""
    from rhostream import open_stream

    return iter(open_stream(task.shards, f"{task.folder}/il", buffer_size=task.buffer_size, workers=task.workers,
                            passes=None, image_size=task.image_size, decoder=task.decoder))  # fmt: skip


def webdataset(task: Task) -> Iterator[Any]:
    """Plain, in order, with the same decode function."""
    import webdataset as wds

    plain = wds.WebDataset(task.shards, shardshuffle=False).repeat().to_tuple("jpg", "cls")
    plain = plain.map_tuple(partial(decode, task), int)
    context = "forkserver" if task.workers else None
    return iter(wds.WebLoader(plain, batch_size=task.buffer_size, num_workers=task.workers,
                              multiprocessing_context=context))  # fmt: skip


def webdataset_as_used(task: Task) -> Iterator[Any]:
    """As its tutorials have it: shuffle, decode to a PIL image, resize and crop, to a float tensor, default collate."""
    import webdataset as wds

    plain = wds.WebDataset(task.shards, shardshuffle=100).repeat().shuffle(SHUFFLE).decode("pil")
    plain = plain.to_tuple("jpg", "cls").map_tuple(partial(_resize, task.image_size), _same)
    return iter(wds.WebLoader(plain, batch_size=task.buffer_size, num_workers=task.workers))


def _resize(size: int, image: Any) -> Any:
    """Resize(size), CenterCrop(size), ToTensor() as torchvision does them, without torchvision."""
    import torch

    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), 2)  # bilinear
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.array(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def _same(value: Any) -> Any:
    return value


def mosaicml_streaming(task: Task) -> Iterator[Any]:
    """Its own format, its StreamingDataset with a decoding __getitem__, torch's DataLoader."""
    from benchmarks.peers import torchvision_ops  # noqa: F401  # isort: skip
    import streaming

    class Images(streaming.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> Any:
            sample = super().__getitem__(at)
            return decode(task, sample["jpg"]), sample["cls"]

    streaming.base.util.clean_stale_shared_memory()
    local = Path(task.folder) / "mds"
    images = Images(local=str(local), shuffle=True, batch_size=task.buffer_size, num_canonical_nodes=1)
    return iter(DataLoader(images, batch_size=task.buffer_size, num_workers=task.workers))


def litdata(task: Task) -> Iterator[Any]:
    """Its own format, its StreamingDataset with a decoding transform, its StreamingDataLoader."""
    from benchmarks.peers import torchvision_ops  # noqa: F401  # isort: skip
    import litdata

    def transform(sample: Any) -> Any:
        return decode(task, sample["jpg"]), sample["cls"]

    images = litdata.StreamingDataset(f"{task.folder}/litdata", shuffle=True, transform=transform)
    return iter(litdata.StreamingDataLoader(images, batch_size=task.buffer_size, num_workers=task.workers))


def huggingface_datasets(task: Task) -> Iterator[Any]:
    """load_dataset("webdataset", streaming=True) on the same tars, its shuffle and map, torch's DataLoader."""
    import datasets

    table = datasets.load_dataset("webdataset", data_files={"train": task.shards}, split="train", streaming=True,
                                  cache_dir=f"{task.folder}/hf")  # fmt: skip
    table = table.cast_column("jpg", datasets.Image(decode=False)).shuffle(seed=0, buffer_size=SHUFFLE)

    def transform(sample: Any) -> Any:
        return {"image": decode(task, sample["jpg"]["bytes"]), "label": int(sample["cls"])}

    table = table.map(transform, remove_columns=table.column_names)
    return iter(DataLoader(table, batch_size=task.buffer_size, num_workers=task.workers))


def prepare(name: str, task: Task) -> None:
    """Copy the images into a peer's own format, unless they are there."""
    import webdataset as wds

    def samples() -> Iterator[dict[str, Any]]:
        for sample in wds.WebDataset(task.shards, shardshuffle=False):
            yield {"jpg": sample["jpg"], "cls": int(sample["cls"])}

    if name == "mosaicml-streaming" and not (Path(task.folder) / "mds").exists():
        from benchmarks.peers import torchvision_ops  # isort: skip
        import streaming

        with streaming.MDSWriter(out=f"{task.folder}/mds", columns={"jpg": "bytes", "cls": "int"}) as out:
            for sample in samples():
                out.write(sample)
    if name == "litdata" and not (Path(task.folder) / "litdata").exists():
        from benchmarks.peers import torchvision_ops  # noqa: F401  # isort: skip
        import litdata

        litdata.optimize(fn=_same, inputs=list(samples()), output_dir=f"{task.folder}/litdata", chunk_bytes="16MB",
                         num_workers=1, start_method="fork")  # fmt: skip


OWN = ("rhostream", "webdataset", "webdataset as used")  # these run in the project's environment
# In the order in which they take turns, before the bare loops: ours is right beside those, which it is held to.
SIDES: dict[str, Callable[[Task], Iterator[Any]]] = {
    "webdataset": webdataset,
    "webdataset as used": webdataset_as_used,
    "mosaicml-streaming": mosaicml_streaming,
    "litdata": litdata,
    "HF datasets": huggingface_datasets,
    "rhostream": rhostream,
}
