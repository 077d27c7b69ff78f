"""Unpickling untrusted data without running code from the file.

A pickle is a program: ``GLOBAL os.system`` followed by a call is as valid as a list of arrays. Only a list of allowed names
is accepted, matched exactly and in full, never by prefix; each maps to a constructor of plain data. Anything else is refused
by name.

Checking names alone is not enough, because numpy trusts the states of its own objects. A dtype's state can declare bytes to
be objects, so that bytes of the file become pointers; an array's state can claim more objects than it contains. Therefore
only dtypes and arrays get a state, which is checked and rebuilt: a dtype's state must be the one its name implies, and an
array's content must fill its shape.

Size is limited too. A file of a few bytes can refer to one object again and again, so that copying it, traversing it or
hashing a key never ends, and deeply nested objects crash the interpreter. Copies have a budget proportional to the file
size, keys are short, and values and levels are counted with all repetitions.
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
"""A scalar type and its size: no fields, no sub-arrays, and no dates, whose state numpy trusts."""

CHUNK_BYTES = 1 << 20
"""Bytes of a byte array that are read at a time."""
COPY_FACTOR, COPY_ALLOWANCE_BYTES = 4, 64 << 20
"""Budget for copied bytes: this multiple of the file's size, plus a fixed allowance."""
MAX_KEY_VALUES = 1_000
"""Values of a tuple that is a key or a member of a set, nested ones included."""
MAX_KEY_BITS = 1_024
"""Of an integer that is a key: its hash is not cached, but computed each time."""
MAX_LEVELS = 100
MAX_VALUES = 50_000_000
"""Values of a file, counted with repetitions; an array of numbers counts as one."""

_NUMPY_SCALAR: Callable[..., Any] = np.float64(1.0).__reduce__()[0]  # type: ignore[assignment]


class _ArrayClass:
    """Placeholder for ``numpy.ndarray``, which a file may pass as an argument but not call."""


def _empty_array(kind: object, shape: object, typecode: object) -> np.ndarray:
    # As in numpy before the state is set, whatever shape and type the file names here.
    if kind is not _ArrayClass:
        raise ValueError("an array of another class than numpy.ndarray")
    return np.empty(0, dtype=np.int8)


def _describe(value: object) -> str:
    """Describe a value in a message; the text of a container could be endless."""
    return quote(value) if isinstance(value, str | bytes) else f"a {type(value).__name__}"


def _dtype(name: object, align: object = False, copy: object = False) -> np.dtype:
    text = name.decode("ascii") if isinstance(name, bytes) else name
    if not isinstance(text, str) or PLAIN_DTYPE.fullmatch(text) is None:
        raise ValueError(f"the dtype {_describe(name)}")
    # Always a copy: otherwise the state that follows would modify numpy's shared instance.
    return np.dtype(text, False, True)


def _encode_latin1(text: object, encoding: object = "latin1") -> bytes:
    # Python 2 protocols store bytes as Latin-1 text; other codecs would be imported by name.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"the codec {_describe(encoding)}")
    return text.encode("latin1")


def _scalar(dtype: object, content: object) -> Any:
    data = content.encode("latin1") if isinstance(content, str) else content
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise ValueError("a scalar whose content is not of its dtype")
    return _NUMPY_SCALAR(dtype, data)


def _dtype_state(dtype: np.dtype, state: object) -> tuple[Any, ...] | None:
    """The state implied by the dtype's name, in the file's byte order; None if the file's state differs."""
    implied = np.dtype(dtype.str).__reduce__()[2]
    if not isinstance(state, tuple) or len(state) != len(implied) or state[0] != implied[0] or state[2:] != implied[2:]:
        return None
    if state[1] != implied[1] and (state[1] not in ("<", ">") or implied[1] not in ("<", ">")):
        return None
    return (implied[0], state[1], *implied[2:])


def _array_state(state: object) -> tuple[Any, ...] | None:
    """The state (version, shape, dtype, order, content) if its content fills its shape, else None."""
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, dtype, fortran, content = state
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        return None
    if not isinstance(dtype, np.dtype):
        return None
    items = math.prod(shape)
    complete = type(content) is list and len(content) == items
    if not dtype.hasobject:
        complete = type(content) in (bytes, str) and len(content) == items * dtype.itemsize
    return (1, shape, dtype, bool(fortran), content) if complete else None


def _container_constructor(kind: type) -> Callable[..., Any]:
    """A constructor that copies one container; it neither allocates by a given size nor consumes an iterator."""

    def build(*arguments: object) -> Any:
        if len(arguments) > 1 or not all(type(a) in (list, tuple, set, frozenset, dict, OrderedDict) for a in arguments):
            raise ValueError(f"{kind.__name__} of {', '.join(map(_describe, arguments))}")
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


