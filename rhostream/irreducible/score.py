"""The IL networks at work: the loss of each usable row of a chunk, by the network of its fold."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rhostream.crashpoints import crash_point
from rhostream.errors import UsageError
from rhostream.il_model.bank import Bank
from rhostream.il_model.folds import FoldRule
from rhostream.il_model.reference import SampleLoss
from rhostream.irreducible.parts import Scored
from rhostream.samples.fields import Fields, target_of
from rhostream.samples.kind import Kind
from rhostream.selection.contrastive import Pairs, bank_terms, il_of
from rhostream.selection.forward import Room
from rhostream.selection.losses import cross_entropy, find_loss, per_sample
from rhostream.selection.outputs import called
from rhostream.selection.tokens import LanguageLoss, SequenceMean
from rhostream.stream.scan import Chunk
from rhostream.tables.il import PAIR_COLUMNS, PartFacts
from rhostream.tables.vectors import VectorsReader

LOG = logging.getLogger("rhostream")


class Scorer:
    """The IL networks on a device: each scores the rows of its fold."""

    def __init__(
        self,
        networks: Sequence[nn.Module | SampleLoss],
        kind: Kind,
        loss: str,
        device: torch.device,
        rule: FoldRule | None = None,
        learned_from: Iterable[str] = (),
        banks: Sequence[Bank] = (),
        batch_size: int = 0,
        vectors: bool = False,
    ) -> None:
        """`rule`: how D was split between the networks, None where nothing is known of what one learned from. `banks`:
        of pairs, one a network, and `batch_size` is n of their il; `vectors`: what the network sees comes along.
        """
        self._target, self._prepare = kind.target, kind.inputs
        self._mode = "" if rule is None else rule.mode
        self._networks, self._banks = list(networks), banks
        self.to(device)
        # A reference that gives losses itself only says which ones these are: that code isn't run.
        self._loss = cross_entropy if isinstance(networks[0], SampleLoss) else find_loss(loss)
        self._learned_from = frozenset(learned_from)
        self._batch_size, self._vectors = batch_size, vectors
        self._room, self._told = Room(), False

    def to(self, device: torch.device) -> None:
        """Score there from here on."""
        self._device = device
        self._networks = [n if isinstance(n, SampleLoss) else _prepared(n, device) for n in self._networks]
        self._bank_pairs = [bank.pairs(device) for bank in self._banks]

    def require_movable(self) -> None:
        """Raise UsageError for a reference that gives losses itself: it was made for the device of this process."""
        if any(isinstance(network, SampleLoss) for network in self._networks):
            raise UsageError(
                "a reference that gives losses itself stays on the device that it was made for: with --engine ray give "
                "one that is a network, or leave out --gpus-per-actor"
            )

    def knows(self, names: Iterable[str]) -> bool:
        """Whether any of the shards was learned from."""
        return any(name in self._learned_from for name in names)

    def __call__(self, chunk: Chunk, name: str) -> Scored:
        """Loss (float32, nats) and predicted class of the usable rows of a chunk."""
        n = len(chunk)
        by_fold = self._mode == "folds"
        scored = Scored(
            np.full(n, np.nan, np.float32),
            np.full(n, -1, np.int64),
            chunk.mark if by_fold else np.zeros(n, np.int64),
            self._holdout(chunk, name),
        )
        if isinstance(self._networks[0], LanguageLoss):
            scored.il_tokens = np.full(chunk.fields.only.shape, np.nan, np.float32)
        if self._banks:
            scored.terms = {column: np.full(n, np.nan, np.float32) for column in PAIR_COLUMNS}
        for number, network in enumerate(self._networks):
            rows = np.flatnonzero(chunk.ok & (scored.fold == number))
            if not len(rows):
                continue
            fields = chunk.fields if len(rows) == n else chunk.fields[torch.from_numpy(rows)]
            if isinstance(network, LanguageLoss):
                self._language(network, fields, rows, scored)
            elif self._banks:
                assert isinstance(network, nn.Module)
                self._against(
                    number, network, fields, self._banks[number].places(name, chunk.ordinal[rows]), rows, scored
                )
            else:
                loss, predicted = self._forward(network, fields, torch.from_numpy(chunk.label[rows]))
                scored.il[rows] = loss.cpu().numpy()
                if predicted is not None:
                    scored.predicted[rows] = predicted.cpu().numpy()
            crash_point("compute-il: forward made")
        return scored

    def _holdout(self, chunk: Chunk, name: str) -> npt.NDArray[np.bool_]:
        if self._mode == "fraction":
            return np.equal(chunk.mark, 1)
        return np.full(len(chunk), self._mode == "holdout" and name in self._learned_from)

    @torch.no_grad()
    def _language(self, network: LanguageLoss, fields: Fields, rows: npt.NDArray[np.int64], scored: Scored) -> None:
        """The losses of the tokens, and their mean; logits are made for few sequences at a time as it is."""
        loss = network(self._prepare(fields.to(self._device)))
        assert scored.il_tokens is not None
        scored.il_tokens[rows] = loss.cpu().numpy()
        scored.il[rows] = SequenceMean()(loss, loss).cpu().numpy()

    @torch.no_grad()
    def _against(
        self,
        number: int,
        network: nn.Module,
        fields: Fields,
        place: Tensor,
        rows: npt.NDArray[np.int64],
        scored: Scored,
    ) -> None:
        """What il of pairs is made of against the network's bank, in as many forwards as memory asks for."""

        def judge() -> Tensor:
            some = [called(network, self._prepare(part.to(self._device))) for part in
                    fields.split(self._room.size or len(fields))]  # fmt: skip
            return torch.cat(some).float()

        output = self._room.run(len(fields), judge, self._tell)
        bank, place = self._bank_pairs[number], place.to(self._device)
        il, terms = il_against(bank, Pairs.of(output), place, self._loss.__name__, self._batch_size)
        assert scored.terms is not None
        for column, values in terms.items():
            scored.terms[column][rows] = values.cpu().numpy()
        scored.il[rows] = il.cpu().numpy()
        if self._vectors:
            if scored.output is None:
                scored.output = np.full((len(scored.il), output.shape[1]), np.nan, np.float32)
            scored.output[rows] = output.cpu().numpy()

    @torch.no_grad()
    def _forward(self, network: nn.Module | SampleLoss, fields: Fields, label: Tensor) -> tuple[Tensor, Tensor | None]:
        """Losses (n,) and predicted classes (n,), None of a target that is no class or of a reference that gives losses
        itself, of the rows of a chunk, in as many forwards as memory asks for."""

        def judge() -> tuple[Tensor, Tensor | None]:
            size = self._room.size or len(fields)
            losses, predicted = list[Tensor](), list[Tensor]()
            for first in range(0, len(fields), size):
                some = slice(first, first + size)
                own, own_label = fields[some].to(self._device), label[some].to(self._device)
                if isinstance(network, SampleLoss):
                    x = own_label if self._target != "" else self._prepare(own)
                    losses.append(network(own, target_of(self._target, own, own_label, x)))
                    continue
                output = called(network, x := self._prepare(own))
                target = target_of(self._target, own, own_label, x)
                losses.append(per_sample(self._loss, output.float(), target).float())
                if self._target is None:
                    predicted.append(output.argmax(1))
            return torch.cat(losses), torch.cat(predicted) if predicted else None

        return self._room.run(len(fields), judge, self._tell)

    def _tell(self, too_many: int, size: int) -> None:
        if not self._told:  # once, though the half may be too many as well
            LOG.warning("the device is out of memory for %d samples: scoring %d or fewer from here on", too_many, size)
        self._told = True


