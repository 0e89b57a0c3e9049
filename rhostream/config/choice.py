"""Settings of `train`: the IL model that learns along, and what makes selection cheaper."""

from __future__ import annotations

from dataclasses import dataclass

from rhostream.setting import (
    ALWAYS,
    CANDIDATES,
    CASCADE,
    CHOICE,
    RESOLVED,
    RULES,
    setting,
)


@dataclass(frozen=True, kw_only=True, init=False, repr=False, eq=False)  # a part of TrainConfig
class ChoiceSettings:
    """What the choice leans on, beside the options of a rule (`selection/options.py`)."""

    loss_cap: bool = setting(
        False,
        help="Clip loss and il at ln C (ours; for noisy IL models).",
        heading=RULES,
        pin=ALWAYS,
        fixed=CHOICE,
        part="rule",
    )
    il_model: str | None = setting(
        None,
        help="rho_updated: the IL model that learns along.",
        heading=RULES,
        metavar="DIR",
        unset="where the table's lay",
        place=True,
        free="the table's fingerprint says which IL model it is",
        fixed=CHOICE,
    )
    il_lr_scale: float = setting(
        0.01,
        help="Its rate, times --lr.",
        heading=RULES,
        metavar="S",
        pin=RESOLVED,
        pinned_as=("il_lr_scale",),
        fixed="",
        part="rule",
    )
    il_code: str | None = setting(
        None,
        help="Its package.module:function, where it is your own code.",
        heading=RULES,
        metavar="NAME",
        imports=True,
        free="the IL model names its own code, and this only says that it is trusted",
        fixed=CHOICE,
    )
    keep_list: str | None = setting(
        None,
        help="Parquet, CSV or JSON of (shard, ordinal) or (shard, key): nothing else is a candidate.",
        heading=CASCADE,
        metavar="FILE",
        place=True,
        pin=RESOLVED,
        pinned_as=("keep_list",),
        fixed=CANDIDATES,
        part="rule",
        words="keep-list",
    )
    deny: str | None = setting(
        None,
        help="Parquet, CSV or JSON as of --keep-list: these samples are left out from now on; none lifts what held.",
        heading=CASCADE,
        metavar="FILE",
        place=True,
        no_place="none",
        free="a list gets longer while a run goes on, and each that comes is recorded as a change",
    )
    band: str | None = setting(
        None,
        help="Drop samples whose il is outside, before they are read: 20%:90% of the table, or nats; of another column "
        "NAME=LOW:HIGH, as similarity=70%: of pairs.",
        heading=CASCADE,
        metavar="LOW:HIGH",
        pin=ALWAYS,
        fixed=CANDIDATES,
        part="rule",
        words="band",
    )
    view_size: int | None = setting(
        None,
        help="Decode at this many pixels to score or shortlist; what goes on is decoded at full size.",
        heading=CASCADE,
        pin=ALWAYS,
        fixed=CANDIDATES,
        part="rule",
        words="view of",
    )
    shortlist: str | None = setting(
        None,
        help="proxy:4 or view:4: a cheaper forward picks 4 n_b, and fresh scores pick n_b of these; stale:3 or "
        "predicted:3: the target as it was a step ago does, which --scorers can do while others train.",
        heading=CASCADE,
        metavar="KIND:R",
        pin=ALWAYS,
        fixed=CHOICE,
        part="rule",
        words="shortlist",
    )
    proxy_model: str = setting(
        "mlp-64",
        help="The small model of --shortlist proxy; it learns from what is kept.",
        heading=CASCADE,
        imports=True,
        pin=RESOLVED,
        pinned_as=("proxy_model",),
        fixed=CHOICE,
        part="rule",
    )
