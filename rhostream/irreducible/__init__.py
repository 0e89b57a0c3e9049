"""The offline wing: fit an irreducible-loss model, score every shard with it once, or only index the shards."""

from rhostream.irreducible.accounts import Summary
from rhostream.irreducible.compute import compute_il, index
from rhostream.irreducible.fit import fit_il
from rhostream.irreducible.kept import keep_fields
from rhostream.stream.budget import Budget

__all__ = [
    "Budget",
    "Summary",
    "compute_il",
    "fit_il",
    "index",
    "keep_fields",
]
