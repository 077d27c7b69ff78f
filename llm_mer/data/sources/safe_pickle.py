"""Pickles of other people's data, read without running anything they ask for.

A pickle is a program: ``GLOBAL os.system`` followed by a call is as valid as a list of arrays. What is read here is a list
of allowed names, matched exactly and in full, never by prefix; each stands for a constructor of plain data. Anything else
is refused by name.

Names alone would leave holes, because numpy trusts the states of its own objects. A dtype's state can declare objects to be
bytes, so that bytes of the file become pointers; an array's can claim more objects than it brings. Therefore a state is
given to dtypes and arrays only, checked and rebuilt: a dtype's has to be what its name implies, an array's content to fill
its shape.

Size is bounded too. A file of a few bytes can name one object again and again, so that a copy of it, a walk over it or the
hash of a key takes without end, and objects nested deeply enough end the interpreter. Copies have a budget that grows with
the file, keys are short, and values and levels are counted with all repetitions.
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
from llm_mer.storage.quoting import quote

PLAIN_DTYPE = re.compile(r"[<>=|]?[?bBhHiIlLqQefdgFDGSUOVuc][0-9]*")
"""One type and its size: no fields, no sub-arrays, and no dates, which no data set has and whose state numpy trusts."""

PIECE = 1 << 20
"""Bytes of a byte array read at a time."""
COPIES, COPIED_AT_LEAST = 4, 64 << 20
"""Bytes that copies of what was read may come to: so many times the file's size, and as many more for any file."""
MAX_KEY_VALUES = 1_000
"""Values of a tuple that is a key or a member of a set, those inside of it included."""
MAX_KEY_BITS = 1_024
"""Of a whole number that is a key: its hash is not kept, but computed each time."""
MAX_LEVELS = 100
MAX_VALUES = 50_000_000
"""Values of a file, each counted as often as it is repeated; an array of numbers is one."""

_NUMPY_SCALAR: Callable[..., Any] = np.float64(1.0).__reduce__()[0]  # type: ignore[assignment]


class _ArrayClass:
    """Stands for ``numpy.ndarray``, which a file may name as an argument but not call."""


def _empty_array(kind: object, shape: object, typecode: object) -> np.ndarray:
    # As numpy does before the state arrives, whatever shape and type the file names here.
    if kind is not _ArrayClass:
        raise ValueError("an array of another class than numpy.ndarray")
    return np.empty(0, dtype=np.int8)


def _name(value: object) -> str:
    """What a message says of a value: the text of a container may be endless."""
    return quote(value) if isinstance(value, str | bytes) else f"a {type(value).__name__}"


def _dtype(name: object, align: object = False, copy: object = False) -> np.dtype:
    text = name.decode("ascii") if isinstance(name, bytes) else name
    if not isinstance(text, str) or PLAIN_DTYPE.fullmatch(text) is None:
        raise ValueError(f"the dtype {_name(name)}")
    # Always a copy: the state that follows would otherwise be written into numpy's own shared instance.
    return np.dtype(text, False, True)


def _bytes_of(text: object, encoding: object = "latin1") -> bytes:
    # Python 2 protocols carry bytes as text in Latin-1; other codecs would be an import by name.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"the codec {_name(encoding)}")
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


def _plain(kind: type) -> Callable[..., Any]:
    """A constructor that copies one container, and neither reserves room by a number nor runs through an iterator."""

    def build(*arguments: object) -> Any:
        if len(arguments) > 1 or not all(type(a) in (list, tuple, set, frozenset, dict, OrderedDict) for a in arguments):
            raise ValueError(f"{kind.__name__} of {', '.join(map(_name, arguments))}")
        if kind in (set, frozenset):
            for content in arguments:
                for member in content:  # type: ignore[attr-defined]
                    _check_key(member)
        elif kind in (dict, OrderedDict):
            for content in arguments:
                for entry in content.items() if isinstance(content, dict) else content:  # type: ignore[attr-defined]
                    _check_key(entry[0])
        return kind(*arguments)

    return build


