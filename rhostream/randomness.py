"""The only source of random numbers: every draw is a function of the words that name it (seed, purpose, position, ...).

Nothing here keeps a state, so any draw can be made again alone: that is what makes resume exact.
"""

from __future__ import annotations

import hashlib

import numpy as np

DRAWS = 2  # the edition of the draws that runs are made of: see training/draws.py


def generator(*words: object) -> np.random.Generator:
    """A numpy generator that is a function of the words alone."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(_digest(words, 16), "big")))


def fraction(*words: object) -> float:
    """A number in [0, 1) that is a function of the words alone, evenly spread over different words."""
    return (int.from_bytes(_digest(words, 8), "big") >> 11) * 2.0**-53


def torch_seed(*words: object) -> int:
    """A seed in [0, 2**62) for torch's generators that is a function of the words alone."""
    return int.from_bytes(_digest(words, 8), "big") >> 2


def _digest(words: tuple[object, ...], size: int) -> bytes:
    text = "\0".join(str(word) for word in words)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=size).digest()
