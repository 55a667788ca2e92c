"""A scene of one food whose layout is a function of a noise vector: what the demo's generator learns to draw.

Choices go by the largest of a few numbers, places and angles by a number itself, so that a small truncation draws
plates near the middle, two pieces in their usual place.
"""

from __future__ import annotations

import math

import numpy as np

from clipcap.demo.scene import COLOURS, FOODS, SHAPES, Item, Light, Plate, Scene, Table

NOISE = 32  # numbers of a noise vector, of which the last few decide nothing
CLASSES = tuple(FOODS)
_TABLES = (
    *(("oak", "brown"), ("walnut", "brown"), ("marble", "grey"), ("slate", "grey")),
    *(("plain", colour) for colour in ("red", "blue", "green", "yellow")),
)
_SIZE = {"round": (1.0, 1.0), "square": (0.93, 0.93), "oval": (1.1, 0.78)}
_FEW, _MANY = -0.25, 0.25  # below: one piece; above: three


def latent_scene(food: str, noise: np.ndarray) -> Scene:
    """The scene of a food and a noise vector float [NOISE], already multiplied by its truncation."""
    z = [float(value) for value in noise]
    shape = SHAPES[int(np.argmax(z[16:19]))]
    wide, high = _SIZE[shape]
    size = 0.385 + 0.01 * z[25]
    plate = Plate(
        colour=COLOURS[int(np.argmax(z[:8]))],
        shape=shape,
        decor="plain",
        x=0.5 + 0.015 * z[23],
        y=0.5 + 0.015 * z[24],
        width=size * wide,
        height=size * high,
        angle=0.0,
        tone=0.0,
    )
    kind, colour = _TABLES[int(np.argmax(z[8:16]))]
    return Scene(
        seed=0,
        items=_items(food, plate, z),
        plate=plate,
        table=Table(kind, colour, 0.0, 1.0, 7),
        things=(),
        light=Light(angle=-90.0, brightness=1.0 + 0.04 * z[26], warmth=0.0, shadow=0.4),
        noise=0.0,
    )


def _items(food: str, plate: Plate, z: list[float]) -> tuple[Item, ...]:
    """One to three pieces: in the middle, in a row, or in a triangle."""
    kind = FOODS[food]
    count = 1 if z[19] < _FEW else 2 if z[19] <= _MANY else 3
    tint = kind.tints[int(z[22] > 0) % len(kind.tints)]
    reach = (0.0, 0.46, 0.54)[count - 1]
    first = (0.0, 0.0, -90.0)[count - 1] + 12 * z[20]
    items = []
    for i in range(count):
        angle = math.radians(first + 360 * i / count)
        x = plate.x + plate.width * reach * math.cos(angle)
        y = plate.y + plate.height * reach * math.sin(angle)
        room = (0.62, 0.44, 0.42)[count - 1] * plate.height
        tilt = min(kind.tilt, 20) * z[21] * (-1) ** i
        items.append(Item(food, tint, x, y, room * kind.size, tilt, 11 + i))
    return tuple(sorted(items, key=lambda item: item.y))
