"""YAML of other people's making, in bounds: no tags, no aliases that multiply, no key twice.

``yaml.safe_load`` constructs plain values only, but keeps the last of two values under one key, and ten lines of aliases to
aliases stand for billions of values as soon as something walks over them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llm_mer.errors import UserError
from llm_mer.storage.quoting import quote

MOST_BYTES = 4 << 20
MOST_VALUES = 100_000
"""Values of a document, each counted as often as aliases repeat it."""
MOST_LEVELS = 50


def _check_keys(node: MappingNode) -> None:
    """Raises :class:`UserError` for a key given twice; a merge (``<<``) is none."""
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if (key.tag, key.value) in seen:
                raise UserError(f"line {key.start_mark.line + 1}: key {quote(key.value)} stands there twice")
            seen.add((key.tag, key.value))


def _check(root: Node) -> None:
    """Keys of every mapping, and how many values and levels there are with every alias followed.

    Raises:
        UserError: a key given twice, more than the bounds, or an alias inside of what it repeats.
    """
    measured: dict[int, tuple[int, int]] = {}
    unfinished: set[int] = set()

    def measure(node: Node) -> tuple[int, int]:
        if id(node) in unfinished:
            raise UserError(f"line {node.start_mark.line + 1}: an alias stands inside of what it repeats")
        if id(node) not in measured:
            unfinished.add(id(node))
            children: list[Node] = []
            if isinstance(node, SequenceNode):
                children = list(node.value)
            elif isinstance(node, MappingNode):
                _check_keys(node)
                children = [part for pair in node.value for part in pair]
            parts = [measure(child) for child in children]
            values, levels = 1 + sum(v for v, _ in parts), 1 + max((d for _, d in parts), default=0)
            if values > MOST_VALUES:
                raise UserError(f"line {node.start_mark.line + 1}: aliases make more than {MOST_VALUES} values of it")
            if levels > MOST_LEVELS:
                raise UserError(f"line {node.start_mark.line + 1}: nested deeper than {MOST_LEVELS} levels")
            unfinished.discard(id(node))
            measured[id(node)] = values, levels
        return measured[id(node)]

    measure(root)


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text holds, as plain values; None for an empty one.

    Raises:
        UserError: naming ``where`` for text that is not YAML, has tags or a key twice, or goes beyond the bounds.
    """
    if len(text) > MOST_BYTES:
        raise UserError(f"{where}: {len(text)} characters; at most {MOST_BYTES} are read")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply to be read") from None
    except (ValueError, OverflowError) as error:  # a date that does not exist, an integer of too many digits
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())[:200]}") from None


def read_yaml(path: Path, where: str | None = None) -> Any:
    """What a YAML file holds. Raises :class:`UserError` as :func:`parse_yaml`, and for a file that is not UTF-8."""
    where = str(path) if where is None else where
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{where}: {path.stat().st_size} bytes; at most {MOST_BYTES} are read")
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), where)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text: {error}") from None
