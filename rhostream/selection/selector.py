"""The selector: one forward of a buffer with the current weights, then the n_b samples worth a gradient step.

    candidates > (shortlist: a proxy or a cheap view scores all, the best R * n_b go on) > fresh scores > the best n_b

It leaves the model as it found it (`forward`), and waits for the device once: when the losses and scores of a buffer
come to the host, where the choice is made and from where the log takes them. Over several ranks each scores its slice
of the buffer, scores are gathered, and every rank makes the choice of the whole buffer and takes its rows of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rhostream.candidates import Candidates, Reason, to_device
from rhostream.errors import UnknownNameError, UsageError
from rhostream.inert import one_line
from rhostream.selection.adjust.duplicates import grey_views
from rhostream.selection.chooser import NONFINITE_BUFFERS, Chooser, Watch
from rhostream.selection.deal import Batch, batch_of
from rhostream.selection.forward import Forward, require_dropout, scoring
from rhostream.selection.lagged import RECALL_EVERY, Lagged, recall_of
from rhostream.selection.live import LiveIL
from rhostream.selection.losses import LossFunction, find_loss, require_target_loss
from rhostream.selection.options import Options
from rhostream.selection.outputs import proved_by_one
from rhostream.selection.pairs import in_batches
from rhostream.selection.proxy import Proxy
from rhostream.selection.ranks import Ranks, default_ranks, in_lockstep, is_sharded, own_norms
from rhostream.selection.rules import find_rule
from rhostream.selection.scorers import Scorers
from rhostream.selection.scores import RuleScores, bounds_of
from rhostream.selection.shadow import shadow_kept
from rhostream.selection.source_quota import require_sources
from rhostream.selection.stages import Columns, Rows, Selection, Stage, fields_of, pack, unpack
from rhostream.selection.tokens import is_language, loss_of
from rhostream.selection.uniform import Draws
from rhostream.selection.updates import most_updates
from rhostream.selection.whole import buffer_of, leave_out_without_il, require_cheaper, shortlist, slice_of, uniform_of

__all__ = ["NONFINITE_BUFFERS", "Selection", "Selector", "scoring"]

GRADIENTS = ("mean", "sum")


class Selector:
    """Keeps `batch_size` of each buffer by `rule`, with the model's weights as they are at the call.

    `loss` maps (output, target) to (B,) float32; by default cross-entropy of (logits, label), or of language the mean
    over a sequence's tokens. `chunk`, `batch_norm`, `autocast`, `compile`: see `Forward`.
    `shortlist`: so many times n_b of the candidates reach the target, the best by the rule's score of `proxy`, which
    learns from what is kept, or, without one, of the target itself on the stream's cheap view. `live`: the IL model of
    the rule `rho_updated`. The other keywords are `Options`, such as `gumbel=0.5`, `warm_up=100`, `shadow="loss"`.
    `group`: the process group over which buffers are split, as `open_stream` does it, and `batch_size` counts; torch's
    default group where it is initialised, None for none. Each call is then collective, and the kept rows are dealt out:
    each rank gets n_b / ranks of them, whoever read them. Without one the choice is made among the candidates at hand.
    `gradients`: what reduces them, "mean" (DDP and FSDP, which are recognised) or "sum"; `Selection.mean` goes by it.

    Raises UsageError for what can't go together, for a loss or a rule of another shape and for labels that the model
    doesn't know; NonFiniteError after three buffers in a row without one finite score; RankLostError.
    """

    def __repr__(self) -> str:
        model = one_line(type(self.model).__name__)
        return f"<Selector {one_line(self.rule.name)}: keeps {self.batch_size} of each buffer, by a {model}>"

    def __init__(
        self,
        model: nn.Module,
        rule: str = "rho",
        batch_size: int = 32,
        *,
        loss: LossFunction | str | None = None,
        chunk: int | None = None,
        batch_norm: str = "buffer",
        autocast: torch.dtype | None = None,
        compile: bool = False,
        loss_cap: bool = False,
        seed: int = 0,
        shortlist: float | None = None,
        proxy: Proxy | Lagged | None = None,
        scorers: Scorers | None = None,
        live: LiveIL | None = None,
        group: dist.ProcessGroup | Ranks | str | None = "default",
        gradients: str | None = None,
        **options: Any,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: expected at least 1")
        if shortlist is not None and not shortlist > 1:
            raise UsageError(f"shortlist {shortlist}: expected more than 1 (times the {batch_size} kept)")
        if gradients not in (None, *GRADIENTS):
            raise UnknownNameError.of("gradients", str(gradients), GRADIENTS)
        self.reduced = gradients or ("mean" if is_sharded(model) else None)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            self.reduced = gradients or "mean"
            model = model.module  # its forward talks to other ranks, and a rank without candidates makes none
        self.ranks = default_ranks(group)
        if chunk is not None and in_lockstep(model):
            raise UsageError(
                f"chunk {chunk}: forwards of this model (SyncBatchNorm or FSDP) wait for those of other "
                "ranks, which would make another number of them; leave the chunk out"
            )
        self.model, self.rule, self.batch_size = model, find_rule(rule), batch_size
        self.loss = find_loss(loss) if isinstance(loss, str) else loss or loss_of(model)
        self.options = Options.of(options)
        self.loss = in_batches(self.loss, self.ranks, batch_size, shortlist=shortlist is not None,
                               live=live is not None, auto=self.options.auto)  # fmt: skip
        self.loss_cap, self.seed = loss_cap, seed
        self.live, self.proxy, self.shortlist, self.scorers = live, proxy, shortlist, scorers
        if loss_cap and is_language(model):
            raise UsageError("loss_cap clips at the loss of a guess among classes, which language has not")
        self.forward = Forward(model, chunk=chunk, batch_norm=batch_norm, autocast=autocast, compile=compile)
        if proxy is not None and shortlist is None:
            raise UsageError("a proxy makes a shortlist: say how long, as a multiple of the batch size (shortlist=4)")
        if self.rule.score is None and self.shortlist is not None:
            raise UsageError(f"the rule {rule!r} makes no forward, so a shortlist has nothing to rank by")
        self._draws_each = self.options.mc_draws if self.rule.needs_draws else 1  # forwards of a sample that is scored
        self.options.check(self.rule, shortlist=shortlist is not None, live=live is not None)
        self.chooser = Chooser(self.rule, self.options, batch_size)
        learners = [model, *([] if proxy is None else [proxy.model])]
        if self.rule.needs_draws:
            for learner in learners:
                require_dropout(learner, self.rule.name)
        self.scores = RuleScores(
            self.rule, self.chooser.shadows, self.loss, loss_cap=loss_cap, seed=seed, draws=self.options.mc_draws,
            rank=self.ranks.rank, columns=self.options.columns_for(self.rule),
            joint={name: getattr(self.options, name) for name in ("joint_chunks", "joint_negatives")},
        )  # fmt: skip
        # Batch norm of each rank's own rows can't learn from one: no rank is left with one where two are to be had, and
        # where there never are two it is proved that the model can.
        few = batch_size < 2 * (self.ranks.size if scorers is None else scorers.training)
        self.least_rows = 2 if not few and any(map(own_norms, learners)) else 1
        self._unproved = few and bool(own_norms(model)) and not in_lockstep(model)
        self._calls, self._watch, self._fits = 0, Watch(), False  # `_fits`: it is known to need no classes

    def __call__(self, candidates: Candidates, step: int | None = None) -> Selection:
        """Select from one buffer; the kept inputs come back normalised, on the candidates' device.

        `step` is what schedules and random draws go by; the number of the call, from 0 on, where it isn't given.
        """
        if candidates.target_field is not None and not self._fits:
            field = candidates.target_field
            what = f"the target is the field {field!r}" if field else "there is no target"
            self.options.require_no_classes(self.rule, what, loss_cap=self.loss_cap)
            require_target_loss(self.loss, what)
            self._fits = True
        step = self._calls if step is None else step
        self._calls = step + 1
        if self.rule.needs_il and self.live is None:
            candidates = leave_out_without_il(candidates)
        n_B, rows = slice_of(candidates, self.ranks).planned, candidates.candidate_rows
        turn = self.chooser.turn(step, n_B)
        require_sources(self.chooser.sources, candidates.source_names, [turn.n])
        if not turn.scored:
            return self._uniform(candidates, rows, turn.n, step, measure=turn.measure)
        return self.by_score(candidates, rows, turn.n, step)

    def by_score(self, candidates: Candidates, rows: Rows, n: int, step: int, *, listed: bool = False) -> Selection:
        """Keep n of these rows by their scores; `listed`: they are a shortlist already."""
        if self.scorers is not None and not listed:
            assert self.shortlist is not None
            return self.scorers.select(self, candidates, rows, n, step, round(self.shortlist * n))
        log, draws, reread, recall = Columns(candidates, Reason.shortlist), self._draws(candidates, step), 0, None
        stage = Stage.of(candidates, rows, None if self.live is None else self.live.il_of(candidates, rows))
        listing = self.shortlist is not None and not listed
        if listing:
            listed_m = self._shortlist(stage, candidates, rows, n, draws)
            if isinstance(self.proxy, Lagged) and step % RECALL_EVERY == 0:
                fresh_m = self.scores(self.forward, stage, bounds_of(candidates, rows), step)["score"]
                recall = recall_of(listed_m, shortlist(candidates, rows, fresh_m, self.ranks, n), self.ranks)
            stage = stage.take(listed_m)
            if candidates.full is not None:
                wanted = stage.row_m.cpu().numpy()
                stage, readable = stage.decoded_again(candidates, candidates.full, wanted)
                log.reason[np.setdiff1d(wanted, readable)], reread = Reason.unreadable, len(wanted)
        rng, bounds = draws.by_step("joint") if self.rule.joint else None, bounds_of(candidates, rows)
        columns = {"row": stage.row_m, **self.scores(self.forward, stage, bounds, step, n, rng)}
        if stage.live_m is not None:
            columns["il"] = stage.live_m
        if self.chooser.needs_views:
            columns["view"] = grey_views(fields_of(candidates).only.index_select(0, stage.row_m))
        host = unpack(*pack(columns))  # the one wait for the device
        reached = host["row"]
        log.scored(reached, host, candidates.host.il.numpy())
        buffer = buffer_of(candidates, reached, host, self.ranks, n=n, draws=draws)
        self.chooser.learn_classes(self.scores.classes, self.ranks)
        first = slice_of(candidates, self.ranks).first
        own = slice(first, first + len(candidates))
        self._watch(buffer.score_B[buffer.reached_B])
        choice = self.chooser(buffer)
        times_B, weight_B, reason_B = choice.times_B[own], choice.weight_B[own], choice.reason_B[own]
        log.reason[reason_B != Reason.below] = reason_B[reason_B != Reason.below]
        kept, total, drawn = np.flatnonzero(times_B), len(choice.kept), choice.draws
        trained = stage.take(to_device(torch.from_numpy(np.searchsorted(reached, kept)), stage.row_m.device))
        read = candidates.again or (candidates.full if self.shortlist is None else None)
        if read is not None:
            chosen, reread = kept, reread + len(kept)
            trained, kept = trained.decoded_again(candidates, read, chosen)
            log.reason[np.setdiff1d(chosen, kept)] = Reason.unreadable
            total, drawn = (int(v) for v in self.ranks.sum([len(kept), times_B[kept].sum()]))
        log.keep(kept, weight_B[kept])
        return self._selected(
            candidates, log, trained, total, draws=drawn, reread=reread,
            scored=(len(reached) + (0 if recall is None else len(rows))) * self._draws_each, recall=recall,
            shortlisted=len(rows) if listing else 0,
            live_scored=0 if self.live is None else len(rows),
            weighed=self.rule.sampled, shadow=shadow_kept(self.chooser.shadows, buffer, own),
        )  # fmt: skip

    def _uniform(self, candidates: Candidates, rows: Rows, n: int, step: int, *, measure: bool = False) -> Selection:
        """A random n_b of the candidates, unless the stream has chosen them before decoding.

        `measure`: their gradient norms are scored, for tau.
        """
        log, reread, scored, draws = Columns(candidates, Reason.below), 0, 0, self._draws(candidates, step)
        rows = uniform_of(candidates, rows, self.ranks, n, draws, self.chooser.quota, self.chooser.sources)
        stage, kept = Stage.of(candidates, rows), rows
        if candidates.full is not None and (measure or candidates.again is None):
            stage, kept = stage.decoded_again(candidates, candidates.full, rows)
            reread = len(rows)
        if measure:
            host = unpack(*pack(self.scores(self.forward, stage, bounds_of(candidates, rows), 0)))
            log.scored(kept, host, candidates.host.il.numpy())
            self.chooser.see(buffer_of(candidates, kept, host, self.ranks, n=n, draws=draws))
            scored = len(kept)
        if candidates.again is not None:
            reread += len(kept)
            stage, kept = stage.decoded_again(candidates, candidates.again, kept)
        log.reason[np.setdiff1d(rows, kept)] = Reason.unreadable
        log.keep(kept)
        total = int(self.ranks.sum([len(kept)])[0])
        return self._selected(candidates, log, stage, total, draws=total, reread=reread, scored=scored)

    def _selected(
        self, candidates: Candidates, log: Columns, stage: Stage, total: int, *, weighed: bool = False, **counts: Any
    ) -> Selection:
        """The selection, of the rows that were kept of this rank's slice and those of the others; proxies learn."""
        batch = batch_of(
            candidates, log.rows, stage.x_m, stage.label_m, log.weight[log.rows], self.ranks, again=stage.fields_m,
            proxy=self.proxy is not None, least=self.least_rows,
            share=None if self.scorers is None else self.scorers.shares,
        )  # fmt: skip
        if self._unproved:
            asked = f"batch_size {self.batch_size} on {self.ranks.size} rank{'s' if self.ranks.size > 1 else ''}"
            self._unproved = not proved_by_one(self.model, batch.x, asked, self.ranks)
        x = batch.x
        if candidates.transform is not None and batch.seed is not None:
            x = candidates.transform(x, to_device(torch.from_numpy(batch.seed), x.device))
        return Selection(
            **vars(log), **counts, total=total, ranks=self.ranks.size, reduced=self.reduced, share=self.chooser.share,
            input=x if total else None, label=batch.label, target=x if candidates.target_field == "" else batch.target,
            place=batch.place, first=sum(batch.rows_of_rank[: self.ranks.rank]), field=batch.field,
            most_updates=most_updates(batch.rows_of_rank, self.least_rows),
            decoded=batch.decoded, il_tokens=batch.il_tokens,
            factors=to_device(torch.from_numpy(batch.weight), batch.label.device) if weighed else None,
            live_trained=self._learn(candidates, log.rows, batch, total),
        )  # fmt: skip

    def _shortlist(self, stage: Stage, candidates: Candidates, rows: Rows, n: int, draws: Draws) -> Tensor:
        """Positions of the stage that go on to the target, on the device; nothing waits for it on one rank."""
        require_cheaper(candidates, self.proxy)
        assert self.shortlist is not None
        forward = self.proxy.forward if self.proxy else self.forward
        score_m = self.scores(forward, stage, bounds_of(candidates, rows), draws.step)["score"]
        return shortlist(candidates, rows, score_m, self.ranks, round(self.shortlist * n))

    def _draws(self, candidates: Candidates, step: int) -> Draws:
        return Draws(seed=self.seed, step=step, planned=slice_of(candidates, self.ranks).planned,
                     pass_index=candidates.pass_index, index=candidates.index)  # fmt: skip

    def _learn(self, candidates: Candidates, kept: Rows, batch: Batch, total: int) -> int:
        """A step of the proxy and of the live IL model on what is kept; samples that went through the latter."""
        if self.scorers is not None:
            self.scorers.learn()
        elif self.proxy is not None and total:
            self.proxy.learn(batch.seen, batch.seen_target, self.ranks, total)
        return 0 if self.live is None or not total else self.live.learn_from(candidates, kept, self.ranks)

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What later choices hang on beside the weights, as plain values: calls so far, tau, class weights."""
        beside = {} if self.scorers is None else self.scorers.state_dict()
        return {"calls": self._calls, **self.chooser.state(), **beside}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Raises MismatchError for what is none."""
        self._calls = int(state.get("calls", 0))
        self.chooser.load(state)
        if self.scorers is not None:
            self.scorers.load_state_dict(state)
