"""The one exception that means "what you gave us cannot be used", and others' words in its one line."""


class UserError(ValueError):
    """Bad input, described so that the reader can mend it.

    The message names the file, the field, what was found and what would be right. Command-line entry points print it
    on one line and exit with status :attr:`exit_code`; library callers catch it as a ``ValueError``.
    """

    exit_code = 2
    """Of the program that it ends: 2 for a mistake in what was given."""


def first_line(error: BaseException) -> str:
    """What an exception says in one line, or its kind when it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