def _bytes_like(kind: type) -> Callable[..., Any]:
    """``bytes`` or ``bytearray`` of other bytes, or of a text with its codec; a number would reserve as many bytes."""

    def build(*arguments: object) -> Any:
        if len(arguments) == 2:
            return kind(_bytes_of(*arguments))
        if len(arguments) > 1 or not all(isinstance(argument, bytes | bytearray | list) for argument in arguments):
            raise ValueError(f"{kind.__name__} of {', '.join(map(_name, arguments))}")
        return kind(*arguments)

    return build


def _check_key(key: object) -> None:
    """Raises ``ValueError`` for a key whose hash may take long or exhaust the stack."""
    waiting, count = [key], 0
    while waiting:
        found = waiting.pop()
        count += 1
        if isinstance(found, tuple | frozenset):
            count += len(found)
            if count <= MAX_KEY_VALUES:
                waiting.extend(found)
        if count > MAX_KEY_VALUES:
            raise ValueError(f"a key of more than {MAX_KEY_VALUES} values")
        if isinstance(found, int) and found.bit_length() > MAX_KEY_BITS:
            raise ValueError(f"a key of {found.bit_length()} bits")


def _may_nest(array: np.ndarray) -> bool:
    """Whether an array holds objects, or waits for its state and may hold some later."""
    return array.dtype.hasobject or (array.dtype == np.int8 and array.shape == (0,))


