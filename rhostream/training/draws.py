"""The random draws of a run: which edition of them it was begun with, and which of its settings draw at all.

In the second edition every draw but the order of a pass and the rule `uniform` has other bits than in the first, which
wrote no edition down.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from rhostream.il_model.networks import Divided
from rhostream.samples.fields import Input
from rhostream.selection.outputs import called
from rhostream.training.augment import KINDS
from rhostream.training.settings import Settings


def changed_draws(settings: Settings, learners: Iterable[tuple[nn.Module, Input]]) -> list[str]:
    """What of a run of the first edition would be drawn or computed otherwise today, in words; nothing for a run that
    goes on exactly. `learners`: each network that is trained, and an input of two samples.
    """
    options, rule, pairs = settings.options, settings.found_rule, list(learners)
    drawn = {
        "gumbel": options.gumbel is not None,
        "the ties of clip": options.clip,
        f"the draws of {settings.rule}": rule.sampled or rule.needs_draws,
        f"{settings.rule}, a rule of your own that may draw": ":" in settings.rule,
        f"augment {settings.augment}": settings.augment in KINDS[1:],
        **{f"the shadow of {shadow.name}": shadow.score is None or shadow.sampled for shadow in options.shadows},
        "what the model draws in training (dropout)": any(draws_in_training(*pair) for pair in pairs),
        # No draws, but a run that went on would mean two things by one name, from one step to the next.
        "loss_cap in the shadow log": settings.loss_cap and bool(options.shadows),
        "the temperature of the il that learns along": rule.live and any(tempered(network) for network, _ in pairs),
    }
    return [name for name, yes in drawn.items() if yes]


def tempered(network: nn.Module) -> bool:
    """Whether the network's logits are divided by a temperature that changes them."""
    return any(isinstance(hook, Divided) and hook.temperature != 1 for hook in network._forward_hooks.values())


def draws_in_training(network: nn.Module, example: Input) -> bool:
    """Whether a training forward asks torch for random numbers; the network stays as it is."""
    own = copy.deepcopy(network).train()
    example = example.to(next(own.parameters()).device)
    with torch.no_grad(), torch.random.fork_rng():
        before = torch.random.get_rng_state(), torch.cuda.get_rng_state() if example.device.type == "cuda" else None
        called(own, example)
        after = torch.random.get_rng_state(), torch.cuda.get_rng_state() if example.device.type == "cuda" else None
    return any(a is not None and b is not None and not torch.equal(a, b) for a, b in zip(before, after, strict=True))
