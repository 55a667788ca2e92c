"""Names and reasons from outside, made fit for a one-line error message."""

from __future__ import annotations


def shown(name: object) -> str:
    """A name as it is, or quoted with escapes where it would not print."""
    text = str(name)
    return text if text.isprintable() else ascii(text)


def reason(error: Exception) -> str:
    """What an error of the system or of a library says, short and on one printable line."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    return shown(text or type(error).__name__)
