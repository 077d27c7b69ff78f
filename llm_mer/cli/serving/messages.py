"""What the page says of an error: its one line, without the names of folders of this machine."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llm_mer.cli.failures import explain_failure
from llm_mer.errors import UserError

DEFECT = "the program failed; whoever started it finds the reason where it runs"
ABSOLUTE = re.compile(r"(?<![^\s'\"(\[=,:])/(?!/)(?:[^\s/'\":;,()]+/)*([^\s/'\":;,()]+)")
"""An absolute path; its last part is the group."""


def message_of(error: Exception, names: Mapping[str, str]) -> str | None:
    """The line to show of an error; None of a defect of this program.

    Args:
        names: places of this machine, and what to call them on the page.
    """
    told = str(error) if isinstance(error, UserError) else explain_failure(error)
    return None if told is None else without_paths(" ".join(told.split()), names)


def without_paths(message: str, names: Mapping[str, str]) -> str:
    """A message with places of this machine called by their names, and of any other absolute path the last part."""
    for place in sorted(names, key=len, reverse=True):
        message = message.replace(place, names[place])
    return ABSOLUTE.sub(r"\1", message)
