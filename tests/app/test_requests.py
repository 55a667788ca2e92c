"""Requests that mean harm, or nothing: their answers, what the operator sees, what is computed for nobody."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest

from clipcap.app import calls as calls_module
from clipcap.app.calls import Calls
from clipcap.app.guard import Guard
from clipcap.app.log import LONGEST_LINE, SafeStream

gr = pytest.importorskip("gradio", reason="no gradio: pip install 'clipcap-toolkit[app]'")


@pytest.fixture(scope="module")
def blocks():
    """A page with one end point that takes a value of each kind."""

    def answer(words, number, kind, photo):
        return words

    with gr.Blocks() as page:
        takes = [gr.Textbox(), gr.Slider(1, 10), gr.Radio(["a", "b"]), gr.Image()]
        gr.Button().click(answer, takes, gr.Textbox(), api_name="answer")
    return page


PHOTO = {"path": "photo.jpg"}


@pytest.mark.parametrize(
    "data, sound",
    [
        (["x", 3, "a", PHOTO], True),
        ([None, 1.5, "b", None], True),
        (["x", 3, "a"], False),
        ([["x"], 3, "a", None], False),
        (["x", [1], "a", None], False),
        (["x", True, "a", None], False),
        (["x", 11, "a", None], False),
        (["x", float("nan"), "a", None], False),
        (["x", 3, "c", None], False),
        (["x", 3, "a", "http://elsewhere.example/a.jpg"], False),
        ("x", False),
    ],
)
def test_what_does_not_fit_an_end_point_is_named(blocks, data, sound):
    mistake = Calls(blocks).mistake("answer", {"data": data})
    assert (mistake is None) is sound, mistake


@pytest.mark.parametrize("content", [None, [], {}, {"data": None}, "x"])
def test_bodies_of_another_form(blocks, content):
    assert Calls(blocks).mistake("answer", content)
    assert Calls(blocks).mistake(None, {"data": [], "fn_index": 99}) == "this endpoint does not exist"


def test_values_by_name(blocks):
    calls = Calls(blocks)
    assert calls.mistake_in_names("answer", {"number": 3, "words": "x", "photo": PHOTO}) is None
    assert "number" in calls.mistake_in_names("answer", {"number": [3]})
    assert calls.mistake_in_names("nothing", {}) and calls.mistake_in_names("answer", [])


async def answered(guard, method, path, body=b"", headers=()):
    """(status, whether the application was reached) of a request."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    await guard({"type": "http", "method": method, "path": path, "headers": list(headers)}, receive, send)
    return sent[0]["status"]


def application(answer=b"{}"):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    return app


HOST = (b"host", b"localhost:7860")


@pytest.mark.parametrize(
    "origin, more, status",
    [
        (None, (), 200),
        (b"http://localhost:7860", (), 200),
        (b"http://LOCALHOST:7860", (), 200),
        (b"https://page.example", ((b"x-forwarded-host", b"page.example"),), 200),
        (b"http://elsewhere.example", (), 403),
        (b"http://localhost:8000", (), 403),
        (b"null", (), 403),
        (b"", (), 403),
    ],
)
def test_the_origin_of_a_post_is_the_page_itself(origin, more, status):
    guard = Guard(application(), Path("/"), "127.0.0.1", 1000)
    headers = [HOST, *more, *([(b"origin", origin)] if origin is not None else [])]
    assert asyncio.run(answered(guard, "POST", "/gradio_api/queue/join", b"{}", headers)) == status


def test_malformed_requests_are_the_askers_mistake(blocks):
    guard = Guard(application(), Path("/"), "127.0.0.1", 1000, Calls(blocks))
    for path, body in (
        ("/gradio_api/call/answer", b'{"data": [1]}'),
        ("/gradio_api/call/answer", b"[" * 100_000),
        ("/gradio_api/call/nothing", b'{"data": []}'),
        ("/gradio_api/call/v2/answer", b'{"number": [1]}'),
        ("/gradio_api/queue/join", b'{"data": [], "fn_index": 77}'),
        ("/gradio_api/run/predict", b"null"),
        ("/gradio_api/call/answer", b'{"data": [1], "x": ' + b"9" * 5000 + b"}"),
        ("/\x1b[2J", b"{}"),
    ):
        assert 400 <= asyncio.run(answered(guard, "POST", path, body, [HOST])) < 500, path


def test_calls_that_nobody_waits_for_are_dropped(blocks, monkeypatch):
    monkeypatch.setattr(calls_module, "UNATTENDED_S", 0.05)
    calls, dropped = Calls(blocks), []

    async def drop(key):
        dropped.append(key)

    monkeypatch.setattr(calls, "drop", drop)
    release = asyncio.Event()

    async def app(scope, receive, send):
        if scope["method"] == "GET":
            await release.wait()
        await application(json.dumps({"event_id": scope["path"][-3:]}).encode())(scope, receive, send)

    async def scene():
        guard = Guard(app, Path("/"), "127.0.0.1", 1000, calls)
        body = json.dumps({"data": ["x", 1, "a", None]}).encode()
        monkeypatch.setattr(calls, "mistake", lambda name, content: None)
        for event in ("one", "two"):
            await answered(guard, "POST", f"/gradio_api/call/{event}", body, [HOST])
        listener = asyncio.create_task(answered(guard, "GET", "/gradio_api/call/x/two", b"", [HOST]))
        await asyncio.sleep(0.2)
        assert dropped == ["one"]
        release.set()
        await listener
        assert dropped == ["one", "two"]  # it has its answer, or has gone away

    asyncio.run(scene())


class TestTheOperatorsTerminal:
    def shown(self, *texts):
        out = io.StringIO()
        stream = SafeStream(out)
        for text in texts:
            stream.write(text)
        return out.getvalue()

    def test_a_traceback_is_a_line(self):
        try:
            try:
                json.loads("\x1b]0;title\x07")
            except ValueError as error:
                raise RuntimeError("\x1b[2J" + "x" * 100_000) from error
        except RuntimeError as error:
            import traceback

            text = "".join(traceback.format_exception(error))
        shown = self.shown("before\n", text, "after\n")
        assert "Traceback" not in shown and "\x1b" not in shown and "\x07" not in shown
        first, *failures, last = shown.splitlines()
        assert (first, last) == ("before", "after")
        assert all(line.startswith("clipcap: a request failed (") for line in failures)
        assert "test_requests.py, line " in failures[-1]
        assert all(len(line) < 2 * LONGEST_LINE for line in failures) and failures

    def test_lines_are_cut_and_come_in_parts(self):
        assert self.shown("a", "b\n") == "ab\n"
        assert len(self.shown("x" * 1_000_000, "\n")) < LONGEST_LINE + 10
        assert self.shown("\x1b[31mred\n") == "\\x1b[31mred\n"
