"""Joint rules: what a pair is worth hangs on who else is chosen, so a rule chooses rows, from the vectors of pairs.

    choose(learner, reference, columns, n, rng) -> rows, or (rows, the scores (B,) for the log)

Any of these and the other names of `JOINT`, by position; a user's own is `package.module:function`. The arithmetic of
the built-in ones is in `greedy.py`: here nothing imports torch, as the names of the rules are asked for by --help.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rhostream.errors import UsageError, users_code

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from rhostream.selection.contrastive import Pairs

JOINT = {
    "learner": "the candidates' vectors by the model, `contrastive.Pairs`",
    "reference": "their vectors by the model that made the table, `contrastive.Pairs`",
    "columns": "{name: (B,)}: loss, il, and the columns of the table that --column names",
    "n": "how many to keep",
    "rng": "a NumPy generator, a function of the seed and the step",
    "loss": "siglip or clip",
    "joint_chunks": "the option of that name",
    "joint_negatives": "the option of that name",
}


def choose_jest(
    learner: Pairs,
    reference: Pairs,
    n: int,
    rng: np.random.Generator,
    loss: str,
    joint_chunks: int,
    joint_negatives: float,
) -> tuple[Tensor, Tensor]:
    """JEST: chunk by chunk without replacement from the softmax of the learnability beside those drawn before."""
    from rhostream.selection.greedy import in_chunks

    return in_chunks(learner, reference, n, loss, chunks=joint_chunks, negatives=joint_negatives, rng=rng)


def choose_jest_top(
    learner: Pairs, reference: Pairs, n: int, loss: str, joint_chunks: int, joint_negatives: float
) -> tuple[Tensor, Tensor]:
    """JEST without chance: the most learnable of each chunk."""
    from rhostream.selection.greedy import in_chunks

    return in_chunks(learner, reference, n, loss, chunks=joint_chunks, negatives=joint_negatives)


def choose_divbs(learner: Pairs, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """DivBS: what together spans most of the sum of the buffer's vectors; it asks no reference."""
    from rhostream.selection.greedy import diverse

    return diverse(learner, n, rng)


def chosen(
    name: str, choose: Callable[..., Any], takes: tuple[str, ...], given: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """What a joint rule makes of a buffer: rows (at most n,) int64, ascending, and the scores (B,) float32 for the log.

    `given` has what `JOINT` names. A rule that gives no scores has 1 for what it chose and 0 for what it didn't. Raises
    UsageError for what the rule raises, and for rows that can't be: none although there are pairs, more than n, one
    twice, or one that is no pair.
    """
    import torch

    learner: Pairs = given["learner"]
    with users_code(f"rule {name!r}"):
        rows = choose(*(given[one] for one in takes))
        rows, score = rows if isinstance(rows, tuple) and len(rows) == 2 else (rows, None)
        row = torch.as_tensor(rows, device=learner.image_ND.device)
        score_B = None if score is None else torch.as_tensor(score, device=row.device).float()
    fit_B = learner.finite_N
    if "reference" in takes:
        fit_B = fit_B & given["reference"].finite_N
    row, n, size = row.sort().values if row.ndim == 1 else row, given["n"], len(learner)
    fine = row.ndim == 1 and row.dtype in (torch.int32, torch.int64) and len(row) <= n
    fine = fine and (len(row) > 0 or not bool(fit_B.any()))
    if fine and len(row):
        fine = int(row[0]) >= 0 and int(row[-1]) < size and bool((row[1:] > row[:-1]).all()) and bool(fit_B[row].all())
    if not fine:
        raise UsageError(
            f"the joint rule {name!r} returned rows of shape {tuple(row.shape)} and {row.dtype}: expected up to {n} "
            f"different positions of pairs among the {size} of the buffer, whole numbers"
        )
    if score_B is None:
        score_B = torch.zeros(size, device=row.device).index_fill(0, row.long(), 1.0)
    if score_B.shape != (size,):
        raise UsageError(
            f"the joint rule {name!r} returned scores of shape {tuple(score_B.shape)}, expected one for each of the "
            f"{size} rows of the buffer"
        )
    return row.long(), torch.where(fit_B, score_B, torch.nan)
