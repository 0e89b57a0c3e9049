"""The offline wing: fit an irreducible-loss model, score every shard with it once, or only index the shards."""

from rhostream.irreducible.accounts import Summary
from rhostream.irreducible.compute import compute_il, compute_ils, index
from rhostream.irreducible.fit import fit_il
from rhostream.irreducible.folds import FoldRule, fold_of
from rhostream.irreducible.kept import keep_fields
from rhostream.irreducible.model import ILModel, ModelInfo, load_il_model
from rhostream.stream.budget import Budget

__all__ = [
    "Budget",
    "FoldRule",
    "ILModel",
    "ModelInfo",
    "Summary",
    "compute_il",
    "compute_ils",
    "fit_il",
    "fold_of",
    "index",
    "keep_fields",
    "load_il_model",
]