def _bytes_constructor(kind: type) -> Callable[..., Any]:
    """``bytes`` or ``bytearray`` of other bytes, or of a text with its codec; an integer would allocate that many bytes."""

    def build(*arguments: object) -> Any:
        if len(arguments) == 2:
            return kind(_encode_latin1(*arguments))
        if len(arguments) > 1 or not all(isinstance(argument, bytes | bytearray | list) for argument in arguments):
            raise ValueError(f"{kind.__name__} of {', '.join(map(_describe, arguments))}")
        return kind(*arguments)

    return build


def _check_key(key: object) -> None:
    """Raises ``ValueError`` for a key whose hash may be slow or exhaust the stack."""
    stack, count = [key], 0
    while stack:
        item = stack.pop()
        count += 1
        if isinstance(item, tuple | frozenset):
            count += len(item)
            if count <= MAX_KEY_VALUES:
                stack.extend(item)
        if count > MAX_KEY_VALUES:
            raise ValueError(f"a key of more than {MAX_KEY_VALUES} values")
        if isinstance(item, int) and item.bit_length() > MAX_KEY_BITS:
            raise ValueError(f"a key of {item.bit_length()} bits")


def _may_hold_objects(array: np.ndarray) -> bool:
    """Whether an array holds objects, or may hold some once its state is set."""
    return array.dtype.hasobject or (array.dtype == np.int8 and array.shape == (0,))


