"""Settings of `train`: what is written, and where a run turns on purpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rhostream.setting import (
    ASKED,
    RECORDED,
    RECORDS,
    setting,
)

TESTS = "the test set is for reporting only"
LOOKS_ON = "who looks on changes nothing"


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # a part of TrainConfig
class RecordSettings:
    """What a run leaves behind, and what it changes while it goes on."""

    sources: str | None = setting(
        None,
        help="Name each sample's source in the log: root (the name of its root), or a kept field of the table.",
        heading=RECORDS,
        metavar="root|FIELD",
        pin=ASKED,
        fixed="it is what the log's column source means",
        part="rule",
    )
    eval_every: int = setting(100, help="Steps between evaluations.", heading=RECORDS, pin=RECORDED, free=TESTS)
    evaluate: str | None = setting(
        None,
        help="Your module:function(model), in place of test shards: gives accuracy, loss and samples.",
        heading=RECORDS,
        metavar="NAME",
        imports=True,
        pin=ASKED,
        fixed="a curve is of one evaluation",
    )
    zero_shot: Iterable[str] | str = setting(
        (),
        help="Of pairs: shards of labelled pictures, whose classes are named by text at each evaluation.",
        heading=RECORDS,
        metavar="URL...",
        place=True,
        free=TESTS,
    )
    zero_shot_classes: str | None = setting(
        None,
        help="What their classes are called: a file, a name a line from label 0 on.",
        heading=RECORDS,
        metavar="FILE",
        place=True,
        free=TESTS,
    )
    zero_shot_label: str | None = setting(
        None,
        help="Where their labels stand.",
        heading=RECORDS,
        metavar="FIELD|EXT",
        unset="a .cls, or label in the .json",
        free=TESTS,
    )
    prompts: str | None = setting(
        None,
        help="Texts with {} where a class's name stands, one a line.",
        heading=RECORDS,
        metavar="FILE",
        place=True,
        unset="a photo of a {}.",
        free=TESTS,
    )
    smoothing: int = setting(
        5, help="Evaluations that reports average.", heading=RECORDS, pin=RECORDED, free="it is for reports only"
    )
    checkpoint_every: int = setting(
        500,
        help="Steps between checkpoints.",
        heading=RECORDS,
        pin=RECORDED,
        free="a checkpoint changes nothing of what comes after it",
    )
    keep_checkpoints: int = setting(
        2, help="How many checkpoints stay.", heading=RECORDS, free="a checkpoint changes nothing of what comes after"
    )
    change: Mapping[str, Any] | str | Iterable[str] | None = setting(
        None,
        help="Of a run that goes on: another lr, weight_decay, accumulate, augment, chunk, precision, ... from "
        "its newest checkpoint on; recorded, and said by status and report.",
        heading=RECORDS,
        metavar="NAME=VALUE...",
        kept=False,
        free="every change is recorded by itself",
    )
    from_step: int | None = setting(
        None,
        help="Go back to the commit of this step, whose state must still be kept, in a new attempt.",
        heading=RECORDS,
        metavar="S",
        kept=False,
        free="it is recorded as a change",
    )
    skip_buffers: str | None = setting(
        None,
        help="Pass over buffers A to B - 1 (counted from 0, as steps are), on which nothing was trained yet: "
        "after a loss spike, with --from-step.",
        heading=RECORDS,
        metavar="A:B",
        kept=False,
        free="it is recorded as a change",
    )
    grow: bool = setting(
        False,
        help="At the end of a pass: go on with this list of shards, which has those of before and more.",
        heading=RECORDS,
        kept=False,
        free="it is recorded as a change",
    )
    take_over: bool = setting(
        False,
        help="Go on from the newest commit though another process of this machine is at the run, whose steps since "
        "then are lost.",
        heading=RECORDS,
        kept=False,
        free="who runs it changes nothing",
    )
    track: Iterable[str] | str = setting(
        (),
        help="Show the run in tensorboard[:FOLDER], wandb[:PROJECT], mlflow[:EXPERIMENT], trackio[:PROJECT], one or "
        "several; docs/trackers.md.",
        heading=RECORDS,
        metavar="NAME...",
        free=LOOKS_ON,
    )
    track_every: int = setting(
        10, help="Steps between those that are tracked; evaluations are always.", heading=RECORDS, free=LOOKS_ON
    )
