"""`train`: settings are checked and resolved, the run folder is claimed or resumed, and the loop is started."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from rhostream import storage
from rhostream.candidates import Reason
from rhostream.config.call import configured
from rhostream.config.train import TrainConfig
from rhostream.config.written import arguments_of, written
from rhostream.errors import BudgetError, UsageError, users_code
from rhostream.inert import one_line
from rhostream.models import build, load_initial
from rhostream.randomness import torch_seed
from rhostream.runs import turns
from rhostream.runs.attempt import Attempt
from rhostream.runs.book import Evaluation
from rhostream.runs.chain import head, with_segments
from rhostream.runs.cost import Cost
from rhostream.runs.doubts import Plan, cheap_choice, doubts_of
from rhostream.runs.pins import il_account, named_classes
from rhostream.runs.record import recorded, versions
from rhostream.runs.run import Run
from rhostream.samples.geometry import CROP
from rhostream.samples.kind import Kind
from rhostream.selection.hardware import device_of
from rhostream.selection.hardware import threads as threads_in_use
from rhostream.selection.live import LiveIL
from rhostream.selection.outputs import require_more_than_one
from rhostream.selection.proxy import Proxy
from rhostream.selection.ranks import Ranks, own_norms
from rhostream.selection.selector import Selector
from rhostream.setting import RECORDED, settings_of
from rhostream.stream.band import Band, resolve_band
from rhostream.stream.dataset import CandidateStream, Loader
from rhostream.stream.join import UniformChoice
from rhostream.stream.keep_list import keep_list_account
from rhostream.stream.label_from import LabelFrom
from rhostream.stream.open import open_stream
from rhostream.tables.il import OK, Table, part_url, read_part
from rhostream.tables.steps import last_evaluation
from rhostream.training.augment import KINDS
from rhostream.training.cascade import make_proxy, require_classes, set_macs
from rhostream.training.changes import CHANGEABLE, Change, in_force
from rhostream.training.draws import changed_draws
from rhostream.training.evaluate import OwnEvaluation, TestSet
from rhostream.training.hardware import autocast, threads_of
from rhostream.training.live import load_live, set_live_macs
from rhostream.training.loop import Trainer
from rhostream.training.optimizers import Average, make_optimizer, make_schedule
from rhostream.training.ranks import joined, local_device, require_alike, with_synchronized_norms
from rhostream.training.settings import Settings

_ASKED = tuple(name for name, says in settings_of(TrainConfig).items() if says.pin == RECORDED)


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    run: str
    steps: int
    planned: int  # rows in the log
    reasons: dict[str, int]
    test_accuracy: float | None  # with --ema of the averaged weights
    cost: dict[str, Any]
    test_samples: int = 0  # of which the accuracy is
    test_left_out: dict[str, int] = field(default_factory=dict)  # test samples that can't be used, by status
    doubts: list[str] = field(default_factory=list)  # why selection may not pay here, a sentence each

    def __repr__(self) -> str:
        accuracy = "" if self.test_accuracy is None else f", test accuracy {self.test_accuracy:.4f}"
        kept = f"{self.reasons.get('kept', 0):,} of {self.planned:,} kept"
        return (
            f"<summary of run {one_line(self.run)}: {self.steps:,} steps, {kept}{accuracy}, {len(self.doubts)} doubts>"
        )


@configured(TrainConfig, "shards", "il", "run")
def train(config: TrainConfig) -> Summary:
    """Train `model` on the shards with selection, in the run folder `run`; the same call again resumes.

    `buffer_size` is n_B, `batch_size` n_b. Without `passes` and `steps`: one pass; with `steps` alone: as many passes
    as they need. `test_shards` are for reporting only and change nothing; those of
    their samples that can't be used are counted, and more than `max_bad_fraction` of a shard, or of all, or than
    `max_bad_samples`, stop the run before it begins.
    `eval_every`, `checkpoint_every` in steps; `smoothing` evaluations are averaged by reports. `metrics` is called
    with each step's row, one step late. `make_model` overrides `model`, which then only names it. On a table of text
    the model gets `text_length` token ids of `tokenizer`, each the table's unless given, and learns the `task` "label"
    or "language" (the default of text-lm). Of language, `token_share`: the gradient goes through that share of each
    kept sequence's tokens, those of the largest loss - il.

    The step, by default the paper's AdamW at a constant rate: `optimizer` ("adamw", "sgd", "adafactor" or your
    `module:function`) with `lr`, `weight_decay`, `no_decay` (of biases and norms) and `momentum` (of sgd); `schedule`
    ("constant", "cosine", "linear" or your own) over `schedule_steps` buffers after `lr_warm_up` rising ones;
    `clip_gradient`, the largest norm; `ema`, the decay of an average of the weights, which is then what is evaluated;
    `evaluate`, your `module:function` of the model in place of test shards. docs/training.md has the rules.

    The cascade: `band` ("20%:90%", or nats) and `keep_list` drop samples before they are read; `shortlist`
    ("proxy:4", "view:4") lets a `proxy_model` or a view of `view_size` pixels choose 4 n_b, of which the target's fresh
    scores choose; a view without a shortlist is what is scored, and only what is kept is decoded at full size.
    `precision` is that of scoring, `train_precision` that of the gradient step (losses are float32 always); `threads`
    are the model's, by default the cores that the workers leave, and stay those of the run's start when it is resumed.

    The rules and their options (`clip` to `shadow`) are in docs/rules.md. `loss`: "cross_entropy" or your
    `module:function` of (logits, label) to one loss a sample. `il_model`, `il_lr_scale`, `il_code`: the IL model
    that the rule `rho_updated` trains along, at that multiple of `lr`; by default it is sought where it lay.

    Started by torchrun, every rank reads and scores its slice of each buffer, and `buffer_size` and `batch_size` count
    over all of them. `selection`: "global" keeps the best n_b of the whole buffer, as one rank would, "rank" the best
    n_b / ranks of each slice. `rank_timeout`: seconds that a rank waits for the others before it stops.

    `change`, {"lr": 5e-4} or "lr=5e-4": what a run that goes on does otherwise from its newest checkpoint on; the other
    arguments stay as they were. It is recorded (run.json stays as it is), reports say it, and the same call again
    changes nothing more. lr, weight_decay, momentum, schedule_steps, clip_gradient, il_lr_scale, accumulate, augment,
    chunk, precision, train_precision and compile can change. `from_step`: a new attempt from the commit of that step.
    `skip_buffers`, "A:B": these buffers are passed over, unread, and logged as that. `grow`: where a pass has ended,
    the run goes on with this longer list of shards. These three are recorded as changes, too, and done once.
    `take_over`: go on from the newest commit even while another process of this machine is at the run; else refused.

    Raises UsageError and its kin before any work, Interrupted after a signal, NonFiniteError when training diverges,
    RankLostError when another rank is gone.
    """
    settings = Settings.of_config(config)
    on = device_of(local_device(settings.device))
    with joined(on, settings.rank_timeout) as ranks:
        return _train(_with_tensorboard(settings) if settings.tensorboard and ranks.first else settings, on, ranks)


def _with_tensorboard(settings: Settings) -> Settings:
    from rhostream.training.tensorboard import writer

    watchers = [watch for watch in (writer(settings.run), settings.metrics) if watch is not None]

    def write(row: dict[str, Any]) -> None:
        for watch in watchers:
            watch(row)

    return replace(settings, metrics=write)


def _train(settings: Settings, on: torch.device, ranks: Ranks) -> Summary:
    run, tests = storage.resolve(settings.run), list(settings.test_shards)
    turn = turns.look(run, settings.asked, ranks, lambda: head(run))
    settings, changed, changing = in_force(settings, run, ranks, turn)
    scoring, training = (
        autocast(*option, on)
        for option in (("--precision", settings.precision), ("--train-precision", settings.train_precision))
    )
    # One rank's look decides for all what is opened, and what is done together.
    before = ranks.from_first(recorded(run) if ranks.first else None)
    settings, loader = _open_at(turn, settings, on, ranks, before)
    turn.changing += changing
    stream, info = loader.stream, loader.stream.table.info
    classes = settings.classes or info.classes or _count_classes(stream.table)
    settings.require_fitting(stream.preprocess)
    pinned, last_step = settings.pinned(stream, classes, ranks), _last_step(settings, stream)
    schedule_steps = settings.schedule_steps or last_step
    if settings.schedule != "constant":
        pinned["schedule_steps"] = schedule_steps
    # Ranks that weren't started alike would wait for each other at different places.
    require_alike(
        ranks,
        _plain(
            {
                **pinned,
                "last_step": last_step,
                "tests": len(tests),
                "eval_every": settings.eval_every,
                "checkpoint_every": settings.checkpoint_every,
                "changing": turn.changing,
            }
        ),
    )
    _require_quota(settings, stream.table, classes)
    network, proxy = _networks(settings, loader, classes, on, ranks)
    require_classes(settings.model, network, stream.preprocess, classes)
    if proxy is not None:
        require_classes(settings.proxy_model, proxy.model, stream.preprocess, classes, stream.view)
    _require_statistics(settings, network, stream.preprocess, ranks)
    live = _live(settings, loader, on)
    selector = _selector(settings, network, proxy, live, scoring, ranks)
    threads = threads_of(settings.threads, settings.workers, before.get("threads"))
    record = _record(settings, loader, pinned, last_step, threads, on, ranks)
    learners = [
        (network, stream.preprocess.example(2)),
        *(
            (one, stream.preprocess.example(2, stream.view))
            for one in (*([proxy.model] if proxy else []), *(live.networks if live else []))
        ),
    ]
    attempt = Attempt(
        run,
        pinned,
        ranks,
        changes=turn.changes,
        changing=turn.changing,
        grown=turn.grown,
        changed_draws=lambda: changed_draws(settings, learners),
        take_over=settings.take_over,
    )
    if ranks.first:
        storage.probe_writable(run)
    test_set = own_test = None
    if settings.evaluate is not None:
        own_test = OwnEvaluation(settings.evaluate, ranks)
    if tests:
        names = stream.table.class_names
        label = LabelFrom.from_json(stream.table.info.label)
        test_set = TestSet(
            tests, stream.preprocess, classes, stream.decoder_name, settings.workers, ranks, names, label
        )
    if test_set is not None and not before:
        record["test_set"] = test_set.examine(settings.budget)
    with threads_in_use(threads):
        _set_costs(attempt.cost, settings, loader, network, proxy, live)
    if doubts := _plan(settings, stream, last_step, attempt.cost).doubts():
        record["doubts"] = doubts
    optimizer = make_optimizer(settings, network)
    schedule = make_schedule(settings, optimizer, schedule_steps)
    average = None if settings.ema is None else Average(network, settings.ema)
    state: dict[str, Any] = {"model": network, "optimizer": optimizer}
    if schedule.scheduler is not None:
        state["scheduler"] = schedule
    if average is not None:
        state["ema"] = average.model
    evaluations = _Evaluations(test_set or own_test, state.get("ema", network), settings.eval_every)
    managed = Run.assembled(
        attempt, record, loader, selector, state, last_step, seed=settings.seed,
        commit_every=settings.checkpoint_every, keep_checkpoints=settings.keep_checkpoints, metrics=settings.metrics,
        changeable=CHANGEABLE, note={name: record["settings"][name] for name in _ASKED}, job="train",
        evaluate=evaluations, start=turn.start)  # fmt: skip
    trainer = Trainer(
        run=managed,
        model=network,
        optimizer=optimizer,
        schedule=schedule,
        seed=settings.seed,
        accumulate=settings.accumulate,
        augment=settings.augment if settings.augment in KINDS else "none",
        precision=training,
        compile=settings.compile,
        clip=settings.clip_gradient,
        average=average,
        tokens=settings.tokens,
    )
    if managed.open() is not None:  # the optimizers' states know the rates of before
        _set_rates(settings, trainer, changed, changing)
    tested = record.get("test_set") or before.get("test_set") or {}
    if attempt.step < last_step:
        if test_set is not None and "test_set" not in record:
            tested = test_set.examine(settings.budget)
        with threads_in_use(threads):
            trainer.loop()
    else:
        turns.require_steps(turn.changing, run, attempt.step)
    last = evaluations.last or _evaluated_before(attempt)
    return _summary(settings, attempt, last_step, last, tested, managed.doubt)


def _evaluated_before(attempt: Attempt) -> Evaluation | None:
    """The newest evaluation in the ledger, of a run that an earlier call has brought here. Collective."""
    newest = None
    if attempt.ranks.first and (link := head(attempt.url)) is not None:
        newest = last_evaluation(attempt.url, with_segments(attempt.url, link).steps)
    newest = attempt.ranks.from_first(newest)
    if newest is None:
        return None
    classes, samples = newest["class_accuracy"], newest["test_samples"]
    return Evaluation(newest["test_loss"], newest["test_accuracy"], classes, samples)


def _summary(
    settings: Settings,
    attempt: Attempt,
    last_step: int,
    last: Evaluation | None,
    tested: Mapping[str, int],
    doubt: str | None,
) -> Summary:
    """How it ended; `doubt`: what the run said of its batches at its end, None where an earlier call ended it.

    Raises BudgetError for a run that came to its end and learned from nothing.
    """
    counts = dict(attempt.ranks.from_first(attempt.counts))
    if attempt.step >= last_step:
        _require_kept(attempt.url, settings.il, counts)
    left_out = {status: n for status, n in sorted(tested.items()) if status != OK}
    return Summary(
        attempt.url,
        attempt.step,
        sum(counts.values()),
        counts,
        None if last is None else last.accuracy,
        attempt.cost.as_json(),
        tested.get(OK, 0) or (last and last.samples) or 0,
        left_out,
        attempt.ranks.from_first(doubts_of(attempt.url, doubt) if attempt.ranks.first else None),
    )


def _require_kept(run: str, il: str, counts: Mapping[str, int]) -> None:
    """Raise BudgetError for a run that ended without one sample to learn from; `counts`: rows of its log by reason."""
    # Rows without an il were left out because it was asked for; whatever else left nothing over wasn't.
    if not {Reason.kept.name, Reason.missing_il.name} & {*counts}:
        raise BudgetError(
            f"{storage.redact(run)}: no sample of {sum(counts.values()):,} was kept ("
            + ", ".join(f"{reason} {n:,}" for reason, n in sorted(counts.items()))
            + f"), so nothing was learned; `rhostream sql {storage.redact(il)} "
            '"select status, error, count(*) from quarantine group by all"` says why'
        )


def _open_at(
    turn: turns.Turn, settings: Settings, on: torch.device, ranks: Ranks, before: Mapping[str, Any]
) -> tuple[Settings, Loader]:
    """The stream from the turn on. More shards bring a run neither more classes nor other thresholds of its band."""
    order = turn.plans[-1].names if turn.plans else None
    more = settings.grow or len(turn.plans) > 1
    if more and settings.classes is None:
        settings = replace(settings, classes=(before.get("fingerprints") or {}).get("classes"))
    loader = _open(settings, on, ranks, before, order)
    if more and turn.plans and settings.band is not None:
        band = resolve_band(settings.band, loader.stream.table, settings.seed, names=turn.plans[0].names)
        loader.stream.prefilters = tuple(band if isinstance(p, Band) else p for p in loader.stream.prefilters)
    turns.take_up(turn, loader.stream)
    return settings, loader


def _open(
    settings: Settings, on: torch.device, ranks: Ranks, before: Mapping[str, Any], order: Sequence[str] | None
) -> Loader:
    """This rank's slice of the buffers. A run that goes on keeps its lanes, whatever the number of ranks now, and the
    order of its shards, whatever that of the list, and the size and channels of its images."""
    then = before.get("settings", {})
    centred = CROP if "preprocess_image_size" in then else None  # a run of before there were other geometries
    own = settings.lanes is None and then.get("buffer_size") == settings.buffer_size
    carried = then["lanes"] if own and isinstance(then.get("lanes"), int) else None
    loader = open_stream(
        settings.shards, settings.il, buffer_size=settings.buffer_size, seed=settings.seed, passes=None,
        workers=settings.workers, image_size=settings.image_size or then.get("preprocess_image_size"),
        channels=settings.channels or then.get("preprocess_channels"), lanes=settings.lanes, decoder=settings.decoder,
        resize=settings.resize or then.get("preprocess_resize") or centred,
        missing_il=settings.missing_il, keep_holdout=settings.keep_holdout, needs_il=settings.found_rule.needs_il,
        roots=settings.roots, band=settings.band, keep_list=settings.keep_list, view_size=settings.view_size,
        device=on, classes=settings.classes, rank=ranks.rank, ranks=ranks.size, with_fold=settings.found_rule.live,
        tokenizer=settings.asked_tokenizer, text_length=settings.text_length, task=settings.found_task,
        il_tokens=settings.token_share is not None, carried_lanes=carried, order=order,
        kind=settings.kind, augment="none" if settings.augment in KINDS else settings.augment,
    )  # fmt: skip
    schedule, always = settings.options.kept_schedule, settings.found_rule.score is None
    if always or schedule.has_uniform_steps:
        together = settings.selection == "global"
        loader.stream.prefilters += (
            UniformChoice(settings.own_batch(ranks), settings.seed, None if together else ranks.rank, schedule,
                          settings.options.quota, always, loader.stream.numbering),)  # fmt: skip
    return loader


def _networks(
    settings: Settings, loader: Loader, classes: int, on: torch.device, ranks: Ranks
) -> tuple[nn.Module, Proxy | None]:
    """The target and, where there is one, the proxy; on every rank with rank 0's weights."""
    preprocess = loader.stream.preprocess
    torch.manual_seed(torch_seed(settings.seed, "weights"))
    if settings.make_model:
        with users_code("make_model"):
            network = settings.make_model()
    else:
        network = build(settings.model, classes=classes, **preprocess.model_arguments())
    if settings.init:
        load_initial(network, settings.init)
    if not ranks.alone:
        network, says = with_synchronized_norms(network, on)
        if says and ranks.first and settings.found_rule.score is not None:
            warnings.warn(says, stacklevel=5)
    # Pixels come as NHWC: channels-last needs no transpose and is the faster layout for convolutions.
    network.to(on).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ranks.copy_from_first(network)
    if settings.listed is None or settings.listed.kind != "proxy":
        return network, None
    proxy = make_proxy(
        settings.proxy_model,
        loader.stream.preprocess,
        loader.stream.view,
        classes,
        lr=settings.lr,
        seed=settings.seed,
        device=on,
        synchronized=not ranks.alone,
        loss=settings.own_loss,
    )
    ranks.copy_from_first(proxy.model)
    return network, proxy


