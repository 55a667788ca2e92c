"""Photos that are no files here: an address on the web, and the standard input."""

from __future__ import annotations

import io
import sys
from typing import TypeGuard

from clipcap.images.read import ImageError
from clipcap.sources.http_client import GoneError, UnavailableError, WebClient

STANDARD_INPUT = "-"
TIMEOUT_S, RETRIES, BACKOFF_S = 15.0, 1, 1.0
LARGEST = 512_000_000  # bytes that are read from the standard input


class NamedPhoto(io.BytesIO):
    """The bytes of a photo, under the name that messages and results show."""

    def __init__(self, name: str, content: bytes):
        super().__init__(content)
        self.name = name

    def __str__(self) -> str:
        return self.name


def is_address(word: object) -> TypeGuard[str]:
    """Whether a text is an http or https address."""
    return isinstance(word, str) and word.lower().startswith(("http://", "https://"))


def fetch_photo(address: str) -> NamedPhoto:
    """Download a photo of at most 32 MB.

    Raises:
        ImageError: it is not to be had, or HF_HUB_OFFLINE forbids the network.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise ImageError(address, "is on the web, and HF_HUB_OFFLINE is set: unset it, or save the photo first")
    try:
        return NamedPhoto(address, WebClient(TIMEOUT_S, RETRIES, BACKOFF_S).fetch(address))
    except (GoneError, UnavailableError) as error:
        raise ImageError(address, f"cannot be downloaded ({error})") from error


def read_standard_input() -> NamedPhoto:
    """The photo that comes in on the standard input.

    Raises:
        ImageError: nothing comes in, or a terminal is connected.
    """
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.isatty():
        raise ImageError(STANDARD_INPUT, "is the standard input, and no photo comes in: … --img - < photo.jpg")
    content = stream.read(LARGEST)
    if not content:
        raise ImageError(STANDARD_INPUT, "the standard input is empty")
    return NamedPhoto(STANDARD_INPUT, content)
