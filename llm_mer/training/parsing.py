"""The command line of a training: a YAML file with overrides, typed and checked (jsonargparse)."""

from __future__ import annotations

import difflib
import math
import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from llm_mer.adapters import use_adapter
from llm_mer.errors import UserError
from llm_mer.resources.files import resolve_file
from llm_mer.storage.repeated_options import refuse_repeated_options
from llm_mer.storage.yaml_text import MAX_BYTES, parse_yaml
from llm_mer.training.declared_options import Option
from llm_mer.training.options import SECRETS, ModelArguments
from llm_mer.training.run_config import RunConfig, options_of_run

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def parse_arguments(argv: Sequence[str] | None = None) -> RunConfig:
    """YAML (``--config``) with command-line overrides, the chosen adapter's own options among them.

    Raises:
        UserError: naming the option, its value and what would be right.
    """
    import sys

    return RunConfig.build(parse_given(list(sys.argv[1:] if argv is None else argv)))


def parse_given(argv: Sequence[str]) -> dict[str, Any]:
    """The options that a command line and its YAML file name, by name.

    Raises:
        UserError: as :func:`parse_arguments`.
    """
    file, arguments = split_config(list(argv))
    written = {} if file is None else read_options(resolve_file(file))
    adapter = use_adapter(_peek(arguments, written, "adapter") or ModelArguments.adapter)
    return parse_options(options_of_run(adapter), written, arguments)


def parse_changes(adapter: str, texts: Mapping[str, str | Sequence[str]]) -> dict[str, Any]:
    """Options given as texts (a list of texts for a list), by the types that a run with this adapter declares.

    Raises:
        UserError: as :func:`parse_arguments`.
    """
    arguments: list[str] = []
    for name, value in texts.items():
        arguments += [f"--{name}", value] if isinstance(value, str) else [f"--{name}", *value]
    return parse_options(options_of_run(adapter), {}, arguments)


def split_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The file named with ``--config``, wherever it stands, and the rest, options written with underscores.

    Raises:
        UserError: ``--config`` without a file, or twice.
    """
    files: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, separator, value = word.partition("=")
        if word.startswith("--"):
            word = name.replace("-", "_").replace("__", "--", 1) + separator + value
        if name != "--config":
            rest.append(word)
            continue
        file = value if separator else next(words, "")
        if not file:
            raise UserError("--config: name a YAML file")
        files.append(file)
    if len(files) > 1:
        raise UserError(f"--config: {' and '.join(files)}; name one YAML file, and override it with options")
    return (files[0] if files else None), rest


def parse_options(options: Sequence[Option], written: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The values that were given, by name: those of the YAML file, ``written``, under those of the command line.

    Raises:
        UserError: an option that is not known (abbreviations are not) or given twice with different values, a value of
            another type, NaN or infinity.
    """
    known = {option.name: option for option in options}
    for name in SECRETS:
        if name in written or any(word.partition("=")[0] == f"--{name}" for word in arguments):
            raise UserError(
                f"{name}: a token on a command line or in a file is seen by others; set it in the environment: "
                "export HF_TOKEN=…"
            )
    lists = [option.name for option in options if option.item is not None]
    refuse_repeated_options(arguments, lists, [option.name for option in options if option.kinds == (bool,)])
    unknown = [f"--{name}" for name in written if name not in known]
    if unknown:
        raise UserError(f"Unknown arguments from config file: {unknown}{suggest(unknown[0], known)}")
    parser = build_parser(options)
    content = {name: _from_yaml(known[name], value) for name, value in written.items()}
    values: dict[str, Any] = {}
    for name, value in content.items():  # one at a time: the message names the value as it stands in the file
        try:
            values |= vars(parser.parse_object({name: value}, defaults=False))
        except ArgumentError as error:
            raise UserError(explain(error, known, value)) from None
    try:
        values |= vars(parser.parse_args(list(arguments), defaults=False))
    except ArgumentError as error:
        raise UserError(explain(error, known)) from None
    for name, value in values.items():
        if any(
            isinstance(entry, float) and not math.isfinite(entry)
            for entry in (value if isinstance(value, list) else [value])
        ):
            raise UserError(f"{name}: {value!r}; it must be finite")
    return values