def _size(value: object) -> int:
    """Bytes that a copy of a value takes, about."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    return 16 * len(value) if isinstance(value, list | tuple | dict | set | frozenset) else 16


def _parts(node: object) -> tuple[int, list[Any]]:
    """How many values a container holds, and those among them that are containers themselves."""
    values: Any
    if isinstance(node, dict):
        values = node.values()
    elif isinstance(node, np.ndarray):
        values = node.ravel().tolist() if node.dtype.hasobject else ()
    else:
        values = node
    return len(values), [v for v in values if isinstance(v, list | tuple | dict | set | frozenset | np.ndarray)]


def _check_tree(root: object) -> None:
    """Raises ``ValueError`` for more values or levels than are read, or something that stands inside of itself."""
    if not isinstance(root, list | tuple | dict | set | frozenset | np.ndarray):
        return
    measured: dict[int, tuple[int, int]] = {}  # values with all repetitions and levels, by identity
    begun: dict[int, tuple[int, list[Any]]] = {}
    waiting: list[Any] = [root]
    while waiting:
        node = waiting[-1]
        if id(node) in measured:
            waiting.pop()
            continue
        if id(node) not in begun:
            begun[id(node)] = _parts(node)
            inner = [part for part in begun[id(node)][1] if id(part) not in measured]
            if any(id(part) in begun for part in inner):
                raise ValueError("something stands inside of itself")
            if len(begun) > MAX_LEVELS:
                raise ValueError(f"nested deeper than {MAX_LEVELS} levels")
            waiting.extend(inner)
            continue
        waiting.pop()
        count, parts = begun.pop(id(node))
        values = 1 + count + sum(measured[id(part)][0] for part in parts)
        levels = 1 + max((measured[id(part)][1] for part in parts), default=0)
        if values > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values, repetitions included")
        if levels > MAX_LEVELS:
            raise ValueError(f"nested deeper than {MAX_LEVELS} levels")
        measured[id(node)] = values, levels


def _allowed() -> dict[tuple[str, str], Any]:
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): _ArrayClass,
        ("numpy", "dtype"): _dtype,
        ("_codecs", "encode"): _bytes_of,
        ("collections", "OrderedDict"): _plain(OrderedDict),
    }
    # numpy 1 and numpy 2 name the same functions by different modules. What is called is taken from what numpy itself
    # would write, so that none of its private modules is imported here.
    frombuffer = np.zeros(1).__reduce_ex__(5)[0]
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = _empty_array
        names[f"{core}.multiarray", "scalar"] = _scalar
        names[f"{core}.numeric", "_frombuffer"] = frombuffer
    containers = (dict, list, tuple, set, frozenset)
    constructors: dict[str, Callable[..., Any]] = {kind.__name__: _plain(kind) for kind in containers}
    constructors |= {kind.__name__: _bytes_like(kind) for kind in (bytes, bytearray)}
    for module in ("builtins", "__builtin__"):
        names |= {(module, name): constructor for name, constructor in constructors.items()}
        names[module, "complex"] = complex
    return names


ALLOWED = _allowed()
"""``(module, name)`` as the file writes it → what it gets."""


class _Bounded:
    """A stream that does not reserve memory for bytes its file does not have: a damaged length would claim gigabytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.readline = stream.readline
        start = stream.tell()
        self._end = self.size = stream.seek(0, 2)
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
        bounded = _Bounded(stream)
        super().__init__(bounded, encoding="latin1")
        self.path = path
        self._budget = COPIES * bounded.size + COPIED_AT_LEAST

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
        raise UserError(f"{self.path}: refused: the pickle asks for the outside object {_name(pid)}")

    def _spend(self, size: int) -> None:
        """Take the bytes of a copy from the budget."""
        self._budget -= size
        if self._budget < 0:
            raise UserError(f"{self.path}: refused: copies of what it holds come to more than {COPIES} times its size")

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
            checked, wrong = self._array_state(target, state), "an array whose content does not fill its shape"
        else:
            checked, wrong = None, f"the state of a {type(target).__name__}"
        if checked is None:
            raise UserError(f"{self.path}: refused: the pickle asks for {wrong}")
        target.__setstate__(checked)

    dispatch[pickle.BUILD[0]] = load_build

    def _array_state(self, target: np.ndarray, state: object) -> tuple[Any, ...] | None:
        """The state to give an array; its content is copied, and must hold no array of objects itself."""
        checked = _array_state(state)
        if checked is None or target.size:  # an array has one state: it could otherwise come to stand in itself
            return None
        content = checked[4]
        self._spend(_size(content))
        if isinstance(content, list) and any(isinstance(part, np.ndarray) and _may_nest(part) for part in content):
            return None  # freeing such arrays takes the interpreter's stack, level by level
        return checked

    def load_reduce(self) -> None:
        """A call of one of the allowed constructors, which copies its arguments."""
        arguments = self.stack[-1]  # type: ignore[attr-defined]
        self._spend(sum(map(_size, arguments)) if isinstance(arguments, tuple) else 0)
        super().load_reduce()  # type: ignore[misc]

    dispatch[pickle.REDUCE[0]] = load_reduce

    def _checked_keys(load: Callable[..., None], keys: Callable[[SafeUnpickler], Any]) -> Callable[[SafeUnpickler], None]:  # type: ignore[misc]
        """An operation of the unpickler after a check of the keys it hashes."""

        def step(self: SafeUnpickler) -> None:
            for key in keys(self):
                _check_key(key)
            load(self)

        return step

    _own = pickle._Unpickler
    dispatch[pickle.SETITEM[0]] = _checked_keys(_own.load_setitem, lambda self: self.stack[-2:-1])  # type: ignore[attr-defined]
    dispatch[pickle.SETITEMS[0]] = _checked_keys(_own.load_setitems, lambda self: self.stack[::2])  # type: ignore[attr-defined]
    dispatch[pickle.DICT[0]] = _checked_keys(_own.load_dict, lambda self: self.stack[::2])  # type: ignore[attr-defined]
    dispatch[pickle.ADDITEMS[0]] = _checked_keys(_own.load_additems, lambda self: self.stack)  # type: ignore[attr-defined]
    dispatch[pickle.FROZENSET[0]] = _checked_keys(_own.load_frozenset, lambda self: self.stack)  # type: ignore[attr-defined]


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
            found = unpickler.load()
            _check_tree(found)
            return found
        except UserError:
            raise
        except Exception as error:  # a damaged file fails in any of a dozen ways
            raise UserError(f"{path}: not a readable pickle: {type(error).__name__}: {error}") from None
