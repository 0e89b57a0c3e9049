"""Pickles are read as data: what Python's own reader makes of plain ones, and a refusal of everything else."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhostream.errors import UsageError
from shards.pickled import PickledArray, plain_data
from tests.support import recipe_sources as sources

ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
DTYPE = b"cnumpy\ndtype\n"


def python(code: str, *arguments: str) -> str:
    """What another interpreter prints: this one imports no reader of pickles that runs them."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def plain(value: Any) -> Any:
    """Arrays as lists, bytes as text, for a comparison through JSON."""
    if isinstance(value, PickledArray):
        assert value.values is not None
        return [str(value.values.dtype), value.values.tolist()]
    if isinstance(value, dict):
        return {k.decode() if isinstance(k, bytes) else k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.decode("latin-1") if isinstance(value, bytes) else value


WRITE = """
import pickle, sys
import numpy as np
value = {"bytes": np.arange(12, dtype=np.uint8).reshape(3, 4), "turned": np.asfortranarray(np.ones((2, 3), np.int64)),
         "big": np.arange(3).astype(">i4"), "short": np.full((1, 5), -3, np.int16), "list": [1, -2, 2**70, True, None],
         "text": "\\u00e9", "raw": b"\\xff\\0", "deep": {"a": ([], (), (1,), (1, 2, 3, 4))}, 7: "seven"}
value["again"] = value["list"]
for protocol in range(5):
    with open(f"{sys.argv[1]}/{protocol}", "wb") as file:
        pickle.dump(value, file, protocol)
"""


def test_every_protocol_that_python_writes_is_read_as_python_reads_it(tmp_path: Path) -> None:
    python(WRITE, str(tmp_path))
    for protocol in range(5):
        value = plain_data((tmp_path / str(protocol)).read_bytes(), "x")
        arrays = {name: value[name].values for name in ("bytes", "turned", "big", "short")}
        assert np.array_equal(arrays["bytes"], np.arange(12).reshape(3, 4)) and arrays["bytes"].dtype == np.uint8
        assert np.array_equal(arrays["turned"], np.ones((2, 3))) and arrays["big"].tolist() == [0, 1, 2]
        assert arrays["short"].tolist() == [[-3] * 5]
        assert value["list"] == [1, -2, 2**70, True, None] and value["again"] is value["list"]
        assert (value["text"], value["raw"], value[7]) == ("é", b"\xff\0", "seven")
        assert value["deep"] == {"a": ([], (), (1,), (1, 2, 3, 4))}


def test_a_pickle_of_python_2_is_read_as_python_3_reads_it(tmp_path: Path) -> None:
    record = {"data": sources.planes(sources.TRAIN[:2]), "labels": [3, 300], "names": ["a", "b" * 300], "label": b"x"}
    data = sources.old_pickle(record)
    (tmp_path / "batch").write_bytes(data)
    code = ("import json, pickle, sys; r = pickle.load(open(sys.argv[1], 'rb'), encoding='latin1'); "
            "r['data'] = [str(r['data'].dtype), r['data'].tolist()]; print(json.dumps(r))")  # fmt: skip
    assert plain(plain_data(data, "x")) == json.loads(python(code, str(tmp_path / "batch")))


HOSTILE = {
    "os.system": b"cos\nsystem\n(S'touch MARK'\ntR.",
    "posix.system by the stack": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0atouch MARK\x85R.",
    "an instance": b"(S'touch MARK'\nios\nsystem\n.",
    "an object": b"(cos\nsystem\nS'touch MARK'\no.",
    "builtins.exec": b"cbuiltins\nexec\n(S\"open('MARK','w')\"\ntR.",
    "a name in a list of data": b"\x80\x02}(U\x04dataU\x01xU\x06labels](cos\nsystem\nU\x0atouch MARK\x85Reu.",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_runs_code_for_python_is_refused_here_and_runs_nothing(what: str, tmp_path: Path) -> None:
    marker = tmp_path / "m"
    data = HOSTILE[what].replace(b"MARK", str(marker).encode())
    # The lengths of the two that state one.
    data = data.replace(b"\x8c\x0a", b"\x8c" + bytes([6 + len(str(marker))]))
    data = data.replace(b"U\x0a", b"U" + bytes([6 + len(str(marker))]))
    with pytest.raises(UsageError, match=r"batch is a pickle that asks for .*it may run code, so it isn't read"):
        plain_data(data, "batch")
    assert not marker.exists()
    (tmp_path / "hostile").write_bytes(data)
    python("import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))", str(tmp_path / "hostile"))
    assert marker.exists()  # so it was a real one


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        (b"cnumpy.core.multiarray\nscalar\n.", "numpy.core.multiarray.scalar"),
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"cnumpy\nndarray\n)\x81.", "NEWOBJ"),
        (b"cnumpy\nndarray\n(K\x01\x85tR.", "a call of numpy's ndarray"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\nK\x00\x85U\x01btR.", "a call of numpy's _reconstruct"),
        (DTYPE + b"(U\x01OI00\nI01\ntR.", "a call of numpy's dtype"),
        (DTYPE + b"(U\x02f8I00\nI01\ntR.", "a call of numpy's dtype"),
        (DTYPE + b"(U\x02u1I00\nI01\ntR(K\x03U\x01|(U\x01xtNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.", "a dtype"),
        (b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.", "a call of _codecs.encode"),
        (b"c_codecs\ndecode\n.", "_codecs.decode"),
        (b"}}b.", "the state of"),
        (b"]K\x01\x85b.", "the state of a list"),
        (b"(lU\x01x}(K\x01K\x02uR.", "a call of what isn't a name"),
        (b"\x82\x01.", "EXT1"),
        (b"Pname\n.", "PERSID"),
        (b"}((K\x01tK\x02u.", "a tuple as the key of a dict"),
        (b"G\x00\x00\x00\x00\x00\x00\x00\x00.", "BINFLOAT"),
        (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", "BYTEARRAY8"),
        (ARRAY + b"(K\x01K\x02\x85U\x02u1\x89U\x02abtb.", "an array that isn't one of integers"),
    ],
)  # fmt: skip
def test_what_is_not_plain_data_is_refused_by_name(data: bytes, asked: str) -> None:
    with pytest.raises(UsageError, match=r"is a pickle that asks for ") as refused:
        plain_data(data, "x")
    assert asked in str(refused.value)


@pytest.mark.parametrize(
    "data",
    [b"", b".", b"K\x01", b"not a pickle", b"K\x01K\x02.", b"e.", b"](.", b"h\x05.", b"}(K\x01u.", b"R.", b"q\x01.",
     b"(K\x01\x86.", b"t.", b"U\xffabc.", ARRAY + b"(K\x01tb.", b"\x80\x02" + b"(" * 1000],
)  # fmt: skip
def test_what_is_cut_or_out_of_order_is_one_sentence(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"x can't be read as a pickle of plain data|x is a pickle that asks for"):
        plain_data(data, "x")


def test_an_array_has_as_many_bytes_as_its_shape_says() -> None:
    good = sources.old_pickle({"data": np.zeros((2, 3), np.uint8)})
    with pytest.raises(UsageError, match=r"6 bytes for an array of shape \(2, 4\)"):
        plain_data(good.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"), "x")
    with pytest.raises(UsageError, match=r"can't be read"):  # an array that nobody filled is found by who wants it
        plain_data(ARRAY + b"K\x01\x86R.", "x")


def test_what_grows_when_it_is_looked_at_costs_nothing() -> None:
    # Each tuple holds the one before twice: 2^200 things for whoever shows, compares or hashes the last.
    bomb = b")q\x00" + b"".join(bytes([ord("h"), i, ord("h"), i, 0x86, ord("q"), i + 1]) for i in range(200))
    begun = time.monotonic()
    for end in (b".", b"U\x01x\x93.", b"U\x01xR.", b"U\x01xb.", b"K\x01s.", b"}h\xc8K\x01s."):
        with contextlib.suppress(UsageError):
            plain_data(bomb + end, "x")
    assert time.monotonic() - begun < 2


GOOD = sources.old_pickle({"data": sources.planes(sources.TRAIN[:1])[:, :40], "labels": [1, 2], "names": ["a"]})


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_broken_bytes_are_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    broken = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(broken)))
    for bytes_ in (bytes(broken), bytes(broken[:cut])):
        with contextlib.suppress(UsageError):
            plain_data(bytes_, "x")
