"""Each step's numbers as TensorBoard events, on request (extra `tensorboard`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rhostream import storage
from rhostream.errors import MissingExtraError


def writer(run: str) -> Callable[[dict[str, Any]], None]:
    """A `metrics` callback for `train` that writes below `<run>/tensorboard`. Raises MissingExtraError."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as exc:
        raise MissingExtraError.of("tensorboard", "tensorboard") from exc
    events = SummaryWriter(storage.join(storage.resolve(run), "tensorboard"))

    def write(row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                events.add_scalar(name, value, row["step"])
        events.flush()

    return write
