"""A run inside a checkpoint of torch.distributed.checkpoint, beside a model that FSDP2 shards.

    parts = {"app": AppState(model, optimizer), "run": RunState(run)}
    dcp.load(parts, checkpoint_id=newest)          before the first batch; on as many ranks as there are now
    for kept in run: ...
    dcp.save(parts, checkpoint_id=another)         on every rank, behind an update

One checkpoint, one commit: DCP writes its metadata last, so that weights and run come back together or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rhostream.errors import MismatchError
from rhostream.runs.run import Run
from rhostream.runs.tensors import load, save_plain

_NAME = "rhostream"


class RunState:
    """The state of a run without `state=` as DCP takes it: {"rhostream": bytes}, the same on every rank, stored once.

    A `Run` itself won't do: DCP asks for a state before it loads one, and asking a run claims it. So the bytes are none
    until the run is at work, which as a checkpoint says that it begins anew. They hold tensors and plain values and are
    read as such, whatever DCP does with the rest. Raises what `Run.state_dict` and `Run.load_state_dict` do, and
    MismatchError for bytes that are no state.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def state_dict(self) -> dict[str, Any]:
        """Collective once the run is at work."""
        begun = self._run.attempt.attempt >= 0
        return {_NAME: save_plain(self._run.state_dict()) if begun else b""}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Collective."""
        saved = state.get(_NAME)
        if not isinstance(saved, bytes):
            raise MismatchError("this checkpoint holds no state of a run: expected what RunState gave to dcp.save")
        if not saved:
            return
        try:
            read = load(f"{_NAME}.pt", saved)
        except Exception as exc:  # whatever the reader makes of bytes that somebody forged
            raise MismatchError(f"the state of a run in this checkpoint can't be read ({type(exc).__name__})") from exc
        self._run.load_state_dict(read)
