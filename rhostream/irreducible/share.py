"""Which shards of a list one of several jobs makes: `--index I/N`, or `auto` for the number its scheduler gave it.

Of the shards' names in order, the I-th job makes every N-th from the I-th on (I from 0). Jobs of one list need no word
between them: together they make each shard once, and who is started again finds its parts there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from rhostream.errors import UsageError

AUTO = "auto"
# What each scheduler sets in a job that is one of several, and in no other.
SCHEDULERS = {"SLURM_ARRAY_TASK_ID": "a Slurm array", "JOB_COMPLETION_INDEX": "an indexed Job of Kubernetes",
              "SKYPILOT_JOB_RANK": "SkyPilot's --num-jobs"}  # fmt: skip


def parse_index(text: str | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(I, N) of "I/N", of "auto" by the scheduler's variables, (0, 1) of None. Raises UsageError."""
    if text is None:
        return 0, 1
    if text == AUTO:
        return _scheduled(environment)
    first, slash, of = text.partition("/")
    if not (slash and first.isdecimal() and of.isdecimal() and int(first) < int(of)):
        raise UsageError(f"--index {text!r}: expected I/N with 0 <= I < N, for the I-th of N machines, or auto")
    return int(first), int(of)


def _scheduled(environment: Mapping[str, str]) -> tuple[int, int]:
    there = [name for name in SCHEDULERS if name in environment]
    if len(there) != 1:
        looked = ", ".join(f"{name} of {what}" for name, what in SCHEDULERS.items())
        raise UsageError(
            f"--index auto: {' and '.join(there)} are set, and only one of them can number this job: say --index I/N"
            if there
            else f"--index auto: no scheduler numbers this job (looked for {looked}): say --index I/N"
        )
    (name,) = there
    number = {"SLURM_ARRAY_TASK_ID": _slurm, "JOB_COMPLETION_INDEX": _kubernetes, "SKYPILOT_JOB_RANK": _skypilot}[name]
    own, jobs = number(environment)
    if own >= jobs:
        raise UsageError(f"--index auto: {name} is {environment[name]}, and there are {jobs:,} jobs in all")
    return own, jobs


def _slurm(environment: Mapping[str, str]) -> tuple[int, int]:
    """The place of an array's task among its ids, which begin and step as they like; srun's processes share it."""
    task, least, most, count, step = (
        _number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "MAX", "COUNT", "STEP")
    )
    if (task - least) % max(step, 1) or most - least != step * (count - 1):  # of 3,5,9 no task can know its place
        raise UsageError(
            f"--index auto: the ids of this Slurm array are no range ({task} is one of {count:,}, {least} to {most} "
            f"by {step}): give --array=FIRST-LAST or FIRST-LAST:STEP; parts that are there are not made again"
        )
    place, processes = (task - least) // max(step, 1), 1
    if "SLURM_STEP_NUM_TASKS" in environment:  # in what srun started, and not in the batch script
        processes = _number(environment, "SLURM_STEP_NUM_TASKS")
        place = place * processes + _number(environment, "SLURM_PROCID")
    return place, count * processes


def _kubernetes(environment: Mapping[str, str]) -> tuple[int, int]:
    if "RHOSTREAM_JOBS" not in environment:
        raise UsageError(
            "--index auto: Kubernetes tells a pod its JOB_COMPLETION_INDEX and not how many there are: set "
            "RHOSTREAM_JOBS to the Job's completions"
        )
    return _number(environment, "JOB_COMPLETION_INDEX"), _number(environment, "RHOSTREAM_JOBS")


def _skypilot(environment: Mapping[str, str]) -> tuple[int, int]:
    return _number(environment, "SKYPILOT_JOB_RANK"), _number(environment, "SKYPILOT_NUM_JOBS")


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name)
    if text is None or not (text.isascii() and text.isdecimal()):
        raise UsageError(f"--index auto: expected a number in {name}, got {'nothing' if text is None else repr(text)}")
    return int(text)
