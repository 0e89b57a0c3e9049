"""What was asked of samples by options, before it is known what they are."""

from __future__ import annotations

from dataclasses import dataclass

from rhostream.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What was asked of a kind by options; None where the shards, or the table, are to say."""

    content: str | None = None  # --content: the name of a built-in kind
    image_size: int | None = None
    channels: int | None = None
    resize: str | None = None
    member: str | None = None  # --image-member
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    tokenizer: str | None = None
    text_length: int | None = None
    end_of_text: int | None = None
    caption: str | None = None  # the field of the .json that holds it
    task: str | None = None  # of the model, whatever the samples are
    flat: bool = False  # whether the shards are called as flat files of ids are

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise UsageError(f"--channels {self.channels}: expected 1 (grey) or 3 (RGB)")

    @property
    def options(self) -> dict[str, str]:
        """Name of each option that only some kinds take -> how it was given."""
        named = {
            "image_size": "image-size", "channels": "channels", "resize": "resize", "member": "image-member",
            "tokenizer": "tokenizer", "text_length": "text-length", "end_of_text": "end-of-text",
            "caption": "caption",
        }  # fmt: skip
        return {
            name: f"--{option} {value}" for name, option in named.items() if (value := getattr(self, name)) is not None
        }
