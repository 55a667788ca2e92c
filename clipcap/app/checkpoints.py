"""The checkpoints of a run folder, among which the page's users choose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock

from clipcap.app.service import CaptionService
from clipcap.errors import ClipcapError
from clipcap.models.checkpoint import CONFIG
from clipcap.runtime.files import best_checkpoint_in, folders_in


class Checkpoints:
    """Captioners by name, loaded when somebody first asks for them; the first one and the last used stay in memory.

    Args:
        first: of the first name.
        others: the folders of further names.
        load: a folder → its service.
    """

    def __init__(
        self,
        first: CaptionService,
        others: dict[str, Path] | None = None,
        load: Callable[[Path], CaptionService] | None = None,
        name: str = "best",
    ):
        self.names = [name, *(others or {})]
        self._first, self._others, self._load = first, others or {}, load
        self._last: tuple[str, CaptionService] | None = None
        self._lock = Lock()

    def service(self, name: str | None) -> CaptionService:
        """The service of a name, or the first one's.

        Raises:
            ClipcapError: no such name, or the checkpoint cannot be loaded.
        """
        if name in (None, "", self.names[0]):
            return self._first
        if name not in self._others or self._load is None:
            raise ClipcapError(f"no checkpoint {str(name)[:60]!r}: choose one of {', '.join(self.names)}")
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = None  # its memory first
                service = self._load(self._others[name])
                service.is_awaited = self._first.is_awaited
                self._last = name, service
            return self._last[1]


def further_checkpoints(load_pt: str | None) -> tuple[str, dict[str, Path]]:
    """(the name of the checkpoint that a run folder stands for, its other checkpoints by name)."""
    folder = Path(load_pt or "").expanduser()
    if not load_pt or not folder.is_dir() or (folder / CONFIG).is_file():
        return "", {}
    found = folders_in(folder, lambda path: (path / CONFIG).is_file())
    best = best_checkpoint_in(folder, lambda path: (path / CONFIG).is_file())
    first = best.name if best else ""
    return first, {path.name: path for path in found if path.name != first}
