"""What selection is worth on pairs of image and caption with 40 % of the captions swapped: arms, seeds, two tables.

    python -m jobs.captions --out DIR                    captions whose truth is known (docs/results/captions.md)
    python -m jobs.captions --out DIR --icons PACKAGE    real words too: icons and their names (recipe icons)

    D with swaps, clean holdout, clean test > reference fitted on the holdout, il and vectors of D > arms by batch

The reference is the network that is trained, fitted on 6,000 clean pairs. The baseline to beat is not uniform but the
filter: the 30 % of D that the reference finds most similar, chosen once, and uniform among them. Arms that end sooner
in time (uniform, filter) train on, so that all can be compared at equal total time, the reference on the bill.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional

import rhostream
from jobs import recipes
from jobs.reproduce.markdown import table
from rhostream.audit.metrics import smooth, steps_to_reach

LOOKS, WINDOW = 10, 3  # evaluations of a run, and how many of them are averaged
KEPT_BEST, TIMES = 0.3, 5  # what the filter keeps; n_B is 5 n_b
LONGER = 3.0  # times the steps, at the smallest batch, for what is shown at more steps too
FILTER, SECONDS = f"similarity={100 * (1 - KEPT_BEST):.0f}%:", "seconds.json"
MODELS = {"own": "jobs.captions:towers", "siglip": "jobs.captions:towers_of_siglip"}  # by where a and b begin


# -- the network -----------------------------------------------------------------------------------------------------


class Centred(nn.Module):
    """A ReLU whose output is about zero in the mean, where its input is normal: else all vectors begin alike, and the
    loss of pairs stands still for some hundred steps before they part."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return functional.relu(x) - 0.4


class Towers(nn.Module):
    """Two small towers for small pictures and short captions, a million multiply-adds a pair at 28 pixels."""

    def __init__(self, image_size: int, channels: int, vocabulary: int, padding: int, width: int = 64) -> None:
        super().__init__()
        layers, before, side = list[nn.Module](), channels, image_size
        for filters in (16, 32, 64):
            layers += [nn.Conv2d(before, filters, 3, 2, 1, bias=False), nn.GroupNorm(8, filters), Centred()]
            before, side = filters, -(-side // 2)
        self.image = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * side * side, width))
        self.padding = padding
        self.embedding = nn.Embedding(vocabulary, 32, padding_idx=padding)
        self.near = nn.Conv1d(32, 96, 5, 1, 2)
        self.text = nn.Linear(96, width)
        self.logit_scale = nn.Parameter(torch.tensor(5.0).log())
        self.logit_bias = nn.Parameter(torch.tensor(-4.0))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(n, C, H, W) to (n, D)."""
        vectors: Tensor = self.image(pixels)
        return vectors

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(n, L) int64 to (n, D): what five neighbouring words say, in the mean over the caption."""
        there = (tokens != self.padding)[:, None].float()
        said = functional.tanh(self.near(self.embedding(tokens).transpose(1, 2))) * there
        vectors: Tensor = self.text(said.sum(2) / there.sum(2).clamp(min=1))
        return vectors


def towers(*, image_size: int, channels: int, vocabulary: int, padding: int) -> nn.Module:
    """`--model jobs.captions:towers`."""
    return Towers(image_size, channels, vocabulary, padding)


def towers_of_siglip(*, image_size: int, channels: int, vocabulary: int, padding: int) -> nn.Module:
    """The same with a = 10 and b = -10 at the start, as SigLIP's (Zhai et al. 2023)."""
    model = Towers(image_size, channels, vocabulary, padding)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10.0))
        model.logit_bias.fill_(-10.0)
    return model


def own_pair(logits_BC: Tensor, column_B: dict[str, Tensor]) -> Tensor:
    """A rule: the loss of the own pair alone, as if a caption could be judged without others, minus the reference's.

    `logits_BC` are the rows of `models.pairs.TwoTowers`; siglip's p_ii = softplus(-a z.t - b), and so its `il_own`.
    """
    width = logits_BC.shape[1] // 2 - 1
    image, text, scale, bias = logits_BC.split([width, width, 1, 1], 1)
    return functional.softplus(-(scale * (image * text).sum(1, keepdim=True) + bias))[:, 0] - column_B["il_own"]


