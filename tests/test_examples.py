"""Kinds of samples in examples/kinds, each under 60 lines: they train, resume exactly and report."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rhostream
from examples.kinds import audio, tags
from tests.support.logs import same
from tests.support.shards import png, write_shard

HERE = Path(__file__).parents[1] / "examples" / "kinds"
Sample = dict[str, object]


def tone(label: int, rng: np.random.Generator) -> Sample:
    """A tone of the class's pitch under noise, as a .wav."""
    time = np.arange(rng.integers(6000, 8001)) / audio.RATE
    values = 8000 * np.sin(2 * np.pi * (400 + 300 * label) * time + rng.uniform(0, 6)) + rng.normal(0, 2000, len(time))
    sink = io.BytesIO()
    with wave.open(sink, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(audio.RATE)
        sound.writeframes(values.astype("<i2").tobytes())
    return {"wav": sink.getvalue(), "cls": str(label)}


def tagged(label: int, rng: np.random.Generator) -> Sample:
    """A picture that is bright where it has a tag."""
    has = rng.random(len(tags.TAGS)) < 0.4
    pixels = rng.integers(0, 90, (20, 40, 3)).astype(np.uint8)
    for number in np.flatnonzero(has):
        pixels[:, 6 * number : 6 * number + 6] += 120
    return {"png": png(pixels), "json": {"tags": [tag for tag, there in zip(tags.TAGS, has, strict=True) if there]}}


def aged(label: int, rng: np.random.Generator) -> Sample:
    """A picture that is the brighter the older."""
    years = float(rng.uniform(5, 90))
    return {"png": png(rng.integers(0, 60, (24, 24)).astype(np.uint8) + np.uint8(2 * years)), "json": {"age": years}}


EXAMPLES: dict[str, tuple[str, str, str | None, Callable[[int, np.random.Generator], Sample], Sample, str]] = {
    "audio": ("Sounds", "mlp-64", None, tone, {"wav": b"RIFF no wave", "cls": "0"}, "kind:raised"),
    "tags": ("Tagged", "examples.kinds.tags:network", "binary_cross_entropy", tagged,
             {"png": png(np.zeros((4, 4), np.uint8)), "json": {"tags": ["ufo"]}}, "kind:refused"),
    "age": ("Aged", "examples.kinds.age:network", "squared_error", aged,
            {"png": png(np.zeros((4, 4), np.uint8)), "json": {"age": float("nan")}}, "kind:target"),
}  # fmt: skip


def test_examples_are_short() -> None:
    assert {path.stem for path in HERE.glob("*.py")} == {*EXAMPLES}
    for path in HERE.glob("*.py"):
        assert len(path.read_text().splitlines()) < 60, path


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_kind_of_ones_own_trains_resumes_and_reports(name: str, tmp_path: Path) -> None:
    kind, model, loss, make, bad, status = EXAMPLES[name]
    rng = np.random.default_rng(0)
    rows = [{"__key__": f"s{n:03d}", **make(n % 3, rng)} for n in range(150)]
    rows.insert(70, {"__key__": "bad", **bad})
    write_shard(tmp_path / "shards" / "a.tar", rows[:80])
    write_shard(tmp_path / "shards" / "b.tar", rows[80:])
    shards, how = [str(tmp_path / "shards")], {"kind": f"examples.kinds.{name}:{kind}", "model": model}
    how |= {} if loss is None else {"loss": loss}
    fitted = rhostream.fit_il(shards, str(tmp_path / "m"), epochs=3, batch_size=16, seed=0, **how)
    table = rhostream.compute_il(shards, str(tmp_path / "m"), str(tmp_path / "il"), **how)
    assert np.isfinite(fitted.val_loss) and table.quarantined == {status: 1}

    def train(run: str, steps: int) -> Any:
        return rhostream.train(
            shards, str(tmp_path / "il"), str(tmp_path / run), buffer_size=40, batch_size=8, steps=steps, seed=0,
            threads=1, checkpoint_every=2, test_shards=shards, eval_every=3, **how,
        )  # fmt: skip

    train("whole", 6)
    train("halves", 3)
    train("halves", 6)
    assert same(tmp_path / "whole", tmp_path / "halves")
    with rhostream.open_ledger(str(tmp_path / "whole")) as ledger:
        (row,) = ledger.sql(
            "SELECT count(*) FILTER (kept) AS kept, count(*) FILTER (reason = 'quarantined') AS bad, count(label) > 0 "
            "AS classes, count(correct) > 0 AS judged FROM selections"
        ).to_pylist()
    assert row == {"kept": 48, "bad": row["bad"], "classes": loss is None, "judged": loss is None}
    page = Path(rhostream.write_report(str(tmp_path / "whole"), str(tmp_path / "r.html"))).read_text()
    assert "<h1>" in page and json.loads((tmp_path / "il" / "_table.json").read_text())["content"] == how["kind"]
