"""A run's state into a commit and back: its objects, its selector with the models that it trains, and its cursor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from rhostream import storage
from rhostream.errors import TableError, UsageError
from rhostream.runs import state as states
from rhostream.runs.attempt import Attempt
from rhostream.runs.link import Link
from rhostream.runs.shards import Sharded, put
from rhostream.runs.tensors import read_files, read_sharded
from rhostream.selection.gradient import require_finite
from rhostream.selection.selector import Selector
from rhostream.stream.loader import Loader


class Saver:
    """Commits of one run, each looked at before it is made: a poisoned state, or one that no reader could give back, is
    never committed. `objects`: what has `state_dict()`, by name; `keep`: commits whose tensors stay."""

    def __init__(
        self, attempt: Attempt, objects: Mapping[str, Any], selector: Selector, stream: Loader, keep: int
    ) -> None:
        self._attempt, self._objects, self._selector, self._stream, self.keep = (
            attempt,
            objects,
            selector,
            stream,
            keep,
        )
        self._proved = False

    def commit(self, *, complete: bool) -> None:
        """Commit the state. Collective; raises NonFiniteError, UsageError for a state that can't be read back."""
        self._require_sound()
        payload, shards = states.payload_of(self._objects, self._selector, self._attempt.ranks)
        if not self._proved:
            self._prove(payload)
        self._attempt.commit(payload, **self._position(complete), shards=shards)

    def hand_out(self, *, complete: bool) -> Link:
        """A commit without tensors, for a state that another trainer keeps. Collective; raises NonFiniteError."""
        self._require_sound()
        return self._attempt.commit({}, **self._position(complete), handed_out=True)

    def restore(self, point: Link) -> None:
        """Give everything its state of the commit. Raises TableError for one that can't be read or doesn't fit."""
        files = read_files(self._attempt.url, point)
        where = f"the checkpoint of step {point.step} in {storage.redact(self._attempt.url)}"
        for name in self._objects:
            if not {f"{name}.safetensors", f"{name}.pt"} & {*files}:
                raise TableError(f"{where} lists no {name}")
        try:
            read = states.read_states(files)
            index = read_sharded(self._attempt.url, point)
        except Exception as exc:  # whatever a file that somebody forged makes the two readers raise
            # Not the reader's own text: it advises how to run what a pickle holds.
            raise TableError(
                f"{where} holds what is no tensor or can't be read ({type(exc).__name__}): it is refused, "
                "and nothing in it was run"
            ) from exc
        try:
            if index:
                self._read_shards(point, index, read)
            states.load_objects(self._objects, read)
            self._selector.load_state_dict({"calls": point.step, **point.selector})
            states.load_own_models(self._selector, read)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as exc:
            raise TableError(
                f"{where} doesn't fit the model {self._attempt.pinned.get('model')!r}: "
                f"{' '.join(str(exc).split())[:300]}"
            ) from exc
        # Without the identity of its plan: the run's own pins say more.
        self._stream.load_state_dict({"pass": point.pass_index, "buffer": point.buffer})

    def _read_shards(self, point: Link, index: list[Sharded], read: dict[str, Any]) -> None:
        """Read what each rank needs of the sharded tensors, and enter it into the states. Collective."""
        from rhostream.runs.sharded import restore  # takes a second

        into = states.rooms_for(self._objects, index)
        restore(self._attempt.url, point.files, index, into, self._attempt.ranks)
        for way, tensor in into.items():
            put(read, way, tensor)

    def _prove(self, payload: Mapping[str, bytes]) -> None:
        """The first commit must be one that can be read back; a refusal is every rank's."""
        refusal = ""
        try:
            states.require_readable(payload)
        except UsageError as exc:
            refusal = str(exc)
        if refusal := self._attempt.ranks.from_first(refusal):
            raise UsageError(refusal)
        self._proved = True

    def _position(self, done: bool) -> dict[str, Any]:
        cursor = self._stream.consumed_state_dict()
        return {
            "pass_index": cursor["pass"],
            "buffer": cursor["buffer"],
            "complete": done,
            "keep": self.keep,
            "selector": self._selector.state_dict(),
        }

    def _require_sound(self) -> None:
        """A poisoned state is never committed: the weights of everything that learns are looked at."""
        proxy, live = self._selector.proxy, self._selector.live
        learners = {name: given for name, given in self._objects.items() if isinstance(given, nn.Module)}
        learners = learners or {"model": self._selector.model}
        require_finite(
            {
                **{f"the {name}": given for name, given in learners.items()},
                "the proxy": None if proxy is None else proxy.model,
                "the IL model that learns along": None if live is None else nn.ModuleList(live.networks),
            },
            self._attempt.step,
            self._attempt.ranks,
        )
