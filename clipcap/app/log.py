"""The page's output on its operator's terminal: short lines without control characters, whoever writes them.

Gradio, asyncio and uvicorn print tracebacks, and those quote what a request holds.
"""

from __future__ import annotations

import asyncio
import io
import logging
import re
from threading import Lock
from typing import TextIO

from clipcap.runtime.text import printable

LONGEST_LINE = 300  # characters
_KEPT = 10 * LONGEST_LINE  # characters of a line that are read
_BEGINNING = re.compile(r"[\s+|]*(?:Exception Group )?Traceback \(most recent call last\):")
_PLACE = re.compile(r'\s+(?:\|\s+)?File "(?:.*/)?([^"/]+)", line (\d+)')
_BETWEEN = (
    "The above exception was the direct cause of",
    "During handling of the above exception",
)


class SafeStream(io.TextIOBase):
    """A filter of a text stream: tracebacks become a line, lines are cut, control characters are escaped."""

    def __init__(self, stream: TextIO):
        self._stream, self._lock = stream, Lock()
        self._line, self._in_traceback, self._place = "", False, ""

    def write(self, text: str) -> int:
        """Take text, and pass whole lines on."""
        with self._lock:
            for part in text.splitlines(keepends=True):
                self._line = (self._line + part[:_KEPT])[:_KEPT]
                if part.endswith(("\n", "\r")):
                    self._pass_on(self._line.rstrip("\r\n"))
                    self._line = ""
        return len(text)

    def flush(self) -> None:
        """As of any stream."""
        self._stream.flush()

    def fileno(self) -> int:
        """As of the stream behind."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """As of the stream behind."""
        return self._stream.isatty()

    def _pass_on(self, line: str) -> None:
        if _BEGINNING.match(line):
            self._in_traceback, self._place = True, ""
            return
        if self._in_traceback and (not line.strip() or line.startswith((" ", "|", *_BETWEEN))):
            if place := _PLACE.match(line):
                self._place = f" ({place[1]}, line {place[2]})"
            return
        if self._in_traceback:
            self._in_traceback = False
            line = f"clipcap: a request failed{self._place}: {line}"
        if not line.strip() or line.startswith(_BETWEEN):
            return
        shown = printable(line.replace("\t", " "))
        self._stream.write(f"{shown if len(shown) <= LONGEST_LINE else shown[:LONGEST_LINE] + ' …'}\n")


def hide_cancelled_requests() -> None:
    """Do not report requests that the end of the server cancels."""

    def is_worth_it(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, asyncio.CancelledError | KeyboardInterrupt)

    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(is_worth_it)