def _rho_in(n: int) -> Callable[[Tensor, dict[str, Tensor]], Tensor]:
    """rho with il in batches of n, whatever the reference's own: the table's `il` is that of 64 (fit-il's batch)."""

    def rule(loss_B: Tensor, column_B: dict[str, Tensor]) -> Tensor:
        return loss_B - (column_B["il_own"] + (n - 1) * (column_B["il_image"] + column_B["il_text"]))

    return rule


rho_64, rho_256, rho_1024 = _rho_in(64), _rho_in(256), _rho_in(1024)


# -- what is measured ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Shards by recipe, and how long they are learned from."""

    name: str
    train: tuple[str, ...]  # arguments of shards.make
    held: tuple[str, ...]
    test: tuple[str, ...]
    tokenizer: str
    length: int
    epochs: int  # of the reference on its holdout


def captions() -> World:
    """54,000 images of Fashion-MNIST with six attributes, 40 % of the captions swapped; test: 3,000 clean ones."""
    return World("captions", ("captions", "--limit", "54000", "--samples-per-shard", "2000"),
                 ("captions", "--skip", "54000", "--swap", "0"),
                 ("captions", "--split", "test", "--limit", "3000", "--swap", "0"), "words:1000", 20, 8)  # fmt: skip


def icons(package: str) -> World:
    """40,000 icons with their names, 40 % swapped; the reference is weak: it has seen 6,000 of a long tail."""
    of = ("icons", "--source", package, "--seed", "1")
    return World("icons", (*of, "--limit", "40000", "--swap", "0.4", "--samples-per-shard", "2000"),
                 (*of, "--skip", "40000", "--limit", "6000"),
                 (*of, "--skip", "46000", "--limit", "2000", "--split", "test"), "words:8000", 8, 8)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A way to choose: its rule and options, n_B as a multiple of n_b, and for how many times the steps it trains."""

    name: str
    options: dict[str, Any]
    times: float = TIMES
    longer: float = 1.0
    reference: bool = True  # whether the reference is on its bill


ARMS = (
    Arm("uniform", {"rule": "uniform"}, longer=4.0, reference=False),
    Arm("filter, then uniform", {"rule": "uniform", "band": FILTER}, longer=4.0),
    Arm("rho, marginal", {"rule": "rho"}, longer=LONGER),
    Arm("rho, il at n_b", {"rule": "jobs.captions:rho_", "column": ["il_own", "il_image", "il_text"]}),
    Arm("filter, then rho", {"rule": "rho", "band": FILTER}, times=TIMES / KEPT_BEST, longer=LONGER),
    Arm("jest", {"rule": "jest"}, longer=LONGER),
    Arm("jest, top", {"rule": "jest_top"}),
    Arm("own pair only", {"rule": "jobs.captions:own_pair", "column": "il_own"}),
)
BATCHES = {64: 300, 256: 200, 1024: 100}  # n_b: steps
SEEDS = {64: 3, 256: 2, 1024: 1}  # fewer where a step is dear
SMALL = ("own pair only", "filter, then rho")  # arms of a batch of 64 alone
LARGE = ("rho, il at n_b",)  # arms beyond it: there both il are the same


def make(out: Path, world: World, model: str) -> dict[str, float]:
    """Shards, reference, and il with vectors; what is there isn't made again.

    Returns the seconds of one core that fitting and scoring took.
    """
    bill = out / SECONDS
    if bill.exists():
        return dict(json.loads(bill.read_text()))
    for name in ("train", "held", "test"):
        recipes.make(out / name, *getattr(world, name))
    seconds, start = {}, time.process_time()
    if not (out / "il-model" / "model.json").exists():
        rhostream.fit_il([str(out / "train")], str(out / "il-model"), holdout=[str(out / "held")], model=model,
                         content="pair", loss="siglip", tokenizer=world.tokenizer, text_length=world.length,
                         epochs=world.epochs)  # fmt: skip
    seconds["fit"], start = time.process_time() - start, time.process_time()
    rhostream.compute_il([str(out / "train")], str(out / "il-model"), str(out / "il"), model=model,
                         keep={"swapped": "bool"}, vectors="float16")  # fmt: skip
    seconds["score"] = time.process_time() - start
    bill.write_text(json.dumps(seconds))
    return seconds


def train(out: Path, arm: Arm, batch: int, steps: int, seed: int, model: str) -> Path:
    """One run, gone on with where it is there; the place says what it is."""
    run = out / "runs" / f"{arm.name.replace(', ', '-').replace(' ', '-')}-{batch}-{seed}"
    options = arm.options | {"rule": arm.options["rule"].replace("rho_", f"rho_{batch}")}
    every, times = max(round(steps / LOOKS), 1), [time.process_time()]
    lengths = [steps, round(steps * arm.longer)] if batch == min(BATCHES) else [steps]
    for length in lengths[: 1 if lengths[0] == lengths[-1] else 2]:  # what goes on for longer is looked at less often
        rhostream.train(
            [str(out / "train")], str(out / "il"), str(run), model=model, loss="siglip", seed=seed, threads=1,
            steps=length, eval_every=every if length == steps else 5 * every, batch_size=batch,
            buffer_size=round(batch * arm.times), test_shards=[str(out / "test")],
            metrics=lambda _: times.append(time.process_time()), **options,
        )  # fmt: skip
    if len(times) > 10 and not (run / SECONDS).exists():  # of this process alone, whoever else computes beside it
        steps_taken = [after - before for before, after in itertools.pairwise(times[5:])]
        (run / SECONDS).write_text(json.dumps(median(steps_taken)))
    return run


MEASURES = {"exact": "image_to_text_1", "R@1": "text_to_image_1", "R@10": "text_to_image_10"}


@dataclass(frozen=True)
class Facts:
    """What is read of a run: curves over steps taken, the share of swapped pairs kept, a step's ms of one core."""

    steps: list[int]
    curves: dict[str, list[float]]
    swapped: float
    milliseconds: float

    def at(self, measure: str, steps: float) -> float:
        """Per cent after so many steps, the mean of up to three looks; NaN before the first look."""
        seen = [i for i, step in enumerate(self.steps) if step <= steps]
        return 100 * float(smooth(self.curves[measure][: len(seen)], WINDOW)[-1]) if seen else float("nan")


