"""Data comes through the safe unpickler unchanged; whatever else a pickle asks for is refused by name and not run."""

import builtins
import collections
import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_mer.data.sources.safe_pickle import load_pickle
from llm_mer.errors import UserError

VALUES: list[Any] = [
    np.arange(6, dtype="<f4").reshape(2, 3),
    np.arange(6, dtype=">f8"),
    np.asfortranarray(np.ones((2, 3))),
    np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    np.zeros((0, 3)),
    np.array(3.0),
    np.array(["ab", "中文"]),
    np.array([b"x"]),
    np.array([True, False]),
    np.zeros((3, 2), dtype="V8"),
    np.float32(2.5),
    np.int64(-1),
    np.str_("中"),
    np.bool_(True),
    np.float16(0.5),
    np.dtype("float32"),
    {"a": [1, (2.5, None, True)], "b": {1, 2}, "c": frozenset([1]), "d": b"\xff", "e": bytearray(b"x"), "f": 1j, "g": "中"},
    collections.OrderedDict(a=1),
]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


class Call:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}-{getattr(value, 'dtype', '')}")
def test_plain_data_is_unchanged_in_every_protocol(tmp_path: Path, value: Any, protocol: int) -> None:
    content = pickle.dumps(value, protocol=protocol)
    found = load_pickle(written(tmp_path / "data.pkl", content))
    assert type(found) is type(value)
    if isinstance(value, np.ndarray):
        assert found.dtype == pickle.loads(content).dtype  # numpy itself turns another byte order into its own
        np.testing.assert_array_equal(found, value)
    else:
        assert found == value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_array_of_objects_holds_plain_ones(tmp_path: Path, protocol: int) -> None:
    value = np.array([np.ones(2), "中", None], dtype=object)
    found = load_pickle(written(tmp_path / "data.pkl", pickle.dumps(value, protocol=protocol)))
    np.testing.assert_array_equal(found[0], value[0])
    assert found[1:].tolist() == ["中", None]