def _selector(
    settings: Settings,
    network: nn.Module,
    proxy: Proxy | None,
    live: LiveIL | None,
    scoring: torch.dtype | None,
    ranks: Ranks,
) -> Selector:
    """Over all ranks together, or of each for itself."""
    together, listed = settings.selection == "global", settings.listed
    return Selector(
        network,
        settings.rule,
        settings.own_batch(ranks),
        chunk=settings.chunk,
        loss=settings.own_loss,
        live=live,
        **vars(settings.options),
        batch_norm=settings.batch_norm,
        loss_cap=settings.loss_cap,
        seed=settings.seed,
        autocast=scoring,
        compile=settings.compile,
        proxy=proxy,
        shortlist=listed.factor if listed else None,
        group=ranks if together else None,
        rank=None if together else ranks.rank,
    )


def _set_costs(
    cost: Cost, settings: Settings, loader: Loader, network: nn.Module, proxy: Proxy | None, live: LiveIL | None
) -> None:
    """Enter what a sample costs at each stage, and what was spent before the run."""
    stream = loader.stream
    set_macs(cost, settings.model, network, proxy, settings.listed, stream.preprocess, stream.view)
    if live is not None:
        set_live_macs(cost, live, stream.preprocess, stream.view)
    cost.il = il_account(loader) if settings.uses_il else {}
    cost.keep_list = {} if settings.keep_list is None else keep_list_account(settings.keep_list)


