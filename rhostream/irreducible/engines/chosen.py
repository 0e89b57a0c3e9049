"""The engine of a config: checked, and for Ray connected, before anything is made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from rhostream.config.offline import ComputeILConfig, FitILConfig, IndexConfig
from rhostream.errors import UsageError
from rhostream.irreducible.engines.local import Local
from rhostream.irreducible.work import Engine
from rhostream.selection.hardware import device_of
from rhostream.setting import defaults_of, option_name, settings_of

OF_RAY = ("actors", "gpus_per_actor", "cpus_per_actor", "ray_address")
Config = ComputeILConfig | FitILConfig | IndexConfig


@contextlib.contextmanager
def engine_of(config: Config) -> Iterator[Engine]:
    """The engine that a job asks for, until its end. Raises UsageError for options that don't go together,
    MissingExtraError without Ray, UsageError for a cluster that can't be reached or that can't hold one actor."""
    if config.engine == "local":
        defaults, says = defaults_of(config), settings_of(config)
        for name in OF_RAY:
            if name in defaults and getattr(config, name) != defaults[name]:
                raise UsageError(f"{option_name(name, says[name])} goes with --engine ray")
        yield Local(config.workers)
        return
    gpus = config.gpus_per_actor if isinstance(config, ComputeILConfig) else 0.0
    if config.workers:
        raise UsageError(
            f"--workers {config.workers}: with --engine ray an actor reads its shard itself; take more --actors, and "
            "where they score on a GPU a part of one each (--gpus-per-actor 0.25)"
        )
    if config.actors is not None and config.actors < 1:
        raise UsageError(f"--actors {config.actors}: expected 1 or more")
    if config.cpus_per_actor <= 0 or gpus < 0:
        raise UsageError(
            f"--cpus-per-actor {config.cpus_per_actor:g}, --gpus-per-actor {gpus:g}: expected more than 0 cores and no "
            "negative number of GPUs"
        )
    from rhostream.irreducible.engines import ray  # an extra

    with ray.connected(config.ray_address, config.actors, config.cpus_per_actor, gpus) as engine:
        yield engine


def device_here(config: ComputeILConfig) -> torch.device:
    """Where this process scores, or makes what actors move to their own GPUs. Raises UsageError."""
    return device_of("cpu" if config.engine == "ray" else config.device or "auto")