@pytest.mark.parametrize(("old", "new"), [(b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")])
def test_numpy_1_and_2_files_are_read(tmp_path: Path, old: bytes, new: bytes) -> None:
    value = {"a": np.arange(4.0), "s": np.float32(1.5)}
    content = pickle.dumps(value, protocol=2).replace(old, new)  # names of protocol 2 end in a newline, not in a length
    found = load_pickle(written(tmp_path / "data.pkl", content))
    np.testing.assert_array_equal(found["a"], value["a"])
    assert found["s"] == 1.5


HOSTILE: list[tuple[Any, str]] = [
    (Call(os.system, "touch ran"), f"{os.system.__module__}.system"),
    (Call(builtins.eval, "open('ran', 'w')"), "eval"),
    (Call(builtins.exec, "open('ran', 'w')"), "exec"),
    (Call(builtins.getattr, [], "append"), "getattr"),
    (Call(np.load, "ran"), "numpy.load"),
    (Call(np.fromfile, "ran"), "numpy.fromfile"),
    (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    (torch.zeros(2), "torch._utils._rebuild_tensor_v2"),
    (torch.Size([1]), "torch.Size"),
    (collections.Counter("ab"), "collections.Counter"),
    (Path("x"), "pathlib."),
    (ValueError("x"), "ValueError"),
    (UserError("x"), "llm_mer.errors.UserError"),
    (np.ma.zeros(2), "_mareconstruct"),
    (np.random.default_rng(0), "numpy.random."),
    (np.array([Call(os.system, "touch ran")], dtype=object), f"{os.system.__module__}.system"),
]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(("value", "asked"), HOSTILE, ids=[asked for _, asked in HOSTILE])
def test_anything_else_is_refused_by_name_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, asked: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path / "bad.pkl", pickle.dumps({"audio": value}, protocol=protocol))
    # Protocols 0 and 1 build instances of classes through copyreg, which is refused first.
    with pytest.raises(UserError, match=rf"refused: the pickle asks for \S*({asked}|copy_?reg\._reconstructor)") as caught:
        load_pickle(file)
    assert str(file) in str(caught.value)
    assert not (tmp_path / "ran").exists()


BY_HAND: dict[str, tuple[bytes, str]] = {
    "dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.", "numpy.ndarray.dumps"),
    "module that begins like an allowed one": (
        b"cnumpy.core.multiarray.evil\nscalar\n.",
        "numpy.core.multiarray.evil.scalar",
    ),
    "allowed name of another module": (b"cos\ndtype\n.", "os.dtype"),
    "INST": (b"(S'true'\nios\nsystem\n.", "os.system"),
    "extension code": (b"\x80\x02\x82\x01.", "extension code 1"),
    "persistent id": (b"Pabc\n.", "external object 'abc'"),
    "state of a container": (b"\x80\x02ccollections\nOrderedDict\n)R}U\x01aK\x01sb.", "state of a OrderedDict"),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_hand_made_pickles_are_refused(tmp_path: Path, name: str) -> None:
    content, asked = BY_HAND[name]
    with pytest.raises(UserError, match=r"bad\.pkl: refused: the pickle asks ") as caught:
        load_pickle(written(tmp_path / "bad.pkl", content))
    assert asked in str(caught.value)


class Reduced:
    """Pickles as given."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def test_bytes_cannot_become_pointers(tmp_path: Path) -> None:
    """A dtype of objects that claims to hold none would let the file's bytes be used as addresses."""
    state = (3, "|", None, None, None, -1, -1, 0)
    dtype = Reduced(np.dtype, ("O8", False, True), state)
    reconstruct, arguments, _ = np.zeros(1).__reduce__()
    array = Reduced(reconstruct, arguments, (1, (1,), dtype, False, struct.pack("<q", 0x4141414141414141)))
    with pytest.raises(UserError, match="other flags than object"):
        load_pickle(written(tmp_path / "bad.pkl", pickle.dumps(array)))


@pytest.mark.parametrize("shape", [(4,), (-3,), (True,), [3], (2, 2)])
def test_objects_are_not_read_beyond_their_list(tmp_path: Path, shape: Any) -> None:
    reconstruct, arguments, _ = np.zeros(1).__reduce__()
    array = Reduced(reconstruct, arguments, (1, shape, np.dtype(object), False, [1, 2, 3]))
    with pytest.raises(UserError, match=r"bad\.pkl: refused: .* does not fill its shape"):
        load_pickle(written(tmp_path / "bad.pkl", pickle.dumps(array)))


def test_a_dtype_of_the_process_cannot_be_changed(tmp_path: Path) -> None:
    dtype = Reduced(np.dtype, ("f4", False, False), (3, ">", None, None, None, -1, -1, 0))
    assert load_pickle(written(tmp_path / "data.pkl", pickle.dumps(dtype))) == np.dtype(">f4")
    assert np.dtype("f4").isnative


@pytest.mark.parametrize("dtype", [[("a", "f4")], "M8[D]", "m8[s]"])
def test_structured_dtypes_and_dates_are_refused(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(UserError, match=r"bad\.pkl.*dtype"):
        load_pickle(written(tmp_path / "bad.pkl", pickle.dumps(np.zeros(1, dtype=dtype))))


def test_a_state_of_dates_without_its_unit_is_refused(tmp_path: Path) -> None:
    """numpy crashes on it."""
    dtype = Reduced(np.dtype, ("M8", False, True), (4, "<", None, None, None, -1, -1, 0))
    with pytest.raises(UserError, match=r"bad\.pkl.*dtype"):
        load_pickle(written(tmp_path / "bad.pkl", pickle.dumps(dtype)))


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04]", pickle.dumps(np.ones(9))[:-20], b"\x80\x09."])
def test_damaged_files_are_one_clear_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"bad\.pkl: not a readable pickle"):
        load_pickle(written(tmp_path / "bad.pkl", content))


@pytest.mark.parametrize(
    "content",
    [b"\x80\x04B\xff\xff\xff\x7fx.", b"\x80\x05\x96\0\0\0\xff\0\0\0\0x.", b"\x80\x04\x95\0\0\0\xff\0\0\0\0."],
    ids=["bytes", "byte array", "frame"],
)
def test_a_length_beyond_the_file_reserves_no_memory(tmp_path: Path, content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="bytes announced"):
            load_pickle(written(tmp_path / "bad.pkl", content))
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pkl: no such file"):
        load_pickle(tmp_path / "none.pkl")


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_large_array_is_read_without_a_second_copy(tmp_path: Path, protocol: int) -> None:
    values = np.random.default_rng(0).normal(size=(500, 2000))
    path = tmp_path / "large.pkl"
    path.write_bytes(pickle.dumps({"values": values}, protocol=protocol))
    tracemalloc.start()
    found = load_pickle(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found["values"], values)
    assert peak < 1.3 * values.nbytes


def test_a_cut_off_byte_array_is_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "large.pkl"
    path.write_bytes(pickle.dumps(bytearray(3 << 20), protocol=5)[: 2 << 20])
    with pytest.raises(UserError, match=r"large\.pkl: not a readable pickle"):
        load_pickle(path)
