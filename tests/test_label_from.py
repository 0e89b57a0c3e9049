"""Labels are read where the user says they stand, and tars that were packed otherwise than meant say so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rhostream
from rhostream.audit.says import render_status
from rhostream.audit.status import status_of
from rhostream.audit.verify import verify
from rhostream.errors import BudgetError, MismatchError, RhostreamError, UsageError
from rhostream.il_model.info import read_info
from rhostream.repair import repair
from rhostream.storage import resolve
from rhostream.stream.advice import gaps
from rhostream.stream.apart import Apart
from rhostream.stream.batch import Batch
from rhostream.stream.label_from import LabelFrom
from rhostream.tables import il
from tests.faults.hostile_tars import GOOD_PNG, Members, tar_of

NAMES = ("boot", "coat", "sandal")


def tar(path: Path, members: Members) -> str:
    path.write_bytes(tar_of(members))
    return str(path)


def rows_of(table: Path | str, shard: str) -> list[dict[str, Any]]:
    return pq.read_table(il.part_url(resolve(str(table)), shard)).to_pylist()


def set_of(count: int, *extensions: tuple[str, Any]) -> Members:
    """Samples of a PNG and members that are functions of the number."""
    return [
        (f"{n:03d}.{e}", GOOD_PNG if e == "png" else make(n))
        for n in range(count)
        for e, make in (("png", 0), *extensions)
    ]


# -- members that lie apart --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["png", "cls"])
def test_a_tar_whose_members_lie_apart_says_so_with_the_count_and_what_to_run(tmp_path: Path, first: str) -> None:
    members = set_of(40, ("cls", lambda n: b"%d" % (n % 3)))
    shard = tar(tmp_path / "x.tar", sorted(members, key=lambda m: not m[0].endswith(first)))
    for job in (rhostream.index, rhostream.fit_il):
        with pytest.raises((BudgetError, UsageError)) as stopped:
            job([shard], str(tmp_path / f"{first}-{job.__name__}"))
        said = "\n".join([str(stopped.value), *getattr(stopped.value, "__notes__", [])])
        assert "40 samples lie apart" in said and "tar --sort=name" in said and "rhostream shards FOLDER" in said
        assert "first key '000'" in said
    long = set_of(300, ("cls", lambda n: b"1"))
    with pytest.raises((BudgetError, UsageError)) as stopped:  # the beginning that is looked at has one kind of member
        rhostream.fit_il([tar(tmp_path / "y.tar", sorted(long, key=lambda m: m[0][-3:]))], str(tmp_path / "m"))
    assert "tar --sort=name" in str(stopped.value)
    summary = rhostream.index([shard], str(tmp_path / "all"), max_bad_fraction=1.0)
    assert summary.quarantined["dup"] == 40 and any("40 samples lie apart" in says for says in summary.doubts)
    found = status_of(str(tmp_path / "all"))
    assert found["apart"] == 40 and "40 samples lie apart" in render_status(found)
    assert verify(str(tmp_path / "all"))["problems"] == []


def test_samples_that_repeat_are_no_samples_that_lie_apart(tmp_path: Path) -> None:
    members = set_of(12, ("cls", lambda n: b"1"))
    shard = tar(tmp_path / "x.tar", members + members[:6] + [("lone.png", GOOD_PNG), ("a.png", GOOD_PNG), *members[:1]])
    summary = rhostream.index([shard], str(tmp_path / "t"), max_bad_fraction=1.0)
    assert summary.quarantined["dup"] == 4 and "apart" not in " ".join(summary.doubts)
    assert status_of(str(tmp_path / "t"))["apart"] == 0
    assert "sort" not in str([row["error"] for row in rows_of(tmp_path / "t", shard)])


@given(st.permutations([(key, e) for key in "abc" for e in ("png", "cls", "json")]), st.integers(1, 4))
def test_apart_are_exactly_the_keys_that_are_in_several_groups_whatever_the_order_and_the_chunks(
    order: list[tuple[str, str]], rows: int
) -> None:
    groups: list[tuple[str, list[str]]] = []
    for key, extension in order:
        if not groups or groups[-1][0] != key:
            groups.append((key, []))
        groups[-1][1].append(extension)
    apart, seen = Apart(), set[str]()
    for start in range(0, len(groups), rows):
        batch, again = Batch(), set[int]()
        for row, (key, extensions) in enumerate(groups[start : start + rows]):
            batch.key.append(key.encode())
            batch.first.append(len(batch.size))
            batch.main.append(len(batch.size) if "png" in extensions else -1)
            for extension in extensions:
                batch.extension.append(extension)
                batch.offset.append(0)
                batch.size.append(1)
            if key in seen:
                again.add(row)
            seen.add(key)
        apart.reasons(batch, again, batch.main)
    several = {key for key in "abc" if sum(own == key for own, _ in groups) > 1}
    # A first group of two members is not remembered: of its rest it is known only that it has no image.
    known = {key for key in several if _is_told(key, groups)}
    assert len(known) <= apart.samples <= len(several)


def _is_told(key: str, groups: list[tuple[str, list[str]]]) -> bool:
    first, *rest = [extensions for own, extensions in groups if own == key]
    return len(first) == 1 or any("png" not in extensions for extensions in rest)


def test_a_tar_of_a_folder_of_classes_without_labels_says_what_to_run(tmp_path: Path) -> None:
    folders: Members = [(f"pets/{name}/{n}.png", GOOD_PNG) for name in ("cats", "dogs") for n in range(10)]
    listed: Members = [(f"{n}.png", GOOD_PNG) for n in range(20)] + [("labels.csv", b"0,1\n")]
    fields: Members = set_of(20, ("json", lambda n: b'{"category_id": 3}'))
    texts: Members = set_of(20, ("txt", lambda n: b"3"))
    for number, (members, expected) in enumerate(
        [
            (folders, "'cats', 'dogs'"),
            (listed, "--labels labels.csv"),
            (fields, "(category_id): --label FIELD"),
            (texts, "--label txt"),
        ]
    ):
        with pytest.raises(BudgetError) as stopped:
            rhostream.index([tar(tmp_path / f"{number}.tar", members)], str(tmp_path / f"t{number}"))
        said = "\n".join(stopped.value.__notes__)
        assert "no sample of" in said and expected in said


# -- --label and --class-names -----------------------------------------------------------------------------------------

SOURCES: dict[str, tuple[str, Any, str]] = {  # --label -> the member, what it holds of class n, the record in the table
    "category_id": ("json", lambda n: json.dumps({"category_id": n, "label": 99}).encode(), "json:category_id"),
    "a.b": ("json", lambda n: json.dumps({"a": {"b": n}}).encode(), "json:a.b"),
    "label.cls": ("label.cls", lambda n: b"%d\n" % n, "member:label.cls"),
    "txt": ("txt", lambda n: b"%d" % n, "member:txt"),
    ".cls2": ("cls2", lambda n: b"%d" % n, "member:cls2"),
    "json:kind": ("json", lambda n: json.dumps({"kind": n}).encode(), "json:kind"),
    "member:class": ("class", lambda n: b"%d" % n, "member:class"),
}


@pytest.mark.parametrize("what", SOURCES)
def test_a_label_is_read_where_the_user_says_it_stands(tmp_path: Path, what: str) -> None:
    extension, content, record = SOURCES[what]
    shard = tar(tmp_path / "x.tar", set_of(30, (extension, lambda n: content(n % 3))))
    summary = rhostream.index([shard], str(tmp_path / "t"), label=what)
    assert (summary.ok, summary.doubts) == (30, [])
    assert [row["label"] for row in rows_of(tmp_path / "t", shard)] == [n % 3 for n in range(30)]
    assert il.open_info(resolve(str(tmp_path / "t"))).label == {"from": record}
    again = rhostream.index([shard], str(tmp_path / "t"))  # the table knows it
    assert (again.present, again.ok) == (1, 30)
    with pytest.raises(MismatchError, match="label"):
        rhostream.index([shard], str(tmp_path / "t"), label="json:other")


NAMED: dict[str, tuple[str, Any, str | None]] = {
    "names in the cls": ("cls", lambda n: NAMES[n].encode(), None),
    "numbers in the cls": ("cls", lambda n: b"%d" % n, None),
    "names in a txt": ("txt", lambda n: f"{NAMES[n]}\n".encode(), "txt"),
    "names in label": ("json", lambda n: json.dumps({"label": NAMES[n]}).encode(), None),
    "names in another field": ("json", lambda n: json.dumps({"kind": NAMES[n]}).encode(), "kind"),
}
LISTS = {
    "names.txt": "\n".join(NAMES),
    "l.json": json.dumps(NAMES),
    "n.json": json.dumps({"coat": 1, "sandal": 2, "boot": 0}),
}


@pytest.mark.parametrize("case", NAMED)
@pytest.mark.parametrize("listed", LISTS)
def test_a_name_is_the_number_that_the_list_of_classes_gives_it(tmp_path: Path, case: str, listed: str) -> None:
    extension, content, label = NAMED[case]
    (tmp_path / listed).write_text(LISTS[listed])
    shard = tar(tmp_path / "x.tar", set_of(30, (extension, lambda n: content(n % 3))))
    rhostream.index([shard], str(tmp_path / "t"), label=label, class_names=str(tmp_path / listed))
    assert [row["label"] for row in rows_of(tmp_path / "t", shard)] == [n % 3 for n in range(30)]
    assert il.open_info(resolve(str(tmp_path / "t"))).class_names == dict(enumerate(NAMES))


def test_every_verb_behind_fit_il_reads_labels_where_fit_il_did(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    shard = tar(tmp_path / "x.tar", set_of(60, ("json", lambda n: json.dumps({"kind": NAMES[n % 3]}).encode())))
    given: dict[str, Any] = {"label": "kind", "class_names": str(tmp_path / "names.txt")}
    model = str(tmp_path / "m")
    info = rhostream.fit_il([shard], model, model="mlp-64", epochs=1, **given)
    assert (info.classes, info.class_names) == (3, dict(enumerate(NAMES)))
    assert rhostream.fit_il([shard], model, model="mlp-64", epochs=1, **given) == read_info(resolve(model))
    for other in ({"label": "json:id"}, {"class_names": None}):
        with pytest.raises(MismatchError, match=next(iter(other))):
            rhostream.fit_il([shard], model, model="mlp-64", epochs=1, **{**given, **other})
    done = rhostream.compute_il([shard], model, str(tmp_path / "il"))
    assert done.ok == 60
    part = Path(il.part_url(resolve(str(tmp_path / "il")), shard))
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    repaired = repair(str(tmp_path / "il"))
    assert repaired["repaired"] == [shard] and part.read_bytes() == whole
    run = rhostream.train(
        [shard], str(tmp_path / "il"), str(tmp_path / "run"), model="mlp-64", buffer_size=20, batch_size=5,
        test_shards=[shard], steps=2,
    )  # fmt: skip
    assert run.test_samples == 60


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"boat", "'boat'"), (b"", "''"), (b"1.5", "1.5"), (b"\xff", "class's name")],
)
def test_a_text_that_is_no_class_is_an_invalid_label_with_what_it_holds(
    tmp_path: Path, content: bytes, why: str
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    members = [*set_of(20, ("cls", lambda n: b"1")), ("x.png", GOOD_PNG), ("x.cls", content)]
    shard = tar(tmp_path / "x.tar", members)
    rhostream.index([shard], str(tmp_path / "t"), class_names=str(tmp_path / "names.txt"))
    last = rows_of(tmp_path / "t", shard)[-1]
    assert last["status"] == "label:invalid" and why in last["error"]


def test_a_name_without_a_list_is_told_of_the_list(tmp_path: Path) -> None:
    for extension, content in (("cls", b"boot"), ("json", b'{"label": "boot"}')):
        shard = tar(tmp_path / f"{extension}.tar", set_of(5, (extension, lambda n, content=content: content)))
        rhostream.index([shard], str(tmp_path / extension), max_bad_fraction=1.0)
        first = rows_of(tmp_path / extension, shard)[0]
        assert first["status"] == "label:invalid" and "--class-names" in first["error"]


def test_a_label_that_is_nowhere_or_in_two_places_stops_before_any_work(tmp_path: Path) -> None:
    shard = tar(tmp_path / "x.tar", set_of(5, ("kind", lambda n: b"1"), ("json", lambda n: b'{"kind": 1, "id": 2}')))
    with pytest.raises(UsageError, match=r"none has a \.colour .*members: json, kind, png; fields: id, kind"):
        rhostream.index([shard], str(tmp_path / "t"), label="colour")
    with pytest.raises(UsageError, match="member:kind or json:kind"):
        rhostream.index([shard], str(tmp_path / "t"), label="kind")
    (tmp_path / "twice.txt").write_text("a\nb\na")
    with pytest.raises(UsageError, match="labels 0 and 2 are both called 'a'"):
        rhostream.index([shard], str(tmp_path / "t"), label="json:kind", class_names=str(tmp_path / "twice.txt"))
    texts = tar(tmp_path / "texts.tar", [(f"{n}.txt", b"1") for n in range(5)])
    with pytest.raises(UsageError, match="is what these samples are"):
        rhostream.index([texts], str(tmp_path / "u"), label="txt")
    assert not (tmp_path / "t").exists() or not list((tmp_path / "t").iterdir())


@pytest.mark.parametrize(
    "record", [[], {"from": "cls"}, {"from": "member:"}, {"names": {"a": -1}}, {"names": []}, {"x": 1}]
)
def test_a_forged_record_of_where_labels_stand_is_damage_and_no_accident(tmp_path: Path, record: Any) -> None:
    rhostream.index([tar(tmp_path / "x.tar", set_of(3, ("cls", lambda n: b"1")))], str(tmp_path / "t"))
    there = json.loads((tmp_path / "t" / "_table.json").read_text())
    (tmp_path / "t" / "_table.json").write_text(json.dumps({**there, "ingredients": {"label": record or [1]}}))
    with pytest.raises(RhostreamError, match="can't be understood"):
        il.open_info(str(tmp_path / "t"))


@given(st.sampled_from(["cls", "txt", "a.cls"]), st.sampled_from(["", "label", "a.b"]), st.booleans())
def test_where_labels_stand_comes_back_from_json_as_it_was(member: str, field: str, named: bool) -> None:
    source = LabelFrom(
        member="" if field and field != "label" else member,
        field=field if field != "label" or member == "cls" else "",
        names={"boot": 0} if named else None,
    )
    if (source.member, source.field) != ("", "") and not (source.member == "cls" and not source.field):
        assert LabelFrom.from_json(json.loads(json.dumps(source.to_json()))) == source


# -- labels with gaps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (range(1, 11), "run from 1 to 10: class 0 has no sample"),
        ([0, 1, 3], "up to 3 and 3 of these occur: 2 have no sample"),
        ([0, 255], "up to 255 and 2 of these"),
        ([4], "the label 4: with one class"),
        ([5, 6], "classes 0 to 4 have no sample"),
        (range(3), ""),
        ([], ""),
    ],
)
def test_labels_that_leave_a_class_empty_are_doubted(labels: Any, says: str) -> None:
    found = gaps({label: 7 for label in labels})
    assert (says in found[0]) if says else not found


def test_labels_from_one_are_doubted_by_each_offline_verb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = tar(tmp_path / "x.tar", set_of(60, ("cls", lambda n: b"%d" % (1 + n % 3))))
    with caplog.at_level(logging.WARNING):
        info = rhostream.fit_il([shard], str(tmp_path / "m"), model="mlp-64", epochs=1)
    assert "labels run from 1 to 3" in caplog.text and "labels run from 1" in " ".join(info.quality["empty_classes"])
    for done in (
        rhostream.index([shard], str(tmp_path / "i")),
        rhostream.compute_il([shard], str(tmp_path / "m"), str(tmp_path / "il")),
    ):
        assert sum("labels run from 1 to 3" in says for says in done.doubts) == 1
