"""The selector: one forward of a buffer with the current weights, then the n_b samples worth a gradient step.

    candidates > (shortlist: a proxy or a cheap view scores all, the best R * n_b go on) > fresh scores > the best n_b

It leaves the model as it found it (`forward`), and waits for the device once: when the losses and scores of a buffer
come to the host, where the choice is made and from where the log takes them. Over several ranks each scores its slice
of the buffer, scores are gathered, and every rank makes the choice of the whole buffer and takes its own rows of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rhostream.candidates import Candidates, Reason, Slice, to_device
from rhostream.errors import NonFiniteError, UnknownNameError, UsageError
from rhostream.inert import one_line
from rhostream.samples.fields import Fields
from rhostream.selection.choice import Draws, Whole, choose, columns_of, leading, whole_of
from rhostream.selection.chooser import Chooser
from rhostream.selection.deal import Batch, batch_of
from rhostream.selection.duplicates import grey_views
from rhostream.selection.forward import Forward, require_dropout, scoring
from rhostream.selection.live import LiveIL
from rhostream.selection.losses import LossFunction
from rhostream.selection.options import Options
from rhostream.selection.outputs import require_more_than_one
from rhostream.selection.proxy import Proxy
from rhostream.selection.ranks import Ranks, default_ranks, in_lockstep, is_sharded, own_norms
from rhostream.selection.rules import find_rule
from rhostream.selection.scores import Bounds, RuleScores
from rhostream.selection.stages import Reached, Reading, Rows, Selection, ShadowScores, Stage, Taken, decided, take
from rhostream.selection.tokens import is_language, loss_of

__all__ = ["NONFINITE_BUFFERS", "Selection", "Selector", "scoring"]

NONFINITE_BUFFERS = 3
GRADIENTS = ("mean", "sum")


class Selector:
    """Keeps `batch_size` of each buffer by `rule`, with the model's weights as they are at the call.

    `loss` maps (logits, label) to (B,) float32; by default cross-entropy, or of language the mean over a sequence's
    tokens. `chunk`, `batch_norm`, `autocast`, `compile`: see `Forward`.
    `shortlist`: so many times n_b of the candidates reach the target, the best by the rule's score of `proxy`, which
    learns from what is kept, or, without one, of the target itself on the stream's cheap view. `live`: the IL model of
    the rule `rho_updated`. The other keywords are `Options`, such as `gumbel=0.5`, `warm_up=100`, `shadow="loss"`.
    `group`: the process group over which buffers are split, as `open_stream` does it, and `batch_size` counts; torch's
    default group where it is initialised, None for none. Each call is then collective, and the kept rows are dealt out:
    each rank gets n_b / ranks of them, whoever read them. Without one the choice is made among the candidates at hand;
    `rank` says whose slice of the buffer these are where every rank chooses alone, so that each has draws of its own.
    `gradients`: what reduces them over the ranks, "mean"
    (DDP and FSDP, which are recognised) or "sum"; `Selection.mean` goes by it.

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
        loss: LossFunction | None = None,
        chunk: int | None = None,
        batch_norm: str = "buffer",
        autocast: torch.dtype | None = None,
        compile: bool = False,
        loss_cap: bool = False,
        seed: int = 0,
        shortlist: float | None = None,
        proxy: Proxy | None = None,
        live: LiveIL | None = None,
        group: dist.ProcessGroup | Ranks | str | None = "default",
        rank: int | None = None,
        gradients: str | None = None,
        **options: Any,
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: expected at least 1")
        if shortlist is not None and not shortlist > 1:
            raise UsageError(f"shortlist {shortlist}: expected more than 1 (times the {batch_size} kept)")
        wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
        if gradients not in (None, *GRADIENTS):
            raise UnknownNameError.of("gradients", str(gradients), GRADIENTS)
        self.reduced = gradients or ("mean" if wrapped or is_sharded(model) else None)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module  # its forward talks to other ranks, and a rank without candidates makes none
        self.ranks = default_ranks(group)
        if chunk is not None and in_lockstep(model):
            raise UsageError(
                f"chunk {chunk}: forwards of this model (SyncBatchNorm or FSDP) wait for those of other "
                "ranks, which would make another number of them; leave the chunk out"
            )
        self.model, self.rule, self.batch_size = model, find_rule(rule), batch_size
        self.loss = loss or loss_of(model)
        self.loss_cap, self.seed, self.live, self.shortlist = loss_cap, seed, live, shortlist
        if loss_cap and is_language(model):
            raise UsageError("loss_cap clips at the loss of a guess among classes, which language has not")
        self.forward = Forward(model, chunk=chunk, batch_norm=batch_norm, autocast=autocast, compile=compile)
        self.proxy = proxy
        if proxy is not None and shortlist is None:
            raise UsageError("a proxy makes a shortlist: say how long, as a multiple of the batch size (shortlist=4)")
        if self.rule.score is None and self.shortlist is not None:
            raise UsageError(f"the rule {rule!r} makes no forward, so a shortlist has nothing to rank by")
        self.options = Options.of(options)
        self.options.check(self.rule, shortlist=shortlist is not None, live=live is not None)
        self.rank = rank
        self.chooser = Chooser(self.rule, self.options)
        if self.rule.needs_draws:
            for scorer in (model, *([] if proxy is None else [proxy.model])):
                require_dropout(scorer, self.rule.name)
        self._scores = RuleScores(
            self.rule,
            self.chooser.shadows,
            self.loss,
            loss_cap=loss_cap,
            seed=seed,
            draws=self.options.mc_draws,
            rank=self.ranks.rank if rank is None else rank,
        )
        # Batch norm of each rank's own rows can't learn from one: no rank is left with one where two are to be had, and
        # where there never are two it is proved that the model can.
        few = batch_size < 2 * self.ranks.size
        learners = [model, *([] if proxy is None else [proxy.model])]
        self._least = 2 if not few and any(map(own_norms, learners)) else 1
        self._unproved = few and bool(own_norms(model)) and not in_lockstep(model)
        self._calls = self._nonfinite = 0

    def __call__(self, candidates: Candidates, step: int | None = None) -> Selection:
        """Select from one buffer; the kept inputs come back normalised, on the candidates' device.

        `step` is what schedules and random draws go by; the number of the call, from 0 on, where it isn't given.
        """
        step = self._calls if step is None else step
        self._calls = step + 1
        n_B = self._slice(candidates).planned
        n = self.chooser.schedule.kept(step, self.batch_size, n_B)
        rows = candidates.candidate_rows
        if self.rule.score is None or self.chooser.schedule.is_uniform(step):
            return self._uniform(candidates, rows, n, step)
        if not self.chooser.pays(n_B, n):
            return self._uniform(candidates, rows, n, step, measure=True)
        return self._by_score(candidates, rows, n, step)

    def _by_score(self, candidates: Candidates, rows: Rows, n: int, step: int) -> Selection:
        chance, draws = self._by_chance(candidates, rows), self._draws(candidates, step)
        stage = Stage(candidates.inputs(rows), *take(candidates, rows), chance, self._live_il(candidates, rows))
        reading, bounds, position = Reading(candidates, rows), _bounds(candidates, rows), None
        if self.shortlist is not None:
            position = self._shortlist(stage, candidates, bounds, n, draws)
            stage = stage.take(position)
            if candidates.full is not None:
                stage, position = reading(stage, position)
        loss, score, correct, shadows = self._scores(self.forward, stage, bounds, step)
        # The one wait for the device: everything that the choice and the log need comes in one copy.
        at = torch.arange(len(score), device=score.device) if position is None else position
        parts = [
            loss.float()[None],
            score[None],
            correct.float()[None],
            at.float()[None],
            (stage.il if stage.live is None else stage.live)[None],
            shadows,
        ]
        if self.options.deduplicate is not None:
            parts.append(self._views(candidates, rows, at))
        table = torch.cat(parts).cpu()
        at, live = table[3].long(), None if stage.live is None else table[4].numpy()
        reached = Reached(at.numpy(), table[0].numpy(), table[1].numpy(), table[2].numpy() > 0, live)
        whole, start = self._whole(candidates, rows, table, stage.chance)
        self._watch(whole)
        choice = self.chooser(whole, n, draws)
        own = _own(choice.kept, start, len(score))
        kept_at = torch.from_numpy(choice.kept[own] - start)
        kept, kept_at = stage.take(to_device(kept_at, score.device)), at[kept_at]
        times, weight, total, drawn = choice.times[own], choice.weight[own], len(choice.kept), choice.draws
        if candidates.full is not None and self.shortlist is None:
            before = kept_at
            kept, kept_at = reading(kept, kept_at)
            left = torch.isin(before, kept_at).numpy()
            times, weight = times[left], weight[left]
            total, drawn = (int(v) for v in self.ranks.sum([len(kept_at), times.sum()]))
        batch = self._batch(candidates, rows[kept_at.numpy()], kept.x, kept.label, weight)
        trained = self._learn(candidates, rows, kept_at, batch, total)
        copies = choice.duplicates[_own(choice.duplicates, start, len(score))] - start
        taken = Taken(kept_at.numpy(), weight, reading.failed, reached.at[copies])
        columns = decided(candidates, rows, reached, taken, Reason.shortlist)
        return Selection(
            **columns, **self._trained_on(batch, total, weighed=self.rule.sampled), total=total, draws=drawn,
            scored=len(score) * (self.options.mc_draws if self.rule.needs_draws else 1),
            shortlisted=0 if self.shortlist is None else len(rows), reread=reading.count,
            live_scored=0 if self.live is None else len(rows), live_trained=trained,
            shadow=self._shadow(whole, rows[reached.at], n, draws, start),
        )  # fmt: skip

    def _slice(self, candidates: Candidates) -> Slice:
        return candidates.slice_of(self.ranks.rank, self.ranks.size)

    # -- what else is looked at ----------------------------------------------------------------------------------------

    def _live_il(self, candidates: Candidates, rows: Rows) -> Tensor | None:
        if self.live is None:
            return None
        index = to_device(torch.from_numpy(rows), candidates.label.device)
        fold = None if candidates.fold is None else candidates.fold[rows]
        return self.live(_fields(candidates).index_select(0, index), candidates.label[index], fold)

    def _views(self, candidates: Candidates, rows: Rows, at: Tensor) -> Tensor:
        """(V, m) grey views of the rows that reached the target."""
        index = to_device(torch.from_numpy(rows), at.device)[at]
        return grey_views(_fields(candidates).only.index_select(0, index)).T

    # -- decisions ---------------------------------------------------------------------------------------------------

    def _shortlist(self, stage: Stage, candidates: Candidates, bounds: Bounds, n: int, draws: Draws) -> Tensor:
        """Positions (m,) of the stage that go on to the target, on the device; nothing waits for it on one rank."""
        if self.proxy is None and candidates.full is None:
            raise UsageError(
                "a shortlist without a proxy is made on the stream's cheap view, and this stream has "
                "none: open_stream(view_size=...), or Selector(proxy=Proxy(small_model))"
            )
        assert self.shortlist is not None
        score = self._scores(self.proxy.forward if self.proxy else self.forward, stage, bounds, draws.step)[1]
        length = round(self.shortlist * n)
        if self.ranks.alone:
            return choose(score, stage.chance, length, draws.among_missing("shortlist"), leading)
        whole, start = self.ranks.concat(
            torch.stack([score.float().cpu(), stage.chance.float()], 1), self._slice(candidates).most
        )
        chosen = choose(whole[:, 0], whole[:, 1] > 0, length, draws.among_missing("shortlist"), leading)
        return to_device(chosen[_own(chosen.numpy(), start, len(score))] - start, score.device)

    def _whole(self, candidates: Candidates, rows: Rows, table: Tensor, chance: Tensor) -> tuple[Whole, int]:
        """What is known of the whole buffer, in canonical order, and the position where this rank's rows begin."""
        own = torch.from_numpy(rows)[table[3].long()]
        label, place = candidates.host.label[own], own + self._slice(candidates).first
        columns = torch.cat([columns_of(table[0], table[1], table[4], chance, place, label), table[5:]])
        found, start = self.ranks.concat(columns.T, self._slice(candidates).most)
        return whole_of(found.numpy(), len(self.chooser.shadows)), start

    def _shadow(self, whole: Whole, rows: Rows, n: int, draws: Draws, start: int) -> ShadowScores | None:
        if not self.chooser.shadows:
            return None
        kept = np.zeros(whole.shadows.shape, bool)
        for number, choice in enumerate(self.chooser.shadow_choices(whole, n, draws)):
            kept[number, choice.kept] = True
        mine = slice(start, start + len(rows))
        return ShadowScores(rows, whole.shadows[:, mine].astype(np.float32), kept[:, mine])

    def _draws(self, candidates: Candidates, step: int) -> Draws:
        return Draws(
            seed=self.seed,
            step=step,
            pass_index=candidates.pass_index,
            index=candidates.index,
            planned=self._slice(candidates).planned,
            rank=self.rank,
        )

    def _by_chance(self, candidates: Candidates, rows: Rows) -> Tensor:
        """Candidate rows (as a mask on the host) without an il, which the policy `uniform` lets compete by chance."""
        if not self.rule.needs_il or self.live is not None:
            return torch.zeros(len(rows), dtype=torch.bool)
        return ~torch.isfinite(candidates.host.il[torch.from_numpy(rows)])

    def _watch(self, whole: Whole) -> None:
        scored = whole.score[~whole.chance]
        dead = len(scored) > 0 and not np.isfinite(scored).any()
        self._nonfinite = self._nonfinite + 1 if dead else 0
        if self._nonfinite >= NONFINITE_BUFFERS:
            raise NonFiniteError(
                f"every score of {self._nonfinite} buffers in a row is NaN or infinite: the model has "
                "diverged or overflows; lower the learning rate, or use float32 or bfloat16"
            )

    def _uniform(self, candidates: Candidates, rows: Rows, n: int, step: int, *, measure: bool = False) -> Selection:
        """A random n_b of the candidates, unless the stream has chosen them before decoding.

        `measure`: their gradient norms are scored, for tau.
        """
        passed, quota, left = len(rows), self.chooser.quota, rows
        label = candidates.host.label
        classes = label[torch.from_numpy(rows)] if label.ndim == 1 else torch.zeros(len(rows))
        place = torch.from_numpy(rows) + self._slice(candidates).first
        told, start = self.ranks.concat(torch.stack([place.float(), classes.float()], 1), self._slice(candidates).most)
        if len(told) > n or (quota is not None and quota.kind != "reducr"):
            places, labels = told.numpy().astype(np.int64).T
            drawn = self.chooser.by_chance(places, labels, n, self._draws(candidates, step))
            rows = rows[drawn[_own(drawn, start, passed)] - start]
        stage = Stage(candidates.inputs(rows), *take(candidates, rows), torch.zeros(len(rows), dtype=torch.bool))
        reading, at = Reading(candidates, rows), torch.arange(len(rows))
        if candidates.full is not None:
            stage, at = reading(stage, at)
        reached = Reached(np.zeros(0, np.int64), *(np.zeros(0, np.float32),) * 2, np.zeros(0, bool))
        scored = 0
        if measure:
            loss, score, correct, _ = self._scores(self.forward, stage, _bounds(candidates, rows), 0)
            table = torch.stack([loss.float(), score, correct.float()]).cpu()
            whole, _ = self.ranks.concat(table[1][:, None], self._slice(candidates).most)
            self.chooser.see(whole[:, 0].numpy())
            reached = Reached(at.numpy(), table[0].numpy(), table[1].numpy(), table[2].numpy() > 0)
            scored = len(at)
        total = int(self.ranks.sum([len(at)])[0])
        batch = self._batch(candidates, rows[at.numpy()], stage.x, stage.label, np.ones(len(at)))
        trained = self._learn(candidates, rows, at, batch, total)
        columns = decided(candidates, rows, reached, Taken(at.numpy(), np.ones(len(at)), reading.failed), Reason.below)
        skipped = np.setdiff1d(left, rows)
        columns["reason"][skipped] = Reason.below
        return Selection(
            **columns,
            **self._trained_on(batch, total),
            total=total,
            draws=total,
            scored=scored,
            reread=reading.count,
            live_trained=trained,
        )

    def _batch(
        self, candidates: Candidates, kept: Rows, x: Tensor, label: Tensor, weight: npt.NDArray[np.float64]
    ) -> Batch:
        """What this rank trains on, of the rows that were kept of its slice and those of the others."""
        batch = batch_of(
            candidates, kept, x, label, weight, self.ranks, proxy=self.proxy is not None, least=self._least
        )
        if self._unproved:
            self._require_statistics(batch.x)
        return batch

    def _require_statistics(self, x: Tensor) -> None:
        """Prove once that the model can learn from one sample; a rank that has none learns of it from the others."""
        refusal = ""
        if len(x):
            self._unproved = False
            try:
                require_more_than_one(
                    self.model,
                    x[:1],
                    f"batch_size {self.batch_size} on {self.ranks.size} rank{'s' if self.ranks.size > 1 else ''}",
                )
            except UsageError as exc:
                refusal = str(exc)
        if first := next(filter(None, self.ranks.gather_json(refusal)), None):
            raise UsageError(first)

    def _trained_on(self, batch: Batch, total: int, weighed: bool = False) -> dict[str, Any]:
        """The columns of a selection that say what this rank trains on."""
        factors = to_device(torch.from_numpy(batch.weight.astype(np.float32)), batch.label.device) if weighed else None
        return {
            "input": batch.x if total else None,
            "label": batch.label,
            "factors": factors,
            "place": batch.place,
            "il_tokens": batch.il_tokens,
            "reduced": self.reduced,
            "decoded": batch.decoded,
            "field": batch.field,
            "ranks": self.ranks.size,
        }

    def _learn(self, candidates: Candidates, rows: Rows, at: Tensor, batch: Batch, total: int) -> int:
        """A step of the proxy and of the live IL model on what is kept; samples that went through the latter."""
        if self.proxy is not None and total:
            self.proxy.learn(batch.seen, batch.label, self.ranks, total)
        if self.live is None or not total:
            return 0
        kept = rows[at.numpy()]
        own = to_device(torch.from_numpy(kept), batch.label.device)
        fields, label = _fields(candidates).index_select(0, own), candidates.label.index_select(0, own)
        learned = self.live.learn(fields, label, None if candidates.fold is None else candidates.fold[kept], self.ranks)
        return learned if self.ranks.first else 0

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What later choices hang on beside the weights, as plain values: calls so far, tau, class weights."""
        return {"calls": self._calls, **self.chooser.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`. Raises MismatchError for what is none."""
        self._calls = int(state.get("calls", 0))
        self.chooser.load(state)


def _fields(candidates: Candidates) -> Fields:
    if candidates.fields is None:
        raise UsageError("these candidates carry nothing decoded, and this rule or option looks at it")
    return candidates.fields


def _bounds(candidates: Candidates, rows: Rows) -> Bounds:
    """The smallest and the largest label of the rows, on the host."""
    label = candidates.host.label[torch.from_numpy(rows)]
    return (int(label.min()), int(label.max())) if len(rows) and label.ndim == 1 else (0, -1)


def _own(chosen: Rows, start: int, count: int) -> Rows:
    """Which of some positions in the whole buffer are those of the `count` rows from `start` on."""
    return np.flatnonzero((chosen >= start) & (chosen < start + count))
