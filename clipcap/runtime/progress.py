"""Whether progress bars are shown: on a terminal, to people who want them; one bar for a run of several commands."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from clipcap.runtime.messages import logger

_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"


def no_bar(hidden: bool = False) -> bool | None:
    """What tqdm takes as `disable`: True where bars are not wanted, None for a terminal alone.

    Args:
        hidden: for another reason, such as a process other than the first.
    """
    quiet = logger.level > logging.INFO  # as `--quiet` sets it
    return True if hidden or quiet or _whole else None


class WholeRun:
    """One bar for several commands, in seconds that they are expected to take; their own bars are silent.

    Args:
        seconds: expected of each part of the run, in their order, by the names of its bars.
    """

    def __init__(self, seconds: Mapping[str, float]):
        self.seconds, self.part = dict(seconds), ""
        self.bar = tqdm(total=sum(seconds.values()), bar_format=_FORMAT, disable=no_bar(), leave=False)

    def reach(self, part: str, share: float, counts: bool = True) -> None:
        """Show that a share of a part is done.

        Args:
            part: of the run; others are not shown.
            share: of it, from 0 to 1.
            counts: whether it was done just now, so that it tells how fast the run is.
        """
        if part not in self.seconds or self.bar.disable:
            return
        names = list(self.seconds)
        before = sum(self.seconds[name] for name in names[: names.index(part)])
        ahead = max(0.0, before + self.seconds[part] * min(1.0, share) - self.bar.n)
        if counts:
            self.bar.update(ahead)
        else:
            self.bar.n += ahead
            self.bar.initial += ahead
            self.bar.last_print_n = self.bar.n
        if part != self.part:
            self.part = part
            self.bar.set_description_str(part)

    def clear(self) -> None:
        """Make room on the terminal for lines of text."""
        self.bar.clear()


_whole: WholeRun | None = None


@contextmanager
def one_bar(seconds: Mapping[str, float]) -> Iterator[WholeRun]:
    """Within, one bar stands for all others; see `WholeRun`."""
    global _whole
    whole = WholeRun(seconds)
    _whole = whole
    try:
        yield whole
    finally:
        _whole = None
        whole.bar.close()


class PartBar(tqdm):
    """A bar that is silent within `one_bar`, and moves the whole run's bar instead; its `desc` names the part."""

    def __init__(self, *, part: str, total: int, initial: int = 0, hidden: bool = False, **options: Any):
        self.part, self.done, self.all = part, initial, max(1, total)
        super().__init__(total=total, initial=initial, disable=no_bar(hidden), **{"desc": part, **options})
        if _whole:
            _whole.reach(part, initial / self.all, counts=False)

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` more."""
        self.done += n or 0
        if _whole:
            _whole.reach(self.part, self.done / self.all)
        return super().update(n)

    def close(self) -> None:
        """End the bar; the whole run's makes room for what is printed next."""
        super().close()
        if _whole:
            _whole.clear()


def make_room() -> None:
    """Take the whole run's bar off the terminal before a line is printed; it comes back with the next step."""
    if _whole:
        _whole.clear()
