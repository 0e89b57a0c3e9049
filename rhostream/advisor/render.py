"""The advisor's findings as calm text: one subject a paragraph, every figure with its unit, what is unknown said."""

from __future__ import annotations

from rhostream.advisor.advice import Way
from rhostream.advisor.cores import threads_beside, wall
from rhostream.advisor.estimate import Estimate
from rhostream.advisor.il_share import LITTLE
from rhostream.advisor.parallel import SHORTLIST

WIDE = 34


def duration(seconds: float | None) -> str:
    """Three digits and the unit that suits."""
    if seconds is None:
        return "-"
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * (2 if unit in ("h", "min") else 1):
            return f"{seconds / size:.3g} {unit}" if seconds < 1000 * size else f"{seconds / size:,.0f} {unit}"
    return f"{seconds * 1e6:.3g} us"


def render(e: Estimate) -> str:
    """An estimate for people."""
    parts = [
        _head(e),
        _measured(e),
        _steps(e),
        _bottleneck(e),
        _levers(e),
        _parallel(e),
        _share_of_run(e),
        _pays(e),
        _notes(e),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def count(n: int, noun: str) -> str:
    """`1 worker`, `2 workers`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _line(what: str, figure: str, remark: str = "") -> str:
    return f"  {what:{WIDE}} {figure:>10}" + (f"   {remark}" if remark else "")


def _head(e: Estimate) -> list[str]:
    s, about = e.setting, "" if e.counted else "about "
    return [
        f"{e.model} on {e.device} ({e.machine}, {e.measured.cores} cores), {e.input}, "
        f"{e.classes} classes; decoder {e.decoder}",
        f"n_b = {s.batch_size} of n_B = {s.buffer_size}, {about}{count(s.samples, 'sample')}, "
        f"{count(s.workers, 'worker')}; measured in {e.seconds:.0f} s, medians",
    ]


def _measured(e: Estimate) -> list[str]:
    m, whole = e.measured, "scoring one sample"
    lines = ["Measured, a sample (loading: one core)"]
    lines += [
        _line("walk and index", duration(m.walk)),
        _line("read by offset", duration(m.read), "after the walk, so from the page cache: a cold disk is slower"),
    ]
    lines.append(_line(f"decode to {e.image_size} px" if e.image_size else "decode to token ids", duration(m.decode)))
    lines += [_line(f"decode to {v} px (a view)", duration(t)) for v, t in m.view_decode.items()]
    lines += [
        _line("loader's hand-over", duration(m.hand_over)),
        _line("plan and join", duration(m.join)),
        _line("log row", duration(m.log)),
    ]
    lines.append(_line(f"{whole}, float32", duration(m.score), "the whole buffer in one piece"))
    if m.score_chunked is not None:
        remark = "changes scores: batch norm sees half" if e.batch_norm else "same scores: no batch norm"
        lines.append(_line("    in two chunks", duration(m.score_chunked), remark))
    without = "not measured: no time" if "bfloat16" in e.unmeasured else "not supported here"
    lines.append(_line("    bfloat16", duration(m.score_bf16), "" if m.score_bf16 else without))
    lines += [_line(f"    on {v} px", duration(t)) for v, t in m.view_score.items()]
    lines.append(_line(f"    by the proxy {e.proxy}", duration(m.proxy)))
    lines.append(_line(f"training step of {e.setting.batch_size}", duration(m.train), "forward, backward, AdamW"))
    if m.on_cpu and m.score_slowdown > 1:
        lines.append(
            _line(
                "with one thread instead of all",
                f"{m.score_slowdown:.2f}x",
                f"scoring; training {m.train_slowdown:.2f}x",
            )
        )
    return lines


def _steps(e: Estimate) -> list[str]:
    lines = [
        f"A step, in wall time with {count(e.setting.workers, 'worker')}",
        f"  {'':{WIDE}} {'step':>10} {'loading':>10} {'scoring':>10} {'training':>10} {'a pass':>10}",
    ]
    for way in (e.advice.rho, e.advice.uniform, e.advice.everything):
        c = way.cost
        lines.append(
            f"  {c.name:{WIDE}} {duration(way.seconds):>10} {duration(c.load):>10} {duration(c.score):>10} "
            f"{duration(c.train):>10} {duration(way.pass_seconds):>10}"
        )
    lines.append(
        "  Loading is the time of one core: workers share it"
        + (" and overlap it with the model." if e.setting.workers else "; without workers nothing overlaps.")
    )
    return lines


def _bottleneck(e: Estimate) -> list[str]:
    rho, m, s = e.advice.rho, e.measured, e.setting
    lines = [f"Bottleneck of rho with {count(s.workers, 'worker')}: {rho.bottleneck}."]
    model = "the GPU" if not m.on_cpu else "the model"
    needed = rho.workers_needed
    if needed is not None:
        lines.append(f"{count(needed, 'worker')} keep{'s' * (needed == 1)} {model} busy.")
    else:
        lines.append(f"No number of workers on {m.cores} cores keeps {model} busy: loading is the floor here.")
    best = rho.best
    threads = f" and {count(best.threads, 'thread')} for the model" if m.on_cpu else ""
    gain = wall(rho.cost, m, s.workers) / best.seconds
    lines.append(
        f"Best: --workers {best.workers}{threads}: {duration(best.seconds)} a step"
        + (f", {gain:.2f}x faster than now." if gain > 1.02 else ", as now.")
    )
    if m.on_cpu and threads_beside(m, s.workers) + s.workers > m.cores:
        lines.append(f"{count(s.workers, 'worker')} beside the model are more than {m.cores} cores.")
    return lines


def _levers(e: Estimate) -> list[str]:
    lines = [
        "What each lever saves, and from how many times fewer steps it pays (IL aside)",
        f"  {'':{WIDE}} {'step':>10} {'saves':>7} {'forwards':>9} {'seconds':>9} {'best step':>10}",
    ]
    rho = e.advice.rho
    for way in e.advice.ways:
        saved = 1 - way.seconds / rho.seconds
        lines.append(
            f"  {way.cost.name:{WIDE}} {duration(way.seconds):>10} {_share(way, rho, saved):>7} "
            f"{way.forwards:>8.2f}x {way.against_uniform:>8.2f}x {duration(way.best.seconds):>10}"
        )
    return [
        *lines,
        "  forwards: arithmetic alone; seconds: against uniform's measured step, with these workers; best "
        "step: cores divided anew.",
        "  A lever changes which samples are kept: `rhostream doctor --scoring` measures how much, on your data.",
    ]


def _parallel(e: Estimate) -> list[str]:
    p = e.parallel
    if p is None:
        return []
    gain = p.together / p.apart
    pays = f"{gain:.2f}x sooner: it pays" if p.pays else f"{1 / gain:.2f}x later: it doesn't pay"
    return [
        f"Over {p.ranks} such devices, {p.bandwidth / 1e9:g} GB/s between them (computed from these parts, not run)",
        _line("all score and train", duration(p.together), "a step; gradients travel after the backward"),
        _line(f"--scorers {p.scorers}", duration(p.apart), f"{pays} (--shortlist predicted:{SHORTLIST})"),
        f"  A step moves {p.row_bytes / 1e6:.3g} MB of rows to trainers and {p.weight_bytes / 1e6:.3g} MB of weights "
        "to scorers.",
    ]


def _share(way: Way, rho: Way, saved: float) -> str:
    return "-" if way is rho else f"{saved:.0%}"


def _share_of_run(e: Estimate) -> list[str]:
    share, m = e.il_share, e.measured
    smaller = f"{m.macs / m.il_macs:.3g} times fewer" if m.il_macs <= m.macs else f"{m.il_macs / m.macs:.3g} times more"
    fit = "as its table says" if e.il_there else "at most: it ends when the loss of others no longer falls"
    lines = [
        f"What the IL model {e.il_model} costs of one run of rho ({share.steps:,} steps, {share.passes:.3g} passes, "
        f"{share.units:,.0f} forwards)" + ("; this table is there, so it is paid already" if e.il_there else ""),
    ]
    if e.il.trained:
        looked = f"{e.il.trained:,} samples forward and backward, {e.il.checked:,} looked at; {fit}"
        lines.append(_line("fit", f"{share.fit + share.check:.1%}", looked))
    per = 1 + 3 * e.setting.batch_size / e.setting.buffer_size
    lines += [
        _line("scoring all samples", f"{share.score:.1%}", f"{e.il.scored:,} forwards of {smaller} multiply-adds"),
        _line("together", f"{share.whole:.1%}"),
        f"  Scoring alone costs MACs(IL) / MACs(target) / {per:.2f} = {share.quotient:.2g} of every pass that uses it "
        "once.",
    ]
    if share.whole <= LITTLE:
        return [*lines, f"  That is below {LITTLE:.0%} of the run."]
    return [
        *lines,
        f"  Below {LITTLE:.0%} it is when {share.runs:,} runs share it, with a run of {share.longer:.3g} passes, or "
        f"with a target of {share.macs:.3g} multiply-adds ({share.macs / m.macs:.3g} times these).",
        "  A smaller --il-model, or fewer pixels for it (--il-size; fit-il's --image-size), costs less: docs/cost.md.",
    ]


def _pays(e: Estimate) -> list[str]:
    a, s = e.advice, e.setting
    fit = f"fit-il ({e.il_model}) and compute-il" if e.il.trained else f"compute-il ({e.il_model}, no fit)"
    lines = [
        f"When rho pays, against a run of {s.baseline_steps:,} uniform steps or of training on everything",
        f"  IL: {duration(a.il_seconds)} of {fit}, {a.il_units:,.0f} forwards of "
        "the target" + ("; this table is there, so it is paid already" if e.il_there else ""),
        f"  {'fewer steps needed':{WIDE}} {'forwards':>10} {'uniform':>11} {'everything':>14}",
        f"  {'without the IL':{WIDE}} {a.break_even:>9.2f}x {a.rho.against_uniform:>10.2f}x "
        f"{a.rho.against_everything:>13.2f}x",
    ]
    for p in a.payback:
        name = f"IL shared by {count(p.runs, 'run')}"
        lines.append(
            f"  {name:{WIDE}} {_times(p.forwards):>10} {_times(p.against_uniform):>11} "
            f"{_times(p.against_everything):>14}"
        )
    lines.append("  forwards: arithmetic alone; uniform, everything: in measured seconds against that run.")
    low, high = sorted((s.buffer_size + 3 * s.batch_size, 3 * s.buffer_size))
    lines.append(f"  --ratio auto: a buffer costs {low:,} to {high:,} forwards, by whether looking at it pays.")
    if any(p.against_uniform is None or p.forwards is None for p in a.payback):
        lines.append("  never: the IL alone costs more than the whole baseline run.")
    return lines


def _times(x: float | None) -> str:
    return "never" if x is None else f"{x:.2f}x"


def _notes(e: Estimate) -> list[str]:
    about = () if e.counted else ("the number of samples is a guess from the shards' sizes",)
    return [f"Note: {note}." for note in (*about, *e.notes)]
