"""Fixtures of the fault tests."""

from __future__ import annotations

import pytest

from tests.faults.crash_server import Rig, shared
from tests.faults.rig.s3 import faulty, proxy  # noqa: F401  # fixtures


@pytest.fixture(scope="session")
def rig() -> Rig:
    """Processes that fork a child for a job in milliseconds; see `crash_server`."""
    return shared()
