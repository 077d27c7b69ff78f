"""The command line of a training: a YAML file with overrides, typed and checked (jsonargparse)."""

from __future__ import annotations

import dataclasses
import difflib
import re
from argparse import ArgumentError
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from llm_mer.adapters import use_adapter
from llm_mer.errors import UserError
from llm_mer.resources.files import resolve_file
from llm_mer.training.arguments import MerTrainingArguments
from llm_mer.training.options import DataArguments, ModelArguments, adapter_arguments

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
NOT_ON_A_COMMAND_LINE = ("parallelism_config",)
"""Options whose value is an object that neither a command line nor a YAML file can hold."""


@dataclass(frozen=True)
class Option:
    """One option of the command line and of the YAML file, as its dataclass declares it.

    Attributes:
        hint: its type. choices: the values it may have, where they are a closed set.
    """

    name: str
    hint: Any
    default: Any
    help: str
    choices: tuple[Any, ...] | None = None

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types it may have, None left out."""
        alternatives = get_args(self.hint) if get_origin(self.hint) in (Union, UnionType) else (self.hint,)
        return tuple(kind for kind in alternatives if kind is not type(None))

    @property
    def optional(self) -> bool:
        """Whether it may be None."""
        return self.hint is not type(None) and type(None) in get_args(self.hint)

    @property
    def item(self) -> Any:
        """The type of one entry of a list, None where the option is no list."""
        (kind, *others) = self.kinds
        return get_args(kind)[0] if not others and get_origin(kind) is list else None


def options_of(group: type) -> list[Option]:
    """The options that a dataclass declares; what is derived from the data is none."""
    hints = get_type_hints(group)
    found = []
    for entry in dataclasses.fields(group):
        if entry.metadata.get("derived") or entry.name in NOT_ON_A_COMMAND_LINE:
            continue
        default = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else entry.default
        choices = entry.metadata.get("choices")
        hint = hints[entry.name]
        if entry.name == "resume_from_checkpoint":
            hint = bool | str | None  # true is the last whole checkpoint, a text is a folder
        help_text = " ".join(str(entry.metadata.get("help", "")).split())
        found.append(Option(entry.name, hint, default, help_text, None if choices is None else tuple(choices)))
    return found


def parse_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[DataArguments, ModelArguments, MerTrainingArguments, dict[str, Any]]:
    """YAML (``--config``) with command-line overrides, the chosen adapter's own options among them.

    Raises:
        UserError: naming the option, its value and what would be right.
    """
    import sys

    file, arguments = split_config(list(sys.argv[1:] if argv is None else argv))
    written = {} if file is None else read_options(resolve_file(file))
    adapter = use_adapter(_peek(arguments, written, "adapter") or ModelArguments.adapter)
    types = (DataArguments, ModelArguments, MerTrainingArguments, adapter_arguments(adapter))
    groups = [options_of(group) for group in types]
    given = parse_options([option for group in groups for option in group], written, arguments)
    built: list[Any] = []
    for group, options in zip(types, groups, strict=True):
        try:
            built.append(group(**{option.name: given[option.name] for option in options if option.name in given}))
        except ValueError as error:
            raise UserError(" ".join(str(error).split())) from error
    data, model, training, adapter_options = built
    check_choices(data, model, training, adapter_options)
    return data, model, training, dataclasses.asdict(adapter_options)


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
        UserError: an option that is not known (abbreviations are not), or a value of another type.
    """
    known = {option.name: option for option in options}
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
    told = " ".join(str(error).split())
    if found := re.match(r"unrecognized arguments: (.*)", told):
        words = found[1].split()
        name = next((word.partition("=")[0] for word in words if word.startswith("--")), words[0])
        return f"unknown option {name}{suggest(name, known)}"
    place = re.match(r'Parser key "([^"]+)"', told)
    if place is None or place[1] not in known:
        return told.removeprefix("argument ")
    option = known[place[1]]
    given = re.search(r"(?:Got value|Given value): (.*)$", told)
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


def check_choices(*groups: Any) -> None:
    """Options with a closed set of values.

    Raises:
        UserError: naming the option, its value and the choices.
    """
    for group in groups:
        for entry in dataclasses.fields(group):
            value, choices = getattr(group, entry.name), entry.metadata.get("choices")
            unset = value is None and entry.default is None
            if choices is not None and value not in choices and not unset:
                raise UserError(f"{entry.name}: {value!r} is not one of {', '.join(map(str, choices))}")


def read_options(file: str) -> dict[str, Any]:
    """The options of a YAML file.

    Raises:
        UserError: naming a file that is not there, not text, not YAML, or not a mapping.
    """
    import yaml

    path = Path(file)
    if path.is_dir():
        raise UserError(f"--config: {file!r} is a folder; name a YAML file")
    if not path.is_file():
        raise UserError(f"--config: no such file {file!r}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"--config: {file} is not a text file") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config: {file}: not YAML: {' '.join(str(error).split())}") from None
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