def il_against(
    bank: Pairs, pairs: Pairs, place: Tensor, loss: str, batch_size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """il (n,) of pairs against the vectors of a bank, and what stands beside it in a table (`PAIR_COLUMNS`)."""
    own, image, text = bank_terms(pairs, bank, loss, place)
    terms = {"il_own": own, "il_image": image, "il_text": text, "similarity": pairs.similarity_N}
    return il_of(own, image, text, batch_size, loss), terms


def il_of_vectors(
    table: str, facts: PartFacts, bank: Bank, loss: str, batch_size: int, rows: int = 4096
) -> dict[str, npt.NDArray[np.float32]]:
    """il and its columns (samples,) of a shard, float32, NaN without vectors: of a table's vectors, without an image.

    Against another bank, or of another loss or batch size: what the same network would give if it saw each pair again,
    but for the rounding of the vectors. Raises TableError for vectors that are damaged, and for a part without.
    """
    found = {name: np.full(facts.samples, np.nan, np.float32) for name in ("il", *PAIR_COLUMNS)}
    others = bank.pairs(torch.device("cpu"))
    with VectorsReader(table, facts) as reader:
        for start in range(0, facts.samples, rows) if reader.info.width else ():
            ordinal = np.arange(start, min(start + rows, facts.samples))
            pairs, place = Pairs.of(torch.from_numpy(reader.read(ordinal))), bank.places(facts.shard, ordinal)
            il, terms = il_against(others, pairs, place, loss, batch_size)
            for name, values in {"il": il, **terms}.items():
                found[name][ordinal] = values.numpy()
    return found


def _prepared(network: nn.Module, device: torch.device) -> nn.Module:
    # Pixels come as NHWC: channels-last needs no transpose and is the faster layout for convolutions.
    return network.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]
