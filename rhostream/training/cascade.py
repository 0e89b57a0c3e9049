"""The cascade in front of the target's scores: what a setting such as `proxy:4` means, and what its stages cost.

band, keep-list (before a byte is read) > proxy or cheap view (a shortlist of R x n_b) > the target's fresh scores
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from rhostream.errors import UnknownNameError, UsageError
from rhostream.models import build
from rhostream.randomness import torch_seed
from rhostream.runs.cost import Cost
from rhostream.runs.macs import macs_per_sample
from rhostream.samples.kind import Kind, View
from rhostream.selection.forward import scoring
from rhostream.selection.lagged import Lagged
from rhostream.selection.losses import LossFunction, require_taken
from rhostream.selection.outputs import called, require_width
from rhostream.selection.proxy import Proxy
from rhostream.selection.tokens import is_language
from rhostream.training.ranks import with_synchronized_norms

KINDS = ("proxy", "view", "stale", "predicted")
OF_BEFORE = KINDS[2:]  # by the target itself, as it was a step ago


@dataclass(frozen=True)
class Shortlist:
    """Who makes the shortlist, and how many times n_b it holds."""

    kind: str
    factor: float


def parse_shortlist(
    text: str | None, *, rule: str, buffer_size: int, batch_size: int, view_size: int | None
) -> Shortlist | None:
    """`proxy:4`, `view:4`, `stale:3` or `predicted:2`. Raises UsageError for what can't be, with what can."""
    if rule == "uniform" and (text or view_size):
        raise UsageError("--rule uniform makes no forward, so a shortlist or a cheap view has nothing to rank by")
    if text is None:
        return None
    kind, _, number = text.partition(":")
    if kind not in KINDS:
        raise UnknownNameError.of("shortlist", kind, KINDS)
    try:
        factor = float(number)
    except ValueError:
        raise UsageError(
            f"--shortlist {text!r}: expected KIND:R with R in multiples of the batch size, such as {kind}:4"
        ) from None
    if not 1 < factor < buffer_size / batch_size:
        raise UsageError(
            f"--shortlist {text}: R must lie between 1 and n_B / n_b = {buffer_size / batch_size:g}, "
            "or it would leave nothing to choose or shorten nothing"
        )
    if kind == "view" and view_size is None:
        raise UsageError(f"--shortlist {text} scores on a cheap view: say how small with --view-size")
    return Shortlist(kind, factor)


def require_scorers(scorers: int, listed: Shortlist | None, others: Iterable[str]) -> None:
    """Raise UsageError for ranks that can't score while others train; `others`: options that don't go with them."""
    if scorers < 0:
        raise UsageError(f"--scorers {scorers}: expected 0 or more")
    if not scorers:
        return
    if listed is None or listed.kind not in OF_BEFORE:
        raise UsageError(
            f"--scorers {scorers}: scores that are made while others train are old, and make a shortlist alone: say "
            "--shortlist predicted:3, or stale:3"
        )
    if unfit := next(iter(others), None):
        raise UsageError(f"--scorers {scorers} goes with rules that score each row by itself, and not with {unfit}")


def make_proxy(
    name: str,
    seen: Kind,
    view: View,
    classes: int | None,
    *,
    lr: float,
    seed: int,
    device: torch.device,
    synchronized: bool = False,
    loss: LossFunction | None = None,
) -> Proxy:
    """The proxy of that name for samples as the workers decode them; its first weights are a function of the seed.

    `synchronized`: over several ranks, with batch norm over all of them where the device can.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "proxy weights"))
        network = build(name, classes=classes, **seen.model_arguments(view))
    if synchronized:
        network, _ = with_synchronized_norms(network, device)
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Proxy(network, lr=lr, loss=loss)


def set_macs(
    cost: Cost,
    model: str,
    network: nn.Module,
    proxy: Proxy | Lagged | None,
    shortlist: Shortlist | None,
    full: Kind,
    view: View,
) -> None:
    """Enter what one sample costs at each stage. Raises UsageError for a model that can't take the view."""
    cost.macs = _macs(network, full)
    if shortlist is not None and proxy is not None:
        cost.shortlist_macs = _macs(proxy.model, full, view)
    elif view is not None:
        try:
            cheap = _macs(network, full, view)
        except (RuntimeError, ValueError) as exc:
            raise UsageError(
                f"model {model!r} takes images of {full.side} pixels only, not a view of "
                f"{view} pixels ({str(exc).splitlines()[0]}); let a proxy look at the view: "
                "--shortlist proxy:4"
            ) from exc
        if shortlist is None:
            cost.scored_macs = cheap
        else:
            cost.shortlist_macs = cheap


def require_classes(
    model: str, network: nn.Module, seen: Kind, classes: int | None, loss: str, view: View = None
) -> None:
    """Raise UsageError for a model that gives no logits, or fewer than there are labels; of a target that is no class
    (`classes` None) for an output that the loss can't take."""
    with scoring(network, batch_norm="eval"):
        logits = called(network, seen.example(view=view).to(next(network.parameters()).device))
    if classes is None:
        require_taken(loss, seen, logits)
    elif not is_language(network):
        require_width(model, logits, classes)


def _macs(network: nn.Module, kind: Kind, view: View = None) -> int:
    return macs_per_sample(network, kind.example(view=view).to(next(network.parameters()).device))
