"""`POST /caption`: a photo in one request, its captions in the answer; behind the page's guard, in turn with it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

from clipcap.app.guard import Refusal
from clipcap.app.page import MOST_WAITING
from clipcap.app.service import LONGEST_QUERY, CaptionService, Row
from clipcap.captioning.config import DecodeConfig
from clipcap.errors import ClipcapError
from clipcap.options import flags_of, read_options

PATH = "/caption"
# Settings of a request, and the largest value of each where there is one.
SETTINGS = {
    "num_captions": 10,
    "beam_size": 10,
    "max_new_tokens": 100,
    "min_new_tokens": 100,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "seed": None,
    "repetition_penalty": None,
    "prompt": None,
    "rerank": None,
}
LOOK_EVERY_S = 0.5  # whether the client is still connected

_gone: ContextVar[threading.Event | None] = ContextVar("gone", default=None)


def is_connected() -> bool:
    """Whether the client of the request that this thread answers still waits; true where it answers none."""
    gone = _gone.get()
    return gone is None or not gone.is_set()


def add_caption_route(app: Any, service: CaptionService, max_bytes: int) -> None:
    """Let an application of FastAPI answer `POST /caption`, and describe it in `/openapi.json`.

    Args:
        service: that the page uses too.
        max_bytes: of a photo.
    """
    from anyio import CapacityLimiter, to_thread
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response

    one = CapacityLimiter(1)  # the others wait here, and not in the threads that the page needs
    waiting = 0

    async def answer(request: Request) -> Response:
        nonlocal waiting
        try:
            photo, settings = await _read(request, max_bytes)
            if waiting >= MOST_WAITING:
                raise Refusal(503, f"{MOST_WAITING} requests wait already: try again later")
            waiting += 1
            try:
                work = partial(service.caption, photo, _decoding(settings, service.longest))
                rows = await _while_connected(request, partial(to_thread.run_sync, work, limiter=one))
            finally:
                waiting -= 1
        except Refusal as refused:
            later = {"Retry-After": "1"} if refused.status == 503 else None
            return JSONResponse({"detail": str(refused)}, refused.status, later)
        except ClipcapError as error:
            return JSONResponse({"detail": str(error)}, 422)
        return JSONResponse({"caption": rows[0]["caption"], "captions": rows})

    app.add_route(PATH, answer, methods=["POST"])
    app.openapi = _description


async def _while_connected(request: Any, work: Callable[[], Awaitable[list[Row]]]) -> list[Row]:
    """The result of `work`, which ends early when the client disconnects."""
    gone = threading.Event()
    _gone.set(gone)
    task = asyncio.ensure_future(work())
    while not task.done():
        await asyncio.wait({task}, timeout=LOOK_EVERY_S)
        if not task.done() and await request.is_disconnected():
            gone.set()
            task.cancel()
            with suppress(asyncio.CancelledError, ClipcapError):
                await task
            raise Refusal(499, "the client has disconnected")
    return task.result()


async def _read(request: Any, max_bytes: int) -> tuple[bytes, dict[str, Any]]:
    """(photo, settings) of a request.

    Raises:
        Refusal: it is neither a form with a file nor JSON with base64, or has no photo, or too large a one.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        photo, settings = await _read_form(request)
    elif kind == "application/json":
        photo, settings = _read_json(await request.body())
    else:
        raise Refusal(415, "send multipart/form-data with a file `image`, or JSON with `image` in base64")
    if not photo:
        raise Refusal(422, "`image` is missing or empty")
    if len(photo) > max_bytes:
        raise Refusal(413, f"the photo has {len(photo):,} bytes; at most {max_bytes:,} are allowed")
    if unknown := sorted(set(settings) - set(SETTINGS)):
        raise Refusal(422, f"there is no setting {unknown[0]!r:.40}: the settings are {', '.join(SETTINGS)}")
    return photo, settings


