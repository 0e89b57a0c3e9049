"""Banks of pairs: drawn by hash from samples that a network didn't learn from, and seen by it once."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rhostream import storage
from rhostream.config.offline import ComputeILConfig
from rhostream.errors import AlreadyExistsError, UsageError
from rhostream.il_model.bank import SIZE, Bank, read_bank
from rhostream.il_model.reference import Reference
from rhostream.irreducible.pool import Pool, fill
from rhostream.randomness import fraction
from rhostream.samples.kind import Kind
from rhostream.selection.contrastive import CONTRASTIVE
from rhostream.selection.outputs import called
from rhostream.signals import stop_if_asked
from rhostream.stream.scan import ScanSettings
from rhostream.tables.il import TableInfo, bank_file

LOG = logging.getLogger("rhostream")
CHUNK = 256  # pairs in a forward
SHARDS = 64  # that the bank of a reference is drawn from, at most
MEMORY_BYTES = 2 << 30


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


def banks_of(
    config: ComputeILConfig,
    there: TableInfo | None,
    reference: Reference,
    loss: str,
    shards: Callable[[], list[tuple[str, str]]],
    settings: ScanSettings,
    device: torch.device,
) -> tuple[dict[str, Bank], int]:
    """Of pairs {sha256: the bank that il is taken against}, and n of the il; ({}, 0) of all else."""
    known = there.bank if there else {}
    if loss not in CONTRASTIVE or not isinstance(reference.scores, nn.Module):
        if config.batch_size is not None:
            raise UsageError(f"--batch-size {config.batch_size} is for il of pairs by a network, whose loss has others")
        return {}, 0
    n = config.batch_size or known.get("batch_size")
    if n is None or n < 2:
        raise UsageError(
            f"reference {reference.name!r}: say with --batch-size N, 2 or more, how large the batches were that it "
            "learned by: the loss of a pair depends on it (open_clip's and SigLIP's models: 32,768 and the like)"
        )
    bank, digest = bank_of_reference(
        storage.resolve(config.out), known, reference, shards(), settings, device, config.workers
    )
    return {digest: bank}, int(n)


def require_vectors_fit(config: ComputeILConfig, banks: Sequence[Bank]) -> None:
    """Raise UsageError where vectors are asked for and there are none, or of several networks."""
    if config.vectors is None:
        return
    if not banks:
        raise UsageError(f"--vectors {config.vectors} is for pairs of image and caption by a network")
    if len(banks) > 1:
        raise UsageError(
            f"--vectors {config.vectors}: {len(banks)} networks score a fold each, and their vectors can't be held "
            "against each other: fit one network (--holdout, --holdout-fraction), or take a reference"
        )


def bank_of_reference(
    out: str,
    there: Mapping[str, Any],
    reference: Reference,
    shards: list[tuple[str, str]],
    settings: ScanSettings,
    device: torch.device,
    workers: int,
) -> tuple[Bank, str]:
    """The bank that a reference's il of pairs is taken against, and its sha256: that of the table which is `there`
    (`TableInfo.bank`, {} where none is), else drawn by hash from up to `SHARDS` of the shards and kept in the table.

    Raises TableError for a bank that isn't the table's, UsageError where there are no two pairs, and as `fill`.
    """
    if there:
        digest = str(there["sha256"][0])
        return read_bank(out, bank_file(digest), digest), digest
    assert isinstance(reference.scores, nn.Module)
    some = sorted(shards, key=lambda shard: fraction("bank", shard[1]))[:SHARDS]
    title = "compute-il: the bank of the reference"
    plain = replace(settings, keep={})
    pool = fill(some, plain, samples=SIZE, memory_bytes=MEMORY_BYTES, seed=0, workers=workers, title=title)
    bank = bank_of(reference.scores, pool, torch.arange(len(pool)), settings.kind, device, title)
    data = bank.encode()
    digest = hashlib.sha256(data).hexdigest()
    with contextlib.suppress(AlreadyExistsError):  # of a job that was stopped before its table, or beside this one
        storage.create(storage.join(out, bank_file(digest)), data)
    return bank, digest
