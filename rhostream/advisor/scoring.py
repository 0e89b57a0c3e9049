"""`rhostream doctor --scoring`: how well cheap scores agree with full ones, on the user's data and model.

the same buffers at each size > scores by each way > agreement with the full float32 view > a shortlist factor
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rhostream import models, storage
from rhostream.advisor.agreement import ENOUGH, FACTORS, Agreement
from rhostream.advisor.question import Question, load_state, of_run
from rhostream.advisor.views import Views
from rhostream.errors import UsageError
from rhostream.selection.hardware import device_of


@dataclass(frozen=True, kw_only=True)
class ScoringReport:
    """What `doctor --scoring` found."""

    model: str
    weights: str  # where they came from; "" for an untrained model
    rule: str
    image_size: int
    buffer_size: int
    batch_size: int
    buffers: int
    proxy_batches: int  # kept batches that the proxy learned from
    ways: tuple[Agreement, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def scoring_report(shards: Iterable[str] = (), il: str | None = None, *, model: str | None = None,
                   weights: str | None = None, run: str | None = None, view_sizes: Iterable[int] = (),
                   rule: str | None = None, buffer_size: int | None = None, batch_size: int | None = None,
                   buffers: int = 5, proxy: str | None = None, proxy_batches: int = 50, device: str = "auto",
                   image_size: int | None = None, seed: int = 0, roots: Mapping[str, str] | None = None,
                   ) -> ScoringReport:  # fmt: skip
    """Score `buffers` buffers in every cheap way and compare with the full view in float32.

    `weights` (safetensors) or `run` (newest checkpoint, its settings for what isn't given); with neither the model is
    untrained and the answer means little. The proxy first learns from what the target keeps of `proxy_batches`
    buffers. Raises UsageError before any scoring, also for a view that model or images can't give.
    """
    given: dict[str, Any] = {
        "shards": storage.listed(shards),
        "il": il,
        "model": model,
        "rule": rule,
        "buffer_size": buffer_size,
        "batch_size": batch_size,
        "image_size": image_size,
    }
    if run is not None and weights is not None:
        raise UsageError("--weights and --run both name weights; give one")
    if buffers < 1:
        raise UsageError(f"--buffers {buffers}: expected 1 or more")
    if proxy_batches < 0:
        raise UsageError(f"--proxy-batches {proxy_batches}: expected 0 or more")
    state, source = None, ""
    if run is not None:
        question, state, source = of_run(run, **given)
    else:
        if missing := [name for name in ("shards", "il", "model") if not given[name]]:
            raise UsageError(f"--scoring needs --{', --'.join(missing)}, or --run DIR of a run that knows them")
        question = Question(**{name: value for name, value in given.items() if value})
        source = storage.redact(weights) if weights else ""
    if question.rule == "uniform":
        raise UsageError("the rule uniform scores nothing; give --rule rho")
    if question.rule == "rho_updated":
        raise UsageError("the rule rho_updated scores with an IL model that learns along in a run; give --rule rho")
    views = Views(question, device_of(device), seed, roots)
    network = views.network(question.model)
    if weights:
        models.load_weights(network, weights)
    elif state is not None:
        load_state(network, state, source)
    sizes = views.checked(network, set(view_sizes))
    if not source:
        views.notes.append("the model is untrained: agreement of its scores says little; give --weights or --run")
    proxy = proxy or views.preprocess.small_models[1]
    small = views.taught(views.network(proxy), network, proxy_batches)
    ways = views.compare(network, sizes, (proxy, small), buffers)
    return ScoringReport(
        model=question.model,
        weights=source,
        rule=question.rule,
        image_size=views.size,
        ways=ways,
        buffer_size=question.buffer_size,
        batch_size=question.batch_size,
        buffers=buffers,
        proxy_batches=proxy_batches,
        notes=tuple(views.notes),
    )


def _of(r: ScoringReport) -> str:
    return f"of the full view ({r.image_size} px)" if r.image_size else "of whole samples"


def render_scoring(r: ScoringReport) -> str:
    """The report for people."""
    lines = [
        f"{r.model} ({r.weights or 'untrained'}), rule {r.rule}, {r.batch_size} of {r.buffer_size}, {r.buffers} "
        "buffers",
        f"Against fresh float32 scores {_of(r)}:",
        "",
        f"  {'scored by':22} {'spearman':>9} "
        + " ".join(f"{f'in top {k} n_b':>13}" for k in FACTORS)
        + f" {'shortlist R':>12} {'decode':>8} {'forward':>8} {'cost':>7} {'with list':>10}",
    ]
    for way in r.ways:
        found = " ".join(f"{_figure(way.found[k], '.1%'):>13}" for k in FACTORS)
        lines.append(
            f"  {way.way:22} {_figure(way.spearman, '.3f'):>9} {found} {way.shortlist or 'none':>12} "
            f"{way.decode_ratio:>7.2f}x {way.forward_ratio:>7.2f}x {way.cost_ratio:>6.2f}x "
            f"{'-' if way.cascade_ratio is None else f'{way.cascade_ratio:.2f}x':>10}"
        )
    lines += [
        "",
        "  in top k n_b: of what the full view keeps, the share among the k x n_b best of this way.",
        "  shortlist R: the smallest that finds 95 % of the kept; decode, forward, cost: over the full view's;",
        "  with list: that cost and the full view of the R x n_b on the list.",
        "",
        recommend(r),
    ]
    return "\n".join([*lines, *(f"Note: {note}." for note in r.notes)]) + "\n"


def recommend(r: ScoringReport) -> str:
    """Which shortlist to take, if any."""
    if not r.weights:
        return "No recommendation for an untrained model."
    able = [way for way in r.ways if way.way.startswith(("view", "proxy", "il"))]
    found = [(way.cascade_ratio, way) for way in able if way.cascade_ratio is not None and way.cascade_ratio < 1]
    if not found:
        return f"No shortlist here finds {ENOUGH:.0%} of the kept for less than the full view costs."
    ratio, best = min(found, key=lambda pair: pair[0])
    kind, factor = best.way.split()[0], best.shortlist or 1
    if kind == "il":
        how = f"a band that keeps the {factor} x n_b of lowest il (--band)"
    elif kind == "view":
        listed = f"--shortlist view:{factor} " if factor > 1 else ""  # a list of n_b is no list: the view decides
        how = f"{listed}--view-size {best.way.split()[1]}"
    else:
        how = f"--shortlist proxy:{max(factor, 2)}"
    return (
        f"Recommended: {how}: {ENOUGH:.0%} of the kept for {ratio:.2f} of the cost of reading and scoring, as the "
        "model stands now."
    )


def _figure(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)
