"""`train`: settings are checked and resolved, the run folder is claimed or resumed, and the loop is started."""

from __future__ import annotations

import json
from typing import Any

import torch

from rhostream import storage
from rhostream.config.call import configured
from rhostream.config.train import TrainConfig
from rhostream.runs import turns
from rhostream.runs.attempt import Attempt
from rhostream.runs.chain import head
from rhostream.runs.loop import Loop
from rhostream.runs.measure import price
from rhostream.runs.pins import denied_samples
from rhostream.runs.record import recorded
from rhostream.selection.hardware import device_of
from rhostream.selection.hardware import threads as threads_in_use
from rhostream.selection.lagged import Lagged
from rhostream.selection.losses import cross_entropy
from rhostream.selection.proxy import Proxy
from rhostream.selection.ranks import Ranks
from rhostream.stream.label_from import LabelFrom
from rhostream.training.before import (
    UNPINNED,
    last_step_of,
    plan_of,
    record_of,
    require_quota,
    require_statistics,
    set_costs,
)
from rhostream.training.cascade import require_classes
from rhostream.training.changes import CHANGEABLE, Change, in_force
from rhostream.training.draws import changed_draws
from rhostream.training.evaluate import Evaluations, Look, OwnEvaluation, TestSet
from rhostream.training.hardware import autocast, threads_of
from rhostream.training.loop import Trainer
from rhostream.training.optimizers import Average, make_optimizer, make_schedule
from rhostream.training.pairs import look_at_pairs
from rhostream.training.parallel import require_shardable
from rhostream.training.parts import count_classes, make_live, make_networks, make_selector, open_at
from rhostream.training.ranks import joined, local_device, require_alike
from rhostream.training.settings import Settings
from rhostream.training.summary import Summary, evaluated_before, summary_of


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
    `clip_gradient`, the largest norm; `mixup` and `label_smoothing`, of its loss alone; `ema`, the decay of an average
    of the weights, which is then what is evaluated; `evaluate`, your `module:function` of the model in place of test
    shards. docs/training.md has the rules.

    `deny`: a file of samples that are left out from now on, which may get longer while a run goes on. `sources`, "root"
    or a kept field of the table, is what the log names each sample's source by, and `source_floor` and `source_cap`,
    {"name": share}, bound the sources' shares of a batch. docs/sources.md has both.

    The cascade: `band` ("20%:90%", or nats) and `keep_list` drop samples before they are read; `shortlist`
    ("proxy:4", "view:4") lets a `proxy_model` or a view of `view_size` pixels choose 4 n_b, of which the target's fresh
    scores choose; a view without a shortlist is what is scored, and only what is kept is decoded at full size.
    `precision` is that of scoring, `train_precision` that of the gradient step (losses are float32 always); `threads`
    are the model's, by default the cores that the workers leave, and stay those of the run's start when it is resumed.

    The rules are in docs/rules.md, options (`clip` to `shadow`) in docs/options.md. `loss`: "cross_entropy", of what is
    no class "squared_error" or "binary_cross_entropy", or your `module:function` of (output, target) to one
    loss a sample; the table's il must be of the same. `il_model`, `il_lr_scale`, `il_code`: the IL model
    that the rule `rho_updated` trains along, at that multiple of `lr`; by default it is sought where it lay.

    Started by torchrun, every rank reads and scores its slice of each buffer, and `buffer_size` and `batch_size` count
    over all of them: the best n_b of the whole buffer are kept, as one rank would. `rank_timeout`: seconds that a rank
    waits for the others before it stops.

    `change`, {"lr": 5e-4} or "lr=5e-4": what a run that goes on does otherwise from its newest checkpoint on; the other
    arguments stay as they were. It is recorded (run.json stays as it is), reports say it, and the same call again
    changes nothing more. lr, weight_decay, momentum, schedule_steps, clip_gradient, il_lr_scale, accumulate,
    update_size, augment, mixup, label_smoothing, chunk, precision, train_precision and compile can change.
    `from_step`: a new attempt from the commit of that step. `skip_buffers`, "A:B": these buffers are passed over,
    unread, and logged as that. `grow`: where a pass has ended, the run goes on with this longer list of shards. These
    three are recorded as changes, too, and done once.
    `take_over`: go on from the newest commit even while another process of this machine is at the run; else refused.

    Raises UsageError and its kin before any work, Interrupted after a signal, NonFiniteError when training diverges,
    RankLostError when another rank is gone.
    """
    settings = Settings.of_config(config)
    on = device_of(local_device(settings.device))
    with joined(on, settings.rank_timeout) as ranks:
        return _train(settings, on, ranks)


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
    settings, loader = open_at(turn, settings, on, ranks, before)
    turn.changing += changing
    stream, info = loader.stream, loader.stream.table.info
    settings.require_fitting(stream.preprocess)
    require_shardable(settings, stream.preprocess, ranks)
    classes = None
    if stream.preprocess.target is None:
        classes = settings.classes or info.classes or count_classes(stream.table)
    pinned, last_step = settings.pinned(stream, classes), last_step_of(settings, stream)
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
                "parallel": settings.parallel,
                "changing": turn.changing,
                **denied_samples(stream),
            }
        ),
    )
    require_quota(settings, stream.table, classes)
    network, proxy = make_networks(settings, loader, classes, on, ranks, scoring)
    require_classes(settings.model, network, stream.preprocess, classes, settings.loss)
    if isinstance(proxy, Proxy):
        require_classes(settings.proxy_model, proxy.model, stream.preprocess, classes, settings.loss, stream.view)
    require_statistics(settings, network, stream.preprocess, ranks)
    live = make_live(settings, loader, on)
    selector = make_selector(settings, network, proxy, live, scoring, ranks)
    if selector.chooser.ratio is not None:  # losses of mixtures, of smoothed labels or of some tokens are no scores
        selector.chooser.ratio.listens = not (settings.mixup or settings.label_smoothing or settings.tokens)
    threads = threads_of(settings.threads, settings.workers, before.get("threads"))
    record = record_of(settings, loader, pinned, last_step, threads, on, ranks)
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
    training_ranks = ranks if selector.scorers is None else selector.scorers.trainers
    looks = selector.scorers is None or not selector.scorers.scores
    if settings.evaluate is not None:
        own_test = OwnEvaluation(settings.evaluate, training_ranks)
    if tests and looks:
        names = stream.table.class_names
        label = LabelFrom.from_json(stream.table.info.label)
        test_set = TestSet(
            tests, stream.preprocess, classes, stream.decoder_name, settings.workers, training_ranks, names, label,
            selector.loss if classes is None else cross_entropy,
        )  # fmt: skip
    look: Look | None = test_set or own_test
    if stream.preprocess.task == "pairs":
        look = look_at_pairs(settings, stream, test_set, selector.loss, training_ranks) or own_test
    if test_set is not None and not before:
        record["test_set"] = test_set.examine(settings.budget)
        record["test_fingerprint"] = test_set.fingerprint
    with threads_in_use(threads):
        set_costs(attempt.cost, settings, loader, network, proxy, live)
    price(selector, attempt.cost, stream.table.info)
    if doubts := plan_of(settings, stream, last_step, attempt.cost).doubts():
        record["doubts"] = doubts
    optimizer = make_optimizer(settings, network)
    if isinstance(proxy, Lagged) and settings.listed is not None and settings.listed.kind == "predicted":
        proxy.predict_by(optimizer)
    schedule = make_schedule(settings, optimizer, schedule_steps)
    average = None if settings.ema is None else Average(network, settings.ema)
    state: dict[str, Any] = {"model": network, "optimizer": optimizer}
    if schedule.scheduler is not None:
        state["scheduler"] = schedule
    if average is not None:
        state["ema"] = average.model
    evaluations = Evaluations(look if looks else None, state.get("ema", network), settings.eval_every)
    managed = Loop(
        attempt, record, loader, selector, state, last_step, seed=settings.seed,
        commit_every=settings.checkpoint_every, keep_checkpoints=settings.keep_checkpoints, metrics=settings.metrics,
        changeable=CHANGEABLE, note={name: record["settings"][name] for name in UNPINNED}, job="train",
        evaluate=evaluations, start=turn.start, track=settings.trackers, track_every=settings.track_every,
    )  # fmt: skip
    trainer = Trainer(
        run=managed,
        model=network,
        optimizer=optimizer,
        schedule=schedule,
        seed=settings.seed,
        accumulate=settings.accumulate,
        update_size=settings.at_most,
        augment=settings.augment,
        mixup=settings.mixup,
        label_smoothing=settings.label_smoothing,
        precision=training,
        compile=settings.compiles_whole,
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
    last = evaluations.last
    if ranks.from_first(last is None):  # a rank that only scores has none of its own
        last = evaluated_before(attempt)
    return summary_of(settings, attempt, last_step, last, tested, managed.doubt)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _set_rates(settings: Settings, trainer: Trainer, changes: list[Change], changing: list[Change]) -> None:
    """The rates in force, for all that learns in the run; a schedule goes on as if it had begun with the new ones."""
    selector = trainer.run.selector
    if {change["field"] for change in changing} & {"lr", "weight_decay", "momentum", "schedule_steps"}:
        trainer.schedule.begin_again(trainer.schedule.steps)
    if changes or changing:
        rates = [(selector.proxy.optimizer, settings.lr)] if isinstance(selector.proxy, Proxy) else []
        if selector.live is not None:
            rates += [(one, settings.lr * settings.il_lr_scale) for one in selector.live.optimizers]
        for optimizer, rate in rates:
            for group in optimizer.param_groups:
                group["lr"] = rate
