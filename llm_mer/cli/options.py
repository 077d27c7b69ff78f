"""Dataclasses as command lines: the field's name is the option, its metadata the help."""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from llm_mer.errors import UserError

T = TypeVar("T")


TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


def _boolean(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _plain(hint: Any) -> Any:
    """``X | None`` to ``X``."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [a for a in get_args(hint) if a is not type(None)]
        return inner[0]
    return hint


def add_options(parser: argparse.ArgumentParser, config: type) -> None:
    """One option for each field: ``--field_name`` and ``--field-name``; a list takes several values.

    A text field marked ``positional`` in its metadata may also be given by its place, in the order of the fields.
    """
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        hint = _plain(hints[field.name])
        flags = [f"--{field.name}"] + ([f"--{field.name.replace('_', '-')}"] if "_" in field.name else [])
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        text = str(field.metadata.get("help", "")).replace("%", "%%")
        shown = "" if default in (None, "", []) else f" (default: {default})"
        options: dict[str, Any] = {"help": text + shown, "default": default, "dest": field.name}
        if "choices" in field.metadata:
            options["choices"] = field.metadata["choices"]
        if hint is bool:
            parser.add_argument(*flags, type=_boolean, nargs="?", const=True, **options)
        elif get_origin(hint) is list:
            inner = get_args(hint)[0]
            parser.add_argument(*flags, nargs="*", type=inner, **options)
        else:
            parser.add_argument(*flags, type=hint, **options)
        if field.metadata.get("positional"):
            # Suppressed, or an absent place would overwrite what the option of the same name says.
            parser.add_argument(
                field.name, nargs="?", default=argparse.SUPPRESS, metavar=field.name.upper(), help=f"as --{field.name}"
            )


def parse(config: type[T], arguments: Sequence[str], program: str, description: str = "") -> T:
    """Build the dataclass from a command line; a field marked ``required`` in its metadata must be given.

    Raises:
        UserError: a required option is missing.
    """
    parser = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    add_options(parser, config)
    # Intermixed, so that options may stand between the places.
    values = vars(parser.parse_intermixed_args(list(arguments)))
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        if field.metadata.get("required") and values[field.name] in (None, "", []):
            raise UserError(f"--{field.name} is required: {field.metadata.get('help', '')}")
    return config(**values)