def _plan(settings: Settings, stream: CandidateStream, last_step: int, cost: Cost) -> Plan:
    """What is known of the run before its first step, for what is doubtful about it."""
    listed, scores = settings.listed, settings.found_rule.score is not None
    proxied = listed is not None and listed.kind == "proxy"
    factor = None if listed is None else listed.factor
    n_B, n_b = settings.buffer_size, settings.batch_size
    return Plan.of(
        stream,
        n_b,
        last_step,
        scores=scores,
        il_units=cost.il_units,
        run_units=cost.planned_units(last_step, n_B, n_b, scores=scores, shortlist=factor, proxy=proxied),
        cheap=cheap_choice(stream, proxied and f"the proxy {settings.proxy_model}", factor),
    )


def _require_statistics(settings: Settings, network: nn.Module, seen: Kind, ranks: Ranks) -> None:
    """Raise UsageError for batch norm that would have to learn from one sample in a forward."""
    if not own_norms(network):
        return
    sizes = settings.options.kept_schedule.sizes(settings.batch_size, settings.buffer_size)
    least = -(-(min(sizes) // ranks.size) // settings.accumulate)  # in a forward of the rank that has the fewest
    if least <= 1:
        asked = (
            f"--batch-size {settings.batch_size}"
            + (f" over {ranks.size} ranks" if ranks.size > 1 else "")
            + (f" in --accumulate {settings.accumulate} pieces" if settings.accumulate > 1 else "")
        )
        require_more_than_one(network, seen.example().to(next(network.parameters()).device), asked)


def _live(settings: Settings, loader: Loader, on: torch.device) -> LiveIL | None:
    """The IL model that learns along, where the rule has one."""
    stream, made = loader.stream, loader.stream.table.info.ingredients.get("loss", "cross_entropy")
    own = "next_token" if not stream.preprocess.needs_label else settings.loss
    if settings.found_rule.needs_il and made != own:
        warnings.warn(
            f"the il of {storage.redact(stream.table.url)} is {made}, and the run's loss is {own}: the "
            f"rule {settings.rule} compares two different losses",
            stacklevel=5,
        )
    if not settings.found_rule.live:
        return None
    return load_live(
        stream.table,
        settings.il_model,
        stream.preprocess,
        on,
        lr=settings.lr * settings.il_lr_scale,
        view=stream.view,
        code=settings.il_code,
    )


def _require_quota(settings: Settings, table: Table, classes: int) -> None:
    """Raise UsageError for a class quota that these shards can't meet."""
    quota = settings.options.quota
    if quota is None:
        return
    settings.check_quota(classes)
    if quota.kind == "balanced":
        found = np.zeros(classes, np.int64)
        for name in table.names:
            part = read_part(part_url(table.url, name))
            own = part.label[part.usable & (settings.keep_holdout | ~part.in_holdout)].astype(np.int64)
            found += np.bincount(own[(own >= 0) & (own < classes)], minlength=classes)
        if (empty := np.flatnonzero(found == 0)).size:
            raise UsageError(
                f"--class-quota balanced: class {int(empty[0])} of {classes} has no usable sample in "
                "these shards, so no batch can be balanced; say how many there are with --classes, or "
                "give a share"
            )


def _record(
    settings: Settings,
    loader: Loader,
    pinned: dict[str, Any],
    last_step: int,
    threads: int,
    on: torch.device,
    ranks: Ranks,
) -> dict[str, Any]:
    """What run.json says beside the fingerprints."""
    stream, table = loader.stream, loader.stream.table
    return {
        "settings": {
            **pinned,
            **{name: getattr(settings, name) for name in (*_ASKED, "selection")},
            "last_step": last_step,
            "keep_list": settings.keep_list and storage.redact(storage.resolve(settings.keep_list)),
            "prefilters": [repr(p) for p in stream.prefilters if isinstance(p, Band)],
        },
        "config": written(settings),
        "arguments": arguments_of(settings),
        "il": storage.redact(storage.resolve(settings.il)),
        "shards": list(table.names),
        "roots": {k: storage.redact(root) for k, root in {**table.info.roots, **(settings.roots or {})}.items()},
        # Without user and query: a presigned URL is a secret, and one of yesterday opens nothing.
        "shard_urls": [storage.redact(url) for url in table.shards],
        "il_model": il_account(loader),
        "device": str(on),
        "ranks": ranks.size,
        "left_out_shards": len(table.missing),
        "threads": threads,
        "chunk": settings.chunk,
        "precision": settings.precision,
        "versions": versions(),
        "samples": int(table.counts.sum()),
        "buffers_per_pass": stream.buffers_per_pass,
        **named_classes(table),
    }


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _last_step(settings: Settings, stream: CandidateStream) -> int:
    """Where the run ends: after `steps` or `passes`, whichever comes first; after one pass when neither is given."""
    passes = settings.passes or (None if settings.steps else 1)
    end = turns.last_step(stream, passes, settings.steps)
    assert end is not None
    return end


class _Evaluations:
    """Looks at the test set every so many steps, and at the run's end; `last` is the newest look."""

    def __init__(self, tests: TestSet | OwnEvaluation | None, model: nn.Module, every: int) -> None:
        self._tests, self._model, self._every = tests, model, every
        self.last: Evaluation | None = None

    def __call__(self, step: int, done: bool) -> Evaluation | None:
        if self._tests is None or not (done or (step + 1) % self._every == 0):
            return None
        self.last = self._tests.evaluate(self._model)
        return self.last


def _set_rates(settings: Settings, trainer: Trainer, changes: list[Change], changing: list[Change]) -> None:
    """The rates in force, for all that learns in the run; a schedule goes on as if it had begun with the new ones."""
    selector = trainer.run.selector
    if {change["field"] for change in changing} & {"lr", "weight_decay", "momentum", "schedule_steps"}:
        trainer.schedule.begin_again(trainer.schedule.steps)
    if changes or changing:
        rates = [] if selector.proxy is None else [(selector.proxy.optimizer, settings.lr)]
        if selector.live is not None:
            rates += [(one, settings.lr * settings.il_lr_scale) for one in selector.live.optimizers]
        for optimizer, rate in rates:
            for group in optimizer.param_groups:
                group["lr"] = rate


def _count_classes(table: Table) -> int:
    largest = max(int(read_part(part_url(table.url, name)).label.max(initial=-1)) for name in table.names)
    if largest < 0:
        raise UsageError("no label in any shard; give --classes")
    return largest + 1
