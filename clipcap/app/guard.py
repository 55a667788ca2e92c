"""A request filter before the page: it passes what the page needs, and nothing that makes it connect elsewhere.

Gradio answers many more requests than this page makes. Some of them fetch addresses that the request names
(`/file=http…`, files given as links), others edit or record; none of them is needed here. Files are read from the
page's own folder alone.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from clipcap.app.calls import Calls
from clipcap.runtime.json_text import to_json

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

UPLOAD, CAPTION = "/gradio_api/upload", "/caption"
CALL = re.compile(r"/gradio_api/call/(?P<v2>v2/)?(?P<name>\w+)(?:/(?P<event>\w+))?/?")
JOIN, DATA, RUN = "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/run/predict"
OPEN = re.compile(
    r"/(|caption|openapi\.json|config|theme\.css|favicon\.ico|robots\.txt|manifest\.json|(assets|static)/.+)"
    r"|/gradio_api/(info|openapi\.json|startup-events|upload|upload_progress|theme\.css|reset|cancel|heartbeat/\w+"
    r"|queue/(join|data)|run/predict|call/(v2/)?\w+(/\w+)?|file=(?P<file>.+))/?"
)
LOCAL = ("localhost", "127.0.0.1", "::1")
MAX_BODY = 1_000_000  # bytes of a request other than an upload
MAX_ANSWER = 1000  # bytes of an answer that are searched for an event

# Fonts, scripts, pictures and connections come from the page itself alone; Gradio builds its components with eval.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class Refusal(Exception):
    """A refused request: its HTTP status, and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Guard:
    """An ASGI application that filters the requests to another one.

    Args:
        app: answers the requests that pass.
        folder: of the uploads.
        host: the address to listen on; if it is a loopback address, other host names are refused (a web
            page elsewhere could let its name point here, and read what it likes).
        max_upload: bytes of an upload, all its files together.
        calls: the endpoints; None passes every request of the right form.
        max_photo: bytes of a request with one photo.
    """

    def __init__(
        self,
        app: App,
        folder: Path,
        host: str,
        max_upload: int,
        calls: Calls | None = None,
        max_photo: int = MAX_BODY,
    ):
        self.calls = calls
        self.app = app
        self.folder = folder
        self.local = is_loopback(host)
        self.max_upload = max_upload
        self.max_photo = max_photo

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, answer = False, b""

        async def send_on(message: Message) -> None:
            nonlocal started, answer
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            elif len(answer) < MAX_ANSWER:
                answer += message.get("body", b"")
            await send(message)

        try:
            self._check(scope)
            if scope["method"] == "POST":
                receive = await self._received(scope, receive)
            await self._attended(scope, receive, send_on)
            if scope["method"] == "POST" and self.calls and CALL.fullmatch(scope["path"]):
                _expect(self.calls, answer)
        except Refusal as refusal:
            if not started:
                await _answer(send_on, refusal)

    async def _attended(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on; drop the call that it waits for when the client disconnects."""
        key = _listened_to(scope)
        if key is None or self.calls is None:
            await self.app(scope, receive, send)
            return
        ended = self.calls.listening(key)
        try:
            await self.app(scope, receive, send)
        finally:
            await ended()

    def _check(self, scope: Message) -> None:
        if not scope["path"].isprintable():
            raise Refusal(400, "this is not a valid address")
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.local and _name(headers.get("host", "")) not in LOCAL:
            raise Refusal(403, f"this page answers to {', '.join(LOCAL)} alone (start it with --host for others)")
        if scope["method"] == "POST" and headers.get("sec-fetch-site") == "cross-site":
            raise Refusal(403, "this request comes from a page elsewhere")
        if scope["method"] == "POST" and (origin := headers.get("origin")) is not None:
            own = {headers.get(name, "").lower() for name in ("host", "x-forwarded-host")}
            if urlsplit(origin).netloc.lower() not in own - {""}:
                raise Refusal(403, "this request comes from a page elsewhere")
        wanted = OPEN.fullmatch(scope["path"])
        if not wanted or ".." in scope["path"].split("/"):
            raise Refusal(404, "this address does not exist")
        if wanted["file"]:
            self._check_file(wanted["file"])

    def _check_file(self, path: str) -> None:
        if "\0" in path or not Path(os.path.normpath(path)).is_relative_to(self.folder):
            raise Refusal(403, f"only files that were uploaded to {UPLOAD} are read")
        if not os.path.isfile(path):
            raise Refusal(404, "this file has been removed: choose it again")

    async def _received(self, scope: Message, receive: Receive) -> Receive:
        """Receive the body of a request, checked as its address asks."""
        if scope["path"].startswith(UPLOAD):
            return self._counted(receive, self.max_upload)
        if scope["path"].rstrip("/") == CAPTION:
            return self._counted(receive, self.max_photo)
        return await self._checked(scope, receive)

    def _counted(self, receive: Receive, most: int) -> Receive:
        """Receive files of at most so many bytes together."""
        size = 0

        async def counting() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > most:
                raise Refusal(413, f"more than {most:,} bytes: send fewer or smaller files at once")
            return message

        return counting

    async def _checked(self, scope: Message, receive: Receive) -> Receive:
        """Receive a small body, and check that it fits its endpoint and names no files but uploads."""
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > MAX_BODY:
                raise Refusal(413, f"more than {MAX_BODY:,} bytes: upload files to {UPLOAD}")
        try:
            content = json.loads(body or b"null")
        except (ValueError, RecursionError) as error:
            raise Refusal(400, "the body is not JSON") from error
        for path in _paths(content):
            self._check_file(path)
        if self._check_call(scope["path"], content):
            body = json.dumps(content).encode()
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return messages.pop() if messages else await receive()

        return replayed

    def _check_call(self, path: str, content: Any) -> bool:
        """Refuse a call that does not fit its endpoint; whether the content was completed."""
        call = CALL.fullmatch(path)
        if self.calls is None or not (call or path.rstrip("/") in (JOIN, RUN)):
            return False
        completed = False
        if call and call["v2"]:
            mistake = self.calls.mistake_in_names(call["name"], content)
        else:
            name = call["name"] if call else None
            completed = self.calls.complete(name, content)
            mistake = self.calls.mistake(name, content)
        if mistake:
            raise Refusal(422, mistake)
        if not call and isinstance(session := content.get("session_hash"), str):
            self.calls.expect(session)
        return completed


def _expect(calls: Calls, answer: bytes) -> None:
    """Expect a listener for the call whose answer holds its event."""
    try:
        calls.expect(str(json.loads(answer)["event_id"]))
    except (ValueError, KeyError, TypeError):  # it was refused
        return


def _listened_to(scope: Message) -> str | None:
    """The event or the session whose answers a request waits for."""
    if scope["method"] != "GET":
        return None
    if (call := CALL.fullmatch(scope["path"])) and call["event"]:
        return call["event"]
    if scope["path"].rstrip("/") == DATA:
        return next(iter(parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash", [])), None)
    return None


def _paths(content: Any) -> Iterator[str]:
    """The files that a request names."""
    todo = [content]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            todo += value.values()
        elif isinstance(value, list):
            todo += value


async def _answer(send: Send, refusal: Refusal) -> None:
    body = to_json({"detail": str(refusal)}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _name(host: str) -> str:
    """`localhost:7860` → `localhost`, `[::1]:7860` → `::1`."""
    return host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
