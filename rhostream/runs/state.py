"""What a commit holds of a loop's objects: everything with a `state_dict()`, as bytes that hold no code.

    model      NAME.safetensors          the tensors of an nn.Module, without what DDP and compile wrap it in
    others     NAME.pt                   tensors and plain values, as `torch.load(weights_only=True)` takes them
    sharded    the same, whole, gathered by torch.distributed.checkpoint

A selector's own models stand beside them: `proxy`, `live-0`, ... with `-optimizer.pt` for each.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rhostream.errors import UsageError
from rhostream.runs.tensors import load, save_plain, save_tensors
from rhostream.selection.ranks import Ranks, is_sharded
from rhostream.selection.selector import Selector

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_OF_THE_SELECTOR = re.compile(r"proxy|live-?\d*")


@runtime_checkable
class Stateful(Protocol):
    """Whatever a run can save and restore: a model, an optimizer, a scheduler, a GradScaler, an average of weights."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def checked_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The objects by name, without what DDP and `torch.compile` wrap them in. Raises UsageError for what has no state.

    >>> list(checked_state({"model": nn.Linear(2, 2)}))
    ['model']
    """
    objects = {}
    for name, given in state.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name) or _OF_THE_SELECTOR.fullmatch(name):
            raise UsageError(
                f"state[{name!r}]: a name is letters, digits and _, beginning with a letter; `proxy` and "
                "`live` are those of a selector's models"
            )
        if not isinstance(given, Stateful):
            raise UsageError(
                f"state[{name!r}] is a {type(given).__name__} without state_dict() and load_state_dict(): "
                "give the model, the optimizer, the scheduler themselves"
            )
        objects[name] = unwrapped(given)
    return objects


def unwrapped(given: Any) -> Any:
    """The module inside DDP and `torch.compile`, whose names of weights don't depend on how it is run."""
    while isinstance(given, nn.Module):
        if isinstance(given, DistributedDataParallel):
            given = given.module
        elif isinstance(getattr(given, "_orig_mod", None), nn.Module):
            given = given._orig_mod
        else:
            break
    return given


def payload_of(objects: Mapping[str, Any], selector: Selector, ranks: Ranks) -> dict[str, bytes]:
    """File name -> bytes of everything that a commit holds. Collective where a model is sharded.

    Only the first rank's bytes are written; the others get an empty dict.
    """
    states = {name: _state_of(name, objects) for name in objects}
    if not ranks.first:
        return {}
    files: dict[str, bytes] = {}
    for name, state in states.items():
        if isinstance(objects[name], nn.Module) and all(isinstance(v, Tensor) for v in state.values()):
            files[f"{name}.safetensors"] = save_tensors(state)
        else:
            files[f"{name}.pt"] = save_plain(state)
    for name, model in own_models(selector):
        files |= {
            f"{name}.safetensors": save_tensors(model["model"]),
            f"{name}-optimizer.pt": save_plain(model["optimizer"]),
        }
    return files


def own_models(selector: Selector) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, {"model": ..., "optimizer": ...}) of the models that a selector trains beside the target."""
    if selector.proxy is not None:
        yield "proxy", selector.proxy.state_dict()
    if selector.live is not None:
        for number, state in enumerate(selector.live.state_dict()):
            yield f"live-{number}", state


def load_own_models(selector: Selector, states: Mapping[str, Mapping[str, Any]]) -> None:
    """The inverse of `own_models`. Raises KeyError for a model without a state, and what the models raise."""
    if selector.proxy is not None:
        selector.proxy.load_state_dict(dict(states["proxy"]))
    if selector.live is not None:
        selector.live.load_state_dict([dict(states[f"live-{n}"]) for n in range(len(selector.live.networks))])


def read_states(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Name -> state out of the files of a commit; of a selector's models {"model": ..., "optimizer": ...}.

    No code is run. Raises whatever the two readers raise for a file that somebody forged.
    """
    read: dict[str, Any] = {}
    for path, data in files.items():
        read[path.rpartition(".")[0]] = load(path, data)
    for name in [n for n in read if f"{n}-optimizer" in read]:
        read[name] = {"model": read[name], "optimizer": read.pop(f"{name}-optimizer")}
    return read


def load_objects(objects: Mapping[str, Any], read: Mapping[str, Any]) -> None:
    """Give each object its state, as `read_states` read it. Collective where a model is sharded.

    Raises KeyError for an object that the commit has none of, and what the objects raise for a state of another shape.
    """
    for name, restored in objects.items():
        state = read[name]
        if isinstance(restored, nn.Module) and is_sharded(restored):
            gathered, options = _gathered()
            gathered.set_model_state_dict(restored, state, options=options)
        elif (model := _sharded_owner(restored, objects)) is not None:
            gathered, options = _gathered()
            gathered.set_optimizer_state_dict(model, restored, state, options=options)
        else:
            restored.load_state_dict(state)


def require_readable(files: Mapping[str, bytes]) -> None:
    """Raise UsageError for an object whose state couldn't be read back: it holds more than tensors and plain values."""
    for path, data in files.items():
        if not path.endswith(".pt"):
            continue
        try:
            load(path, data)
        except Exception as exc:  # whatever the reader makes of it
            raise UsageError(
                f"state[{path.removesuffix('.pt')!r}]: its state_dict() holds more than tensors and plain "
                "values, which no checkpoint could give back (torch.load with weights_only=True refuses "
                f"it: {str(exc).splitlines()[0][:160]})"
            ) from exc


def _state_of(name: str, objects: Mapping[str, Any]) -> dict[str, Any]:
    given = objects[name]
    state: dict[str, Any]
    if isinstance(given, nn.Module) and is_sharded(given):
        gathered, options = _gathered()
        state = gathered.get_model_state_dict(given, options=options)
    elif (model := _sharded_owner(given, objects)) is not None:
        gathered, options = _gathered()
        state = gathered.get_optimizer_state_dict(model, given, options=options)
    else:
        state = given.state_dict()
    return state


def _sharded_owner(given: Any, objects: Mapping[str, Any]) -> nn.Module | None:
    """The sharded model whose parameters an optimizer steps."""
    if not isinstance(given, torch.optim.Optimizer):
        return None
    stepped = {id(p) for group in given.param_groups for p in group["params"]}
    return next(
        (
            model
            for model in objects.values()
            if isinstance(model, nn.Module) and is_sharded(model) and any(id(p) in stepped for p in model.parameters())
        ),
        None,
    )


def _gathered() -> tuple[Any, Any]:
    """torch's room for sharded states, imported when a model is sharded (a second), and: whole, on the host."""
    from torch.distributed.checkpoint import state_dict

    return state_dict, state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
