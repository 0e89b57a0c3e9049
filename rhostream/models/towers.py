"""Models of image and text by name: two towers, one of images and one of texts, whose vectors are compared.

    hf:NAME                      transformers' CLIPModel or SiglipModel, of a local folder or of the hub
    open_clip:NAME               an architecture of open_clip's, its weights random
    open_clip:NAME/PRETRAINED    with weights of open_clip's list, fetched by its own means, or of a .safetensors file

What a name gives is a `Towers`: the model, and what images and texts have to be for it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from rhostream.errors import MissingExtraError, StorageError, UnknownNameError, UsageError
from rhostream.models import hub
from rhostream.models.hub import HUGGING_FACE

OPEN_CLIP = "open_clip:"
_HALF = (0.5, 0.5, 0.5)
_MODEL_TYPES = ("clip", "siglip")  # of transformers' configs
_RESIZES = {"shortest": "crop", "longest": "pad", "squash": "squash"}  # open_clip's words -> --resize


@dataclass(frozen=True, kw_only=True, repr=False)
class Towers:
    """A model of two towers, and what its images and texts have to be."""

    name: str  # hf:NAME or open_clip:NAME[/PRETRAINED]
    # encode_image(pixels (n, C, H, W) float32) -> (n, D); encode_text(tokens (n, L) int64) -> (n, D); neither is of
    # unit length. logit_scale: a parameter, the log of what cosines are multiplied by. logit_bias: a parameter or None
    model: nn.Module
    loss: str  # that it was trained by: clip, or siglip of a model with a bias
    tokenizer: str  # by the name that --tokenizer takes
    text_length: int  # tokens
    exact_length: bool  # no fewer will do: False where what is filled up changes nothing
    vocabulary: int  # ids
    image_size: int  # pixels of a side
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str  # as --resize takes it: crop, squash or pad
    stored: bool  # whether its weights are stored ones; False: random
    doubts: tuple[str, ...] = ()  # how its own preprocessing differs from what the above can say

    pictures = True  # of what has a class, as `Stored`
    holds = "images"

    def __repr__(self) -> str:
        return (
            f"<towers {self.name}: {self.channels} x {self.image_size} x {self.image_size}, {self.text_length} tokens>"
        )

    def require_made_for(self, made: Mapping[str, Any]) -> None:
        """`require_fitting` of pairs, by what their kind tells a model (`Kind.model_arguments`)."""
        self.require_fitting(**{name: made[name] for name in ("image_size", "channels", "vocabulary", "length")})

    def require_fitting(self, *, image_size: int, channels: int, vocabulary: int, length: int) -> None:
        """Raise UsageError, naming both numbers and the option that helps, for samples that the towers can't take."""
        for what, asked, own, option in (
            ("pixels", image_size, self.image_size, "image-size"),
            ("channels", channels, self.channels, "channels"),
        ):
            if asked != own:
                raise UsageError(
                    f"model {self.name!r} takes images of {own} {what}, and these have {asked}: give --{option} {own}"
                )
        if vocabulary > self.vocabulary:
            raise UsageError(
                f"model {self.name!r} knows {self.vocabulary:,} ids, the tokenizer makes {vocabulary:,}: give its own "
                f"with --tokenizer {self.tokenizer}"
            )
        if length > self.text_length or (self.exact_length and length != self.text_length):
            most = "" if self.exact_length else "at most "
            raise UsageError(
                f"model {self.name!r} takes {most}{self.text_length:,} tokens, and texts have {length:,}: give "
                f"--text-length {self.text_length}"
            )


def is_towers(name: str) -> bool:
    """Whether the name may be one of such models: of open_clip's, or of transformers', which have others too."""
    return name.startswith((OPEN_CLIP, HUGGING_FACE))


def find_towers(name: str, initial: bool = True) -> Towers:
    """The towers of that name, in float32 and on the CPU; `initial=False`: weights random, for who loads others.

    Raises UnknownNameError, UsageError for what is no such model or can't be loaded, MissingExtraError, StorageError
    where weights can't be had.
    """
    if name.startswith(HUGGING_FACE):
        return _hugging_face(name.removeprefix(HUGGING_FACE), initial)
    if name.startswith(OPEN_CLIP):
        return _open_clip(name, initial)
    raise UnknownNameError(f"model {name!r} has no towers of image and text: expected hf:NAME or {OPEN_CLIP}NAME")


# -- transformers ------------------------------------------------------------------------------------------------------


