"""The calls that the page answers: what each takes, and which of them somebody still waits for."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from inspect import signature
from typing import Any

UNATTENDED_S = 30.0  # how long a call may wait for somebody to listen to its answer


class Calls:
    """The end points of a page.

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
            name: of the end point, or None where the body says its number.
            content: the body.
        """
        if not isinstance(content, dict) or not isinstance(content.get("data"), list):
            return "the body has no list `data`"
        number = content.get("fn_index")
        functions = self._page.fns.values()
        found = [f for f in functions if (f.api_name == name if name else f._id == number)]
        if not found:
            return "there is no such end point"
        takes, given = found[0].inputs, content["data"]
        if len(given) != len(takes):
            return f"`data` has {len(given)} values, expected {len(takes)}"
        for place, (component, value) in enumerate(zip(takes, given)):
            if not _fits(component, value):
                return f"value {place} of `data` is not what {component.label or 'this input'!r} takes"
        return None

    def mistake_in_names(self, name: str, content: Any) -> str | None:
        """As `mistake`, of a body with values by the names of parameters; Gradio refuses those out of range."""
        found = [function for function in self._page.fns.values() if function.api_name == name]
        if not found:
            return "there is no such end point"
        if not isinstance(content, dict):
            return "the body is no object with a value for each parameter"
        takes = dict(zip(signature(found[0].fn).parameters, found[0].inputs))
        for parameter, value in content.items():
            if parameter in takes and not _fits(takes[parameter], value, in_range=False):
                return f"{parameter!r} is not what {takes[parameter].label or 'this input'!r} takes"
        return None

    def is_awaited(self, event_id: str | None) -> bool:
        """Whether somebody still wants the answer of an event that is being computed."""
        event = self._page._queue.event_ids_to_events.get(event_id) if event_id else None
        return event is None or event.alive

    def expect(self, key: str) -> None:
        """Drop a call unless somebody listens within a while."""
        task = asyncio.get_running_loop().create_task(self._drop_later(key))
        self._tasks.add(task)  # the loop itself holds it weakly
        task.add_done_callback(self._tasks.discard)

    async def _drop_later(self, key: str) -> None:
        await asyncio.sleep(UNATTENDED_S)
        if not self._listeners.get(key):
            await self.drop(key)

    async def drop(self, key: str) -> None:
        """Take a call, or all of a session, out of the queue; what is computed now is told that nobody waits."""
        await self._page._queue.clean_events(session_hash=key, event_id=key)

    def listening(self, key: str) -> Callable[[], Any]:
        """Note that somebody listens; gives what is to be awaited when they no longer do."""
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
