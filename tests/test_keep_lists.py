"""A list made by a question names the samples it was made of, whatever their keys; what it can't name is said."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rhostream
from rhostream.audit.render import render
from rhostream.errors import UsageError
from rhostream.stream.keep_list import read_keep_list
from rhostream.tables import il
from tests.support.shards import png

KEYS = ["plain", "-x00001", "=1+1", "+49", "@home", "\ttab", "'quoted", "comma, and \"quotes\"", "two\nlines", "nul\0",
        " spaces ", "", "back\\nslash", "＝wide", "\u202eturned", "\ufefffirst", "0012", "NULL"]  # fmt: skip


def table_of(folder: Path, keys: list[str]) -> il.Table:
    """An index of one shard whose samples have these keys: the part as the product's own writer makes it."""
    info = il.TableInfo(kind="index")
    il.make_or_match(str(folder), info)
    n = len(keys)
    columns = {
        "key": keys,
        "ordinal": np.arange(n, dtype=np.int32),
        "members": [[] for _ in keys],
        "label": [0] * n,
        "in_holdout": [False] * n,
        "status": ["ok"] * n,
    }
    part = pa.table({f.name: pa.array(columns.get(f.name, [None] * n), f.type) for f in info.schema})
    facts = il.PartFacts(
        fingerprint=info.fingerprint,
        kind="index",
        shard="s.tar",
        shard_size=1,
        shard_tag="",
        samples=n,
        statuses={"ok": n},
        members_seen=0,
        members_used=0,
        members_ignored=0,
    )
    url = Path(il.part_url(str(folder), "s.tar"))
    url.parent.mkdir(parents=True, exist_ok=True)
    url.write_bytes(il.encode_part(part, facts))
    names = ["s.tar"]
    return il.Table(str(folder), info, names, names, np.array([n], np.int64))  # type: ignore[arg-type]


def as_csv(listed: pa.Table) -> bytes:
    return render(listed, "csv").encode()


def as_json(listed: pa.Table) -> bytes:
    return render(listed, "json").encode()


def as_lines(listed: pa.Table) -> bytes:
    return "\n".join(json.dumps(row) for row in listed.to_pylist()).encode()


def as_parquet(listed: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(listed, sink)
    return sink.getvalue()


def named(path: Path, data: bytes, table: il.Table) -> list[int]:
    """Ordinals of the one shard that the list names."""
    path.write_bytes(data)
    bits = read_keep_list(str(path), table).bits.numpy()
    return np.flatnonzero(np.unpackbits(bits, bitorder="little")[: int(table.counts.sum())]).tolist()  # type: ignore[no-any-return]


def listed(keys: list[str]) -> pa.Table:
    return pa.table({"shard": ["s.tar"] * len(keys), "key": pa.array(keys, pa.string()), "n": range(len(keys))})


FORMS: list[Callable[[pa.Table], bytes]] = [as_csv, as_json, as_lines, as_parquet]


@pytest.mark.parametrize("form", FORMS)
def test_a_list_of_any_form_names_the_one_sample_it_was_made_of(tmp_path: Path, form: Any) -> None:
    table = table_of(tmp_path / "ix", KEYS)
    for ordinal, key in enumerate(KEYS):
        assert named(tmp_path / "list", form(listed([key])), table) == [ordinal], key
    assert named(tmp_path / "list", form(listed(KEYS[::2])), table) == list(range(0, len(KEYS), 2))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(
        st.text(st.sampled_from("ab-='\\n\n\t\0,\" ＝x0\u202e") | st.characters(codec="utf-8"), max_size=6),
        min_size=1,
        max_size=6,
        unique=True,
    ),
    some=st.data(),
)
def test_whatever_the_keys_a_list_names_its_samples_or_is_refused_and_only_csv_may_be(
    tmp_path: Path, keys: list[str], some: st.DataObject
) -> None:
    table = table_of(tmp_path / "ix", keys)
    chosen = some.draw(st.lists(st.integers(0, len(keys) - 1), min_size=1, unique=True))
    answer = listed([keys[at] for at in chosen])
    for form in FORMS:
        try:
            assert named(tmp_path / "list", form(answer), table) == sorted(chosen)
        except UsageError as refused:
            assert form is as_csv and "shows alike" in str(refused)


def test_a_cell_that_may_be_two_keys_is_refused_by_csv_and_kept_apart_by_json(tmp_path: Path) -> None:
    table = table_of(tmp_path / "ix", ["-x", "'-x", "a\nb", "a\\nb", "plain"])
    for key, ordinal in (("-x", 0), ("'-x", 1), ("a\nb", 2), ("a\\nb", 3)):
        if key != "'-x":  # which is shown as itself only where no other is
            with pytest.raises(UsageError, match="shows alike"):
                named(tmp_path / "list", as_csv(listed([key])), table)
        assert named(tmp_path / "list", as_json(listed([key])), table) == [ordinal]
    assert named(tmp_path / "list", as_csv(listed(["plain"])), table) == [4]


