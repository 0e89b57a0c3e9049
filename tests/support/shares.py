"""Which test files run in the same one of several processes, since they use the same server, which takes seconds to
start; every other file is a share of its own."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

STORES = "those that use stores"  # an S3 server and a GCS emulator
FORKS = "those that fork jobs"  # `crash_server`
TOGETHER = {
    **dict.fromkeys(("tests/faults/test_a_growing.py", "tests/faults/test_d_network.py",
                     "tests/faults/test_journey.py"), STORES),
    **dict.fromkeys(("tests/faults/test_e_crashes.py", "tests/faults/test_e_jobs.py", "tests/faults/test_e_signals.py",
                     "tests/faults/test_state_machine.py", "tests/test_cli.py"), FORKS),
}  # fmt: skip


class Shares(LoadFileScheduling):
    """`--dist loadfile`, but for the files above."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return STORES if file.startswith("tests/stores/") else TOGETHER.get(file, file)
