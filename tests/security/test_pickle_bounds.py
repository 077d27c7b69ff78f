"""A pickle made to crash the interpreter, to take memory or never to end is one line instead; its process is bounded."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_environment

from llm_mer.data.sources.safe_pickle import load_pickle
from llm_mer.errors import UserError

MEMORY = 1 << 30
SECONDS = 20
DEEP = 200_000


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def whole(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def long(value: int) -> bytes:
    content = pickle.encode_long(value)
    return b"\x8b" + struct.pack("<i", len(content)) + content


ARRAY = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
OBJECTS = (
    name("numpy", "dtype") + text("O8") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb"
)
DOUBLED_TUPLE = b")" + b"2\x86" * 60
DOUBLED_LIST = b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(60))


def copies_of_bytes(constructor: bytes, count: int = 20_000) -> bytes:
    """One megabyte, and a constructor called with it again and again, all results kept."""
    content = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"\x85q\x01"
    return b"\x80\x03" + constructor + b"q\x00" + content + b"]" + b"(" + b"h\x00h\x01R" * count + b"e."


def copies_of_arrays(count: int = 20_000) -> bytes:
    """One megabyte as the state of array after array."""
    dtype = name("numpy", "dtype") + text("u1") + b"K\x00K\x01\x87R"
    state = (
        b"(K\x01J" + struct.pack("<i", 1 << 20) + b"\x85" + dtype + b"\x89B" + struct.pack("<I", 1 << 20) + bytes(1 << 20)
    )
    maker = name("numpy.core.multiarray", "_reconstruct") + b"q\x00" + name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87q\x01"
    return b"\x80\x03" + maker + state + b"tq\x02](" + b"h\x00h\x01Rh\x02b" * count + b"e."


def nested_arrays(late: bool) -> bytes:
    """Arrays of one object, each the next array: built from the inside, or from the outside."""
    state = b"(K\x01K\x01\x85h\x00\x89](%setb"
    head = b"\x80\x03" + OBJECTS + b"q\x000"
    if not late:
        inner = b"N"
        # Each array takes the one on the stack: it is put into the memo under one number, over and over.
        steps = (ARRAY + state % b"h\x01" + b"q\x010") * DEEP
        return head + inner + b"q\x010" + steps + b"h\x01."
    made = b"".join(ARRAY + b"r" + struct.pack("<I", i + 10) + b"0" for i in range(DEEP))
    built = b"".join(
        b"j" + struct.pack("<I", i + 10) + state % (b"j" + struct.pack("<I", i + 11)) + b"0" for i in range(DEEP - 1)
    )
    return head + made + built + b"j" + struct.pack("<I", 10) + b"."


ATTACKS: dict[str, tuple[bytes, str]] = {
    "nested tuples": (b")" + b"\x85" * DEEP + b".", "nested deeper than 100 levels"),
    "nested lists": (b"(" * DEEP + b"l" * DEEP + b".", "nested deeper than 100 levels"),
    "nested dictionaries": (b"(K\x01" * DEEP + b"N" + b"d" * DEEP + b".", "nested deeper than 100 levels"),
    "nested tuples as a key": (b"}" + b")" + b"\x85" * DEEP + b"Ns.", "a key of more than 1000 values"),
    "nested tuples as keys": (b"}(" + b")" + b"\x85" * DEEP + b"Nu.", "a key of more than 1000 values"),
    "nested tuples in a dictionary": (b"()" + b"\x85" * DEEP + b"Nd.", "a key of more than 1000 values"),
    "nested tuples in a set": (b"\x80\x04\x8f()" + b"\x85" * DEEP + b"\x90.", "a key of more than 1000 values"),
    "nested tuples in a frozen set": (b"\x80\x04()" + b"\x85" * DEEP + b"\x91.", "a key of more than 1000 values"),
    "nested tuples in a called set": (
        name("builtins", "set") + b"](" + b")" + b"\x85" * DEEP + b"e\x85R.",
        "a key of more than 1000 values",
    ),
    "doubled tuples as a key": (b"}" + DOUBLED_TUPLE + b"Ns.", "a key of more than 1000 values"),
    "doubled tuples as a dtype": (name("numpy", "dtype") + DOUBLED_TUPLE + b"\x85R.", "the dtype a tuple"),
    "doubled tuples as a codec": (name("_codecs", "encode") + text("a") + DOUBLED_TUPLE + b"\x86R.", "the codec a tuple"),
    "doubled tuples as an outside object": (DOUBLED_TUPLE + b"Q.", "the external object a tuple"),
    "doubled lists": (DOUBLED_LIST + b".", "more than 50000000 values"),
    "a list inside of itself": (b"]q\x00h\x00a.", "contains itself"),
    "bytes by number": (name("builtins", "bytes") + whole(2**31 - 1) + b"\x85R.", "bytes of a int"),
    "a byte array by number": (name("builtins", "bytearray") + whole(2**31 - 1) + b"\x85R.", "bytearray of a int"),
    "copies of bytes": (copies_of_bytes(name("builtins", "bytearray")), "copies of what it holds come to more than 4 times"),
    "copies of arrays": (copies_of_arrays(), "copies of what it holds come to more than 4 times"),
    "arrays in arrays": (nested_arrays(late=False), "an array whose content does not fill its shape"),
    "arrays put into arrays later": (nested_arrays(late=True), "an array whose content does not fill its shape"),
    "an endless whole number as a key": (b"}" + long(1 << 80_000) + b"Ns.", "a key of 80001 bits"),
    "a frame longer than the file": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.", "bytes announced"),
    "a text longer than the file": (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"N.", "bytes announced"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_one_line(tmp_path: Path, attack: str) -> None:
    content, told = ATTACKS[attack]
    path = tmp_path / "attack.pkl"
    path.write_bytes(content)
    program = f"""
