"""From the costs of a step to its wall seconds on some cores: workers that load, threads that compute."""

from __future__ import annotations

from rhostream.advisor.predict import Measured, Split, StepCost


def slowdown(one_thread: float, threads: int, cores: int) -> float:
    """How many times longer the model takes with `threads` than with all `cores`, by Amdahl's law.

    `one_thread` is the measured factor for a single thread; below 1 (noise, or a model too small for threads) it
    counts as 1.
    """
    if cores <= 1 or one_thread <= 1:
        return 1.0
    parallel = (one_thread - 1) / (1 - 1 / cores)
    return one_thread - parallel + parallel / threads


def busy(cost: StepCost, m: Measured, threads: int) -> float:
    """Wall seconds for which the main process and the model are busy in a step, the model on so many threads."""
    score = cost.score * slowdown(m.score_slowdown, threads, m.cores)
    train = cost.train * slowdown(m.train_slowdown, threads, m.cores)
    return score + train + cost.late + cost.log


def threads_beside(m: Measured, workers: int) -> int:
    """Threads for the model when `workers` load: what is left of the cores.

    One where more don't help, and on a GPU, where one thread starts the kernels.
    """
    helps = m.on_cpu and max(m.score_slowdown, m.train_slowdown) > 1
    return max(1, m.cores - workers) if helps else 1


def wall(cost: StepCost, m: Measured, workers: int) -> float:
    """Wall seconds of a step. Without workers loading and model take turns; with workers the slower one decides.

    More busy processes than cores share them: a step can't be shorter than all its core seconds over the cores.
    """
    if workers == 0:
        return cost.load + busy(cost, m, threads_beside(m, 0))
    threads = threads_beside(m, workers)
    at_work = busy(cost, m, threads)
    return max(cost.load / workers, at_work, (cost.load + threads * at_work) / max(m.cores, 1))


def best_split(cost: StepCost, m: Measured) -> Split:
    """The number of workers with the shortest step; of those within 2 % the smallest."""
    seconds = [wall(cost, m, workers) for workers in range(max(m.cores, 1) + 1)]
    workers = next(w for w, took in enumerate(seconds) if took <= 1.02 * min(seconds))
    return Split(workers=workers, threads=threads_beside(m, workers), seconds=seconds[workers])


def workers_needed(cost: StepCost, m: Measured) -> int | None:
    """The fewest workers that keep the model busy; None when that takes more cores than there are."""
    for workers in range(1, m.cores + (0 if m.on_cpu else 1)):
        if cost.load / workers <= busy(cost, m, threads_beside(m, workers)):
            return workers
    return None


def bottleneck(cost: StepCost, m: Measured, workers: int) -> str:
    """What a step waits for longest with so many workers: loading, scoring, training or log."""
    threads = threads_beside(m, workers)
    parts = {
        "loading": cost.load / max(workers, 1) + cost.late,
        "scoring": cost.score * slowdown(m.score_slowdown, threads, m.cores),
        "training": cost.train * slowdown(m.train_slowdown, threads, m.cores),
        "log": cost.log,
    }
    if workers and cost.load / workers <= busy(cost, m, threads):
        del parts["loading"]  # hidden behind the model
    return max(parts, key=lambda part: parts[part])
