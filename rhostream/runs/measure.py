"""What one sample costs at each stage of a loop of one's own, in multiply-adds, counted once on its own model."""

from __future__ import annotations

import logging

import torch
from torch import nn

from rhostream.runs.cost import Cost
from rhostream.runs.macs import macs_per_sample
from rhostream.samples.kind import Kind, View
from rhostream.selection.selector import Selector
from rhostream.stream.dataset import CandidateStream
from rhostream.tables.il import TableInfo

LOG = logging.getLogger("rhostream")


def measure(cost: Cost, selector: Selector, stream: CandidateStream) -> None:
    """Enter the multiply-adds of a sample's forward through whatever the selector looks with; no draw is used up.

    A model that no counter follows leaves them at 0, which is unknown, and a warning.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            cost.macs = _macs(selector.model, stream.preprocess)
            if selector.proxy is not None:
                cost.shortlist_macs = _macs(selector.proxy.model, stream.preprocess, stream.view)
            elif stream.view is not None and selector.shortlist is not None:
                cost.shortlist_macs = _macs(selector.model, stream.preprocess, stream.view)
            elif stream.view is not None:
                cost.scored_macs = _macs(selector.model, stream.preprocess, stream.view)
            if selector.live is not None:
                cost.live_macs = _macs(selector.live.networks[0], stream.preprocess, stream.view)
    except Exception as exc:  # a user's model may do what no counter follows
        LOG.warning(
            "warning: the multiply-adds of a sample can't be counted (%s: %s): the cost account counts samples alone",
            type(exc).__name__,
            " ".join(str(exc).split())[:120],
        )


def price(selector: Selector, cost: Cost, info: TableInfo) -> None:
    """Tell `--ratio auto` what a look at one sample costs, and whether the il of its table come from other samples."""
    if selector.chooser.ratio is not None:
        selector.chooser.ratio.looking = cost.look_units
        selector.chooser.ratio.outside = bool(info.reference) or info.model.get("mode") == "holdout"


def _macs(network: nn.Module, seen: Kind, view: View = None) -> int:
    return macs_per_sample(network, seen.example(view=view).to(next(network.parameters()).device))