def _copied_bytes(value: object) -> int:
    """Approximate bytes that a copy of a value takes."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, str | bytes | bytearray):
        return len(value)
    return 16 * len(value) if isinstance(value, list | tuple | dict | set | frozenset) else 16


def _nested_containers(node: object) -> tuple[int, list[Any]]:
    """The number of values in a container, and those among them that are containers themselves."""
    values: Any
    if isinstance(node, dict):
        values = node.values()
    elif isinstance(node, np.ndarray):
        values = node.ravel().tolist() if node.dtype.hasobject else ()
    else:
        values = node
    return len(values), [v for v in values if isinstance(v, list | tuple | dict | set | frozenset | np.ndarray)]


def _check_tree(root: object) -> None:
    """Raises ``ValueError`` for too many values or levels, or an object that contains itself."""
    if not isinstance(root, list | tuple | dict | set | frozenset | np.ndarray):
        return
    measured: dict[int, tuple[int, int]] = {}  # values with all repetitions and levels, by identity
    unfinished: dict[int, tuple[int, list[Any]]] = {}
    stack: list[Any] = [root]
    while stack:
        node = stack[-1]
        if id(node) in measured:
            stack.pop()
            continue
        if id(node) not in unfinished:
            unfinished[id(node)] = _nested_containers(node)
            inner = [part for part in unfinished[id(node)][1] if id(part) not in measured]
            if any(id(part) in unfinished for part in inner):
                raise ValueError("an object contains itself")
            if len(unfinished) > MAX_LEVELS:
                raise ValueError(f"nested deeper than {MAX_LEVELS} levels")
            stack.extend(inner)
            continue
        stack.pop()
        count, parts = unfinished.pop(id(node))
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
        ("_codecs", "encode"): _encode_latin1,
        ("collections", "OrderedDict"): _container_constructor(OrderedDict),
    }
    # numpy 1 and numpy 2 name the same functions by different modules. The functions are taken from what numpy itself
    # would pickle, so that none of its private modules is imported here.
    frombuffer = np.zeros(1).__reduce_ex__(5)[0]
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = _empty_array
        names[f"{core}.multiarray", "scalar"] = _scalar
        names[f"{core}.numeric", "_frombuffer"] = frombuffer
    containers = (dict, list, tuple, set, frozenset)
    constructors: dict[str, Callable[..., Any]] = {kind.__name__: _container_constructor(kind) for kind in containers}
    constructors |= {kind.__name__: _bytes_constructor(kind) for kind in (bytes, bytearray)}
    for module in ("builtins", "__builtin__"):
        names |= {(module, name): constructor for name, constructor in constructors.items()}
        names[module, "complex"] = complex
    return names


ALLOWED = _allowed()
"""``(module, name)`` in the file → the object used for it."""


class _BoundedStream:
    """A stream that does not allocate memory for bytes beyond its end: a damaged length could claim gigabytes."""

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

    Based on Python's pure-Python unpickler, whose steps can be overridden one by one. Large arrays are read from the stream
    at once either way.
    """

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, stream: BinaryIO, path: Path | str) -> None:
        # numpy needs Latin-1 for arrays written by Python 2; Python 3 files do not use it.
        stream_with_end = _BoundedStream(stream)
        super().__init__(stream_with_end, encoding="latin1")
        self.path = path
        self._budget = COPY_FACTOR * stream_with_end.size + COPY_ALLOWANCE_BYTES

    def find_class(self, module: str, name: str) -> Any:
        """Resolve an allowed name; the only place where names are resolved."""
        if (module, name) not in ALLOWED:
            raise UserError(
                f"{self.path}: refused: the pickle asks for {module}.{name}; "
                "only numpy arrays, dtypes, scalars and plain containers are read"
            )
        return ALLOWED[module, name]

    def get_extension(self, code: int) -> None:
        """Extension codes refer to a table of this process, whose cache would bypass :meth:`find_class`."""
        raise UserError(f"{self.path}: refused: the pickle asks for extension code {code}")

    def persistent_load(self, pid: Any) -> Any:
        """Refuse objects stored outside the file."""
        raise UserError(f"{self.path}: refused: the pickle asks for the external object {_describe(pid)}")

    def _spend(self, size: int) -> None:
        """Subtract the bytes of a copy from the budget."""
        self._budget -= size
        if self._budget < 0:
            raise UserError(f"{self.path}: refused: copies of what it holds come to more than {COPY_FACTOR} times its size")

    def load_bytearray8(self) -> None:
        """Read a byte array in chunks, so that a wrong length does not allocate memory."""
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        content = bytearray()
        while len(content) < size:
            chunk = self.read(min(CHUNK_BYTES, size - len(content)))  # type: ignore[attr-defined]
            if not chunk:
                raise EOFError(f"{size} bytes announced, {len(content)} there")
            content += chunk
        self.append(content)  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def load_build(self) -> None:
        """Set an object's state: only for arrays and dtypes, and for a dtype only the state its name implies."""
        state = self.stack.pop()  # type: ignore[attr-defined]
        target = self.stack[-1]  # type: ignore[attr-defined]
        if isinstance(target, np.dtype):
            checked, reason = _dtype_state(target, state), f"a dtype with fields or other flags than {target}"
        elif isinstance(target, np.ndarray):
            checked, reason = self._array_state(target, state), "an array whose content does not fill its shape"
        else:
            checked, reason = None, f"the state of a {type(target).__name__}"
        if checked is None:
            raise UserError(f"{self.path}: refused: the pickle asks for {reason}")
        target.__setstate__(checked)

    dispatch[pickle.BUILD[0]] = load_build

    def _array_state(self, target: np.ndarray, state: object) -> tuple[Any, ...] | None:
        """The checked state of an array; its content is copied, and must not contain arrays of objects."""
        checked = _array_state(state)
        if checked is None or target.size:  # an array gets its state once: it could otherwise contain itself
            return None
        content = checked[4]
        self._spend(_copied_bytes(content))
        if isinstance(content, list) and any(isinstance(part, np.ndarray) and _may_hold_objects(part) for part in content):
            return None  # freeing such arrays recurses on the interpreter's stack
        return checked

    def load_reduce(self) -> None:
        """Call one of the allowed constructors, which copies its arguments."""
        arguments = self.stack[-1]  # type: ignore[attr-defined]
        self._spend(sum(map(_copied_bytes, arguments)) if isinstance(arguments, tuple) else 0)
        super().load_reduce()  # type: ignore[misc]

    dispatch[pickle.REDUCE[0]] = load_reduce

    def _checked_keys(load: Callable[..., None], keys: Callable[[SafeUnpickler], Any]) -> Callable[[SafeUnpickler], None]:  # type: ignore[misc]
        """An unpickler operation that first checks the keys it hashes."""

        def step(self: SafeUnpickler) -> None:
            for key in keys(self):
                _check_key(key)
            load(self)

        return step

    _base = pickle._Unpickler
    dispatch[pickle.SETITEM[0]] = _checked_keys(_base.load_setitem, lambda self: self.stack[-2:-1])  # type: ignore[attr-defined]
    dispatch[pickle.SETITEMS[0]] = _checked_keys(_base.load_setitems, lambda self: self.stack[::2])  # type: ignore[attr-defined]
    dispatch[pickle.DICT[0]] = _checked_keys(_base.load_dict, lambda self: self.stack[::2])  # type: ignore[attr-defined]
    dispatch[pickle.ADDITEMS[0]] = _checked_keys(_base.load_additems, lambda self: self.stack)  # type: ignore[attr-defined]
    dispatch[pickle.FROZENSET[0]] = _checked_keys(_base.load_frozenset, lambda self: self.stack)  # type: ignore[attr-defined]


def load_pickle(path: Path | str) -> Any:
    """Load a pickle file, reading from the open file without a second copy of its bytes.

    Raises:
        UserError: no such file; not a pickle, or a damaged one; or a name that is not allowed, which is reported.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as stream:
        unpickler = SafeUnpickler(stream, path)
        try:
            value = unpickler.load()
            _check_tree(value)
            return value
        except UserError:
            raise
        except Exception as error:  # a damaged file can fail in many ways
            raise UserError(f"{path}: not a readable pickle: {type(error).__name__}: {error}") from None