def facts(run: Path, steps: int) -> Facts:
    """Of the first `steps` steps, and the curves of all."""
    with rhostream.open_ledger(str(run)) as ledger:
        looks = ledger.sql("SELECT step + 1 AS step, image_to_text_1, text_to_image_1, text_to_image_10 FROM steps "
                           "WHERE test_accuracy IS NOT NULL ORDER BY step").to_pydict()  # fmt: skip
        kept = ledger.sql("SELECT avg(swapped::INT) AS share FROM selections JOIN samples USING (shard, ordinal) "
                          "WHERE kept AND step < $steps", {"steps": steps}).to_pydict()["share"]  # fmt: skip
    curves = {name: looks[column] for name, column in MEASURES.items()}
    return Facts(looks["step"], curves, 100 * kept[0], 1000 * json.loads((run / SECONDS).read_text()))


# -- tables ----------------------------------------------------------------------------------------------------------


def each(values: list[float], form: str = ".1f") -> str:
    """The mean, and in brackets the lowest and the highest."""
    around = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{mean(values):{form}}{around}"


def equal_steps(found: dict[str, list[Facts]], steps: int) -> str:
    """A row an arm, all after `steps` steps."""
    goal = mean(one.at("exact", steps) for one in found["uniform"]) / 100
    rows = []
    for name, runs in found.items():
        reached = [steps_to_reach(one.steps, one.curves["exact"], goal, WINDOW) for one in runs]
        rows.append([
            name, *(each([one.at(measure, steps) for one in runs]) for measure in MEASURES),
            each([one.swapped for one in runs]),
            " ".join("never" if at is None or at > steps else str(at) for at in reached),
            f"{mean(one.milliseconds for one in runs):.0f}",
        ])  # fmt: skip
    heads = ["arm", "exact caption %", "R@1 %", "R@10 %", "swapped kept %", "steps to uniform's", "ms a step"]
    return table(heads, rows)


