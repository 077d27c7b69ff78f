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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory is exhausted: Python's, an accelerator's, or torch's allocator on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "not enough memory" in str(error))
