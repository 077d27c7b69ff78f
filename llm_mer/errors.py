"""The one exception that means "what you gave us cannot be used", and others' words in its one line."""


class UserError(ValueError):
    """Bad input, described so that the reader can mend it.

    The message names the file, the field, what was found and what would be right. Command-line entry points print it
    on one line and exit with status 2; library callers catch it as a ``ValueError``.
    """


def first_line(error: BaseException) -> str:
    """What an exception says in one line, or its kind when it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
