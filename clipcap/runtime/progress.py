"""Whether progress bars are shown: on a terminal, to people who want them."""

from __future__ import annotations

import logging

from clipcap.runtime.messages import logger


def no_bar(hidden: bool = False) -> bool | None:
    """What tqdm takes as `disable`: True where bars are not wanted, None for a terminal alone.

    Args:
        hidden: for another reason, such as a process other than the first.
    """
    quiet = logger.level > logging.INFO  # as `--quiet` sets it
    return True if hidden or quiet else None
