"""Models as transformers' Trainer has them: what they are called with, what scores them, and the labels of a batch.

They take tensors by name and give a dict; a rule scores by a function of one tensor, and of text it has ids alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from rhostream import storage
from rhostream.errors import MismatchError, UsageError
from rhostream.models.language import CausalLM, begin_of
from rhostream.samples.fields import Fields, Input
from rhostream.samples.text import TextKind
from rhostream.selection.tokens import LanguageLoss
from rhostream.stream.loader import Loader

IGNORED = -100  # a label that no loss is made of
Inputs = Callable[[Input], Mapping[str, Any]]


class _Scored(nn.Module):
    """A model of names as a function of what is scored."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model, self._inputs = model, inputs

    def forward(self, x: Input) -> Any:
        """Of a batch, what the model returned."""
        return self.model(**self._inputs(x))


def parts_of(model: Any, opened: Loader, inputs: Inputs | None) -> tuple[nn.Module, Inputs, Callable[[Any, Any], Any]]:
    """What scores, what a batch calls the model with, and its labels of (input, target). Raises UsageError."""
    kind = opened.stream.preprocess
    if not isinstance(kind, TextKind):
        of_inputs = inputs or _named(getattr(model, "main_input_name", "pixel_values"))
        return _Scored(model, of_inputs), of_inputs, lambda x, target: target
    known, ids = whole_number(model, "vocab_size") or kind.vocabulary, kind.vocabulary
    ids -= kind.padding == ids - 1  # the filling may be no id of the model's
    if ids > known:
        raise UsageError(
            f"{type(model).__name__} knows {known:,} ids, and the samples have {ids:,}: make the table with its own "
            "tokenizer, --tokenizer hf:NAME"
        )
    of_inputs = inputs or _tokens(kind.padding, 0 if kind.padding >= known else kind.padding)
    if kind.task != "language":
        return _Scored(model, of_inputs), of_inputs, lambda x, target: target
    end = kind.model_arguments().get("end_of_text")
    inner = CausalLM(model, known, begin_of(type(model).__name__, model.config))
    return LanguageLoss(inner, kind.vocabulary, kind.padding, end), of_inputs, _next_tokens(kind.padding, end)


def _named(name: str) -> Inputs:
    return lambda x: dict(x.items()) if isinstance(x, Fields) else {name: x}


def _tokens(padding: int, filling: int) -> Inputs:
    """Of ids (B, T): `filling` where there is no token, an id that the model has, and a mask of what is one."""

    def inputs(x: Any) -> dict[str, Tensor]:
        there = x != padding
        return {"input_ids": x.masked_fill(~there, filling), "attention_mask": there.long()}

    return inputs


def _next_tokens(padding: int, end_of_text: int | None) -> Callable[[Any, Any], Tensor]:
    """Labels (B, T) of ids (B, T), which the model moves by a place itself: none of padding, nor of a token that
    nothing before it tells, as il has none."""

    def labels(x: Any, _: Any) -> Tensor:
        there = x != padding
        if end_of_text is not None:
            there[:, 1:] &= x[:, :-1] != end_of_text
        return x.masked_fill(~there, IGNORED)  # type: ignore[no-any-return]

    return labels


def whole_number(model: Any, name: str) -> int | None:
    """Of the model's config, None where it has no such one number."""
    value = getattr(getattr(model, "config", None), name, None)
    return value if isinstance(value, int) else None


def require_loss(opened: Loader, rule: str) -> None:
    """Raise MismatchError for an il of another loss than the cross-entropy that scores are."""
    table, expected = opened.stream.table, "cross_entropy"
    if getattr(opened.stream.preprocess, "task", "label") == "language":
        return  # open_stream has compared the tasks
    made = table.info.ingredients.get("loss", expected)
    if made != expected:
        raise MismatchError(
            f"the il of {storage.redact(table.url)} is {made}, and scores are {expected} here: the rule {rule} would "
            "compare two different losses; say selector={'loss': ...}, or make il of it"
        )
