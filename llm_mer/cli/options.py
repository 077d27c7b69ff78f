"""Command-line parsers from dataclasses: field names are the options, metadata the help."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import types
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from llm_mer.errors import UserError
from llm_mer.storage.repeated_options import given_options, refuse_repeated_options

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line without the usage, and exit with 2."""

    def error(self, message: str) -> NoReturn:
        """Print ``PROGRAM: MESSAGE`` on standard error and exit with 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean x?`` for the most similar known word, or nothing if none is similar."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def _boolean(text: str) -> bool:
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _unwrap_optional(hint: Any) -> Any:
    """``X | None`` to ``X``."""
    if get_origin(hint) in (Union, types.UnionType):
        inner = [a for a in get_args(hint) if a is not type(None)]
        return inner[0]
    return hint


def add_options(parser: argparse.ArgumentParser, config: type) -> None:
    """One option for each field: ``--field_name`` and ``--field-name``; a list takes several values.

    A text field marked ``positional`` in its metadata may also be given as a positional argument, in field order.
    """
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        hint = _unwrap_optional(hints[field.name])
        flags = [f"--{field.name}"] + ([f"--{field.name.replace('_', '-')}"] if "_" in field.name else [])
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        text = str(field.metadata.get("help", "")).replace("%", "%%")
        default_note = "" if default in (None, "", []) else f" (default: {default})"
        options: dict[str, Any] = {"help": text + default_note, "default": default, "dest": field.name}
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
            # Suppressed, or an absent argument would overwrite the option of the same name.
            parser.add_argument(
                field.name, nargs="?", default=argparse.SUPPRESS, metavar=field.name.upper(), help=f"as --{field.name}"
            )


def build_parser(config: type, program: str, description: str = "", examples: Sequence[str] = ()) -> OneLineParser:
    """Build the parser of a dataclass; its help ends with the examples."""
    default_note = "\n".join(["examples:" if len(examples) > 1 else "example:", *(f"  {line}" for line in examples)])
    parser = OneLineParser(
        prog=program,
        description=description,
        epilog=default_note if examples else None,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, config)
    return parser


def check_given_once(config: type, arguments: Sequence[str]) -> None:
    """Raises :class:`UserError` for an option that is given twice with different values."""
    hints = {name: _unwrap_optional(hint) for name, hint in get_type_hints(config).items()}
    lists = [name for name, hint in hints.items() if get_origin(hint) is list]
    refuse_repeated_options(arguments, lists, [name for name, hint in hints.items() if hint is bool])


def parse(config: type[T], arguments: Sequence[str], program: str, description: str = "", examples: Sequence[str] = ()) -> T:
    """Build the dataclass from a command line; a field marked ``required`` in its metadata must be given.

    Raises:
        UserError: a required option is missing, or one is given twice with different values.
        SystemExit: 2 with one line on standard error for an unknown option or value; 0 after ``--help``.
    """
    parser = build_parser(config, program, description, examples)
    check_given_once(config, arguments)
    # Intermixed, so that options may appear between positional arguments.
    namespace, unknown = parser.parse_known_intermixed_args(list(arguments))
    if unknown:
        known = [flag for action in parser._actions for flag in action.option_strings]
        option = next((word.partition("=")[0] for word in unknown if word.startswith("--")), None)
        if option is None:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        parser.error(f"unknown option {option}{suggestion(option, known)}")
    values = vars(namespace)
    for field in dataclasses.fields(config):
        named = given_options(arguments, (), ()).get(field.name) if field.metadata.get("positional") else None
        if named and named[-1] != (values[field.name],):
            raise UserError(
                f"--{field.name}: {' '.join(named[-1])} and, without the option's name, {values[field.name]}; name one"
            )
        if field.metadata.get("required") and values[field.name] in (None, "", []):
            raise UserError(f"--{field.name} is required: {field.metadata.get('help', '')}")
    return config(**values)
