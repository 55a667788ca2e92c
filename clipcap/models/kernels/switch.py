"""The one switch of all faster paths: turned off, every stage computes with plain torch and transformers.

What lies in `models/kernels` and asks this switch gives the same numbers as the plain way, up to rounding. Some of it
patches a layer's `forward`, adds hooks or calls private operations of torch. So if a result looks wrong, or a new
release of torch or transformers breaks something, run the command again with the paths off and compare:

    CLIPCAP_PLAIN=1 clipcap predict --img photo.jpg

or, in Python, around loading and use:

    with plain():
        captions = Captioner.from_pretrained("checkpoints")(images)

What changes the results or is an option of its own does not belong here:
`--dtype int8`, `--compile`, `--share_prefix`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "CLIPCAP_PLAIN"  # any value but 0 turns the faster paths off

_plain = 0  # how many `plain()` are open, in any thread


def fast() -> bool:
    """Whether faster paths are on."""
    return not _plain and os.environ.get(VARIABLE, "0") in ("", "0")


@contextmanager
def plain() -> Iterator[None]:
    """Within, no faster path is taken, in this thread or another; what was loaded before stays as it is."""
    global _plain
    _plain += 1
    try:
        yield
    finally:
        _plain -= 1
