"""transformers' models by name, of a local folder or of the hub: weights as safetensors alone, and never their code."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import nn

from rhostream.errors import MissingExtraError, RhostreamError, UsageError
from rhostream.models.stored import Preprocessing, of_transformers

HUGGING_FACE = "hf:"


def library() -> ModuleType:
    """transformers. Raises MissingExtraError."""
    try:
        import transformers
    except ImportError as exc:
        raise MissingExtraError.of("transformers", "hf") from exc
    return transformers  # type: ignore[no-any-return]


@contextlib.contextmanager
def loading(name: str, what: str = "model") -> Iterator[None]:
    """What goes wrong while `hf:name` is loaded is one UsageError; ours pass as they are."""
    try:
        yield
    except RhostreamError:
        raise
    except Exception as exc:  # a dozen kinds, of the hub's client too
        why = " ".join(str(exc).split())[:300]
        raise UsageError(
            f"{what} 'hf:{name}' can't be loaded: {why}; expected a folder with config.json and "
            "model.safetensors, or a name of the hub's"
        ) from exc


def config_of(name: str) -> Any:
    """transformers' config of `hf:name`. Raises UsageError, MissingExtraError."""
    if name.startswith((".", "/", "~")) and not os.path.isdir(name):  # else the hub is asked for it
        raise UsageError(f"model 'hf:{name}' can't be loaded: there is no such folder")
    auto = library().AutoConfig
    with loading(name):
        return auto.from_pretrained(name, trust_remote_code=False)


def with_stored_weights(name: str, auto: str, config: Any) -> nn.Module:
    """The model of `hf:name` by the class `auto` of transformers', float32, every weight as it is stored.

    Raises UsageError naming the weights that the files lack or have in another shape: transformers draws those at
    random.
    """
    maker = getattr(library(), auto)
    with loading(name):
        model, found = maker.from_pretrained(
            name,
            config=config,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are told of below
            output_loading_info=True,
        )
    lacking = sorted(
        {*found["missing_keys"], *(key if isinstance(key, str) else key[0] for key in found["mismatched_keys"])}
    )
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise UsageError(
            f"model 'hf:{name}' has no stored weights of a {type(model).__name__}: its files lack "
            f"{', '.join(lacking[:3])}{more}, which would start at random"
        )
    return model.float()  # type: ignore[no-any-return]


def with_random_weights(name: str, auto: str, config: Any) -> nn.Module:
    """The model of `hf:name`, of which the config alone is read."""
    with loading(name):
        return getattr(library(), auto).from_config(config, trust_remote_code=False)  # type: ignore[no-any-return]


def preprocessing(name: str, image_size: int | None) -> Preprocessing:
    """What `hf:name` says its images have to be, `image_size` as its config says it."""
    try:
        # Its own class fills in what the file leaves out.
        processor = library().AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError):  # there is no such file, or it names no class that is known
        processor = None
    return of_transformers(processor, image_size)
