"""What a commit and a resume ask of a real S3 server, counted by the proxy in front of it."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rhostream import storage
from rhostream.runs.attempt import Attempt
from tests.faults.rig.s3 import FaultyStore
from tests.support.chains import PINNED, RECORD, commit, long_chain, take


@pytest.mark.slow
def test_a_commit_and_a_resume_ask_the_same_of_a_store_after_100_commits_and_after_5000(faulty: FaultyStore) -> None:
    told = {}
    for links in (100, 5000):
        run = f"{faulty.url}/{links}"
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda one, run=run: storage.create(f"{run}/{one[0]}", one[1]), long_chain(links)))
        attempt = Attempt(run, dict(PINNED))
        faulty.proxy.calm()
        attempt.open(RECORD)
        resumed = _asked(faulty)
        attempt.claim()
        commits = []
        for _ in range(3):
            take(attempt)
            faulty.proxy.calm()
            commit(attempt)
            commits.append(_asked(faulty))
        told[links] = resumed, commits
    (few, at_100), (many, at_5000) = told[100], told[5000]
    assert [methods for methods, _ in at_100] == [methods for methods, _ in at_5000]
    assert all(abs(a - b) < 64 for (_, a), (_, b) in zip(at_100, at_5000, strict=True))  # digits of numbers
    assert sum(at_5000[0][0].values()) == 7  # log, steps, two tensors, link; a newer attempt; the states that are there
    assert sum(many[0].values()) <= sum(few[0].values()) + 12 and many[1] == few[1]


def _asked(faulty: FaultyStore) -> tuple[dict[str, int], Any]:
    """Requests by method, and bytes sent."""
    seen = list(faulty.proxy.seen)
    return dict(Counter(one.method for one in seen)), sum(len(one.body) for one in seen)