CSV: dict[str, tuple[bytes, list[int]]] = {
    "byte order mark": (b"\xef\xbb\xbfshard,key\ns.tar,b\n", [1]),
    "line ends of Windows": (b"shard,key\r\ns.tar,b\r\n", [1]),
    "another order, and a column that changes its type": (
        b"n,key,shard\n1,b,s.tar\n" + b"2,b,s.tar\n" * 200_000 + b"x,c,s.tar\n", [1, 2]),
    "quoted numbers": (b'"ordinal","shard"\n"2","s.tar"\n', [2]),
    "line ends in a key": (b'shard,key\ns.tar,"two\nlines"\n', [3]),
    "the same one twice": (b"shard,key\ns.tar,b\ns.tar,b\n", [1]),
    "spaces are part of a key": (b"shard,key\ns.tar, b\n", [4]),
    "what a spreadsheet calls null": (b"shard,key\ns.tar,NULL\n", [5]),
}  # fmt: skip


@pytest.mark.parametrize("what", CSV)
def test_csv_of_other_programs_is_read_as_it_is_meant(tmp_path: Path, what: str) -> None:
    table = table_of(tmp_path / "ix", ["a", "b", "c", "two\nlines", " b", "NULL"])
    data, ordinals = CSV[what]
    assert named(tmp_path / "list", data, table) == ordinals


REFUSED = {
    "empty": (b"", "can be read"), "no header": (b"s.tar,b\ns.tar,a\n", "s.tar, b"),
    "a header alone": (b"shard,key\n", "none of its 0 rows"), "semicolons": (b"shard;key\ns.tar;b\n", "shard;key"),
    "not UTF-8": (b"shard,key\ns.tar,\xff\xfe\n", "can be read"),
    "UTF-16": ("shard,key\n".encode("utf-16"), "columns|can be read"),
    "no number": (b"shard,ordinal\ns.tar,one\n", "'one'"), "twice": (b"shard,key,key\ns.tar,b,b\n", "each once"),
    "not JSON": (b"[{", "JSON"), "JSON of numbers": (b"[0, 1]", "no object"),
    "deep JSON": (b"[" * 100_000, "JSON"), "half a letter in JSON": (b'[{"shard": "s.tar", "key": "\\ud800"}]', "JSON"),
    "JSON of objects in objects": (b'[{"shard": "s.tar", "ordinal": {}}]', "JSON"),
    "numbers that are text": (as_parquet(pa.table({"shard": ["s.tar"], "ordinal": ["x"]})), "can be read"),
    "half numbers": (as_parquet(pa.table({"shard": ["s.tar"], "ordinal": [0.5]})), "can be read"),
    "lists": (as_parquet(pa.table({"shard": ["s.tar"], "key": [["b"]]})), "can be read"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_list_is_refused_in_one_sentence(tmp_path: Path, what: str) -> None:
    data, says = REFUSED[what]
    with pytest.raises(UsageError, match=says):
        named(tmp_path / "list", data, table_of(tmp_path / "ix", ["a", "b"]))


def test_rows_that_name_nothing_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    table = table_of(tmp_path / "ix", ["a", "b"])
    with pytest.warns(UserWarning, match=r"2 of its rows name no sample.*first shard 's.tar', key 'gone'"):
        assert named(tmp_path / "list", b"shard,key\ns.tar,b\ns.tar,gone\nelse.tar,b\n", table) == [1]
    with pytest.raises(UsageError, match=r"none of its 1 rows.*first shard 's.tar', ordinal '2'"):
        named(tmp_path / "list", b"shard,ordinal\ns.tar,2\n", table)


@pytest.mark.parametrize("given", [{"a", "b"}, ["a"], pa.table({"shard": ["s.tar"]}), 3])
def test_a_list_that_is_no_file_is_refused_before_any_work(world: Path, tmp_path: Path, given: Any) -> None:
    with pytest.raises(UsageError, match=f"keep_list is a {type(given).__name__}"):
        rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=8, keep_list=given)
    with pytest.raises(UsageError, match=f"keep_list.*{type(given).__name__}"):
        rhostream.train(
            str(world / "shards"), str(world / "il"), str(tmp_path / "run"), model="mlp-64", keep_list=given
        )
    with pytest.raises(UsageError, match=r"(?i)folder|directory"):
        rhostream.open_stream(str(world / "shards"), str(world / "il"), buffer_size=8, keep_list=tmp_path)


def test_a_run_trains_on_what_its_own_csv_lists_even_where_keys_look_like_formulas(tmp_path: Path) -> None:
    shard, rng = tmp_path / "data" / "a.tar", np.random.default_rng(0)
    shard.parent.mkdir()
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for n in range(40):
            for name, data in (
                (f"-x{n:03d}.png", png(rng.integers(0, 255, (16, 16), np.uint8))),
                (f"-x{n:03d}.cls", str(n % 4).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    rhostream.index([str(shard)], str(tmp_path / "ix"))
    with rhostream.open_ledger(str(tmp_path / "ix")) as ledger:
        answer = ledger.sql("select shard, key from samples where ordinal % 2 = 0")
    (tmp_path / "keep.csv").write_bytes(as_csv(answer))
    done = rhostream.train(
        str(shard),
        str(tmp_path / "ix"),
        str(tmp_path / "run"),
        model="mlp-64",
        rule="uniform",
        buffer_size=20,
        batch_size=4,
        keep_list=str(tmp_path / "keep.csv"),
    )
    assert done.reasons["unlisted"] == 20
