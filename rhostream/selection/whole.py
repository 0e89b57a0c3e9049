"""From a rank's slice to the buffer of all ranks, (B,) in canonical order: the same on every rank, so all choose alike.

Every function is collective over several ranks, and on one rank the slice is the buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rhostream.candidates import CANDIDATE, Candidates, Slice, to_device
from rhostream.errors import UsageError
from rhostream.reasons import Reason
from rhostream.selection.adjust.shape import Buffer
from rhostream.selection.choice import leading
from rhostream.selection.quota import ClassQuota
from rhostream.selection.ranks import Ranks
from rhostream.selection.source_quota import SourceQuota
from rhostream.selection.stages import Rows, scatter
from rhostream.selection.uniform import Draws

Host = Mapping[str, npt.NDArray[Any]]  # what came off the device: (m, ...) each


def slice_of(candidates: Candidates, ranks: Ranks) -> Slice:
    """Which part of the buffer of all ranks these candidates are. Raises UsageError."""
    return candidates.slice_of(ranks.rank, ranks.size)


def classes_of(candidates: Candidates) -> Rows:
    """(B,) labels on the host; 0 where the target is no class."""
    label = candidates.host.label
    classes = label.ndim == 1 and candidates.target_field is None
    return label.long().numpy() if classes else np.zeros(len(label), np.int64)


def leave_out_without_il(candidates: Candidates) -> Candidates:
    """Without an il nobody is a candidate for a rule that needs one; a stream has left these out already."""
    missing_B = (candidates.reason == CANDIDATE) & ~np.isfinite(candidates.host.il.numpy())
    if not missing_B.any():
        return candidates
    return replace(candidates, reason=np.where(missing_B, np.uint8(Reason.missing_il), candidates.reason))


def sources_of(candidates: Candidates) -> dict[str, Rows]:
    """{"source": (B,) the numbers of the sources}, {} where they have none."""
    return {} if candidates.source is None else {"source": candidates.source.astype(np.int64)}


def own_rows(rows: Rows, part: Slice, size: int) -> Rows:
    """Of rows of the buffer of all ranks those of this slice of `size` rows, as rows of the slice."""
    return rows[(rows >= part.first) & (rows < part.first + size)] - part.first


def buffer_of(candidates: Candidates, rows: Rows, host: Host, ranks: Ranks, *, n: int, draws: Draws) -> Buffer:
    """What is known of the buffer of all ranks; `rows` (m,) of this slice reached the target and gave `host`."""
    size, part, reached_B = len(candidates), slice_of(candidates, ranks), np.zeros(len(candidates), bool)
    reached_B[rows] = True
    own: dict[str, npt.NDArray[Any]] = {
        "score": scatter(rows, host["score"], size),
        "loss": scatter(rows, host["loss"], size),
        "il": scatter(rows, host.get("il", candidates.host.il.numpy()[rows]), size),
        "shadow": scatter(rows, host["shadow"].T, size),
        "label": classes_of(candidates),
        "reached": reached_B,
        **sources_of(candidates),
    }
    if "chosen" in host:
        own["chosen"] = np.zeros(size, bool)
        own["chosen"][rows] = host["chosen"]
    whole, view_mV = ranks.concat_columns(own, part.most), host.get("view")
    if view_mV is not None:
        view_mV = ranks.concat(torch.from_numpy(view_mV), part.most)[0].numpy()
    return Buffer(
        score_B=whole["score"].astype(np.float64),
        loss_B=whole["loss"],
        il_B=whole["il"],
        label_B=whole["label"],
        reached_B=whole["reached"],
        n=n,
        draws=draws,
        shadow_SB=whole["shadow"].T.astype(np.float64),
        view_mV=view_mV,
        source_B=whole.get("source"),
        source_names=candidates.source_names or (),
        chosen_B=whole.get("chosen"),
    )


def require_cheaper(candidates: Candidates, proxy: object | None) -> None:
    """Raise UsageError where nothing is cheaper than the target's own scores."""
    if proxy is None and candidates.full is None:
        raise UsageError(
            "a shortlist without a proxy is made on the stream's cheap view, and this stream has "
            "none: open_stream(view_size=...), or Selector(proxy=Proxy(small_model))"
        )


def best_rows(score_B: npt.NDArray[np.float32], in_B: npt.NDArray[np.bool_], n: int) -> Rows:
    """The n rows of the largest scores, or all, of those that are in; ascending."""
    eligible = np.flatnonzero(in_B)
    rows: Rows = eligible[leading(torch.from_numpy(score_B[eligible]), n).numpy()]
    return rows


def shortlist(candidates: Candidates, rows: Rows, score_m: Tensor, ranks: Ranks, length: int) -> Tensor:
    """Which of `rows` (m,), by their scores, are among the `length` of the whole buffer that go on to the target.

    Positions on the device, ascending. Nothing waits for the device on one rank.
    """
    if ranks.alone:
        return leading(score_m, length)
    size, part = len(candidates), slice_of(candidates, ranks)
    own = {"score": scatter(rows, score_m.cpu().numpy(), size), "in": candidates.reason == CANDIDATE}
    whole = ranks.concat_columns(own, part.most)
    listed = best_rows(whole["score"], whole["in"], length)
    position = np.searchsorted(rows, own_rows(listed, part, size))
    return to_device(torch.from_numpy(position), score_m.device)


def uniform_of(
    candidates: Candidates,
    rows: Rows,
    ranks: Ranks,
    n: int,
    draws: Draws,
    quota: ClassQuota | None,
    sources: SourceQuota | None = None,
) -> Rows:
    """A random n of the candidates of the whole buffer, of which `rows` are ours: those of this slice, ascending."""
    part, size = slice_of(candidates, ranks), len(candidates)
    own = {"in": candidates.reason == CANDIDATE, "label": classes_of(candidates), **sources_of(candidates)}
    whole = ranks.concat_columns(own, part.most)
    eligible = np.flatnonzero(whole["in"])
    if len(eligible) <= n and sources is None and (quota is None or quota.kind == "reducr"):
        return rows
    admit = None
    if sources is not None:
        admit = partial(sources.admit, source=whole["source"][eligible], names=candidates.source_names or (), n=n)
    return own_rows(draws.uniform(eligible, whole["label"][eligible], n, quota, admit), part, size)
