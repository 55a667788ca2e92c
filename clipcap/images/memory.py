"""Memory and time that pictures may take: large ones are decoded in turn, long animations not to their middle."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

LARGE = 24_000_000  # pixels; of smaller pictures all workers may hold one
MOST_FRAME_PIXELS = 2_000_000_000  # of an animation, all its frames up to the one that is shown
try:
    _turn = multiprocessing.Lock()  # forked workers share it
except (ImportError, OSError):  # a system without shared semaphores
    _turn = threading.Lock()


@contextmanager
def in_turn(pixels: int) -> Iterator[None]:
    """Around the decoding of a picture: of those with more than `LARGE` pixels one at a time, in all workers."""
    if pixels <= LARGE:
        yield
        return
    with _turn:
        yield


def middle_frame(image: Image.Image) -> int:
    """The number of an animation's middle frame; an earlier one where it would take too long to get there."""
    pixels = max(1, image.width * image.height)
    return min(getattr(image, "n_frames", 1) // 2, MOST_FRAME_PIXELS // pixels)
