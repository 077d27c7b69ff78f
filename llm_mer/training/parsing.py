"""The command line of a training: a YAML file with overrides, typed and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from trl import TrlParser

from llm_mer.errors import UserError
from llm_mer.resources.files import resolve_file
from llm_mer.training.arguments import MerTrainingArguments
from llm_mer.training.options import DataArguments, ModelArguments, adapter_arguments


def parse_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[DataArguments, ModelArguments, MerTrainingArguments, dict[str, Any]]:
    """YAML (``--config``) with command-line overrides, the chosen adapter's own options among them."""
    import sys

    arguments = list(sys.argv[1:] if argv is None else argv)
    arguments = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
    written: dict[str, Any] = {}
    if "--config" in arguments:
        place = arguments.index("--config")
        if place + 1 == len(arguments):
            raise UserError("--config: name a YAML file")
        arguments[place + 1] = resolve_file(arguments[place + 1])
        written = read_options(arguments[place + 1])
    adapter = _peek(arguments, written, "adapter") or ModelArguments.adapter
    types: list[Any] = [DataArguments, ModelArguments, MerTrainingArguments, adapter_arguments(adapter)]
    check_types(written, types)
    parser = _Parser(types)
    try:
        data, model, training, options = parser.parse_args_and_config(arguments)
    except ValueError as error:
        raise UserError(str(error)) from error
    if model.adapter != adapter:
        raise UserError(f"adapter: {model.adapter!r} and {adapter!r} were both named")
    check_choices(data, model, training, options)
    return data, model, training, dataclasses.asdict(options)


class _Parser(TrlParser):
    """TRL's parser, a mistake being an error of ours in place of the list of all options."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def check_types(written: dict[str, Any], types: Sequence[type]) -> None:
    """Values of the YAML file by their options' types; a text is left to the command line's parser, which converts it.

    Raises:
        UserError: naming the option, its value and what would be right.
    """
    for group in types:
        for name, hint in get_type_hints(group).items():
            alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            kinds = [kind for kind in alternatives if kind is not type(None)]
            value = written.get(name)
            unquoted_no = value is False and name.endswith("_strategy")
            if len(kinds) != 1 or kinds[0] not in WORDS or name not in written or isinstance(value, str) or unquoted_no:
                continue
            if value is None and type(None) in alternatives:
                continue
            right = (int, float) if kinds[0] is float else (kinds[0],)
            if not isinstance(value, right) or (isinstance(value, bool) and kinds[0] is not bool):
                raise UserError(f"{name}: {value!r} is not {WORDS[kinds[0]]}")


def check_choices(*groups: Any) -> None:
    """Options with a closed set of values, wherever they came from (argparse checks the command line, not the YAML file).

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