async def _read_form(request: Any) -> tuple[bytes, dict[str, Any]]:
    from starlette.exceptions import HTTPException

    try:
        form = await request.form(max_files=1, max_fields=len(SETTINGS) + 1)
    except HTTPException as error:
        raise Refusal(error.status_code, str(error.detail)) from error
    try:
        image = form.get("image")
        settings = {name: value for name, value in form.items() if name != "image"}
        if not hasattr(image, "read") or not all(isinstance(value, str) for value in settings.values()):
            raise Refusal(422, "the form needs one file, called `image`")
        return await image.read(), settings
    finally:
        await form.close()


def _read_json(body: bytes) -> tuple[bytes, dict[str, Any]]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the body is not JSON") from error
    if not isinstance(content, dict) or not isinstance(content.get("image"), str):
        raise Refusal(422, "the body needs `image`, a photo in base64")
    text = content.pop("image")
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True), content
    except (binascii.Error, ValueError) as error:
        raise Refusal(422, "`image` is not base64") from error


def _decoding(settings: dict[str, Any], longest: int) -> DecodeConfig:
    """How the captions of a request are written.

    Raises:
        ClipcapError: a value is out of range.
    """
    config = DecodeConfig.of(**read_options(DecodeConfig, settings, "settings"))
    for name, most in SETTINGS.items():
        value = getattr(config, name, None)
        if name in settings and most is not None and value is not None and value > most:
            raise ClipcapError(f"settings: {name} is {value}; at most {most} is allowed")
    if len(config.prompt) > LONGEST_QUERY:
        raise ClipcapError(f"settings: prompt has {len(config.prompt):,} characters; at most {LONGEST_QUERY:,} fit")
    return config.fit_to(longest)


def _description() -> dict[str, Any]:
    """OpenAPI of the end point; meanings and defaults are those of the command line's options."""
    flags = flags_of(DecodeConfig)
    names = {alias: flag for flag in flags.values() for alias in (flag.field.name, *flag.field.metadata["aliases"])}
    kinds = {"prompt": "string", "rerank": "string", "temperature": "number", "top_p": "number"}
    kinds["repetition_penalty"] = "number"
    settings = {
        name: {"type": kinds.get(name, "integer"), "description": names[name].field.metadata["help"]}
        | ({"maximum": most} if most else {})
        for name, most in SETTINGS.items()
    }
    photo = {"multipart/form-data": {"type": "string", "format": "binary"}}
    photo["application/json"] = {"type": "string", "description": "base64, or a data: address"}
    content = {
        kind: {"schema": {"type": "object", "required": ["image"], "properties": {"image": image, **settings}}}
        for kind, image in photo.items()
    }
    operation = {
        "summary": "Caption a photo",
        "operationId": "caption",
        "requestBody": {"required": True, "content": content},
        "responses": _responses(),
    }
    return {"openapi": "3.0.3", "info": {"title": "clipcap", "version": "1"}, "paths": {PATH: {"post": operation}}}


def _responses() -> dict[str, Any]:
    """The answers of the end point, by status."""
    row = {
        "caption": {"type": "string"},
        "logprob": {"type": "number", "description": "mean per token"},
        "clip_score": {"type": "number", "nullable": True, "description": "cosine of caption and photo"},
    }
    captions = {"type": "array", "items": {"type": "object", "properties": row}}
    good = {"type": "object", "properties": {"caption": {"type": "string"}, "captions": captions}}
    refused = {"type": "object", "properties": {"detail": {"type": "string"}}}
    answers = {
        "200": ("captions, best first", good),
        "413": ("too large", refused),
        "415": ("another kind of body", refused),
        "422": ("not a photo, or a bad setting", refused),
        "503": ("busy: try again later", refused),
    }
    return {
        status: {"description": meaning, "content": {"application/json": {"schema": schema}}}
        for status, (meaning, schema) in answers.items()
    }
