"""How a model of pairs is looked at while it is trained: retrieval on test pairs, and zero-shot on labelled pictures.

Retrieval: `compute/retrieval.py`, over the whole test set. Zero-shot: the classes of labelled pictures are texts, and
of a picture the class whose text is most alike is named; the vectors of the texts are the model's at that step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rhostream import storage
from rhostream.compute.retrieval import recalls
from rhostream.compute.zero_shot import PLACE, PROMPTS, ZeroShot, mean_vectors, read_prompts
from rhostream.errors import BudgetError, UsageError
from rhostream.models.pairs import TwoTowers
from rhostream.runs.step import Evaluation
from rhostream.samples.kind import Kind
from rhostream.selection.contrastive import Pairs
from rhostream.selection.forward import scoring
from rhostream.selection.outputs import called
from rhostream.selection.pairs import Contrastive
from rhostream.selection.ranks import Ranks
from rhostream.stream.label_from import label_from
from rhostream.training.evaluate import TestSet

if TYPE_CHECKING:
    from rhostream.stream.dataset import CandidateStream
    from rhostream.training.settings import Settings


class Retrieval:
    """Test pairs: the recalls over all of them, and the loss in batches as large as those of the run. Collective."""

    def __init__(self, tests: TestSet, kind: Kind, loss: Contrastive, ranks: Ranks) -> None:
        self._tests, self._kind, self._loss, self._ranks = tests, kind, loss, ranks

    def evaluate(self, model: nn.Module) -> Evaluation:
        """With running batch norm statistics and dropout off. Raises BudgetError for test shards of which none can be
        used."""
        outputs, tokens, kind = list[Tensor](), list[Tensor](), self._kind
        device = next(model.parameters()).device
        with scoring(model, batch_norm="eval"):
            for fields, _ in self._tests.chunks():
                outputs.append(called(model, kind.inputs(fields.to(device))).float().cpu())
                tokens.append(fields["tokens"])
            blank = kind.blank(1)  # a rank without test pairs knows by it how wide they are
            outputs.append(called(model, kind.inputs(blank.to(device)))[:0].float().cpu())
            tokens.append(blank["tokens"][:0])
        output, token = (
            self._ranks.concat(rows, int(self._ranks.gather(torch.tensor([len(rows)])).max()))[0]
            for rows in (torch.cat(outputs), torch.cat(tokens))
        )
        if not len(output):
            raise BudgetError(f"no usable pair in the test shards ({storage.redact(self._tests.first)}, ...)")
        found = recalls(Pairs.of(output), token)
        loss_N = replace(self._loss, ranks=Ranks()).in_buffer(output)
        accuracy = (found["image_to_text_1"] + found["text_to_image_1"]) / 2
        return Evaluation(float(loss_N.mean()), accuracy, None, len(loss_N), found)


class ZeroShotTest:
    """Labelled pictures, and the names of their classes. Collective."""

    def __init__(self, settings: Settings, kind: Kind, decoder: str, ranks: Ranks) -> None:
        """Raises UsageError for names that no class of the pictures can have, and as `TestSet` and `label_from`."""
        shards = storage.listed(settings.zero_shot, "--zero-shot")
        named = [(url, url) for url in storage.expand(shards)]
        self.label = label_from(settings.zero_shot_label, settings.zero_shot_classes, named)
        if not self.label.names:
            raise UsageError(
                "--zero-shot compares pictures with the names of their classes: give these with --zero-shot-classes "
                "FILE, a name a line from label 0 on or a classes.json"
            )
        names = self.label.class_names
        if unnamed := [label for label in range(len(names)) if not names.get(label, "").strip()]:
            raise UsageError(f"--zero-shot-classes gives label {unnamed[0]} no name: name each class, from 0 on")
        templates = PROMPTS if settings.prompts is None else read_prompts(settings.prompts)
        texts = [template.replace(PLACE, names[label].strip()) for label in range(len(names)) for template in templates]
        pictures, self._tokens = kind.of_classes(texts)
        self._classes = len(names)
        self.tests = TestSet(shards, pictures, len(names), decoder, settings.workers, ranks, names, self.label)

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Accuracy over all and by class; its `loss` is the cross-entropy of a softmax over the classes, nats."""
        assert isinstance(model, TwoTowers)
        with scoring(model, batch_norm="eval"):
            tokens = self._tokens.to(next(model.parameters()).device)
            return self.tests.evaluate(ZeroShot(model.model, mean_vectors(model.model, tokens, self._classes)))


class OfPairs:
    """Both looks as one evaluation: what `test_accuracy` is comes from test pairs, where there are any."""

    def __init__(self, tests: Sequence[Retrieval | ZeroShotTest]) -> None:
        self._tests = tests

    def evaluate(self, model: nn.Module) -> Evaluation:
        """The recalls, and `zero_shot_accuracy` and the accuracy by class."""
        found = Evaluation(None, None, None, None, {})
        for test in self._tests:
            one = test.evaluate(model)
            if isinstance(test, ZeroShotTest):
                assert one.accuracy is not None
                of_pairs = {**(found.of_pairs or {}), "zero_shot_accuracy": one.accuracy}
                samples = one.samples if found.samples is None else found.samples
                found = replace(found, class_accuracy=one.class_accuracy, samples=samples, of_pairs=of_pairs)
            else:
                found = one
        return found


def look_at_pairs(
    settings: Settings, stream: CandidateStream, tests: TestSet | None, loss: object, ranks: Ranks
) -> OfPairs | None:
    """What looks at a model of pairs; None where there is nothing to look at. Raises as both looks do."""
    assert isinstance(loss, Contrastive)
    found: list[Retrieval | ZeroShotTest] = []
    if tests is not None:
        found.append(Retrieval(tests, stream.preprocess, loss, ranks))
    if settings.zero_shot:
        pictures = ZeroShotTest(settings, stream.preprocess, stream.decoder_name, ranks)
        pictures.tests.examine(settings.budget)
        found.append(pictures)
    return OfPairs(found) if found else None
