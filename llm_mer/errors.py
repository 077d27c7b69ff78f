"""The one exception that means "what you gave us cannot be used"."""


class UserError(ValueError):
    """Bad input, described so that the reader can mend it.

    The message names the file, the field, what was found and what would be right. Command-line entry points print it
    on one line and exit with status 2; library callers catch it as a ``ValueError``.
    """