def equal_time(found: dict[str, list[Facts]], steps: int, seconds: dict[str, float], measure: str) -> str:
    """A row an arm: what it has reached when rho ends, with and without the reference's seconds on the bill."""
    budget = steps * mean(one.milliseconds for one in found["rho, marginal"]) / 1000
    rows = []
    for arm in (arm for arm in ARMS if arm.name in found):
        runs = found[arm.name]
        step = mean(one.milliseconds for one in runs) / 1000
        spent = sum(seconds.values())
        charged = (budget + spent - (spent if arm.reference else 0)) / step
        last = min(max(one.steps) for one in runs)
        cells = [
            f"{each([one.at(measure, at) for one in runs])} at {min(at, last):.0f}{' (its end)' if at > last else ''}"
            for at in (charged, budget / step)
        ]
        rows.append([arm.name, *cells])
    whole = f"{budget + sum(seconds.values()):.0f} s in all, reference charged"
    return table(["arm", whole, f"{budget:.0f} s, reference free"], rows)


@click.command()
@click.option("--out", default="captions", show_default=True, help="Folder of everything that is made.")
@click.option("--icons", "package", default=None, help="The unpacked package @iconify/json: measured instead.")
@click.option("--batches", default="64,256,1024", show_default=True, help="Which n_b.")
@click.option("--arms", default=None, help="Of the arms these alone, by name, parted by semicolons.")
@click.option("--start", type=click.Choice([*MODELS]), default="own", help="Where scale and bias begin; a folder each.")
def main(out: str, package: str | None, batches: str, arms: str | None, start: str) -> None:
    """Measure it; what is there already is not made again."""
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    world = captions() if package is None else icons(package)
    folder, model = Path(out, world.name), MODELS[start]
    seconds, measure = make(folder, world, model), "exact" if package is None else "R@10"
    click.echo(f"reference: {seconds['fit']:.0f} s to fit, {seconds['score']:.0f} s to score D", err=True)
    wanted = [arm.strip() for arm in arms.split(";")] if arms else [arm.name for arm in ARMS]
    for batch in map(int, batches.split(",")):
        steps, runs = BATCHES[batch], dict[str, list[Path]]()
        for seed in range(SEEDS[batch]):
            for arm in ARMS:
                if arm.name in wanted and arm.name not in (LARGE if batch == min(BATCHES) else SMALL):
                    began = time.monotonic()
                    runs.setdefault(arm.name, []).append(train(folder, arm, batch, steps, seed, model))
                    one = facts(runs[arm.name][-1], steps)
                    click.echo(f"{batch}, seed {seed}, {arm.name}: {one.at(measure, steps):.1f} %, swapped "
                               f"{one.swapped:.1f} %, {one.milliseconds:.0f} ms ({time.monotonic() - began:.0f} s)",
                               err=True)  # fmt: skip
        for length in (steps, round(LONGER * steps)):
            found = {name: [facts(run, length) for run in each_seed] for name, each_seed in runs.items()}
            found = {name: seeds for name, seeds in found.items() if min(one.steps[-1] for one in seeds) >= length}
            if found:
                click.echo(f"\n**{world.name}, n_b {batch}, {length} steps, {SEEDS[batch]} seeds**\n")
                click.echo(equal_steps(found, length))
                if "rho, marginal" in found:
                    click.echo(f"\n{equal_time(found, length, seconds, measure)}")


if __name__ == "__main__":
    main()
