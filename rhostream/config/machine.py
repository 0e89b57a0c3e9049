"""Settings of `train`: numbers, sizes and places of the machine."""

from __future__ import annotations

from dataclasses import dataclass

from rhostream.config.shared import (
    HARDWARE,
    RESIZE,
)
from rhostream.foreign import RESIZES
from rhostream.setting import (
    ALWAYS,
    CANDIDATES,
    CHOICE,
    MACHINE,
    PLAN,
    RECORDED,
    RESOLVED,
    setting,
)


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # a part of TrainConfig
class MachineSettings:
    """How samples are decoded, scored and trained on."""

    precision: str = setting(
        "float32", help="Of scoring: float32 or bfloat16.", heading=MACHINE, pin=ALWAYS, fixed="", part="rule"
    )
    train_precision: str = setting(
        "float32", help="Of the gradient step: float32 or bfloat16.", heading=MACHINE, pin=ALWAYS, fixed=""
    )
    chunk: int | None = setting(
        None,
        help="Score at most this many samples at once (memory).",
        heading=MACHINE,
        pin=ALWAYS,
        fixed="",
        part="rule",
    )
    batch_norm: str = setting(
        "buffer",
        help="Statistics while scoring.",
        heading=MACHINE,
        choices=("buffer", "eval"),
        pin=ALWAYS,
        fixed=CHOICE,
        part="rule",
    )
    lanes: int | None = setting(
        None,
        help="Shards that are mixed at a time.",
        heading=MACHINE,
        unset="up to 64",
        pin=RESOLVED,
        pinned_as=("lanes",),
        fixed=PLAN,
        part="sizes",
    )
    device: str = setting("auto", help="auto, cpu, cuda, cuda:1.", heading=MACHINE, free=HARDWARE)
    threads: int | None = setting(
        None,
        help="Threads of the model.",
        heading=MACHINE,
        unset="the cores that the workers leave, as the run began",
        free=HARDWARE,
    )
    compile: bool = setting(False, help="Run the model through torch.compile.", heading=MACHINE, pin=ALWAYS, fixed="")
    parallel: str = setting(
        "ddp",
        help="Over several ranks each holds all weights (ddp), or its share of them, of their gradients and of what "
        "the optimizer remembers (fsdp: torch's FSDP2).",
        heading=MACHINE,
        choices=("ddp", "fsdp"),
        pin=RECORDED,
        free=HARDWARE,
    )
    activation_checkpointing: bool = setting(
        False,
        help="Compute each block's activations again in the backward instead of keeping them (memory).",
        heading=MACHINE,
        pin=RECORDED,
        free=HARDWARE,
    )
    image_size: int | None = setting(
        None,
        help="Pixels of the square input; else the table's.",
        heading=MACHINE,
        pin=RESOLVED,
        pinned_as=("preprocess_image_size",),
        fixed=CANDIDATES,
    )
    channels: int | None = setting(
        None,
        help="1 for grey, 3 for RGB; else the table's.",
        heading=MACHINE,
        metavar="1|3",
        pin=RESOLVED,
        pinned_as=("preprocess_channels",),
        fixed=CANDIDATES,
    )
    resize: str | None = setting(
        None,
        help=RESIZE,
        heading=MACHINE,
        choices=RESIZES,
        unset="the table's",
        pin=RESOLVED,
        pinned_as=("preprocess_resize",),
        fixed=CANDIDATES,
    )
    decoder: str = setting(
        "auto",
        help="auto, pillow, simplejpeg or turbo.",
        heading=MACHINE,
        pin=RESOLVED,
        pinned_as=("decoder",),
        fixed=CANDIDATES,
    )
    scorers: int = setting(
        0,
        help="So many of the ranks, the last ones, read and score the next buffer while the others train.",
        heading=MACHINE,
        free=HARDWARE,
    )
    rank_timeout: float = setting(
        600.0, help="Seconds that a rank waits for the others before it stops.", heading=MACHINE, free=HARDWARE
    )
