"""What a sample is, as one value: its members, its fields, how it is examined and decoded, and what a model is given.

    members (bytes in the tar) --examine--> a status --decode--> fields (rows of a slot) --inputs--> the model's input

Whoever needs to know something of samples asks the kind for it; nobody outside this folder asks which kind it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from rhostream.errors import UsageError
from rhostream.samples.fields import Fields, Input
from rhostream.samples.fields import FieldSpec as FieldSpec
from rhostream.samples.flat import Flat
from rhostream.samples.wanted import Wanted

OK = "ok"
DECODE = "decode"  # the --augment of a kind of the user's own that `augments`
NO_TARGET = ""
View = int | None  # pixels of a cheap picture; None: what the model is given
Row = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Preview:
    """A sample for a person to look at: a PNG that was made here, or words; `seen` is what the model sees of a picture
    where that isn't all of it."""

    image: bytes | None = None
    seen: bytes | None = None
    text: str | None = None


class Kind:
    """A kind of sample. A user's own subclasses it and has at least `members`, `fields` and `decode`.

    `members` names what is read: the first extension that a sample has of each tuple is meant, and a sample without one
    is a row with a status. All that a kind is made of is in `to_json()`, which goes into the fingerprint.
    """

    name: str = ""  # as it stands in a table; a user's own: package.module:name
    members: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    max_bytes: int = 256 << 20  # of a member: a larger one is never read
    verdicts: tuple[str, str, str] = ("kind:missing", "kind:empty", "kind:too_large")  # statuses of `examine`
    holds: str = "samples of a kind of their own"  # what shards of it hold, in words
    guessed: bool = True  # whether a look at samples may find that they are of it; else it is asked for by name
    task: str = "label"  # what a model learns of it: the sample's label, language, or pairs
    # The field that is what the model is to give: the loss is called with it, and no label is read. None: the label is,
    # an integer class. NO_TARGET: there is none, and the loss is called with the model's input.
    target: str | None = None
    pictures: bool = False  # whether inputs are (n, C, H, W) pictures: they may be augmented and compared
    decoder: str = "own"  # the decoder's name, in fingerprints
    takes: frozenset[str] = frozenset()  # options of `Wanted` that are its own
    plural: str = "first members"  # its first member in words, of several samples
    first_of_several: str = "the one that lies first in the tar"  # of several that could be the first member
    flat: Flat | None = None  # how samples are cut from flat files; None: they are members of tars
    augments: bool = False  # whether `decode` makes use of an rng: then kept samples may be decoded again with one
    why: str = ""  # what was wrong with the sample that was refused last, where the status doesn't say it all
    otherwise: str = ""  # what to ask for where samples lack its members, the end of a sentence
    preview_bytes: int = 0  # of a member that `preview` wants to see, at most

    # What every kind says.

    def fields(self, view: View = None) -> Mapping[str, FieldSpec]:
        """The arrays that a sample is decoded to, by name; none while that isn't decided, as in an index of images."""
        raise NotImplementedError

    def decode(self, members: Mapping[str, bytes], out: dict[str, Row], view: View = None,
               rng: np.random.Generator | None = None) -> str:  # fmt: skip
        """Decode one sample into its rows of a slot. Returns "ok", or why it can't be used.

        `rng`: of a kind that `augments`, decode it as augmented, a function of the bytes and of what is drawn from it;
        None: plainly.
        """
        raise NotImplementedError

    # What has an answer for most.

    def examine(self, sizes: Mapping[str, int]) -> str:
        """May a sample whose members have these sizes in bytes be a row that is used? "ok" or a status; reads nothing.

        A member that the sample hasn't got is left out of `sizes`.
        """
        missing, empty, too_large = self.verdicts
        for member in self.members:
            if member not in sizes:
                return missing
            if not 0 < sizes[member] <= self.max_bytes:
                return too_large if sizes[member] else empty
        return OK

    def inputs(self, fields: Fields) -> Input:
        """What the model is called with, (n, ...), of decoded rows (n, ...), on their device.

        By default the only field, or the only one beside the target. A kind whose model takes several gives `Fields`.
        """
        others = [name for name in fields.names if name != self.target]
        return fields[others[0]] if len(others) == 1 else fields.only

    def blank(self, n: int = 1, view: View = None) -> Fields:
        """The fields of n samples that mean nothing: zeros."""
        import torch

        rows = {name: np.zeros((n, *spec.shape), spec.dtype) for name, spec in self.fields(view).items()}
        return Fields({name: torch.from_numpy(array) for name, array in rows.items()})

    def example(self, n: int = 1, view: View = None) -> Input:
        """A model's input of n samples that mean nothing."""
        return self.inputs(self.blank(n, view))

    def blamed(self, status: str) -> str | None:
        """The member that a status speaks of; None: the first that can't be read, else the first."""
        return None

    def meant(self, member: str, data: bytes) -> bool:
        """Whether a member beside the first holds what is meant, for a look at a few samples."""
        return True

    def to_json(self) -> dict[str, Any]:
        """Plain values that the kind is made of."""
        return {}

    def record(self) -> dict[str, Any]:
        """`to_json()` as it is read again: tuples are lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.to_json().items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`, for a kind that is built in: its keywords, beside `kind`."""
        return cls(**{name: value for name, value in record.items() if name != "kind"})

    @classmethod
    def check(cls, record: Mapping[str, Any]) -> None:
        """Raise ValueError for a stranger's record that can't be one of such a kind, which is built in."""
        try:
            now = cls.from_json(record).to_json()
        except TypeError as exc:
            raise ValueError(str(exc)) from exc
        if now != record:
            raise ValueError(f"the record of a kind is {str(record)[:200]}, expected {str(now)[:200]}")

    @classmethod
    def asked_by(cls, wanted: Wanted) -> bool:
        """Whether options of `wanted` say that samples are of this kind, which is built in."""
        return bool(cls.takes & {*wanted.options})

    @classmethod
    def made(cls, wanted: Wanted, known: Kind | None, sizes: Callable[[], Sequence[Any]], where: str) -> Self:
        """A kind that is built in, its fields decided: as `wanted`, else as `known` is, else by the `sizes` of some
        samples. `where`: the table or shards, for errors. Raises UsageError."""
        return known if isinstance(known, cls) else cls()

    @classmethod
    def of_index(cls, ingredients: Mapping[str, Any]) -> Self:
        """A kind that is built in, as an index says of its samples whose fields aren't decided; see `ingredients`."""
        return cls()

    def pins(self) -> dict[str, Any]:
        """What of it a run pins, by names that begin with `preprocess_`."""
        return {f"preprocess_{name}": value for name, value in self.to_json().items()}

    def ingredients(self) -> dict[str, Any]:
        """What of it the fingerprint of an index is made of; a table of il has `to_json()`."""
        return {}

    def sees(self, view: View = None) -> tuple[Any, ...]:
        """What of a decoded sample a model can't do without: kinds that differ in it are for different models."""
        return self.in_words(view), self.to_json()

    def model_arguments(self, view: View = None) -> dict[str, Any]:
        """What a model is made for: keywords of its maker, beside `classes`."""
        return {}

    def row_bytes(self, view: View = None) -> int:
        """Of a decoded sample."""
        return sum(spec.nbytes for spec in self.fields(view).values())

    def in_words(self, view: View = None) -> str:
        """A decoded sample in words."""
        return ", ".join(f"{name} {spec}" for name, spec in self.fields(view).items())

    def asked(self) -> dict[str, Any]:
        """Keywords of `open_stream` that ask for this kind."""
        return {}

    def options(self) -> str:
        """The options of the command line that ask for this kind."""
        return f"--kind {self.name}"

    def preview(self, members: Mapping[str, bytes], record: Mapping[str, Any], large: bool = False) -> Preview:
        """A sample for a person to look at, of the first `preview_bytes` of its members; empty where nothing is shown.

        `record`: the settings of the run that is shown. `large`: for who looks at it alone, not among many.
        """
        return Preview()

    def probe(self, read: Callable[[int], bytes], size: int) -> tuple[bool, Any]:
        """Whether the first member, of `size` bytes, looks like one by what it begins with, `read(n)`; and how large
        what it holds is, where that is a choice (else None)."""
        return True, None

    def indexed(self, wanted: Wanted, sizes: Callable[[], Sequence[Any]] | None) -> Kind:
        """As an index stores it: as asked, else by the `sizes` of some samples, where they were looked at.

        Raises UsageError for options of another kind.
        """
        for given in wanted.options.values():
            raise UsageError(f"{given} is for images, and these samples are to be {self.name}")
        return self

    def viewed(self, view: int, sizes: Callable[[], Sequence[Any]]) -> int:
        """`view`, where samples of these sizes have such a cheap one. Raises UsageError."""
        raise UsageError(f"--view-size {view}: the table holds {self.holds}, which has no smaller view")

    def log(self, there: str) -> None:
        """Say what samples become, where that is worth a line, and `there`, where it stands."""

    def normalized(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Kind:
        """With pixels normalised by these, one a channel. Raises UsageError for samples without pictures."""
        raise UsageError(f"mean and std are for pictures, and these samples are {self.holds}")

    def of_classes(self, texts: Sequence[str]) -> tuple[Kind, Any]:
        """Of pairs: the kind of the pictures alone, and texts as captions are, (n, L) int64. Raises UsageError."""
        raise UsageError(f"classes that are texts are for pairs of image and caption, these samples are {self.holds}")

    def with_decoder(self, name: str) -> Kind:
        """With the decoder of that name, where a kind has several; "auto" takes the best that is installed."""
        return self

    def augmented(self, name: str) -> Kind:
        """The kind whose `decode` with an rng augments by that name of --augment. Raises UsageError."""
        if name not in self.augmentations:
            has = f"has {', '.join(self.augmentations)}" if self.augments else "has no second decode of what is kept"
            raise UsageError(f"augment {name}: the table holds {self.holds}, which {has}")
        return self

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The names of --augment by which `decode` with an rng decodes a kept sample again."""
        return (DECODE,) if self.augments else ()

    @property
    def side(self) -> int:
        """Pixels of a side of the square that a sample is; 0 for what has no cheaper view."""
        return 0

    def source_side(self, sizes: Sequence[Any]) -> int:
        """The largest side of a view that samples of these sizes can be made."""
        return 0

    @property
    def small_models(self) -> tuple[str, str]:
        """Built-in models that are cheap on such samples: for an IL model, and for a proxy.

        Raises UsageError where there is none.
        """
        raise UsageError(f"no built-in model takes {self.holds}: name models of your own")

    @property
    def examines(self) -> bool:
        """Whether `examine` looks at more than what is missing, empty or too large."""
        return False

    @property
    def needs_label(self) -> bool:
        """Whether the target is the sample's label, a class, without which it can't be used; language is its own."""
        return self.target is None and self.task != "language"

    @property
    def target_in_words(self) -> str:
        """What stands in the place of a class, for messages."""
        return f"the target of samples of {self.name} is " + (f"the field {self.target!r}" if self.target else "none")

    @property
    def order(self) -> tuple[str, ...]:
        """Of several members that could be the first one, in which order they are looked for; () as they lie."""
        return ()

    @property
    def main(self) -> tuple[str, ...]:
        """The extensions of the first member."""
        return next(iter(self.members.values()))
