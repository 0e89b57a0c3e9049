"""What a commit holds of a loop's objects: everything with a `state_dict()`, as bytes that hold no code.

    model      NAME.safetensors          the tensors of an nn.Module, without what DDP and compile wrap it in
    others     NAME.pt                   tensors and plain values, as `torch.load(weights_only=True)` takes them
    sharded    what is a DTensor (FSDP2) in parts, each written by the rank that holds it (`sharded`); the rest as above
               FSDP1's, whole, gathered by torch.distributed.checkpoint

A selector's own models stand beside them: `proxy`, `live-0`, ... with `-optimizer.pt` for each.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rhostream.errors import UsageError
from rhostream.runs.shards import Sharded, Way, leaf_of
from rhostream.runs.tensors import load, save_plain, save_tensors
from rhostream.selection.ranks import Ranks, is_flat, is_sharded
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


def payload_of(
    objects: Mapping[str, Any], selector: Selector, ranks: Ranks
) -> tuple[dict[str, bytes], dict[Way, Tensor]]:
    """File name -> bytes of everything that a commit holds whole, and the tensors of which each rank holds a part.

    Collective where a model is sharded. Only the first rank's bytes are written; the others get an empty dict.
    """
    shards: dict[Way, Tensor] = {}
    states = {name: _without_shards(_state_of(name, objects), (name,), shards) for name in objects}
    if not ranks.first:
        return {}, shards
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
    return files, shards


def is_spread(value: Any) -> bool:
    """Whether a tensor is spread over ranks (torch's DTensor, which is imported by whoever has one)."""
    spread = sys.modules.get("torch.distributed.tensor")
    return spread is not None and isinstance(value, spread.DTensor)


def _without_shards(state: Any, way: Way, shards: dict[Way, Tensor]) -> Any:
    """The state without its DTensors, which are entered into `shards`; itself where it has none."""
    if not isinstance(state, Mapping) or "torch.distributed.tensor" not in sys.modules:
        return state
    rest, known = {}, len(shards)
    for name, value in state.items():
        if is_spread(value):
            shards[(*way, name)] = value
        else:
            rest[name] = _without_shards(value, (*way, name), shards)
    return state if len(shards) == known else rest


def rooms_for(objects: Mapping[str, Any], index: Iterable[Sharded]) -> dict[Way, Tensor]:
    """The tensors of the objects, whole or sharded, that stored ones are to be read into. Raises KeyError for none.

    Weights are read to where they are; of an optimizer room is made, spread as its parameter is.
    """
    weights = {name: given.state_dict() for name, given in objects.items() if not _is_optimizer(given)}
    rooms: dict[Way, Tensor] = {}
    for one in index:
        name, *way = one.way
        if _is_optimizer(given := objects[str(name)]) and way[0] == "state":
            parameter, dtype = _stepped(given)[int(way[1])], getattr(torch, one.dtype)
            like = tuple(parameter.shape) == one.shape
            rooms[one.way] = (
                torch.empty_like(parameter, dtype=dtype, requires_grad=False)
                if like
                else torch.empty(one.shape, dtype=dtype, device=parameter.device)
            )
        elif isinstance(own := leaf_of(weights.get(str(name)), way), Tensor):
            rooms[one.way] = own.detach()
        else:
            raise KeyError(".".join(map(str, one.way)))
    return rooms


def _is_optimizer(given: Any) -> bool:
    return isinstance(given, torch.optim.Optimizer)


def _stepped(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Its parameters, by the numbers that they have in its state."""
    return [p for group in optimizer.param_groups for p in group["params"]]


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
    """Give each object its state, as `read_states` read it; one that was whole is spread where its object is.

    Raises KeyError for an object that the commit has none of, and what the objects raise for a state of another shape.
    """
    for name, restored in objects.items():
        state = _as_it_steps(restored, read[name])
        if isinstance(restored, nn.Module) and is_flat(restored):
            gathered, options = _gathered()
            gathered.set_model_state_dict(restored, state, options=options)
        elif (model := _gathered_owner(restored, objects, state)) is not None:
            gathered, options = _gathered()
            gathered.set_optimizer_state_dict(model, restored, state, options=options)
        else:
            restored.load_state_dict(_spread(restored, state))


def _as_it_steps(restored: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimizer without the way in which another one computed its steps: that goes by the hardware and
    by how weights are spread (torch has no fused SGD of sharded ones), and both may be other ones today."""
    if not isinstance(restored, torch.optim.Optimizer) or len(state["param_groups"]) != len(restored.param_groups):
        return state
    ways = [{way: own[way] for way in ("fused", "foreach") if way in own} for own in restored.param_groups]
    groups = [{**group, **own} for group, own in zip(state["param_groups"], ways, strict=True)]
    return {**state, "param_groups": groups}


def _spread(restored: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The state, its whole tensors spread as the weights that they belong to."""
    if isinstance(restored, nn.Module) and is_sharded(restored):
        own = restored.state_dict()
        return {name: _spread_like(own.get(name), value) for name, value in state.items()}
    if isinstance(restored, torch.optim.Optimizer) and any(map(is_spread, parameters := _stepped(restored))):
        known = {
            number: {name: _spread_like(parameters[number], value) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        return {**state, "state": known}
    return state


def _spread_like(own: Any, value: Any) -> Any:
    if not is_spread(own) or is_spread(value) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every rank has read the whole: nobody sends anything.
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


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
    if isinstance(given, nn.Module) and is_flat(given):
        gathered, options = _gathered()
        state = gathered.get_model_state_dict(given, options=options)
    elif (model := _gathered_owner(given, objects, None)) is not None:
        gathered, options = _gathered()
        state = gathered.get_optimizer_state_dict(model, given, options=options)
    else:
        state = given.state_dict()
    return state


def _gathered_owner(given: Any, objects: Mapping[str, Any], state: Mapping[str, Any] | None) -> nn.Module | None:
    """The model whose parameters an optimizer steps, where its state goes whole and by the names of weights: FSDP1's,
    and of FSDP2's what was committed before each rank wrote its own."""
    if not isinstance(given, torch.optim.Optimizer):
        return None
    by_name = state is not None and any(isinstance(name, str) for name in state.get("state", ()))
    stepped = {id(p) for p in _stepped(given)}
    return next(
        (
            model
            for model in objects.values()
            if isinstance(model, nn.Module)
            and (is_flat(model) or (by_name and is_sharded(model)))
            and any(id(p) in stepped for p in model.parameters())
        ),
        None,
    )


def _gathered() -> tuple[Any, Any]:
    """torch's room for sharded states, imported when a model is sharded (a second), and: whole, on the host."""
    from torch.distributed.checkpoint import state_dict

    return state_dict, state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
