"""A rule's choice with its options, and the little state that some of them keep from step to step."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rhostream.errors import MismatchError
from rhostream.selection.choice import Choice, Draws, Ints, Tau, Whole, largest
from rhostream.selection.options import Options
from rhostream.selection.quota import ClassWeights
from rhostream.selection.rules import Rule
from rhostream.selection.shadow import plain_choice, sampled


class Chooser:
    """Chooses n_b of what is known of a whole buffer; every rank that knows the same chooses the same."""

    def __init__(self, rule: Rule, options: Options) -> None:
        self.rule, self.options = rule, options
        self.schedule, self.quota, self.shadows = options.kept_schedule, options.quota, options.shadows
        self.adjusts = options.adjusts
        self._tau = Tau() if options.tau else None
        reducr = self.quota is not None and self.quota.kind == "reducr"
        self._classes = ClassWeights(self.quota.value) if reducr and self.quota is not None else None

    def __call__(self, whole: Whole, n: int, draws: Draws) -> Choice:
        """The choice of n among the candidates of a buffer; what is random in it is a function of `draws`."""
        if self._tau is not None:
            self._tau.see(whole.score)
        if self.rule.sampled:
            return sampled(whole.score, n, draws)
        score = whole.score
        for adjust, value in self.adjusts:
            score = adjust(score, value, whole, draws.step)
        score = np.maximum(score, 0.0) if self.options.clip else score  # NaN stays NaN
        if self._classes is not None:
            score = self._classes.apply(score, whole.label)
            self._classes.update(whole.label, whole.excess)
        if self.options.gumbel is not None:
            noise = draws.by_step("gumbel").gumbel(size=draws.planned)
            score = score + self.options.gumbel * noise[whole.place]
        ties = draws.by_step("ties").random(draws.planned)[whole.place] if self.options.clip else None
        return largest(
            whole,
            score,
            n,
            draws.among_missing("batch"),
            quota=self.quota,
            duplicate=self.options.deduplicate,
            ties=ties,
        )

    def shadow_choices(self, whole: Whole, n: int, draws: Draws) -> list[Choice]:
        """What each shadow rule would have kept of the same candidates, without options."""
        return [
            plain_choice(rule, whole, score, n, draws) for rule, score in zip(self.shadows, whole.shadows, strict=True)
        ]

    def by_chance(self, place: Ints, label: Ints, n: int, draws: Draws) -> Ints:
        """A random n of the candidates at these places of the whole buffer, within the class quota; ascending."""
        return draws.uniform(place, label, n, self.quota)

    def pays(self, buffer_size: int, batch_size: int) -> bool:
        """Whether to score at all at this step; always, but with `tau`."""
        return self._tau is None or self._tau.pays(buffer_size, batch_size)

    def see(self, score: npt.NDArray[np.float32]) -> None:
        """Gradient norms of a uniform step, for tau."""
        if self._tau is not None:
            self._tau.see(score.astype(np.float64))

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        found: dict[str, Any] = {}
        if self._tau is not None:
            found["tau"] = self._tau.value
        if self._classes is not None:
            found["class_weights"] = self._classes.state()
        return found

    def load(self, state: dict[str, Any]) -> None:
        """The inverse of `state`. Raises MismatchError."""
        if self._tau is not None:
            tau = state.get("tau")
            if not isinstance(tau, float):
                raise MismatchError("the checkpoint holds no tau")
            self._tau.value = tau
        if self._classes is not None:
            self._classes.load(state.get("class_weights"))
