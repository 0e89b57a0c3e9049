"""The faulty store, for tests of the spool."""

from tests.faults.rig.s3 import faulty, proxy  # noqa: F401  # fixtures