def build_parser(options: Iterable[Option]) -> ArgumentParser:
    """A parser with a flat name for each option, no abbreviations, and errors as exceptions."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    for option in options:
        if option.item is not None:
            parser.add_argument(f"--{option.name}", type=option.item, nargs="+", default=option.default)
        elif option.kinds == (bool,):
            parser.add_argument(f"--{option.name}", type=option.hint, nargs="?", const=True, default=option.default)
        else:
            parser.add_argument(f"--{option.name}", type=option.hint, default=option.default)
    return parser


def explain(error: ArgumentError, known: Mapping[str, Option], written: Any = None) -> str:
    """An error of the parser as one line: the option, the value that was given, and what would be right."""
    message = " ".join(str(error).split())
    if found := re.match(r"unrecognized arguments: (.*)", message):
        words = found[1].split()
        name = next((word.partition("=")[0] for word in words if word.startswith("--")), words[0])
        return f"unknown option {name}{suggest(name, known)}"
    place = re.match(r'Parser key "([^"]+)"', message)
    if place is None or place[1] not in known:
        return message.removeprefix("argument ")
    option = known[place[1]]
    given = re.search(r"(?:Got value|Given value): (.*)$", message)
    value: Any = given[1] if given and not isinstance(written, (list, dict, bool, int, float)) else written
    kind = option.item if option.item is not None else option.kinds[0]
    if not isinstance(value, str):
        return f"{option.name}: {value!r} is not {WORDS.get(kind, 'such a value')}"
    if kind is bool:
        return f"--{option.name}: got {value} but expected true or false"
    if kind in WORDS:
        return f"--{option.name}: invalid {kind.__name__} value: {value!r}; it must be {WORDS[kind]}"
    return f"--{option.name}: {value!r} is not {option.hint}"


def suggest(name: str, known: Iterable[str]) -> str:
    """``; did you mean --seed?`` where an option of a like name is known."""
    close = difflib.get_close_matches(name.lstrip("-"), list(known), n=1)
    return f"; did you mean --{close[0]}?" if close else ""


def _from_yaml(option: Option, value: Any) -> Any:
    """A value as YAML wrote it, with what YAML makes of an unquoted no put right and one entry taken for a list of one."""
    if value is False and option.name.endswith("_strategy"):
        return "no"
    if value is None and not option.optional:
        raise UserError(f"{option.name}: None is not {WORDS.get(option.kinds[0], 'such a value')}")
    if option.item is None or value is None or isinstance(value, list):
        return value
    if isinstance(value, dict):
        raise UserError(f"{option.name}: {value!r}; it must be a list of {'texts' if option.item is str else 'numbers'}")
    return [value]


def read_options(file: str) -> dict[str, Any]:
    """The options of a YAML file.

    Raises:
        UserError: naming a file that is not there, too large, not text, not YAML in bounds
            (:mod:`~llm_mer.storage.yaml_text`), or not a mapping.
    """
    path = Path(file)
    if path.is_dir():
        raise UserError(f"--config: {file!r} is a folder; name a YAML file")
    if not path.is_file():
        raise UserError(f"--config: no such file {file!r}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise UserError(f"--config: {file}: {size} bytes; at most {MAX_BYTES} are read")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), f"--config: {file}")
    except UnicodeDecodeError:
        raise UserError(f"--config: {file} is not a text file") from None
    if not isinstance(content, dict):
        raise UserError(f"--config: {file}: it must be a mapping of options to values")
    unnamed = [name for name in content if not isinstance(name, str)]
    if unnamed:
        raise UserError(f"--config: {file}: {unnamed[0]!r} is no name of an option")
    return content


def _peek(arguments: list[str], written: dict[str, Any], name: str) -> str | None:
    """An option's value before parsing: the command line's, else the YAML file's, ``written``."""
    value = None if written.get(name) is None else str(written[name])
    for i, argument in enumerate(arguments):
        if argument == f"--{name}" and i + 1 < len(arguments):
            value = arguments[i + 1]
        elif argument.startswith(f"--{name}="):
            value = argument.partition("=")[2]
    return value
