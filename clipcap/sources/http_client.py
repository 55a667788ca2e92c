"""HTTP as a considerate guest: few connections per host, pauses between attempts, limits on time and size."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO
from urllib import request
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit

USER_AGENT = "clipcap (image captioning; fetches each image once)"
MAX_BYTES = 32 * 2**20
MAX_PAUSE_S = 60.0  # a server's Retry-After beyond this is not waited for
CONNECTIONS_PER_HOST = 4
_MAY_PASS = {408, 425, 429, 500, 502, 503, 504}
_DEADLINE_IN_TIMEOUTS = 6  # a whole download may take this many times the longest silence
_URL_SAFE = "%/:=&?~#+!$,;'@()*[]"


class GoneError(Exception):
    """The image cannot be had, now or later."""


class UnavailableError(Exception):
    """The image cannot be had for now."""

    def __init__(self, reason: str, pause_s: float = 0.0):
        super().__init__(reason)
        self.pause_s = pause_s


class WebClient:
    """Fetches http and https URLs, from many threads at a time."""

    def __init__(self, timeout_s: float, retries: int, backoff_s: float):
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff_s = backoff_s
        self._stopping = threading.Event()
        self._connections: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._opener = _web_opener()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """End pauses and further attempts, in every thread."""
        self._stopping.set()

    def fetch(self, url: str) -> bytes:
        """The bytes at a URL.

        Raises:
            GoneError: they are not to be had for good (404, not http, too large, the site asks not to).
            UnavailableError: every attempt failed in a way that may pass (timeout, 503, no network).
        """
        host = _host(url)
        for attempt in range(self._retries + 1):
            try:
                with self._connection(host):
                    return self._get(url)
            except UnavailableError as error:
                if attempt == self._retries or self.stopped:
                    raise
                self._stopping.wait(max(error.pause_s, self._backoff_s * 2**attempt))
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _connection(self, host: str) -> Iterator[None]:
        """Wait until the host has few enough connections to us."""
        with self._changed:
            self._changed.wait_for(lambda: self._connections[host] < CONNECTIONS_PER_HOST)
            self._connections[host] += 1
        try:
            yield
        finally:
            with self._changed:
                self._connections[host] -= 1
                self._connections += Counter()  # forgets the hosts at zero
                self._changed.notify_all()

    def _get(self, url: str) -> bytes:
        try:
            asked = request.Request(_ascii(url), headers={"User-Agent": USER_AGENT, "Accept": "image/*"})
            with self._opener.open(asked, timeout=self._timeout_s) as response:
                return self._body(response)
        except HTTPError as error:
            error.close()
            if error.code in _MAY_PASS:
                raise UnavailableError(f"HTTP {error.code}", _retry_after(error.headers)) from error
            raise GoneError(f"HTTP {error.code}") from error
        except ValueError as error:  # a URL that no server could be asked for
            raise GoneError(f"bad URL ({error})") from error
        except (OSError, HTTPException) as error:
            raise UnavailableError(str(error) or type(error).__name__) from error

    def _body(self, response: HTTPResponse) -> bytes:
        tags = response.headers.get("X-Robots-Tag", "").lower()
        if "noai" in tags or "noimageai" in tags:
            raise GoneError("the site asks not to (X-Robots-Tag)")
        expected = response.length  # None when the server does not say
        deadline = time.monotonic() + self._timeout_s * _DEADLINE_IN_TIMEOUTS
        data = bytearray()
        while True:
            if max(len(data), expected or 0) > MAX_BYTES:
                raise GoneError(f"larger than {MAX_BYTES:,} bytes")
            if time.monotonic() > deadline:
                raise UnavailableError("too slow")
            chunk = response.read1(2**16)  # what has come, where read() would wait for a dripping server
            if not chunk:
                break
            data += chunk
        if expected is not None and len(data) < expected:
            raise UnavailableError(f"cut short ({len(data):,} of {expected:,} bytes)")
        return bytes(data)


class _WebRedirects(request.HTTPRedirectHandler):
    """Follows redirects to http and https alone; urllib's own would go to ftp."""

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> request.Request | None:
        _host(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _web_opener() -> request.OpenerDirector:
    """urllib without the handlers of file:, ftp: and data: URLs."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler,
        request.HTTPHandler,
        request.HTTPSHandler,
        request.HTTPDefaultErrorHandler,
        request.HTTPErrorProcessor,
        _WebRedirects,
    ):
        opener.add_handler(handler())
    return opener


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise GoneError(f"bad URL ({error})") from error
    if parts.scheme.lower() not in ("http", "https") or not parts.netloc:
        raise GoneError("not an http or https URL")
    return parts.netloc


def _ascii(url: str) -> str:
    """The URL with what lies outside ASCII in its path and query escaped, as browsers do."""
    parts = urlsplit(url)
    return parts._replace(path=quote(parts.path, safe=_URL_SAFE), query=quote(parts.query, safe=_URL_SAFE)).geturl()


def _retry_after(headers: Message) -> float:
    seconds = headers.get("Retry-After", "")
    return min(float(seconds), MAX_PAUSE_S) if seconds.isascii() and seconds.isdigit() else 0.0
