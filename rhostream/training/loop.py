"""Algorithm 1 of the paper, on tar shards: draw n_B, score, keep n_b, step; every decision is logged."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rhostream import storage
from rhostream.candidates import Candidates, Reason
from rhostream.checkpoint import load_tensors
from rhostream.cost import macs_per_sample
from rhostream.errors import NonFiniteError, UsageError
from rhostream.models import build, load_weights
from rhostream.selection.rules import find_rule
from rhostream.selection.selector import NONFINITE_BUFFERS, Selection, Selector
from rhostream.stream.dataset import Loader
from rhostream.stream.join import UniformChoice
from rhostream.stream.open import open_stream
from rhostream.stream.progress import StepProgress
from rhostream.tables.il import fingerprint
from rhostream.tables.selections import rows_of
from rhostream.training.augment import augment as augmented
from rhostream.training.evaluate import Evaluation, TestSet
from rhostream.training.ranks import require_single
from rhostream.training.run import Run, versions
from rhostream.training.signals import StopRequest

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
Metrics = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    run: str
    steps: int
    planned: int  # rows in the log
    reasons: dict[str, int]
    test_accuracy: float | None
    cost: dict[str, Any]


@dataclass
class Trainer:
    """One attempt at a run, assembled: what the loop needs and nothing that it doesn't."""

    loader: Loader
    selector: Selector
    model: nn.Module
    optimizer: torch.optim.Optimizer
    run: Run
    device: torch.device
    seed: int
    last_step: int
    accumulate: int = 1
    augment: str = "none"
    tests: TestSet | None = None
    eval_every: int = 100
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    metrics: Metrics | None = None
    evaluation: Evaluation | None = None
    _dead: int = field(default=0, init=False)

    def loop(self) -> None:
        """Algorithm 1. Raises Interrupted after committing when a signal asked to stop."""
        clock, step_of = _Clock(self.run.cost.seconds), self.run
        progress = StepProgress("train", self.last_step, step_of.step)
        with StopRequest() as stop, progress:
            for candidates in self.loader:  # line 5: the next n_B of the plan
                clock.lap("wait")
                torch.manual_seed(_step_seed(self.seed, step_of.step))  # dropout is a function of the step
                selection = self.selector(candidates.to(self.device))  # lines 6-8: score, keep the top n_b
                clock.lap("score")
                selection, loss = self._gradient_step(selection)  # lines 9-10
                clock.lap("train")
                self._record(candidates, selection, loss, clock)
                self.loader.consumed()
                self._end_of_pass(candidates)
                step_of.step += 1
                progress.step(f"loss {loss:.3f}")
                done = step_of.step >= self.last_step
                if done or stop.signal or step_of.step % self.checkpoint_every == 0:
                    self._commit(done, clock)
                if done:
                    return
                if stop.signal:
                    raise stop.error(step_of.step)

    def _gradient_step(self, selection: Selection) -> tuple[Selection, float]:
        """One fresh forward and backward on the kept samples, the mean loss; with none, the optimizer isn't called."""
        if selection.input is None:
            return selection, math.nan
        self.model.train()
        x, label = selection.input, selection.label
        if self.augment != "none":
            x = augmented(x, self.augment, _step_seed(self.seed, self.run.step))
        self.optimizer.zero_grad(set_to_none=True)
        size = -(-len(x) // self.accumulate)
        losses = []
        for part, labels in zip(x.split(size), label.split(size), strict=True):
            loss_b = self.selector.loss(self.model(part), labels)
            (loss_b.sum() / len(x)).backward()
            losses.append(loss_b.detach())
        loss = float(torch.cat(losses).mean())
        self.run.cost.trained += len(x)
        if math.isfinite(loss):
            self._dead = 0
            self.optimizer.step()
            return selection, loss
        return self._without_nonfinite(selection, torch.cat(losses)), loss

    def _without_nonfinite(self, selection: Selection, loss_b: Tensor) -> Selection:
        """A NaN in the batch would poison the weights: no step is taken, and the log says which samples it was."""
        self._dead += 1
        if self._dead >= NONFINITE_BUFFERS:
            raise NonFiniteError(f"the training loss of {self._dead} batches in a row is NaN or infinite (step "
                                 f"{self.run.step}); lower --lr, or use float32 or bfloat16")
        bad = ~torch.isfinite(loss_b).cpu().numpy()
        selection.kept[selection.rows] = False
        selection.reason[selection.rows] = np.where(bad, Reason.nonfinite, Reason.below)
        return selection

    def _record(self, candidates: Candidates, selection: Selection, loss: float, clock: _Clock) -> None:
        run, step = self.run, self.run.step
        run.cost.scored += selection.scored
        run.cost.decoded += len(candidates.candidate_rows)
        run.log.append(rows_of(candidates, step, selection.columns()), step)
        _count(run.counts, selection.reason)
        if self.tests is not None and ((step + 1) % self.eval_every == 0 or step + 1 == self.last_step):
            clock.lap("log")
            self.evaluation = self.tests.evaluate(self.model)
            run.cost.evaluated += self.evaluation.samples
            clock.lap("evaluate")
        reached = selection.loss[~np.isnan(selection.loss)]
        evaluation = self.evaluation if self.evaluation and (step + 1) % self.eval_every == 0 else None
        if step + 1 == self.last_step:
            evaluation = self.evaluation
        row = {
            "step": step, "pass": candidates.pass_index, "candidates": len(candidates.candidate_rows),
            "kept": int(selection.kept.sum()), "loss_kept": None if math.isnan(loss) else loss,
            "loss_candidates": float(reached.mean()) if len(reached) else None,
            "accuracy_candidates": float(selection.correct.sum() / len(reached)) if len(reached) else None,
            "learning_rate": self.optimizer.param_groups[0]["lr"], "forward_units": run.cost.forward_units,
            **{f"seconds_{phase}": clock.last.get(phase, 0.0) for phase in ("wait", "score", "train", "log")},
            **(evaluation.columns() if evaluation else {}),
        }
        run.steps.append(row)
        if self.metrics is not None:
            self.metrics(row)
        clock.lap("log")

    def _end_of_pass(self, candidates: Candidates) -> None:
        """The tail of a pass is logged with its last step."""
        stream = self.loader.stream
        if candidates.index + 1 < stream.plan(candidates.pass_index).buffers:
            return
        tail = stream.tail(candidates.pass_index)
        if len(tail):
            n, never = len(tail), np.full(len(tail), np.nan, np.float32)
            columns = {"loss": never, "score": never, "correct": np.zeros(n, bool), "kept": np.zeros(n, bool),
                       "reason": tail.reason, "weight": np.ones(n, np.float32), "lag": np.zeros(n, np.uint8)}
            self.run.log.append(rows_of(tail, None, columns), self.run.step)
            _count(self.run.counts, tail.reason)

    def _commit(self, done: bool, clock: _Clock) -> None:
        state = self.loader.state_dict()
        self.run.commit(self.model, self.optimizer, pass_index=state["pass"], buffer=state["buffer"], complete=done,
                        keep=self.keep_checkpoints)
        clock.lap("checkpoint")


class _Clock:
    """Splits wall time into phases: seconds of the last lap of each, and running totals."""

    def __init__(self, totals: dict[str, float]) -> None:
        self.totals, self._mark = totals, time.perf_counter()
        self.last: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.last[phase] = now - self._mark
        self.totals[phase] = self.totals.get(phase, 0.0) + self.last[phase]
        self._mark = now


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % (1 << 63)


def _count(counts: dict[str, int], reason: np.ndarray[Any, Any]) -> None:
    for value, number in zip(*np.unique(reason, return_counts=True), strict=True):
        name = Reason(int(value)).name
        counts[name] = counts.get(name, 0) + int(number)


def train(shards: str | Iterable[str], il: str, run: str, *, model: str = "mlp", rule: str = "rho",
          buffer_size: int = 320, batch_size: int = 32, test_shards: Iterable[str] = (), passes: int | None = None,
          steps: int | None = None, workers: int = 0, seed: int = 0, missing_il: str = "error",
          init: str | None = None, accumulate: int = 1, lr: float = 1e-3, weight_decay: float = 0.01,
          lanes: int | None = None, loss_cap: bool = False, chunk: int | None = None, precision: str = "float32",
          batch_norm: str = "buffer", augment: str = "none", keep_holdout: bool = False, eval_every: int = 100,
          smoothing: int = 5, checkpoint_every: int = 500, keep_checkpoints: int = 2, device: str = "auto",
          classes: int | None = None, image_size: int | None = None, decoder: str = "auto",
          roots: Mapping[str, str] | None = None, metrics: Metrics | None = None,
          make_model: Callable[[], nn.Module] | None = None) -> Summary:
    """Train `model` on the shards with selection, in the run folder `run`; the same call again resumes.

    `buffer_size` is n_B, `batch_size` n_b. Without `passes` and `steps`: one pass; with `steps` alone: as many passes
    as they need. AdamW with the paper's settings. `test_shards` are for reporting only and change nothing.
    `eval_every`, `checkpoint_every` in steps; `smoothing` evaluations are averaged by reports. `metrics` is called
    with each step's row. `make_model` overrides `model`, which then only names it.

    Raises UsageError and its kin before any work, Interrupted after a signal, NonFiniteError when training diverges.
    """
    require_single()
    run, needs_il = storage.resolve(run), find_rule(rule).needs_il
    uniform = rule == "uniform"
    _check(buffer_size, batch_size, precision, accumulate, eval_every, checkpoint_every)
    loader = open_stream(
        shards, il, buffer_size=buffer_size, seed=seed, passes=None, workers=workers, image_size=image_size,
        lanes=lanes, decoder=decoder, missing_il=missing_il, keep_holdout=keep_holdout, needs_il=needs_il, roots=roots,
        prefilter=UniformChoice(batch_size, seed) if uniform else None,
    )
    stream, info = loader.stream, loader.stream.table.info
    classes = classes or info.classes or _count_classes(stream.table)
    last_step = min([*([steps] if steps else []), *([(passes or 1) * stream.buffers_per_pass] if passes or not steps
                                                    else [])])
    torch.manual_seed(seed)
    preprocess = stream.preprocess
    network = make_model() if make_model else build(model, image_size=preprocess.image_size,
                                                    channels=preprocess.channels, classes=classes)
    if init:
        load_weights(network, init)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    network.to(place)
    pinned = {
        "il": info.fingerprint if needs_il else None, "shards": _digest(stream), "seed": seed, "model": model,
        "rule": rule, "buffer_size": buffer_size, "batch_size": batch_size, "lanes": stream.lanes,
        "loss_cap": loss_cap, "lr": lr, "weight_decay": weight_decay, "missing_il": missing_il, "chunk": chunk,
        "precision": precision, "batch_norm": batch_norm, "augment": augment, "keep_holdout": keep_holdout,
        "accumulate": accumulate, "classes": classes, "decoder": stream.decoder_name, "init": init,
        **{f"preprocess_{k}": v for k, v in preprocess.to_json().items()},
    }
    attempt = Run(run, pinned)
    storage.probe_writable(run)
    found = attempt.open({
        "settings": {**pinned, "passes": passes, "steps": steps, "last_step": last_step, "workers": workers,
                     "eval_every": eval_every, "smoothing": smoothing, "checkpoint_every": checkpoint_every},
        "il": storage.resolve(il), "roots": {**info.roots, **(roots or {})}, "shards": list(stream.table.names),
        "shard_urls": list(stream.table.shards), "il_model": _il_account(loader), "device": str(place),
        "left_out_shards": len(stream.table.missing), "threads": torch.get_num_threads(), "chunk": chunk,
        "precision": precision, "versions": versions(), "samples": int(stream.table.counts.sum()),
        "buffers_per_pass": stream.buffers_per_pass,
    })
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay)
    tests = TestSet(test_shards, preprocess, classes, stream.decoder_name, workers) if test_shards else None
    selector = Selector(network, rule, batch_size, chunk=chunk, batch_norm=batch_norm, loss_cap=loss_cap, seed=seed,
                        autocast=PRECISIONS[precision])
    trainer = Trainer(loader, selector, network, optimizer, attempt, place, seed, last_step, accumulate, augment, tests,
                      eval_every, checkpoint_every, keep_checkpoints, metrics)
    if found is not None:
        weights, state = load_tensors(run, found)
        network.load_state_dict(weights)
        optimizer.load_state_dict(state)
        loader.load_state_dict({"pass": found.pass_index, "buffer": found.buffer})
    else:
        attempt.cost.il = _il_account(loader) if needs_il else {}
        attempt.cost.macs = macs_per_sample(network, preprocess.normalize(
            torch.zeros(1, *preprocess.shape, dtype=torch.uint8)).to(place))
    if attempt.step < last_step:
        attempt.claim()
        trainer.loop()
    accuracy = trainer.evaluation.accuracy if trainer.evaluation else None
    return Summary(run, attempt.step, sum(attempt.counts.values()), dict(attempt.counts), accuracy,
                   attempt.cost.as_json())


def _check(buffer_size: int, batch_size: int, precision: str, accumulate: int, *intervals: int) -> None:
    if not 1 <= batch_size <= buffer_size:
        raise UsageError(f"--batch-size {batch_size} of --buffer-size {buffer_size}: expected 1 <= n_b <= n_B")
    if precision not in PRECISIONS:
        raise UsageError(f"--precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if accumulate < 1 or min(intervals) < 1:
        raise UsageError("--accumulate and the intervals must be at least 1")


def _digest(stream: Any) -> str:
    return fingerprint({"names": list(stream.table.names), "counts": stream.table.counts.tolist()})


def _il_account(loader: Loader) -> dict[str, Any]:
    """What the IL cost: its model's own account, and the samples that were scored for the table."""
    table = loader.stream.table
    return {**table.info.model, "scored_samples": sum(f.il_rows for f in table.facts)} if table.info.model else {}


def _count_classes(table: Any) -> int:
    from rhostream.tables.il import part_url, read_part

    largest = max(int(read_part(part_url(table.url, name)).label.max(initial=-1)) for name in table.names)
    if largest < 0:
        raise UsageError("no label in any shard; give --classes")
    return largest + 1
