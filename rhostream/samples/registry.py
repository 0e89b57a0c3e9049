"""From a name, a record or some options to a kind: the only place that knows which kinds there are."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rhostream import foreign
from rhostream.errors import UnknownNameError, UsageError
from rhostream.samples import names
from rhostream.samples.image import EXTENSIONS, ImageKind
from rhostream.samples.kind import Kind
from rhostream.samples.own import OwnKind, is_own
from rhostream.samples.pair import PairKind
from rhostream.samples.text import TextKind
from rhostream.samples.tokens import TokensKind
from rhostream.samples.wanted import Wanted

BUILT_IN: dict[str, type[Kind]] = {name: pkgutil.resolve_name(path) for name, path in names.BUILT_IN.items()}
IMAGES = ImageKind()  # what samples are where nobody says otherwise
USED_EXTENSIONS = frozenset(
    ("cls", "json", *(e for kind in BUILT_IN.values() for extensions in kind.members.values() for e in extensions))
)


def undecided(name: str, wanted: Wanted | None = None) -> Kind:
    """A built-in kind of that name that can be examined and isn't decoded: its fields aren't chosen yet. `wanted`: what
    says which members are meant.

    Raises UnknownNameError.
    """
    if name not in BUILT_IN:
        raise UnknownNameError.of("content", name, BUILT_IN)
    return BUILT_IN[name].of_index({"caption": wanted.caption} if wanted and wanted.caption else {})


def from_json(record: Mapping[str, Any], code: str | None = None, where: str = "the table") -> Kind:
    """The kind that `to_json()` wrote down. `code`: the user's own kind that may be imported for it, if it names that;
    `where` the record stands, for errors. Raises as `OwnKind.stored`."""
    name = _name_of(record)
    return OwnKind.stored(record, code, where) if is_own(name) else BUILT_IN[name].from_json(record)


def in_table(name: str, record: Mapping[str, Any] | None, ingredients: Mapping[str, Any], code: str | None = None,
             where: str = "the table") -> Kind:  # fmt: skip
    """The kind of a table's samples, undecided where the table is an index that leaves that open."""
    if record is not None:
        return from_json(record, code, where)
    return BUILT_IN[name].of_index(ingredients)


def named_members(name: str, record: Mapping[str, Any] | None = None,
                  ingredients: Mapping[str, Any] = MappingProxyType({})) -> dict[str, tuple[str, ...]]:  # fmt: skip
    """The members of a table's samples by their names, with the extensions of each, of a kind of that name; a user's
    own says so in its record alone, as its code isn't asked."""
    if is_own(name):
        return {member: tuple(extensions) for member, extensions in (record or {"members": ()})["members"]}
    return dict(in_table(name, record, ingredients).members)


def members_of(name: str, record: Mapping[str, Any] | None = None,
               ingredients: Mapping[str, Any] = MappingProxyType({})) -> tuple[tuple[str, ...], ...]:  # fmt: skip
    """The extensions of each member of a table's samples; asked as `named_members`."""
    return tuple(named_members(name, record, ingredients).values())


def target_of(name: str, record: Mapping[str, Any] | None) -> str | None:
    """`Kind.target` of a table's samples, of a kind of that name; asked as `members_of`."""
    return (record or {}).get("target") if is_own(name) else BUILT_IN[name].target


def check_name(name: Any) -> None:
    """Raise ValueError for a stranger's name of a kind that can't be."""
    if not isinstance(name, str) or (name not in BUILT_IN and not is_own(name)) or len(name) > foreign.MAX_NAME:
        raise ValueError(f"content is {str(name)[:40]!r}, expected one of {', '.join(sorted(BUILT_IN))}")


def check(name: Any, record: Any) -> None:
    """Raise ValueError for a stranger's name of a kind and its record (None: there is none) that can't be."""
    check_name(name)
    if record is None:
        if is_own(name):
            raise ValueError(f"content is {name[:40]!r}, and nothing says what that is")
        return
    check_record(record)
    if (of := _name_of(record)) != name:
        raise ValueError(f"content is {name[:40]}, but preprocess is of {of[:40]}")


def check_record(record: Any) -> None:
    """Raise ValueError for a stranger's record of a kind that can't be."""
    foreign.require_type(record, dict, "preprocess")
    name = _name_of(record)
    (OwnKind if is_own(name) else BUILT_IN[name]).check(record)


def _name_of(record: Mapping[str, Any]) -> str:
    """Records of images say no kind, those of ids that are there already the kind of a text."""
    kind = record.get("kind", ImageKind.name)
    if kind == TextKind.name:
        return TokensKind.name if str(record.get("tokenizer")).startswith("ids:") else TextKind.name
    if kind not in BUILT_IN and not is_own(str(kind)):
        raise ValueError(f"kind is {str(kind)[:40]!r}, which is unknown here")
    return str(kind)


def asked(wanted: Wanted) -> str | None:
    """The name of the kind that is asked for, or that the options are of; None where nothing says so.

    Raises UnknownNameError, and UsageError for options of two kinds.
    """
    if wanted.content is not None:
        _require_taken(undecided(wanted.content), wanted, f"--content {wanted.content} says that samples are")
        return wanted.content
    if wanted.caption is not None:
        raise UsageError(f"{wanted.options['caption']} is for {PairKind.holds}, which are asked for: --content pair")
    kinds = [kind for kind in BUILT_IN.values() if kind.asked_by(wanted)]
    if len(kinds) > 1:
        given = (
            f"{next(says for option, says in wanted.options.items() if option in kind.takes)} is for {kind.holds}"
            for kind in kinds
        )
        raise UsageError(f"{', '.join(given)}: give one of them")
    return kinds[0].name if kinds else None


def made(name: str, wanted: Wanted, known: Kind | None, sizes: Callable[[], Sequence[Any]], where: str) -> Kind:
    """The kind of that name, its fields decided: as `wanted`, else as `known` is, else by the `sizes` of some samples.

    `where`: the table or shards, for errors. Raises UsageError for options that aren't of that kind.
    """
    if is_own(name):
        kind = known if isinstance(known, OwnKind) else OwnKind(name)
        if wanted.options:
            raise UsageError(f"{next(iter(wanted.options.values()))} isn't for samples of {name}, which {where} holds")
        return kind
    own = BUILT_IN[name]
    _require_taken(own(), wanted, f"{where} holds")
    return own.made(wanted, known, sizes, where)


def _require_taken(kind: Kind, wanted: Wanted, says: str) -> None:
    """Raise UsageError for an option of another kind; `says`: what the samples are said by."""
    for option, given in wanted.options.items():
        if option not in kind.takes:
            others = next(other.holds for other in BUILT_IN.values() if option in other.takes)
            raise UsageError(f"{given} is for {others}, and {says} {kind.holds}")


def takes(name: str, option: str) -> bool:
    """Whether a kind of that name has such an option of `Wanted`."""
    return name in BUILT_IN and option in BUILT_IN[name].takes


def reads_text(name: str) -> bool:
    """Whether samples of a kind of that name are made ids by a tokenizer that reads text."""
    return takes(name, "tokenizer") and not issubclass(BUILT_IN[name], TokensKind)


def checked_member(member: str | None) -> str | None:
    """Extensions of images in small letters, "jpg,png". Raises UsageError for one that is none."""
    if member is None:
        return None
    given = [name.strip().lower().lstrip(".") for name in member.split(",")]
    if unknown := [name for name in given if name not in EXTENSIONS]:
        raise UsageError(f"--image-member {member!r}: {unknown[0]!r} is none of {', '.join(EXTENSIONS)}")
    return ",".join(dict.fromkeys(given))
