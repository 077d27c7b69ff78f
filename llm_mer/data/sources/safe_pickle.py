"""Pickles of other people's data, read without running anything they ask for.

A pickle is a program: ``GLOBAL os.system`` followed by a call is as valid as a list of arrays. What is read here is a list
of allowed names, matched exactly and in full, never by prefix; each stands for a constructor of plain data. Anything else
is refused by name.

Names alone would leave holes, because numpy trusts the states of its own objects. A dtype's state can declare objects to be
bytes, so that bytes of the file become pointers; an array's can claim more objects than it brings. Therefore a state is
given to dtypes and arrays only, checked and rebuilt: a dtype's has to be what its name implies, an array's content to fill
its shape.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from llm_mer.errors import UserError

PLAIN_DTYPE = re.compile(r"[<>=|]?[?bBhHiIlLqQefdgFDGSUOVuc][0-9]*")
"""One type and its size: no fields, no sub-arrays, and no dates, which no data set has and whose state numpy trusts."""

PIECE = 1 << 20
"""Bytes of a byte array read at a time."""

_NUMPY_SCALAR: Callable[..., Any] = np.float64(1.0).__reduce__()[0]  # type: ignore[assignment]


class _ArrayClass:
    """Stands for ``numpy.ndarray``, which a file may name as an argument but not call."""


def _empty_array(kind: object, shape: object, typecode: object) -> np.ndarray:
    # As numpy does before the state arrives, whatever shape and type the file names here.
    if kind is not _ArrayClass:
        raise ValueError("an array of another class than numpy.ndarray")
    return np.empty(0, dtype=np.int8)


def _dtype(name: object, align: object = False, copy: object = False) -> np.dtype:
    text = name.decode("ascii") if isinstance(name, bytes) else name
    if not isinstance(text, str) or PLAIN_DTYPE.fullmatch(text) is None:
        raise ValueError(f"the dtype {name!r}")
    # Always a copy: the state that follows would otherwise be written into numpy's own shared instance.
    return np.dtype(text, False, True)


def _bytes_of(text: object, encoding: object = "latin1") -> bytes:
    # Python 2 protocols carry bytes as text in Latin-1; other codecs would be an import by name.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"the codec {encoding!r}")
    return text.encode("latin1")


def _scalar(dtype: object, content: object) -> Any:
    data = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise ValueError("a scalar whose content is not of its dtype")
    return _NUMPY_SCALAR(dtype, data)


def _dtype_state(dtype: np.dtype, state: object) -> tuple[Any, ...] | None:
    """The state to give: the one that the dtype's name implies, in the file's byte order. None if it is another."""
    own = np.dtype(dtype.str).__reduce__()[2]
    if not isinstance(state, tuple) or len(state) != len(own) or state[0] != own[0] or state[2:] != own[2:]:
        return None
    if state[1] != own[1] and (state[1] not in ("<", ">") or own[1] not in ("<", ">")):
        return None
    return (own[0], state[1], *own[2:])


def _array_state(state: object) -> tuple[Any, ...] | None:
    """The state to give: version, shape, dtype, order, and as much content as the shape says. None if it is another."""
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, dtype, fortran, content = state
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        return None
    if not isinstance(dtype, np.dtype):
        return None
    items = math.prod(shape)
    whole = type(content) is list and len(content) == items
    if not dtype.hasobject:
        whole = type(content) in (bytes, str) and len(content) == items * dtype.itemsize
    return (1, shape, dtype, bool(fortran), content) if whole else None


def _allowed() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _ArrayClass,
        ("numpy", "dtype"): _dtype,
        ("_codecs", "encode"): _bytes_of,
        ("collections", "OrderedDict"): OrderedDict,
    }
    # numpy 1 and numpy 2 name the same functions by different modules. What is called is taken from what numpy itself
    # would write, so that none of its private modules is imported here.
    frombuffer = np.zeros(1).__reduce_ex__(5)[0]
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = _empty_array
        names[f"{core}.multiarray", "scalar"] = _scalar
        names[f"{core}.numeric", "_frombuffer"] = frombuffer
    for kind in (dict, list, tuple, set, frozenset, bytes, bytearray, complex):
        for module in ("builtins", "__builtin__"):
            names[module, kind.__name__] = kind
    return names


ALLOWED = _allowed()
"""``(module, name)`` as the file writes it → what it gets."""


class _Bounded:
    """A stream that does not reserve memory for bytes its file does not have: a damaged length would claim gigabytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.readline = stream.readline
        start = stream.tell()
        self._end = stream.seek(0, 2)
        stream.seek(start)

    def read(self, size: int) -> bytes:
        if size > 65536 and size > self._end - self._stream.tell():
            raise EOFError(f"{size} bytes announced, {self._end - self._stream.tell()} left")
        return self._stream.read(size)


class SafeUnpickler(pickle._Unpickler):
    """Reads numpy arrays, dtypes, scalars and plain containers from an open file; refuses every other name.

    It is the interpreter's unpickler in Python, whose steps can be overridden one by one. Large arrays are read by the
    stream in one piece either way.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, stream: BinaryIO, path: Path | str) -> None:
        # Latin-1 is what numpy needs for arrays that Python 2 wrote; Python 3 files do not use it.
        super().__init__(_Bounded(stream), encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """The one gate through which names pass."""
        if (module, name) not in ALLOWED:
            raise UserError(
                f"{self.path}: refused: the pickle asks for {module}.{name}; "
                "only numpy arrays, dtypes, scalars and plain containers are read"
            )
        return ALLOWED[module, name]

    def get_extension(self, code: int) -> None:
        """Extension codes stand for names of a table of the process; the table's cache would bypass the gate."""
        raise UserError(f"{self.path}: refused: the pickle asks for extension code {code}")

    def persistent_load(self, pid: Any) -> Any:
        """Objects that live outside of the file."""
        raise UserError(f"{self.path}: refused: the pickle asks for the outside object {pid!r}")

    def load_bytearray8(self) -> None:
        """A byte array, its length believed only once the bytes are there, and without a second copy of them."""
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        content = bytearray()
        while len(content) < size:
            piece = self.read(min(PIECE, size - len(content)))  # type: ignore[attr-defined]
            if not piece:
                raise EOFError(f"{size} bytes announced, {len(content)} there")
            content += piece
        self.append(content)  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_build(self) -> None:
        """Give an object its state: arrays and dtypes only, and a dtype only the state its name implies."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(target, np.dtype):
            checked, wrong = _dtype_state(target, state), f"a dtype with fields or other flags than {target}"
        elif isinstance(target, np.ndarray):
            checked, wrong = _array_state(state), "an array whose content does not fill its shape"
        else:
            checked, wrong = None, f"the state of a {type(target).__name__}"
        if checked is None:
            raise UserError(f"{self.path}: refused: the pickle asks for {wrong}")
        target.__setstate__(checked)

    dispatch[pickle.BUILD[0]] = load_build


def load_pickle(path: Path | str) -> Any:
    """What a pickle file holds, read from the open file without a second copy of its bytes.

    Raises:
        UserError: no such file; not a pickle, or a damaged one; or a name that is not allowed, which is stated.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as stream:
        unpickler = SafeUnpickler(stream, path)
        try:
            return unpickler.load()
        except UserError:
            raise
        except Exception as error:  # a damaged file fails in any of a dozen ways
            raise UserError(f"{path}: not a readable pickle: {type(error).__name__}: {error}") from None
