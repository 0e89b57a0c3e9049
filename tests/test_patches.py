"""What a new thing costs: a built-in kind is a file and a line in the list of kinds, an integration a file.

Each is tried by a patch on a copy of the library; rules and options are in tests/test_config.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.support.shards import write_shard

REPOSITORY = Path(__file__).parents[1]
KIND = '''
"""A ramp: how steep it is, and where it begins."""
import numpy as np
from rhostream.samples.kind import OK, FieldSpec, Kind

class RampKind(Kind):
    name = "ramp"
    members = {"ramp": ("rmp",)}
    holds = "ramps"

    def fields(self, view=None):
        return {"ramp": FieldSpec((16,), "float32")}

    def decode(self, members, out, view=None, rng=None):
        values = np.frombuffer(members["ramp"], "<f4")
        if len(values) != 2:
            return "ramp:length"
        out["ramp"][:] = values[0] * np.arange(16) + values[1]
        return OK

    def to_json(self):
        return {"kind": "ramp"}

    def model_arguments(self, view=None):
        return {"length": 16}
'''
INTEGRATION = '''
"""Any list, in turns of two."""
from rhostream.integrations.webdataset import join_il

def pairs_with_il(table, samples):
    joined = join_il(table)(samples)
    return list(zip(joined, joined, strict=False))
'''
FILES = {"samples/ramp.py": KIND, "integrations/pairs.py": INTEGRATION}
LINE = '    "tokens": "rhostream.samples.tokens:TokensKind",\n'
PATCHED = {"samples/names.py": (LINE, LINE + '    "ramp": "rhostream.samples.ramp:RampKind",\n')}
NET = """
from torch import nn

def net(*, length, classes):
    return nn.Sequential(nn.Linear(length, 8), nn.ReLU(), nn.Linear(8, classes))
"""
PROGRAM = """
import json
from collections import Counter
from pathlib import Path
import pyarrow.parquet
import rhostream
from rhostream.config.page import page
from rhostream.integrations.pairs import pairs_with_il

shards, net, out = ["shards"], "net:net", {}
rhostream.fit_il(shards, "il-model", model=net, epochs=2, batch_size=16)
info = rhostream.compute_il(shards, "il-model", "il", model=net)
run = rhostream.train(shards, "il", "run", model=net, buffer_size=40, batch_size=8, steps=3, threads=1)
rhostream.write_report("run", "r.html")
with rhostream.open_ledger("run") as ledger:
    out["kept"] = ledger.sql("SELECT count(*) FROM selections WHERE kept").column(0)[0].as_py()
out["bad"] = json.load(open("il/_table.json"))["content"]
(part,) = Path("il/parts").rglob("*.parquet")
out["statuses"] = dict(Counter(pyarrow.parquet.read_table(part)["status"].to_pylist()))
out["pins"] = json.load(open("run/run.json"))["fingerprints"]
samples = [{"__key__": f"s{n}", "__url__": "shards/a.tar", "cls": b"0"} for n in range(4)]
out["pairs"] = [[one["__key__"] for one in pair] for pair in pairs_with_il("il", iter(samples))]
out["page"], out["file"] = page(), rhostream.__file__
print(json.dumps(out))
"""


def test_a_kind_is_a_file_and_a_line_and_shows_everywhere_and_an_integration_is_a_file(tmp_path: Path) -> None:
    copy, rng = tmp_path / "copy", np.random.default_rng(0)
    shutil.copytree(REPOSITORY / "rhostream", copy / "rhostream", ignore=shutil.ignore_patterns("__pycache__"))
    for file, text in FILES.items():
        path = copy / "rhostream" / file
        assert not path.exists()
        path.write_text(text)
    for file, (old, new) in PATCHED.items():
        path = copy / "rhostream" / file
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))
    assert len(PATCHED) == 1

    def ramp(label: int) -> bytes:
        return (np.array([label, 0], "<f4") + rng.normal(0, 0.1, 2).astype("<f4")).tobytes()

    rows = [{"__key__": f"s{n}", "rmp": ramp(n % 3), "cls": str(n % 3)} for n in range(240)]
    write_shard(tmp_path / "shards" / "a.tar", [*rows, {"__key__": "bad", "rmp": b"\0" * 12, "cls": "0"}])  # type: ignore[list-item]
    (tmp_path / "net.py").write_text(NET)
    env = {**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-c"]
    done = subprocess.run([*run, PROGRAM], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["file"].startswith(str(copy)) and out["kept"] == 3 * 8 and out["bad"] == "ramp"
    assert out["statuses"] == {"ok": 240, "ramp:length": 1}
    assert out["pins"]["preprocess_kind"] == "ramp" and "ramp" in out["page"]
    assert out["pairs"] == [["s0", "s1"], ["s2", "s3"]]
    help_of = "from rhostream.cli import main; main()"
    shown = subprocess.run(
        [*run, help_of, "index", "--help"], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60
    )
    assert "ramp" in shown.stdout
    assert "ramp" in (tmp_path / "r.html").read_text()
