"""The one exception users are meant to see."""


class ClipcapError(ValueError):
    """Bad input, reported in one line: what is wrong, where, and how to fix it.

    Commands print the message and exit with status 1; it is never shown with a traceback.
    """
