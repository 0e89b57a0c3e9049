"""Banks of pairs: drawn by hash from samples that a network didn't learn from, and seen by it once."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from rhostream.errors import UsageError
from rhostream.il_model.bank import SIZE, Bank
from rhostream.irreducible.pool import Pool
from rhostream.samples.kind import Kind
from rhostream.selection.outputs import called
from rhostream.signals import stop_if_asked

LOG = logging.getLogger("rhostream")
CHUNK = 256  # pairs in a forward


@torch.no_grad()
def bank_of(network: nn.Module, pool: Pool, rows: Tensor, kind: Kind, device: torch.device, title: str) -> Bank:
    """The first `SIZE` of `rows` (N,) of a pool, which lies in the order of a hash, as the network sees them.

    Fewer are said. Raises UsageError where there are fewer than two, so that nobody would have an other.
    """
    rows = rows[:SIZE]
    if len(rows) < 2:
        raise UsageError(
            f"{title}: {len(rows)} pairs for the bank that il is taken against, expected at least 2, better {SIZE:,}: "
            "give it more samples (--fit-samples) or another split"
        )
    if len(rows) < SIZE:
        LOG.warning(
            "%s: the bank that il is taken against holds %s pairs, where %s are wanted: il is as much noisier",
            title,
            f"{len(rows):,}",
            f"{SIZE:,}",
        )
    network.to(device).eval()
    outputs = []
    for some in rows.split(CHUNK):
        stop_if_asked()
        outputs.append(called(network, kind.inputs(pool.fields[some].to(device))).float().cpu())
    return Bank.of(torch.cat(outputs), [pool.where[row][0] for row in rows.tolist()],
                   [pool.where[row][1] for row in rows.tolist()])  # fmt: skip
