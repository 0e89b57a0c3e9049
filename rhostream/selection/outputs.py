"""What a model returned, as logits: the one place that knows the forms which models give them in.

A tensor; the first of a tuple; `logits` of a dict, or of an object that has it (Hugging Face's ModelOutput). Anything
else is refused in a sentence that says what was expected and what came.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rhostream.errors import UsageError, users_code
from rhostream.samples.fields import Input, shape_in_words
from rhostream.selection.ranks import Ranks, in_lockstep, own_norms

EXPECTED = (
    "expected logits of shape (B, C), one row a sample: a tensor, or a tuple with it first, or a dict or an "
    "output with the name logits"
)


def logits_of_output(output: Any, samples: int, model: nn.Module | None = None) -> Tensor:
    """The output (samples, ...), floating point, in what a model returned: of classes logits (samples, ..., C), which
    who knows of classes asks for (`require_width`, `losses.require_known`). Raises UsageError naming the model."""
    logits = output
    if isinstance(output, Mapping):
        logits = output.get("logits")
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        logits = output.logits
    elif isinstance(output, (tuple, list)):
        logits = output[0] if output else None
    if (isinstance(logits, Tensor) and logits.ndim >= 1 and len(logits) == samples
            and logits.is_floating_point()):  # fmt: skip
        return logits
    name = "the model" if model is None else f"the model {type(model).__name__}"
    raise UsageError(f"{name} returned {described(output)} for a batch of {samples}; {EXPECTED}")


def called(model: nn.Module, x: Input, run: Callable[[Any], Any] | None = None) -> Tensor:
    """The logits of a forward of x by `run`, the model itself unless it is compiled or wrapped.

    A batch of one of which batch norm gets a single value a channel has no statistics: it is normalised by the running
    ones. Raises UsageError for what a model can't return, and in the model's own words where its forward raised.
    """
    norms = [norm for norm in own_norms(model) if norm.training] if len(x) == 1 and not in_lockstep(model) else []
    statistics = [t for norm in norms for t in norm.buffers()]
    before = [t.clone() for t in statistics]
    try:
        return _called(model, x, run or model)
    except UsageError as exc:
        if not refuses_one(exc.__cause__) or not norms:
            raise
    with torch.no_grad():  # norms before the one that refused have counted the sample
        for now, was in zip(statistics, before, strict=True):
            now.copy_(was)
    for norm in norms:
        norm.training = False
    try:
        return _called(model, x, run or model)
    finally:
        for norm in norms:
            norm.training = True


def _called(model: nn.Module, x: Input, run: Callable[[Any], Any]) -> Tensor:
    # Where a forward waits for other ranks, what it raises may be theirs.
    theirs = (
        contextlib.nullcontext()
        if in_lockstep(model)
        else users_code(f"the forward of {type(model).__name__} on a batch of shape {shape_in_words(x)}")
    )
    with theirs:
        output = run(x)
    return logits_of_output(output, len(x), model)


def refuses_one(error: BaseException | None) -> bool:
    """Whether torch refused to take batch norm's statistics of one value a channel."""
    return isinstance(error, ValueError) and "more than 1 value per channel" in str(error)


def require_more_than_one(model: nn.Module, example: Input, asked: str) -> None:
    """Raise UsageError for a model that can't learn from a batch of one, (1, ...); it is left as it was found."""
    norms = own_norms(model)
    modes, tracked = [norm.training for norm in norms], [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, False
        with torch.no_grad(), torch.random.fork_rng(devices=[example.device] if example.device.type == "cuda" else []):
            _called(model, example, model)
    except UsageError as exc:
        if not refuses_one(exc.__cause__):
            raise
        raise UsageError(
            f"{asked} leaves one sample in a forward, and batch norm needs more than one value a channel "
            f"({exc.__cause__}): take a larger --batch-size, or a model without batch norm"
        ) from exc
    finally:
        for norm, mode, was in zip(norms, modes, tracked, strict=True):
            norm.training, norm.track_running_stats = mode, was


def proved_by_one(model: nn.Module, x: Input, asked: str, ranks: Ranks) -> bool:
    """Whether any rank had inputs (n, ...), one of which showed that the model can learn from it alone. Collective.

    Raises UsageError on every rank where it can't.
    """
    refusal = None
    if len(x):
        try:
            require_more_than_one(model, x[:1], asked)
            refusal = ""
        except UsageError as exc:
            refusal = str(exc)
    answers = [answer for answer in ranks.gather_json(refusal) if answer is not None]
    if first := next(filter(None, answers), None):
        raise UsageError(first)
    return bool(answers)


def require_logits(name: str, model: nn.Module, example: Input, classes: int) -> None:
    """Raise UsageError for a model that can't take the example (1, ...) or gives fewer logits than there are classes.

    The model is called in the mode that it is in, without gradients.
    """
    with torch.no_grad():
        require_width(name, called(model, example), classes)


def require_width(name: str, logits: Tensor, classes: int) -> None:
    """Raise UsageError for fewer logits than there are labels: a GPU would die of the first such label."""
    if logits.ndim < 2:
        raise UsageError(f"model {name!r} returned {described(logits)}; {EXPECTED}")
    if logits.ndim == 2 and logits.shape[1] < classes:
        raise UsageError(
            f"model {name!r} gives {logits.shape[1]} logits, and the labels go up to {classes - 1}: make "
            f"it for {classes} classes, or say --classes {logits.shape[1]} to leave the others out"
        )


def described(value: Any) -> str:
    """What a user's code returned, in words."""
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {_listed(list(value))}, its logits {_of(value.get('logits'))}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}" + (f", the first {_of(value[0])}" if value else "")
    if not isinstance(value, Tensor) and hasattr(value, "logits"):
        return f"a {type(value).__name__}, its logits {_of(value.logits)}"
    return _of(value)


def _of(value: Any) -> str:
    if value is None:
        return "nothing"
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    kind = "" if value.is_floating_point() else f" of {str(value.dtype).removeprefix('torch.')}"
    what = "a scalar (a tensor of shape {})" if value.ndim == 0 else "a tensor of shape {}"
    return what.format(tuple(value.shape)) + kind


def _listed(names: list[Any]) -> str:
    shown = ", ".join(map(str, names[:5]))
    return (shown + (", ..." if len(names) > 5 else "")) or "nothing"
