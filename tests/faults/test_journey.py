"""The journey through a store that misbehaves: fit-il, compute-il and train keep what they keep on a disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rhostream
from rhostream import storage
from rhostream.runs import checkpoint
from rhostream.tables import selections
from tests.faults import tally
from tests.faults.rig.s3 import FaultyStore
from tests.stores.servers import SECRET

SETTINGS: dict[str, object] = {
    "model": "mlp-64",
    "rule": "rho",
    "buffer_size": 40,
    "batch_size": 8,
    "steps": 12,
    "checkpoint_every": 5,
    "eval_every": 6,
    "seed": 3,
    "threads": 1,
}
COUNTS = [60, 45, 70, 55, 40, 50]


def _journey(shards: str, place: str, workers: int) -> tuple[list[tuple[object, ...]], dict[str, object], int]:
    """Run it all below `place`: (step, shard, ordinal, key) of all that was kept, compute-il's accounts, retries."""
    roots = {"data": shards}
    rhostream.fit_il([shards], f"{place}/il-model", model="mlp-64", epochs=2, seed=1, workers=workers, roots=roots)
    summary = rhostream.compute_il([shards], f"{place}/il-model", f"{place}/il", workers=workers, roots=roots)
    assert not summary.bad_shards and summary.made == len(COUNTS)
    rhostream.train([shards], f"{place}/il", f"{place}/run", workers=workers, roots=roots, **SETTINGS)
    there = checkpoint.latest(storage.resolve(f"{place}/run"))
    assert there is not None and there.complete and there.step == SETTINGS["steps"]
    rows = selections.read(storage.resolve(f"{place}/run"), there.log).to_pylist()
    kept = sorted((row["step"], row["shard"], row["ordinal"], row["key"]) for row in rows if row["kept"])
    told = sum(
        sum(kinds.values()) for account in (summary.retried, there.cost["retried"]) for kinds in account.values()
    )
    return kept, {"samples": summary.samples, "ok": summary.ok, "quarantined": summary.quarantined}, told


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_journey_through_a_faulty_store_keeps_what_it_keeps_on_disk(
    faulty: FaultyStore, workers: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One request in twenty meets a fault. And no secret is in what was written or said meanwhile."""
    faulty.put_shards(COUNTS)
    on_disk = _journey(str(faulty.disk / "shards"), str(faulty.disk), 0)
    faulty.proxy.calm()
    faulty.proxy.one_in(20, seed=5)
    in_store = _journey(faulty.shards, faulty.url, workers)
    met = {r.fault for r in faulty.proxy.seen if r.fault}
    requests, faults = faulty.proxy.count(), sum(bool(r.fault) for r in faulty.proxy.seen)
    said = "".join(capfd.readouterr()) + caplog.text
    tally.say(
        f"journey, workers={workers}: {requests} requests, {faults} of them met a fault "
        f"({', '.join(sorted(met))}); tried again: {json.dumps(faulty.retried)}"
    )
    assert in_store[:2] == on_disk[:2] and len(on_disk[0]) == 12 * 8
    assert on_disk[2] == 0 < in_store[2]  # the accounts of compute-il and train say what was tried again
    assert faults >= requests / 40 and len(met) >= 4
    # Every fault costs a retry; one on a read of the last shards' bytes ahead may come too late to be brought back.
    assert faults - 2 <= sum(faulty.retried.values()) <= faults
    faulty.proxy.calm()
    assert [u for u in storage.list_files(faulty.url, "") if ".probe" in u or ".tmp" in u] == []
    assert not any(p.suffix == ".part" for p in Path(faulty.disk / "spool").iterdir())
    assert SECRET not in said and not any(
        SECRET.encode() in storage.read_bytes(u) for u in storage.list_files(faulty.url, "")
    )
