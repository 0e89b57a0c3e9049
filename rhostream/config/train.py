"""The settings of `train`, each told once: here those of its data and its choice, beside this file the other groups.

To add one: its field in its group, and the line that reads it where it acts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rhostream.config.choice import ChoiceSettings
from rhostream.config.gradient import GradientStep
from rhostream.config.machine import MachineSettings
from rhostream.config.records import TESTS, RecordSettings
from rhostream.config.shared import (
    CONTENT,
    HARDWARE,
    INIT,
    KIND,
    LOSS,
    MODEL,
    ROOT,
    SHARDS,
    TASK,
    TASKS,
    TEXT_LENGTH,
    TOKENIZER,
    WORKERS,
    brief_config,
)
from rhostream.errors import UsageError
from rhostream.selection.options import Options
from rhostream.selection.rules import RULES as RULE_NAMES
from rhostream.setting import (
    ALWAYS,
    ASKED,
    CANDIDATES,
    CHOICE,
    PLAN,
    RECORDED,
    RESOLVED,
    WEIGHTS,
    setting,
)

if TYPE_CHECKING:
    from torch import nn

    from rhostream.runs.book import Metrics

_LENGTH = "a run may go on for longer"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RecordSettings, MachineSettings, ChoiceSettings, GradientStep, Options):
    """What a run of `train` is asked for. Raises UsageError for a value that can't be, naming the field."""

    verb: ClassVar[str] = "train"
    __repr__ = brief_config

    shards: str | Iterable[str] = setting(
        help=SHARDS, metavar="URL...", place=True, pin=RESOLVED, pinned_as=("shards",), fixed=PLAN
    )
    roots: Mapping[str, str] | None = setting(
        None, help=ROOT, metavar="NAME=URL", option="root", place=True, pin=RESOLVED, pinned_as=("shards",), fixed=PLAN
    )
    workers: int = setting(0, help=WORKERS, pin=RECORDED, free=HARDWARE)
    kind: str | None = setting(
        None, help=KIND, metavar="NAME", imports=True, pin=RESOLVED, pinned_as=("preprocess_kind",), fixed=CANDIDATES
    )
    content: str | None = setting(
        None, help=CONTENT, metavar="KIND", unset="as the table says", free="the table says it, and no other is taken"
    )
    tokenizer: str | None = setting(
        None,
        help=TOKENIZER,
        metavar="NAME",
        unset="the table's or the model's, else words:30000",
        pin=RESOLVED,
        pinned_as=("preprocess_tokenizer",),
        fixed=CANDIDATES,
    )
    text_length: int | None = setting(
        None,
        help=TEXT_LENGTH,
        metavar="T",
        unset="128",
        pin=RESOLVED,
        pinned_as=("preprocess_length",),
        fixed=CANDIDATES,
    )
    task: str | None = setting(
        None,
        help=TASK,
        choices=TASKS,
        unset="language of text-lm, label of any other",
        pin=RESOLVED,
        pinned_as=("preprocess_task",),
        fixed=CANDIDATES,
    )
    il: str = setting(
        help="The table of compute-il, or of index.",
        metavar="URL",
        place=True,
        pin=RESOLVED,
        pinned_as=("il",),
        fixed=CANDIDATES,
    )
    run: str = setting(
        help="Run folder; the same command again resumes it.",
        metavar="DIR",
        place=True,
        free="it is the run's own folder",
    )
    model: str = setting("mlp", help=MODEL, imports=True, pin=ALWAYS, fixed=WEIGHTS)
    rule: str = setting(
        "rho",
        help=", ".join(RULE_NAMES) + " or your module:function.",
        metavar="NAME",
        imports=True,
        pin=ALWAYS,
        fixed=CHOICE,
        part="rule",
    )
    buffer_size: int = setting(320, help="n_B: samples looked at each step.", pin=ALWAYS, fixed=PLAN, part="sizes")
    batch_size: int = setting(32, help="n_b: samples kept for the gradient.", pin=ALWAYS, fixed=CHOICE, part="sizes")
    test_shards: Iterable[str] | str = setting(
        (), help="Evaluated for reporting only.", metavar="URL...", place=True, free=TESTS
    )
    max_bad_fraction: float = setting(
        0.01, help="Of the test shards: more bad samples than this in one, or in all, stop the run.", free=TESTS
    )
    max_bad_samples: int | None = setting(
        None,
        help="More bad samples in all test shards stop the run.",
        metavar="N",
        unset="by --max-bad-fraction",
        free=TESTS,
    )
    passes: int | None = setting(
        None, help="Passes over the shards.", unset="1, or as many as --steps needs", pin=RECORDED, free=_LENGTH
    )
    steps: int | None = setting(None, help="Stop after this many steps.", pin=RECORDED, free=_LENGTH)
    missing_il: str = setting(
        "error",
        help="What happens to samples without an il.",
        choices=("error", "skip"),
        pin=ALWAYS,
        fixed=CANDIDATES,
    )
    init: str | None = setting(
        None, help=INIT, metavar="WEIGHTS", place=True, pin=RESOLVED, pinned_as=("init",), fixed=WEIGHTS
    )
    loss: str = setting(
        "cross_entropy",
        help=LOSS,
        metavar="NAME",
        imports=True,
        pin=ASKED,
        fixed=CHOICE,
    )
    token_share: float | None = setting(
        None,
        help="Of language: train on this share of a kept sequence's tokens, the largest loss - il (Rho-1).",
        metavar="F",
        pin=ASKED,
        fixed=CHOICE,
    )
    keep_holdout: bool = setting(
        False, help="Candidates may be samples that the IL model learned from.", pin=ALWAYS, fixed=CANDIDATES
    )
    classes: int | None = setting(
        None, help="Number of classes; else the table's.", pin=RESOLVED, pinned_as=("classes",), fixed=CANDIDATES
    )
    seed: int = setting(0, help="Of everything that is drawn: weights, order, choices.", pin=ALWAYS, fixed=PLAN)
    metrics: Metrics | None = setting(
        None,
        help="Called with each step's row, one step late.",
        code=True,
        command_line=False,
        kept=False,
        free="who looks on changes nothing",
    )
    make_model: Callable[[], nn.Module] | None = setting(
        None,
        help="Makes the model, which `model` then only names.",
        code=True,
        command_line=False,
        pin=RESOLVED,
        pinned_as=("model",),
        fixed=WEIGHTS,
    )

    def __post_init__(self) -> None:
        from rhostream import storage
        from rhostream.tables.names import checked_roots

        for name in (
            "shards",
            "test_shards",
            "zero_shot",
        ):  # an iterable is asked twice: for the data, and for run.json
            given = getattr(self, name)
            listed = storage.listed(() if name != "shards" and given is None else given)
            object.__setattr__(self, name, tuple(listed))
        object.__setattr__(self, "roots", checked_roots(self.roots))
        super().__post_init__()
        n_B, n_b = self.buffer_size, self.batch_size
        if not 1 <= n_b <= n_B:
            raise UsageError(f"--batch-size {n_b} of --buffer-size {n_B}: expected 1 <= n_b <= n_B")
        numbers = (
            self.accumulate,
            self.eval_every,
            self.checkpoint_every,
            self.track_every,
            self.steps,
            self.passes,
        )
        if any(n is not None and n < 1 for n in numbers):
            raise UsageError(
                "--steps, --passes, --accumulate, --eval-every, --checkpoint-every and --track-every must be at least 1"
            )
        if not 0 < self.il_lr_scale < math.inf:
            raise UsageError(f"--il-lr-scale {self.il_lr_scale:g}: expected a number above 0")
        self.check_step()
        if self.evaluate is not None and ":" not in self.evaluate:
            raise UsageError(f"--evaluate {self.evaluate!r}: expected your package.module:function(model)")
        if self.evaluate is not None and self.test_shards:
            raise UsageError("--evaluate and --test-shards fill the same columns (test_accuracy, test_loss): give one")
