"""The computations behind the tabs Draw and Classify: an animation of a text, the labels of a photo."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock

from clipcap.app.service import LONGEST_QUERY, Row
from clipcap.classification.classifiers import TEMPLATE
from clipcap.classification.classify import classify
from clipcap.classification.labelled import checked_labels
from clipcap.errors import ClipcapError
from clipcap.images.read import ImageError, open_image
from clipcap.models.encoders.base import Encoder
from clipcap.text_to_image.config import DrawConfig
from clipcap.text_to_image.draw import Drawer
from clipcap.text_to_image.frames import write_frames

MOST_LABELS = 200
WIDTH, PAUSE_S = 300, 1.0


class Drawing:
    """Texts drawn word by word.

    Args:
        config: of the models, which are loaded at the first text.
        turn: held while the models compute.
    """

    def __init__(self, config: DrawConfig, turn: Lock):
        self._config, self._turn = config, turn
        self._drawer: Drawer | None = None

    def draw(self, text: str) -> list[Row]:
        """The last line of a text: a row with its `text`, its `words` and the animation, `gif`, as a `data:` address.

        Raises:
            ClipcapError: the text is empty or too long.
        """
        lines = [line for line in (text or "").splitlines() if line.strip()]
        if not lines:
            raise ClipcapError("write a sentence to draw")
        line = lines[-1].strip()
        if len(line) > LONGEST_QUERY:
            raise ClipcapError(f"the line has {len(line):,} characters; at most {LONGEST_QUERY:,} are allowed")
        with self._turn:
            self._drawer = self._drawer or Drawer(self._config)
            frames = self._drawer.frames(line)
        with tempfile.TemporaryDirectory() as folder:
            file = write_frames(frames, Path(folder) / "drawn.gif", PAUSE_S, WIDTH)
            gif = base64.b64encode(file.read_bytes()).decode("ascii")
        return [{"text": line, "words": [f.word for f in frames], "gif": f"data:image/gif;base64,{gif}"}]


def label_photo(
    encoder: Callable[[], Encoder], turn: Lock, max_pixels: int, photo: Path, labels: str, template: str
) -> list[Row]:
    """The labels of a photo, best first: rows of `label` and `probability`.

    Raises:
        ClipcapError: no labels or too many, a template without {}, or a photo that cannot be read.
    """
    names = checked_labels((labels or "").replace("\n", ",").split(","))
    if len(names) > MOST_LABELS:
        raise ClipcapError(f"{len(names)} labels are given; at most {MOST_LABELS} are allowed")
    longest = max(map(len, [*names, template or TEMPLATE]))
    if longest > LONGEST_QUERY:
        raise ClipcapError(f"a label has {longest:,} characters; at most {LONGEST_QUERY:,} are allowed")
    try:
        image = open_image(photo, max_pixels=max_pixels)
    except ImageError as error:
        raise ClipcapError(f"{photo.name}: {error.reason}") from error  # without its folder, which users must not see
    with turn:
        [found] = classify(image, names, encoder=encoder(), templates=[template or TEMPLATE], top=len(names))
    return [{"label": label, "probability": round(value, 4)} for label, value in found.items()]
