"""Processes of the tests that are forked from one that has imported what they need: milliseconds, not seconds.

Python has one fork server a process: whatever starts it first, a test or the library for its loader workers, it imports
these, computes nothing, and so has no threads that a fork could lose.
"""

from __future__ import annotations

import multiprocessing

IMPORTS = [
    # What the first step of a job imports by and by.
    "numpy.ma", "numpy.random", "torch._dynamo", "torch.utils.flop_counter", "torch.utils.data", "duckdb", "simplejpeg",
    "imagecodecs", "pyarrow.parquet", "safetensors.torch", "PIL.JpegImagePlugin", "PIL.PngImagePlugin",
    "rhostream.audit.report", "rhostream.audit.verify", "rhostream.cli", "rhostream.irreducible",
    "rhostream.training.start", "shards.check",
]  # fmt: skip
# What the files import whose functions are run.
TESTS = ["tests.conftest", "tests.support.shards", "tests.support.ranks"]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([*IMPORTS, *TESTS])
