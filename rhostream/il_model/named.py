"""References of libraries by name: `torchvision:`, `timm:`, `hf:` and `open_clip:`, with their stored weights.

name > Stored or Towers > what samples have to be for it > a network of logits, its identity that of all that it is
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rhostream.errors import UsageError
from rhostream.il_model.reference import Reference, digest_of
from rhostream.il_model.zero_shot import names_in_order, zero_shot
from rhostream.models import of_task
from rhostream.models.by_name import for_text, require_tokenizer
from rhostream.models.stored import UNSAID, Stored
from rhostream.models.towers import Towers
from rhostream.own_code import MODEL_PREFIXES
from rhostream.samples.kind import Kind
from rhostream.samples.text import LENGTH
from rhostream.samples.tokenizers import find_tokenizer

LOG = logging.getLogger("rhostream")


def is_of_library(reference: Any) -> bool:
    """Whether it is the name of a library's model."""
    return isinstance(reference, str) and reference.partition(":")[0] in MODEL_PREFIXES


def options_for(model: Stored | Towers, pairs: bool = False) -> dict[str, Any]:
    """The options of samples by which they are what the model was made for."""
    if isinstance(model, Stored) and not model.pictures:
        length = min(LENGTH, model.text_length) if model.text_length else LENGTH
        return {"tokenizer": model.tokenizer, "text_length": length, "task": "label" if model.classes else "language"}
    seen = model if isinstance(model, Towers) else model.seen
    options = {"image_size": seen.image_size, "resize": seen.resize, "mean": seen.mean, "std": seen.std}
    if isinstance(model, Towers) and pairs:
        options |= {"tokenizer": model.tokenizer, "text_length": model.text_length}
    return {name: value for name, value in options.items() if value is not None} | {"channels": model.channels}


_DEFAULTS = {"resize": "crop"}  # left out of a kind's record


def say_differences(model: Stored | Towers, kind: Kind) -> None:
    """Say in what the samples differ from what the model says they have to be."""
    doubts = list(model.doubts if isinstance(model, Towers) else model.seen.doubts)
    record = _DEFAULTS | kind.to_json() if kind.pictures else kind.to_json()
    for name, value in options_for(model, kind.task == "pairs").items():
        # Ids that mean other words are refused (`require_tokenizer`); their tokenizer's name may differ.
        if name != "tokenizer" and name in record and _plain(record[name]) != _plain(value):
            doubts.append(f"it was made for {name} {_plain(value)}, these samples have {_plain(record[name])}")
    for doubt in doubts:
        LOG.log(logging.WARNING if doubt == UNSAID or doubt.startswith("it was made") else logging.INFO,
                "reference %s: %s", model.name, doubt)  # fmt: skip


def _plain(value: Any) -> Any:
    """The mean of one channel is that of three equal ones."""
    if not isinstance(value, (tuple, list)):
        return value
    return tuple(value[:1] if len(set(value)) == 1 else value)


def require_classes(model: Stored, names: Mapping[int, str], classes: int | None) -> None:
    """Raise UsageError for shards of another number of classes than the model's weights have, naming both."""
    if model.classes is None or classes in (None, model.classes):
        return
    known = f" ({', '.join(list(model.labels.values())[:3])}, ...)" if model.labels else ""
    raise UsageError(
        f"reference {model.name!r} gives {model.classes:,} logits{known}, and there are {classes:,} classes"
        f"{' by --class-names' if names else ''}: its stored weights know no others. Take one that was trained on "
        "these classes, or one that compares pictures with names (hf: or open_clip: of CLIP's kind, and --class-names)"
    )


def load_named(
    model: Stored | Towers,
    kind: Kind,
    names: Mapping[int, str],
    classes: int | None,
    prompts: Sequence[str],
    device: torch.device,
) -> Reference:
    """The reference that a library's model is to samples of the kind, whose classes have these names, as far as they
    are known. Raises UsageError where the two don't fit together."""
    if isinstance(model, Towers) and kind.task == "pairs":
        return _of_pairs(model, kind, device)
    if isinstance(model, Towers):
        return _zero_shot(model, kind, names, classes, prompts, device)
    require_classes(model, names, classes)
    seen = model.seen
    beside: dict[str, Any] = {"seen": [seen.image_size, seen.mean, seen.std, seen.resize]}
    network = model.model
    if not model.pictures:
        made = kind.model_arguments()
        require_tokenizer(model, kind.to_json()["tokenizer"], kind.to_json()["digest"])
        network = for_text(model, **{name: made[name] for name in ("vocabulary", "length", "padding")})
        beside = {"begin": model.begin}
        network = of_task(network, made)
    identity = digest_of(network, kind, beside)
    return Reference(model.name, network.to(device).eval(), identity, True)


def _of_pairs(towers: Towers, kind: Kind, device: torch.device) -> Reference:
    """The towers as they are, of pairs that they know how to read."""
    made, record = kind.model_arguments(), kind.to_json()
    own = find_tokenizer(towers.tokenizer, fetch=True)
    if record["digest"] != own.digest:
        raise UsageError(
            f"these captions are of --tokenizer {record['tokenizer']} (digest {record['digest'] or 'none'}), reference "
            f"{towers.name!r} reads {towers.tokenizer} ({own.digest}): ids of another tokenizer mean other words"
        )
    towers.require_made_for(made)
    network = of_task(towers.model, made)
    return Reference(towers.name, network.to(device).eval(), digest_of(network, kind), True)


def _zero_shot(
    towers: Towers,
    kind: Kind,
    names: Mapping[int, str],
    classes: int | None,
    prompts: Sequence[str],
    device: torch.device,
) -> Reference:
    listed = names_in_order(names, classes, towers.name)
    made, tokenizer = kind.model_arguments(), find_tokenizer(towers.tokenizer, fetch=True)
    towers.require_fitting(
        image_size=made["image_size"], channels=made["channels"], vocabulary=tokenizer.vocabulary,
        length=towers.text_length,
    )  # fmt: skip
    beside = {
        "names": listed, "prompts": list(prompts), "tokenizer": tokenizer.digest, "length": towers.text_length,
        "mean": towers.mean, "std": towers.std, "resize": towers.resize,
    }  # fmt: skip
    identity = digest_of(towers.model, kind, beside)
    return Reference(towers.name, zero_shot(towers, listed, prompts, device), identity, True, prompts=tuple(prompts))


def require_kind(model: Stored | Towers, kind: Kind) -> None:
    """Raise UsageError for samples of a kind that the model doesn't take."""
    made = {*kind.model_arguments()}
    needed = {"image_size", "channels"} if model.pictures else {"vocabulary", "length", "padding"}
    if not needed <= made or (kind.task == "pairs" and not isinstance(model, Towers)):
        raise UsageError(f"reference {model.name!r} takes {model.holds}, and these samples are {kind.holds}")
    gives = "classes" if isinstance(model, Towers) else model.gives
    if (gives == "language") != (kind.task == "language"):
        raise UsageError(f"reference {model.name!r} gives {gives}, and what is asked for is --task {kind.task}")