import resource
import numpy
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
from llm_mer.data.sources.safe_pickle import load_pickle
from llm_mer.errors import UserError
try:
    load_pickle({str(path)!r})
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=run_environment(PYTHONPATH=str(ROOT), OPENBLAS_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-800:])
    assert told in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert len(done.stdout) < 1_000


def objects(values: list[object]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


PLAIN: dict[str, Callable[[], object]] = {
    "tuples as keys": lambda: {("a", 1, (2.5, None)): 1, (1, 2): [1]},
    "one array in many places": lambda: [np.arange(1000.0)] * 1000,
    "texts in an array of objects": lambda: objects(["a", "中", None]),
    "arrays in an array of objects": lambda: objects([np.arange(3.0), np.zeros((0, 4))]),
    "many small arrays": lambda: {f"u{i}": np.full((3, 4), i) for i in range(2000)},
    "sixty levels": lambda: nested(60),
}


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def equal(one: object, two: object) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(two, np.ndarray) and one.dtype == two.dtype and all(map(equal, one.ravel(), two.ravel()))
    if isinstance(one, dict):
        return isinstance(two, dict) and list(one) == list(two) and all(equal(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(equal, one, two))
    return bool(one == two)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", PLAIN)
def test_plain_data_stays_within_the_bounds(tmp_path: Path, value: str, protocol: int) -> None:
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps(PLAIN[value](), protocol=protocol))
    assert equal(load_pickle(path), PLAIN[value]())


def test_a_large_file_is_read_within_its_budget(tmp_path: Path) -> None:
    path = tmp_path / "large.pkl"
    values = {f"u{i}": np.full((256, 256), i, dtype=np.float32) for i in range(400)}  # 100 MiB
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps(values, protocol=protocol))
        assert equal(load_pickle(path)["u399"][:2], values["u399"][:2])


def test_levels_beyond_the_bound_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.pkl"
    path.write_bytes(pickle.dumps(nested(150)))
    with pytest.raises(UserError, match="nested deeper than 100 levels"):
        load_pickle(path)
