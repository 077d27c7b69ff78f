"""An option that stands twice on a command line: a parser takes the last value and says nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from llm_mer.errors import UserError

BOOLEANS = ("true", "yes", "1", "false", "no", "0")


def given_options(
    arguments: Sequence[str], lists: Collection[str], switches: Collection[str]
) -> dict[str, list[tuple[str, ...]]]:
    """The values of each option, by its name with underscores, once for each time it stands there.

    Args:
        lists: names of options that take several values. switches: names of those that may stand without one.
    """
    found: dict[str, list[tuple[str, ...]]] = {}
    for place, word in enumerate(arguments):
        if not word.startswith("--") or word == "--":
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        values = (value,) if equals else _values_behind(arguments[place + 1 :], name in lists, name in switches)
        found.setdefault(name, []).append(values)
    return found


def _values_behind(words: Sequence[str], is_list: bool, is_switch: bool) -> tuple[str, ...]:
    if is_switch:
        return (words[0].lower(),) if words and words[0].lower() in BOOLEANS else ("true",)
    count = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    return tuple(words[: count if is_list else min(count, 1)])


def refuse_repeated_options(arguments: Sequence[str], lists: Collection[str], switches: Collection[str]) -> None:
    """Refuse an option that is given twice with different values.

    Raises:
        UserError: naming it and its values.
    """
    for name, values in given_options(arguments, lists, switches).items():
        if len(set(values)) < 2:
            continue
        texts = [" ".join(entry) or "nothing" for entry in dict.fromkeys(values)]
        remedy = f"name all of them behind one --{name}" if name in lists else "name one"
        raise UserError(
            f"--{name}: given {len(values)} times, {' and '.join(texts)}, of which the last alone would count; {remedy}"
        )
