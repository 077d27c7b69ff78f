"""Bounded YAML parsing: no tags, no exponential aliases, no duplicate keys.

``yaml.safe_load`` constructs plain values only, but keeps the last of two values under one key, and ten lines of nested
aliases expand to billions of values as soon as something iterates over them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llm_mer.errors import UserError
from llm_mer.storage.quoting import quote

MAX_BYTES = 4 << 20
MAX_VALUES = 100_000
"""Values of a document, counted with every alias expanded."""
MAX_LEVELS = 50


def _check_keys(node: MappingNode) -> None:
    """Raises :class:`UserError` for a duplicate key; merge keys (``<<``) do not count."""
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if (key.tag, key.value) in seen:
                raise UserError(f"line {key.start_mark.line + 1}: key {quote(key.value)} occurs twice")
            seen.add((key.tag, key.value))


def _check_tree(root: Node) -> None:
    """Check the keys of every mapping, and the number of values and levels with every alias expanded.

    Raises:
        UserError: a duplicate key, more values or levels than allowed, or an alias inside the node it refers to.
    """
    measured: dict[int, tuple[int, int]] = {}
    in_progress: set[int] = set()

    def measure(node: Node) -> tuple[int, int]:
        if id(node) in in_progress:
            raise UserError(f"line {node.start_mark.line + 1}: an alias refers to a node that contains it")
        if id(node) not in measured:
            in_progress.add(id(node))
            children: list[Node] = []
            if isinstance(node, SequenceNode):
                children = list(node.value)
            elif isinstance(node, MappingNode):
                _check_keys(node)
                children = [part for pair in node.value for part in pair]
            parts = [measure(child) for child in children]
            values, levels = 1 + sum(v for v, _ in parts), 1 + max((d for _, d in parts), default=0)
            if values > MAX_VALUES:
                raise UserError(f"line {node.start_mark.line + 1}: aliases expand it to more than {MAX_VALUES} values")
            if levels > MAX_LEVELS:
                raise UserError(f"line {node.start_mark.line + 1}: nested deeper than {MAX_LEVELS} levels")
            in_progress.discard(id(node))
            measured[id(node)] = values, levels
        return measured[id(node)]

    measure(root)


def parse_yaml(text: str, where: str) -> Any:
    """Parse a YAML text into plain values; None for an empty one.

    Raises:
        UserError: naming ``where`` for text that is not YAML, has tags or a duplicate key, or exceeds the bounds.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"{where}: {len(text)} characters; at most {MAX_BYTES} are read")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_tree(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply to be read") from None
    except (ValueError, OverflowError) as error:  # an impossible date, an integer with too many digits
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())[:200]}") from None


def read_yaml(path: Path, where: str | None = None) -> Any:
    """Parse a YAML file. Raises :class:`UserError` as :func:`parse_yaml`, and for a file that is not UTF-8."""
    where = str(path) if where is None else where
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{where}: {path.stat().st_size} bytes; at most {MAX_BYTES} are read")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), where)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text: {error}") from None
