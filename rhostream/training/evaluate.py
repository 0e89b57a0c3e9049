"""Evaluation on test shards, for reporting only: it never touches the model's state, the random state or a decision."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
import numbers
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rhostream import storage
from rhostream.compute.judge import judged
from rhostream.errors import BudgetError, UsageError, users_code
from rhostream.own_code import own_function
from rhostream.runs.step import Evaluation
from rhostream.samples.fields import Fields, target_of
from rhostream.samples.kind import Kind
from rhostream.selection.losses import LossFunction, cross_entropy
from rhostream.selection.outputs import called, described
from rhostream.selection.ranks import Ranks, in_lockstep
from rhostream.selection.selector import scoring
from rhostream.selection.tokens import LanguageLoss
from rhostream.stream.advice import Advice
from rhostream.stream.budget import SHOWN, Budget, listed
from rhostream.stream.label_from import LabelFrom
from rhostream.stream.scan import Chunk, End, ScanSettings, scan
from rhostream.tables.classes import ClassNames, require_same_classes
from rhostream.tables.il import OK

LOG = logging.getLogger("rhostream")
CACHE_BYTES = 1 << 30
NUMBERS = ("accuracy", "loss", "samples", "class_accuracy")


@dataclass
class _Seen:
    """What one test shard holds."""

    statuses: Counter[str] = field(default_factory=Counter)
    first_bad: list[str] = field(default_factory=list)
    class_names: list[tuple[int, str]] = field(default_factory=list)
    advice: dict[str, str] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)  # of keys and labels, in order: what is tested on

    def take(self, chunk: Chunk) -> None:
        """Rows of the shard."""
        self.class_names += chunk.class_names
        self.statuses.update(chunk.rows.column("status").to_pylist())
        for key, label in zip(*(chunk.rows.column(name).to_pylist() for name in ("key", "label")), strict=True):
            self.digest.update(json.dumps([key, label], default=str).encode())
        for row in (~chunk.ok).nonzero()[0][: SHOWN - len(self.first_bad)].tolist():
            key, error = (chunk.rows.column(name)[row].as_py() for name in ("key", "error"))
            self.first_bad.append(f"{key!r} ({error})")


class TestSet:
    """Test shards, decoded once and kept when they fit into 1 GiB, else read again each time.

    Over several `ranks` each evaluates its share of the shards, and `evaluate` is collective.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __init__(
        self,
        shards: Iterable[str],
        preprocess: Kind,
        classes: int | None,
        decoder: str,
        workers: int,
        ranks: Ranks | None = None,
        class_names: Mapping[int, str] | None = None,
        label: LabelFrom | None = None,
        loss: LossFunction = cross_entropy,
    ) -> None:
        """`classes`: None where the target is no class; `loss` is what is measured of such."""
        self._loss = loss if classes is None else cross_entropy
        self._label = label or LabelFrom()
        self._ranks, self._class_names = ranks or Ranks(), dict(class_names or {})
        self._all = storage.expand(shards)
        self._shards = self._all[self._ranks.rank :: self._ranks.size]
        self._preprocess, self._classes, self._workers = preprocess.with_decoder(decoder), classes, workers
        self._cached: list[tuple[Fields, Tensor]] | None = None
        self._seen: dict[int, _Seen] | None = None  # by the number of the shard, while they are counted
        self.fingerprint = ""  # of the keys and labels of all shards, wherever they lie; known once they were examined

    @property
    def first(self) -> str:
        """The first of the shards."""
        return self._all[0]

    def examine(self, budget: Budget) -> dict[str, int]:
        """Samples of the whole test set by status, "ok" among them; what can't be used is warned of. Collective.

        It reads the shards, before a run begins. Raises MismatchError for classes that are numbered otherwise than the
        training set's, BudgetError for more bad samples than `budget` bears
        and where none can be used, and what a shard that can't be read raises.
        """
        self._seen = {}
        for _ in self.chunks():
            pass
        own = [
            [self._shards[at], dict(one.statuses), one.first_bad, one.class_names, one.advice, one.digest.hexdigest()]
            for at, one in sorted(self._seen.items())
        ]
        self._seen = None
        total, first, classes, advice, digests = Counter[str](), list[str](), ClassNames(), Advice(), list[str]()
        for shard, statuses, bad, names, said, digest in (one for told in self._ranks.gather_json(own) for one in told):
            digests.append(digest)
            total += Counter(statuses)
            advice.add(said)
            first += [f"{storage.redact(shard)}: {says}" for says in bad[: SHOWN - len(first)]]
            classes.add(((int(label), name) for label, name in names), f"test shard {shard}")
            require_same_classes(
                self._class_names, classes.names, "the training set", f"test shard {storage.redact(shard)}"
            )
            try:
                budget.check_shard(f"{shard} (test)", statuses, bad)
                budget.check_total(f"all test shards up to {storage.redact(shard)}", total, first)
            except BudgetError as exc:
                raise advice.onto(exc) from None
        self.fingerprint = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()[:16]
        if not total[OK]:
            error = BudgetError(
                f"no usable sample in the test shards ({storage.redact(self._all[0])}, ...)"
                + (f": {listed(total)}; first: {first[0]}" if first else "")
            )
            raise advice.onto(error)
        for sentence in advice.sentences if self._ranks.first else ():
            LOG.warning("warning: %s", sentence)
        if total.total() > total[OK] and self._ranks.first:
            LOG.warning(
                "warning: %s of %s test samples can't be used, and test_accuracy is of the other %s: %s; first %s",
                f"{total.total() - total[OK]:,}",
                f"{total.total():,}",
                f"{total[OK]:,}",
                listed(total),
                first[0],
            )
        return dict(total)

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Loss and, of classes, accuracy, with running batch norm statistics and dropout off."""
        device, kind = next(model.parameters()).device, self._preprocess
        size = 1 if self._classes is None else self._classes
        right, seen = torch.zeros(size), torch.zeros(size)
        loss = 0.0
        with scoring(model, batch_norm="eval"):
            for chunk in self._rounds(model):
                if chunk is None:
                    called(model, kind.example(2).to(device))
                    continue
                fields, label = chunk
                own = fields.to(device)
                x = kind.inputs(own)
                target = target_of(kind.target, own, label.to(device), x)
                loss_b, right_b = judged(model, x, target, self._loss, classes=self._classes is not None)
                loss += float(loss_b.sum())
                if right_b is None:
                    seen += len(label)
                    continue
                seen += torch.bincount(label, minlength=size)
                right += torch.bincount(label, right_b.cpu(), size)
        loss, *counts = self._ranks.sum([loss, *right.tolist(), *seen.tolist()])
        right_C, seen_C = counts[:size], counts[size:]
        total = int(sum(seen_C))
        if total == 0:
            raise BudgetError(f"no usable sample in the test shards ({storage.redact(self._all[0])}, ...)")
        if self._classes is None:
            return Evaluation(loss / total, None, None, total)
        by_class = [r / s if s else None for r, s in zip(right_C, seen_C, strict=True)]
        return Evaluation(loss / total, sum(right_C) / total, by_class, total)

    def _rounds(self, model: nn.Module) -> Iterator[tuple[Fields, Tensor] | None]:
        """`chunks`; where a forward waits for those of other ranks, then None until every rank is through."""
        chunks, together = self.chunks(), in_lockstep(model)
        while True:
            chunk = next(chunks, None)
            if not (self._ranks.sum([chunk is not None])[0] if together else chunk is not None):
                return
            yield chunk

    def chunks(self) -> Iterator[tuple[Fields, Tensor]]:
        """This rank's usable samples, decoded, and their labels."""
        if self._cached is not None:
            yield from self._cached
            return
        kept: list[tuple[Fields, Tensor]] | None = []
        held = 0
        settings = ScanSettings(kind=self._preprocess, classes=self._classes, label=self._label)
        for message in scan([(shard, shard) for shard in self._shards], settings, workers=self._workers):
            if isinstance(message, End):
                if message.error is not None:
                    raise message.error
                if self._seen is not None and message.shard in self._seen:
                    self._seen[message.shard].advice = message.advice
                continue
            if self._seen is not None:
                self._seen.setdefault(message.shard, _Seen()).take(message)
            fields, label = _usable(message)
            held += fields.nbytes
            if kept is not None and held <= CACHE_BYTES:
                kept.append((fields, label))
            else:
                kept = None
            yield fields, label
        self._cached = kept