class HuggingFaceTowers(nn.Module):
    """A CLIPModel or SiglipModel with the methods that open_clip's models have. No mask is passed: CLIP looks back
    only, and SigLIP was trained with what is filled up."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def logit_scale(self) -> nn.Parameter:
        """The log of what cosines are multiplied by."""
        return self.model.logit_scale  # type: ignore[no-any-return]

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """What is added then; None of CLIP."""
        return getattr(self.model, "logit_bias", None)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(n, C, H, W) to (n, D)."""
        return _vectors(self.model.get_image_features(pixel_values=pixels))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(n, L) int64 to (n, D)."""
        return _vectors(self.model.get_text_features(input_ids=tokens))


def _vectors(output: Any) -> Tensor:
    # A tensor until transformers 4, from 5 on an output that has it.
    return output if isinstance(output, Tensor) else output.pooler_output


def _hugging_face(name: str, initial: bool) -> Towers:
    config = hub.config_of(name)
    if config.model_type not in _MODEL_TYPES:
        raise UsageError(
            f"model 'hf:{name}' is of the type {config.model_type}, expected one with towers of image and text: "
            f"{', '.join(_MODEL_TYPES)}"
        )
    made = (hub.with_stored_weights if initial else hub.with_random_weights)(name, "AutoModel", config)
    vision, text, siglip = config.vision_config, config.text_config, config.model_type == "siglip"
    seen = hub.preprocessing(name, int(vision.image_size))
    return Towers(
        name=HUGGING_FACE + name,
        model=HuggingFaceTowers(made),
        loss="siglip" if siglip else "clip",
        tokenizer=HUGGING_FACE + name,
        text_length=int(text.max_position_embeddings),
        exact_length=siglip,
        vocabulary=int(text.vocab_size),
        image_size=int(vision.image_size),
        channels=int(vision.num_channels),
        mean=seen.mean,
        std=seen.std,
        resize=seen.resize or "crop",
        stored=initial,
        doubts=seen.doubts,
    )


# -- open_clip ---------------------------------------------------------------------------------------------------------


def open_clip(name: str) -> ModuleType:
    """The library. Raises MissingExtraError, UsageError where it doesn't load."""
    try:
        return importlib.import_module("open_clip")
    except ModuleNotFoundError as exc:
        if exc.name != "open_clip":
            raise UsageError(
                f"model {name!r}: open_clip is installed without {exc.name}: pip install {exc.name}"
            ) from exc
        raise MissingExtraError(f"model {name!r}: open_clip is not installed: pip install open_clip_torch") from exc
    except (ImportError, OSError, RuntimeError) as exc:
        why = " ".join(str(exc).split())[:200]
        raise UsageError(f"model {name!r}: open_clip is installed, but doesn't load ({why})") from exc


def architecture_of(name: str) -> tuple[str, str]:
    """(architecture, weights or "") of `open_clip:NAME[/PRETRAINED]`, which says nothing of a place to fetch from."""
    architecture, _, weights = name.removeprefix(OPEN_CLIP).partition("/")
    if not architecture or ":" in architecture or name.endswith("/"):
        raise UsageError(f"model {name!r}: expected open_clip:NAME, or open_clip:NAME/PRETRAINED with its weights")
    return architecture, weights


def _open_clip(name: str, initial: bool) -> Towers:
    architecture, weights = architecture_of(name)
    library = open_clip(name)
    if architecture not in (known := library.list_models()):
        raise UnknownNameError.of("model of open_clip", architecture, known)
    stored = bool(weights) and initial
    if stored:
        _require_weights(library, name, architecture, weights)
    try:
        model = library.create_model(
            architecture, pretrained=weights if stored else None, precision="fp32", pretrained_hf=False
        )
    except OSError as exc:  # urllib's, requests' and the hub's are of this kind
        raise StorageError(
            f"weights of model {name!r} can't be had: {' '.join(str(exc).split())[:300]}; where there is no network, "
            f"name a file: {OPEN_CLIP}{architecture}/weights.safetensors"
        ) from exc
    except (RuntimeError, ValueError, KeyError, AssertionError, TypeError) as exc:
        raise UsageError(f"model {name!r} can't be made: {' '.join(str(exc).split())[:300]}") from exc
    return towers_of(model, architecture, name=name, stored=stored)


def towers_of(model: nn.Module, architecture: str, *, name: str = "", stored: bool = False) -> Towers:
    """A model of open_clip's as it was made, with what its images and texts have to be. Raises UsageError for a model
    whose images aren't square."""
    made: Any = model
    name, text = name or OPEN_CLIP + architecture, getattr(made, "text", made)
    seen: Mapping[str, Any] = getattr(made.visual, "preprocess_cfg", None) or {}
    return Towers(
        name=name,
        model=model,
        loss="clip" if getattr(made, "logit_bias", None) is None else "siglip",
        tokenizer=OPEN_CLIP + architecture,
        text_length=int(made.context_length if hasattr(made, "context_length") else text.context_length),
        exact_length=True,
        vocabulary=int(made.vocab_size if hasattr(made, "vocab_size") else text.vocab_size),
        image_size=_side(name, made.visual.image_size),
        channels=3,
        mean=tuple(map(float, seen.get("mean", _HALF))),
        std=tuple(map(float, seen.get("std", _HALF))),
        resize=_RESIZES.get(str(seen.get("resize_mode", "shortest")), "crop"),
        stored=stored,
    )


def _require_weights(library: ModuleType, name: str, architecture: str, weights: str) -> None:
    """Raise unless they are of open_clip's list, or a safetensors file: it would unpickle another."""
    known = library.list_pretrained_tags_by_model(architecture)
    if weights in known:
        return
    if "/" not in weights and "." not in weights:
        raise UnknownNameError.of(f"weights of open_clip:{architecture}", weights, known)
    if not weights.endswith(".safetensors"):
        raise UsageError(f"model {name!r}: {weights} is no .safetensors file; pickles are never loaded")
    if not os.path.isfile(weights):
        raise UsageError(f"model {name!r}: there is no file {weights}")


def _side(name: str, size: Any) -> int:
    sides = {int(side) for side in (size if isinstance(size, (tuple, list)) else (size,))}
    if len(sides) != 1:
        raise UsageError(f"model {name!r} takes images of {sorted(sides)} pixels: only squares are decoded")
    return sides.pop()
