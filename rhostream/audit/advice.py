"""What to do next, derived from the runs of a page: a few sentences, each with a command that can be pasted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rhostream import storage
from rhostream.audit.compare import EVERYTHING, UNIFORM, Comparison
from rhostream.audit.facts import RunFacts
from rhostream.audit.il_test import ILTest
from rhostream.audit.verdict import BAD, GOOD, MIXED, Verdict, ordinal
from rhostream.runs.doubts import AUTO_BUFFER
from rhostream.selection.clashes import AUTO

CHANCE = ("--rule", "uniform")
MOST = 3  # of what follows from the figures; how to look closer and to take it elsewhere always come after
NO_HELP = 0.6  # AUROC of il on wrong labels below which it tells them hardly better than a coin
SAME_IL = 0.05  # nats between the 5 % of lowest and of highest il within which il tells no samples apart


@dataclass(frozen=True)
class Step:
    """One thing to do: why, and the command that does it (none where it is a choice)."""

    says: str
    command: tuple[str, ...] = ()


def next_steps(runs: Sequence[RunFacts], found: Mapping[str, Sequence[Comparison]], said: Verdict,
               quality: Mapping[str, Any] | None, tested: ILTest | None) -> list[Step]:  # fmt: skip
    """Two to six things to do after the runs of one setting, the most telling first.

    `quality`: the figures of their IL table (`il_quality`), None without one.
    """
    first = runs[0]
    url = storage.redact(first.folder.url)
    looked = (
        _no_separation(first, quality), _noise_kept(first), _baseline(first, found), _verdict(first, said, len(runs)),
        _more_seeds(first, len(runs), bool(found[UNIFORM])),
    )  # fmt: skip
    steps = [step for step in looked if step is not None][:MOST]
    unknown = _il_on_test(first, tested)  # always: every table that shows a target's accuracy leads here for it
    return [
        *steps,
        *([] if unknown is None else [unknown]),
        Step("Look closer: every sample, what it was kept or skipped for, by any figure.", ("rhostream", "view", url)),
        Step("Take it elsewhere: what was kept, as a file.", ("rhostream", "export", url, "-o", "kept.parquet")),
    ]


def _no_separation(run: RunFacts, quality: Mapping[str, Any] | None) -> Step | None:
    if run.is_baseline or quality is None or not quality["rows"]:
        return None
    auroc = (quality["noise"] or {}).get("auroc")
    low, high = quality["quantiles"]["5 %"], quality["quantiles"]["95 %"]
    if high - low < SAME_IL:
        why = f"Nine tenths of the il lie within {high - low:.2f} nats: it tells no samples apart."
    elif auroc is not None and auroc < NO_HELP:
        why = f"The il hardly tells wrong labels from right ones (AUROC {auroc:.2f}; a coin has 0.5)."
    else:
        return None
    return Step(f"{why} Choose uniformly, which is cheaper, or fit another IL model.", _train(run, "-uniform", *CHANCE))


def _noise_kept(run: RunFacts) -> Step | None:
    kept, skipped = run.noisy.get(True), run.noisy.get(False)
    if run.is_baseline or kept is None or skipped is None or kept <= skipped:
        return None
    said = (f"Wrong labels are more frequent among what was kept ({100 * kept:.0f} %) than among what was skipped "
            f"({100 * skipped:.0f} %): the il is too low for them. Fit a larger IL model, or for more epochs; these "
            "samples show which labels it gets wrong:")  # fmt: skip
    url = storage.redact(run.folder.url)
    return Step(said, ("rhostream", "sql", url, "@suspected_label_errors"))


def _baseline(run: RunFacts, found: Mapping[str, Sequence[Comparison]]) -> Step | None:
    if run.is_baseline:
        return None
    if not found[UNIFORM]:
        return Step("Train the run that this one is measured by, and give it with --against:",
                    _train(run, "-uniform", *CHANCE))  # fmt: skip
    if not found[EVERYTHING]:
        return Step("Not compared with training on everything, the other thing to do with as much arithmetic:",
                    _train(run, "-everything", *CHANCE, "--buffer-size", f"{run.row['batch_size']}"))  # fmt: skip
    return None


def _verdict(run: RunFacts, said: Verdict, n: int) -> Step | None:
    again = _train(run, f"-seed-{_seed(run) + n}", seed=_seed(run) + n)
    if said.tone == MIXED:
        return Step(f"It pays from the {ordinal(said.nth or 1)} run on: keep the table, and train the next ones with "
                    "it.", again)  # fmt: skip
    if said.tone == GOOD:
        return Step("It paid: keep the table, and train the next runs with it.", again)
    if said.tone == BAD:
        less = ("It did not pay here: choose uniformly, or score fewer samples (--band, --shortlist) so that a step "
                "costs less")  # fmt: skip
        command = _auto(run)
        return Step(f"{less}; or let a run look only while looking pays:" if command else f"{less}.", command)
    return None


def _more_seeds(run: RunFacts, n: int, compared: bool) -> Step | None:
    if n > 1 or run.is_baseline or not compared:
        return None
    return Step("One seed is no claim: train another of each setting.",
                _train(run, f"-seed-{_seed(run) + 1}", seed=_seed(run) + 1))  # fmt: skip


def _il_on_test(run: RunFacts, tested: ILTest | None) -> Step | None:
    if tested is not None or not run.folder.il_model or run.is_baseline or run.folder.no_class:
        return None
    words = run.folder.record.get("arguments") or {}
    shards = [str(shard) for shard in words.get("test_shards") or ()]
    model = _il_model(run)
    command = ("rhostream", "compute-il", "--shards", *shards, "--il-model", model, "--out", "il-test") if (
        shards and model) else ()  # fmt: skip
    return Step("How right the IL model is on the test set isn't known: score the test shards with it, and give that "
                "table to `rhostream report` with --il-test.", command)  # fmt: skip


def _il_model(run: RunFacts) -> str:
    from rhostream.errors import RhostreamError
    from rhostream.tables.il import open_info

    try:
        return storage.redact(open_info(run.folder.il_url or "").places.get("il_model", ""))
    except RhostreamError:
        return ""


def _seed(run: RunFacts) -> int:
    return int(run.row["seed"] or 0)


def _auto(run: RunFacts) -> tuple[str, ...]:
    """The command of a run that looks only while looking pays; none where that can't be, or is so."""
    n_B, n_b = run.row["buffer_size"], run.row["batch_size"]
    if run.rule != "rho" or run.setting.get("ratio") or n_B is None or n_b is None or n_B <= n_b:
        return ()
    return _train(run, "-auto", "--ratio", AUTO, "--buffer-size", f"{min(n_B, AUTO_BUFFER * n_b)}")


def _train(run: RunFacts, ending: str, *other: str, seed: int | None = None) -> tuple[str, ...]:
    """The command that trains a run like this one, with other settings or another seed.

    None for a run of a loop of one's own, which `train` didn't make.
    """
    if not run.folder.record.get("arguments") or (other and run.stages):  # none of the others goes with those stages
        return ()
    url = storage.redact(run.folder.url).rstrip("/")
    more = () if seed is None else ("--seed", f"{seed}")
    return ("rhostream", "train", "--config", f"{url}/run.json", "--run", f"{url}{ending}", *other, *more)
