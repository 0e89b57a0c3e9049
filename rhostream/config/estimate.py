"""The settings of `estimate`, each told once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from rhostream.config.shared import (
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


@dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """What `estimate` is asked for. Raises UsageError for a value of another type, naming the field."""

    verb: ClassVar[str] = "estimate"
    __repr__ = brief_config

    shards: str | Iterable[str] = setting(help=SHARDS, metavar="URL...", place=True)
    roots: Mapping[str, str] | None = setting(None, help=ROOT, metavar="NAME=URL", option="root", place=True)
    workers: int = setting(0, help=WORKERS)
    tokenizer: str | None = setting(
        None, help=TOKENIZER, metavar="NAME", unset="the table's or the model's, else words:30000"
    )
    text_length: int | None = setting(None, help=TEXT_LENGTH, metavar="T", unset="128")
    task: str | None = setting(None, help=TASK, choices=TASKS, unset="language of text-lm, label of any other")
    il: str | None = setting(
        None, help="A table of compute-il or index: samples are counted, the loader timed.", metavar="URL", place=True
    )
    model: str = setting("mlp", help=MODEL, imports=True)
    buffer_size: int = setting(320, help="n_B: samples looked at each step.")
    batch_size: int = setting(32, help="n_b: samples kept for the gradient.")
    image_size: int | None = setting(None, help="Pixels of the square input; else the table's or the images'.")
    channels: int | None = setting(
        None,
        help="1 for grey, 3 for RGB.",
        metavar="1|3",
        unset="the table's, else RGB where any of some images has colour",
    )
    resize: str | None = setting(None, help=RESIZE, choices=RESIZES, unset="the table's, else as fit-il chooses")
    view_sizes: Iterable[int] = setting(
        (), help="Cheap views to price, in pixels.", metavar="V...", option="view-size", unset="a half and a quarter"
    )
    classes: int | None = setting(None, help="Number of classes; else the table's or the largest label seen + 1.")
    device: str = setting("auto", help="auto, cpu, cuda, cuda:1.")
    il_model: str | None = setting(
        None, help="The IL model to price.", metavar="NAME", unset="the table's, else small-cnn", imports=True
    )
    il_size: int | None = setting(
        None, help="Pixels that the IL model to price sees.", metavar="PIXELS", unset="as many as the model"
    )
    reference: str | None = setting(
        None, help="Price a model that exists instead of an IL model: none is fitted.", metavar="NAME", imports=True
    )
    steps: int | None = setting(None, help="Steps of the run to weigh it against.", unset="one pass, all trained")
    band: str = setting("20%:90%", help="Quantiles of il to price.", metavar="LO:HI")
    shortlist: int = setting(4, help="R: shortlists of R x n_b to price.")
    ranks: int = setting(1, help="Devices like this one to price, where some may score while others train.")
    bandwidth: float = setting(1.25, help="Between ranks.", metavar="GB/s")
    seconds: float = setting(45.0, help="How long to measure, about.")
    as_json: bool = setting(False, help="Everything measured and predicted, as JSON.", option="json")

    def __post_init__(self) -> None:
        check_types(self)
