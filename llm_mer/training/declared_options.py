"""Options as their dataclasses declare them: name, type, default, help and choices."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

NOT_ON_A_COMMAND_LINE = ("parallelism_config",)
"""Options whose value is an object that neither a command line nor a YAML file can hold."""


@dataclass(frozen=True)
class Option:
    """One option of the command line and of the YAML file, as its dataclass declares it.

    Attributes:
        hint: its type. choices: the values it may have, where they are a closed set.
        group: of the short help; None where it stands in the whole help only.
    """

    name: str
    hint: Any
    default: Any
    help: str
    choices: tuple[Any, ...] | None = None
    group: str | None = None

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
            hint = bool | str | None  # true is the last complete checkpoint, a text is a folder
        help_text = " ".join(str(entry.metadata.get("help", "")).split())
        closed = None if choices is None else tuple(choices)
        found.append(Option(entry.name, hint, default, help_text, closed, entry.metadata.get("group")))
    return found