def _usable(chunk: Chunk) -> tuple[Fields, Tensor]:
    """The fields (a copy: the slot is used again) and labels of the rows that are ok."""
    rows = torch.from_numpy(chunk.ok.nonzero()[0])
    return chunk.fields.index_select(0, rows), torch.from_numpy(chunk.label).index_select(0, rows)


class OwnEvaluation:
    """A user's `module:function(model)`, which gives accuracy, loss (nats), samples, class_accuracy, or some of them.

    Every rank calls it, so that it may share the work, and the numbers of rank 0 count: `evaluate` is collective.
    """

    def __init__(self, name: str, ranks: Ranks | None = None) -> None:
        self._what, self._ranks = f"evaluate {name!r}", ranks or Ranks()
        self._function = own_function("evaluate", name)
        try:
            inspect.signature(self._function).bind(None)
        except TypeError as exc:
            raise UsageError(
                f"{self._what} can't be called with the model alone ({exc}), expected a function of one argument"
            ) from None
        except ValueError:  # of a builtin: it doesn't say
            pass

    def evaluate(self, model: nn.Module) -> Evaluation:
        """In eval mode, without gradients; random draws change nothing. Raises UsageError for what is no evaluation."""
        with scoring(model, batch_norm="eval"), users_code(self._what):
            given = self._function(model.model if isinstance(model, LanguageLoss) else model)
        return Evaluation(**self._ranks.from_first(self._checked(given)))

    def _checked(self, given: Any) -> dict[str, Any]:
        if not isinstance(given, Mapping):
            raise UsageError(f"{self._what} returned {described(given)}, expected a mapping of {', '.join(NUMBERS)}")
        if strange := [str(name) for name in given if name not in NUMBERS]:
            raise UsageError(f"{self._what} returned {strange[0]!r}, expected nothing but {', '.join(NUMBERS)}")
        means = {name: self._number(name, given.get(name)) for name in ("accuracy", "loss", "samples")}
        if means["accuracy"] is None and means["loss"] is None:
            raise UsageError(f"{self._what} returned neither accuracy nor loss")
        classes = given.get("class_accuracy")
        if classes is not None:
            classes = [self._number("class_accuracy", value) for value in classes]
        return {**means, "class_accuracy": classes}

    def _number(self, name: str, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        number = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
        expected = {"loss": "a number", "samples": "a whole number from 0 on"}.get(name, "a share from 0 to 1")
        fine = {
            "loss": not math.isnan(number) or isinstance(value, float),  # of a model that diverged
            "samples": number >= 0 and number.is_integer(),
        }.get(name, 0 <= number <= 1)
        if not fine:
            raise UsageError(f"{self._what} returned {name} {str(value)[:40]}, expected {expected}")
        return int(number) if name == "samples" else number


class Look(Protocol):
    """What looks at a model. Collective."""

    def evaluate(self, model: nn.Module) -> Evaluation:
        """The model is left as it was found."""
        ...


class Evaluations:
    """Looks at the test set every so many steps, and at the run's end; `last` is the newest look."""

    def __init__(self, tests: Look | None, model: nn.Module, every: int) -> None:
        self._tests, self._model, self._every = tests, model, every
        self.last: Evaluation | None = None

    def __call__(self, step: int, done: bool) -> Evaluation | None:
        if self._tests is None or not (done or (step + 1) % self._every == 0):
            return None
        self.last = self._tests.evaluate(self._model)
        return self.last
