"""The page's API calls: checks of their arguments, and which of them a client still waits for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from inspect import Parameter, signature
from typing import Any

UNATTENDED_S = 30.0  # how long a call waits for a client to request its answer


class Calls:
    """The API endpoints of a page.

    Args:
        page: Gradio's blocks, finished.
    """

    def __init__(self, page: Any):
        self._page = page
        self._listeners: dict[str, int] = {}  # by the key of a call: its event or its session
        self._tasks: set[asyncio.Task] = set()

    def mistake(self, name: str | None, content: Any) -> str | None:
        """What is wrong with the body of a request, or None.

        Args:
            name: of the endpoint, or None if the body holds its number.
            content: the body.
        """
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            return "the body has no list `data`"
        function = self._function(name, content)
        if function is None:
            return "this endpoint does not exist"
        takes, given = function.inputs, content["data"]
        if len(given) != len(takes):
            return f"`data` has {len(given)} values, expected {len(takes)}"
        for place, (component, value) in enumerate(zip(takes, given)):
            if not _fits(component, value):
                return f"value {place} of `data` does not fit {component.label or 'this input'!r}"
        return None

    def complete(self, name: str | None, content: Any) -> bool:
        """Add the defaults of settings at the end that an older client does not know; whether there were any.

        The arguments are those of `mistake`; the body is changed in place.
        """
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            return False
        function = self._function(name, content)
        if function is None or function.fn is None:
            return False
        takes = list(signature(function.fn).parameters.values())[len(content["data"]) : len(function.inputs)]
        if not takes or any(parameter.default is Parameter.empty for parameter in takes):
            return False
        content["data"] += [parameter.default for parameter in takes]
        return True

    def _function(self, name: str | None, content: dict) -> Any:
        """What an endpoint runs, by its name or by the number in the body; None if there is no such endpoint."""
        number = content.get("fn_index")
        found = [f for f in self._page.fns.values() if (f.api_name == name if name else f._id == number)]
        return found[0] if found else None

    def mistake_in_names(self, name: str, content: Any) -> str | None:
        """As `mistake`, for a body that maps parameter names to values; Gradio itself refuses values out of range."""
        function = self._function(name, {})
        if function is None:
            return "this endpoint does not exist"
        if not isinstance(content, dict):
            return "the body must be an object with a value for each parameter"
        takes = dict(zip(signature(function.fn).parameters, function.inputs))
        for parameter, value in content.items():
            if parameter in takes and not _fits(takes[parameter], value, in_range=False):
                return f"{parameter!r} does not fit {takes[parameter].label or 'this input'!r}"
        return None

    def is_awaited(self, event_id: str | None) -> bool:
        """Whether a client still waits for the answer of a running event."""
        event = self._page._queue.event_ids_to_events.get(event_id) if event_id else None
        return event is None or event.alive

    def expect(self, key: str) -> None:
        """Drop a call unless a client listens within `UNATTENDED_S`."""
        task = asyncio.get_running_loop().create_task(self._drop_later(key))
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._tasks.discard)

    async def _drop_later(self, key: str) -> None:
        await asyncio.sleep(UNATTENDED_S)
        if not self._listeners.get(key):
            await self.drop(key)

    async def drop(self, key: str) -> None:
        """Remove a call, or all calls of a session, from the queue; a running one is marked as not awaited."""
        await self._page._queue.clean_events(session_hash=key, event_id=key)

    def listening(self, key: str) -> Callable[[], Any]:
        """Register a listener; returns the coroutine function to await when it disconnects."""
        self._listeners[key] = self._listeners.get(key, 0) + 1

        async def ended() -> None:
            self._listeners[key] -= 1
            if self._listeners[key] <= 0:
                del self._listeners[key]
                await self.drop(key)

        return ended


def _fits(component: Any, value: Any, in_range: bool = True) -> bool:
    """Whether a value is of the kind that a component of Gradio takes."""
    kind = type(component).__name__
    if kind == "Slider":
        number = type(value) in (int, float) and math.isfinite(value)
        return number and (not in_range or component.minimum <= value <= component.maximum)
    if kind == "Radio":
        return isinstance(value, str) and (not in_range or value in _values(component.choices))
    if kind == "Textbox":
        return value is None or isinstance(value, str)
    if kind == "Image":
        return value is None or _is_file(value)
    if kind == "File":
        return value is None or _is_file(value) or (isinstance(value, list) and all(map(_is_file, value)))
    return True


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("path"), str)


def _values(choices: Collection[Any]) -> list[Any]:
    return [choice[1] if isinstance(choice, (tuple, list)) else choice for choice in choices]
