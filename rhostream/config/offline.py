"""The settings of `fit-il`, `compute-il` and `index`, each told once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rhostream.config.shared import (
    CAPTION,
    CHOSEN_RESIZE,
    CONTENT,
    END_OF_TEXT,
    INIT,
    KIND,
    LOOKED_AT,
    LOSS,
    MODEL,
    RESIZE,
    ROOT,
    SHARDS,
    TASK,
    TASKS,
    TEXT_LENGTH,
    TOKENIZER,
    WORKERS,
    brief_config,
)
from rhostream.foreign import RESIZES
from rhostream.setting import check_types, setting

IMAGE_MEMBER = "Of several images in a sample the first of these is meant: jpg, or jpg,png."
LABEL = "Where labels stand: a field of the .json (category_id, a.b) or a member (label.cls, txt)."
CLASS_NAMES = "Names of the classes, one a line from label 0 on, or JSON: a label may be such a name."
RAY = "With --engine ray"
REFERENCE, SEEN = "With --reference", "as a look at some images says"
MIN_ACCURACY = "Refuse an IL model that is worse, or no better than naming the largest class."


@dataclass(frozen=True, kw_only=True)
class _OfflineConfig:
    """What every verb that walks the shards can be asked for."""

    shards: str | Iterable[str] = setting(help=SHARDS, metavar="URL...", place=True)
    roots: Mapping[str, str] | None = setting(None, help=ROOT, metavar="NAME=URL", option="root", place=True)
    workers: int = setting(0, help=WORKERS)
    max_bad_fraction: float = setting(
        0.01, help="More bad samples than this, in one shard or in all, stop the job: something systematic."
    )
    max_bad_samples: int | None = setting(
        None, help="More bad samples than this in the whole job stop it.", metavar="N", unset="by --max-bad-fraction"
    )
    max_bad_shards: float = setting(
        0.1,
        help="More unreadable shards than this stop the job: a number, or below 1 a fraction (10 are free).",
        metavar="N|F",
    )
    fail_fast: bool = setting(False, help="Stop at the first bad shard instead of naming it at the end.")
    allow_compressed: bool = setting(
        False, help="Inflate gzip shards into the spool; their table can be asked, not trained from."
    )
    accept_missing_eof: bool = setting(
        False, help="Take a tar without its end marker for whole; one cut between two members looks the same."
    )

    engine: str = setting(
        "local", help="Who reads shards and makes parts: this machine, or the actors of a Ray cluster (docs/ray.md).",
        choices=("local", "ray"),
    )  # fmt: skip
    actors: int | None = setting(
        None, help="At most so many; those that find no room wait for it.", heading=RAY, metavar="N",
        unset="as many as fit the cluster as it is",
    )  # fmt: skip
    cpus_per_actor: float = setting(1.0, help="Cores of each.", heading=RAY, metavar="C")
    ray_address: str | None = setting(
        None, help="The cluster: auto, or HOST:PORT.", heading=RAY, metavar="ADDRESS",
        unset="RAY_ADDRESS, else one of this machine",
    )  # fmt: skip

    @property
    def lenient(self) -> dict[str, Any]:
        """How strictly shards are read, as keywords."""
        return {"allow_compressed": self.allow_compressed, "accept_missing_eof": self.accept_missing_eof}

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class FitILConfig(_OfflineConfig):
    """What `fit-il` is asked for. Raises UsageError for a value of another type, naming the field."""

    verb: ClassVar[str] = "fit-il"
    __repr__ = brief_config

    out: str = setting(help="Folder of the IL model (weights and model.json).", metavar="DIR", place=True)
    model: str = setting("small-cnn", help=MODEL, imports=True)
    holdout: str | Iterable[str] | None = setting(
        None, help="Shards of their own to learn from.", metavar="URL...", place=True
    )
    holdout_fraction: float | None = setting(None, help="Learn from this fraction of the samples, chosen by hash.")
    folds: int = setting(
        2, help="Cross-fit: each model learns from the other folds and scores its own. Used without a holdout."
    )
    group_by: str | None = setting(
        None, help="Samples with the same value of this json field share a fold.", metavar="FIELD"
    )
    fit_samples: int = setting(100_000, help="Learn from at most this many.")
    epochs: int | None = setting(
        None, help="Passes over the samples that are learned from.", metavar="N",
        unset="until the loss of others no longer falls, at most 20 passes and 250,000 samples a network",
    )  # fmt: skip
    batch_size: int = setting(64, help="Samples of a gradient step.", command_line=False)
    lr: float = setting(1e-3, help="AdamW learning rate.")
    init: str | None = setting(None, help=INIT, metavar="WEIGHTS", place=True)
    classes: int | None = setting(None, help="Number of classes; else the largest label + 1.")
    image_size: int | None = setting(
        None, help="Pixels of the square input.", unset="the median of some images' shorter sides, at most 256"
    )
    channels: int | None = setting(
        None, help="1 for grey, 3 for RGB.", metavar="1|3", unset="RGB where any of some images has colour"
    )
    resize: str | None = setting(None, help=RESIZE, choices=RESIZES, unset=CHOSEN_RESIZE)
    image_member: str | None = setting(None, help=IMAGE_MEMBER, metavar="EXT,...")
    label: str | None = setting(None, help=LABEL, metavar="FIELD|EXT", unset=".cls, else label of the .json")
    class_names: str | None = setting(None, help=CLASS_NAMES, metavar="FILE", place=True)
    mean: Iterable[float] = setting((0.5,), help="Subtracted from pixels in [0, 1].", command_line=False)
    std: Iterable[float] = setting((0.5,), help="What pixels are divided by then.", command_line=False)
    decoder_name: str = setting("auto", help="auto, pillow, simplejpeg or turbo.", command_line=False)
    augment: str = setting("none", help="none, flip, shift or flip-shift.", command_line=False)
    memory_bytes: int = setting(8 << 30, help="What the samples that are held may take.", command_line=False)
    device: str | None = setting(None, help="cpu, cuda, cuda:1.", unset="cuda where there is one", command_line=False)
    seed: int = setting(0, help="Of everything that is drawn: weights, folds, order.")
    balance: str = setting(
        "none",
        help="Learn from every class alike: by drawing it as often, or by weighing its losses.",
        choices=("none", "sample", "weight"),
    )
    min_accuracy: float | None = setting(None, help=MIN_ACCURACY, metavar="F")
    kind: str | None = setting(None, help=KIND, metavar="NAME", imports=True)
    content: str | None = setting(None, help=CONTENT, metavar="KIND", unset=LOOKED_AT)
    caption: str | None = setting(None, help=CAPTION, metavar="FIELD", unset="the .txt")
    loss: str = setting("cross_entropy", help=LOSS, metavar="NAME", imports=True)
    tokenizer: str | None = setting(None, help=TOKENIZER, metavar="NAME", unset="the model's, else words:30000")
    text_length: int | None = setting(None, help=TEXT_LENGTH, metavar="T", unset="128")
    end_of_text: int | None = setting(None, help=END_OF_TEXT, metavar="ID")
    task: str | None = setting(None, help=TASK, choices=TASKS, unset="language of text-lm, label of any other")


@dataclass(frozen=True, kw_only=True)
class _TableConfig(_OfflineConfig):
    """What every verb that makes a table can be asked for."""

    keep: str | Mapping[str, str] | None = setting(
        None,
        help="Keep these fields of each sample's .json in the table (bool, int, float, str).",
        metavar="FIELD:TYPE,...",
        joined=True,
    )
    index: str | None = setting(
        None,
        help="Do every N-th shard by name, from the I-th on: one of N machines, I from 0; auto: as a Slurm array, an "
        "indexed Job of Kubernetes or SkyPilot numbers this job (docs/clusters.md). Budgets are each job's own.",
        metavar="I/N|auto",
    )
    table: str | None = setting(
        None,
        help="Add the fields of --keep to this table, in a new one with its rows and il; none is scored.",
        metavar="TABLE",
        option="from",
        place=True,
    )
    kind: str | None = setting(None, help=KIND, metavar="NAME", imports=True)


@dataclass(frozen=True, kw_only=True)
class ComputeILConfig(_TableConfig):
    """What `compute-il` is asked for. Raises UsageError for a value of another type, naming the field."""

    verb: ClassVar[str] = "compute-il"
    __repr__ = brief_config

    model: str | None = setting(
        None, help="The IL model's package.module:function, where it is your own code.", metavar="NAME", imports=True
    )
    loss: str | None = setting(
        None, help="What il is: a reference's loss, or the IL model's where it is your own module:function.",
        metavar="NAME", imports=True, unset="the IL model's, cross_entropy of a reference",
    )  # fmt: skip
    il_model: str | None = setting(None, help="What fit-il wrote.", metavar="DIR", place=True)
    reference: str | Callable[..., Any] | None = setting(
        None, help="Instead of an IL model a model that exists: torchvision:, timm:, hf: or open_clip:NAME with its "
        "weights, or package.module:function (docs/references.md).",
        metavar="NAME", imports=True,
    )  # fmt: skip
    vectors: str | None = setting(
        None, help="Of pairs: keep what the network sees of each beside the table, for joint rules.",
        choices=("float16", "int8"),
    )  # fmt: skip
    reference_id: str | None = setting(
        None, help="Which reference it is, where it can't prove that itself.", heading=REFERENCE, metavar="TEXT"
    )
    classes: int | None = setting(
        None, help="How many classes there are.", heading=REFERENCE, metavar="C", unset="as many as it has logits"
    )
    content: str | None = setting(None, help=CONTENT, heading=REFERENCE, metavar="KIND", unset=LOOKED_AT)
    caption: str | None = setting(None, help=CAPTION, heading=REFERENCE, metavar="FIELD", unset="the .txt")
    image_size: int | None = setting(None, help="Pixels of the square input.", heading=REFERENCE, unset=SEEN)
    channels: int | None = setting(None, help="1 for grey, 3 for RGB.", heading=REFERENCE, metavar="1|3", unset=SEEN)
    resize: str | None = setting(None, help=RESIZE, heading=REFERENCE, choices=RESIZES, unset=CHOSEN_RESIZE)
    image_member: str | None = setting(None, help=IMAGE_MEMBER, heading=REFERENCE, metavar="EXT,...")
    mean: Iterable[float] = setting((0.5,), help="Subtracted from pixels in [0, 1].", command_line=False)
    std: Iterable[float] = setting((0.5,), help="What pixels are divided by then.", command_line=False)
    label: str | None = setting(
        None, help=LABEL, heading=REFERENCE, metavar="FIELD|EXT", unset=".cls, else label of the .json"
    )
    class_names: str | None = setting(None, help=CLASS_NAMES, heading=REFERENCE, metavar="FILE", place=True)
    prompts: str | None = setting(
        None, help="Of a model of image and text: texts with {} for a class's name, one a line.", heading=REFERENCE,
        metavar="FILE", place=True, unset="a photo of a {}.",
    )  # fmt: skip
    batch_size: int | None = setting(
        None, help="Of pairs: n of the batches that the reference learned by, in which il is its loss.",
        heading=REFERENCE, metavar="N",
    )  # fmt: skip
    tokenizer: str | None = setting(
        None, help=TOKENIZER, heading=REFERENCE, metavar="NAME", unset="the reference's, else words:30000"
    )
    text_length: int | None = setting(None, help=TEXT_LENGTH, heading=REFERENCE, metavar="T", unset="128")
    end_of_text: int | None = setting(None, help=END_OF_TEXT, heading=REFERENCE, metavar="ID")
    task: str | None = setting(
        None, help="What the reference gives of a text.", heading=REFERENCE, choices=TASKS,
        unset="language of a causal model by name, label of any other",
    )  # fmt: skip
    out: str = setting(help="Where the IL table goes: one Parquet part a shard.", metavar="URL", place=True)
    min_accuracy: float | None = setting(None, help=MIN_ACCURACY, metavar="F")
    device: str | None = setting(None, help="cpu, cuda, cuda:1.", unset="cuda where there is one", command_line=False)
    gpus_per_actor: float = setting(
        0.0, help="GPUs of each, or the part of one; without any they score on their cores.", heading=RAY, metavar="G"
    )
    threads: int | None = setting(
        None, help="Threads of the model on a CPU: as many give the same bytes, others the same il to 1e-5 nats.",
        unset="the cores that the workers leave; 1 of an actor",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class IndexConfig(_TableConfig):
    """What `index` is asked for. Raises UsageError for a value of another type, naming the field."""

    verb: ClassVar[str] = "index"
    __repr__ = brief_config

    out: str = setting(help="The table.", metavar="URL", place=True)
    content: str | None = setting(None, help=CONTENT, metavar="KIND", unset=LOOKED_AT)
    caption: str | None = setting(None, help=CAPTION, metavar="FIELD", unset="the .txt")
    image_member: str | None = setting(None, help=IMAGE_MEMBER, metavar="EXT,...")
    label: str | None = setting(None, help=LABEL, metavar="FIELD|EXT", unset=".cls, else label of the .json")
    class_names: str | None = setting(None, help=CLASS_NAMES, metavar="FILE", place=True)
    resize: str | None = setting(
        None, help="How a run over the index makes squares of its images.", choices=RESIZES, unset=CHOSEN_RESIZE
    )
