"""A pen for small pictures: shapes drawn large, turned, reduced to smooth edges and lit from one side.

A sprite is drawn in its own coordinates, in which it fills the unit circle and y grows downwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Point = tuple[float, float]
Colour = tuple[int, ...]  # red, green, blue and, where it is a glaze, alpha

OVERSAMPLE = 4
UNIT_CIRCLE = [(math.cos(math.tau * i / 32), math.sin(math.tau * i / 32)) for i in range(32)]


@cache
def path(text: str) -> tuple[Point, ...]:
    """Points written as "x y  x y  …" in hundredths."""
    numbers = [int(number) / 100 for number in text.split()]
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0) -> list[Point]:
    """An ellipse with its first axis turned by `turn` degrees."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return [(x + rx * u * cos - ry * v * sin, y + rx * u * sin + ry * v * cos) for u, v in UNIT_CIRCLE]


def circle(x: float, y: float, r: float) -> list[Point]:
    """A circle."""
    return ellipse(x, y, r, r)


def blob(x: float, y: float, r: float, rng: Random, wobble: float = 0.05) -> list[Point]:
    """An uneven circle, as of something poured or baked by hand."""
    waves = [(n, wobble * rng.uniform(0.3, 1) / math.sqrt(n), rng.uniform(0, math.tau)) for n in (2, 3, 5)]
    points = []
    for i, (u, v) in enumerate(UNIT_CIRCLE):
        radius = r * (1 + sum(size * math.sin(n * math.tau * i / 32 + phase) for n, size, phase in waves))
        points.append((x + radius * u, y + radius * v))
    return points


def smooth(corners: Sequence[Point], steps: int = 6) -> list[Point]:
    """A closed curve through all corners (Catmull-Rom)."""
    points = []
    for i in range(len(corners)):
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = (corners[(i + k) % len(corners)] for k in (-1, 0, 1, 2))
        for step in range(steps):
            t = step / steps
            a, b = -t * (1 - t) ** 2 / 2, 1 + t * t * (1.5 * t - 2.5)
            c, d = t * (0.5 + t * (2 - 1.5 * t)), t * t * (t - 1) / 2
            points.append((a * ax + b * bx + c * cx + d * dx, a * ay + b * by + c * cy + d * dy))
    return points


def blend(one: Colour, other: Colour, share: float) -> Colour:
    """The colour that lies `share` of the way from one to the other."""
    return tuple(round(a + (b - a) * share) for a, b in zip(one[:3], other[:3], strict=True))


class Pen:
    """Draws one sprite of `radius` pixels, turned by `angle`, with light from the direction `light`.

    `body` makes the silhouette; everything else is clipped to it.
    """

    def __init__(self, radius: float, angle: float, light: float, rng: Random, centre: Point = (0.0, 0.0)):
        self.rng = rng
        self.radius = radius
        self.left, self.top = (math.floor(c - radius * 1.1) - 1 for c in centre)
        side = math.ceil(radius * 2.2) + 4
        self._x, self._y = (OVERSAMPLE * (centre[0] - self.left)), (OVERSAMPLE * (centre[1] - self.top))
        turn = math.radians(angle)
        self._cos, self._sin = radius * OVERSAMPLE * math.cos(turn), radius * OVERSAMPLE * math.sin(turn)
        self.light = (math.cos(math.radians(light)), math.sin(math.radians(light)))
        self._light_here = (math.cos(math.radians(light) - turn), math.sin(math.radians(light) - turn))
        self._colours = Image.new("RGB", (side * OVERSAMPLE, side * OVERSAMPLE))
        self._cover = Image.new("L", self._colours.size)
        self._ink = ImageDraw.Draw(self._colours, "RGBA")
        self._shape = ImageDraw.Draw(self._cover)
        self._blank = True

    def body(self, points: Iterable[Point], colour: Colour) -> None:
        """Fill a shape that belongs to the silhouette."""
        placed = self._placed(points)
        if self._blank:  # the edge is mixed with what lies outside of it: a darker shade reads as an outline
            self._colours.paste(blend(colour, (40, 15, 0), 0.45), (0, 0, *self._colours.size))
            self._blank = False
        self._shape.polygon(placed, fill=255)
        self._ink.polygon(placed, fill=colour)

    def cut(self, points: Iterable[Point]) -> None:
        """Make a hole."""
        self._shape.polygon(self._placed(points), fill=0)

    def mark(self, points: Iterable[Point], colour: Colour) -> None:
        """Fill a shape on the body; a fourth value of the colour is its opacity (255: covers)."""
        self._ink.polygon(self._placed(points), fill=colour)

    def dot(self, x: float, y: float, r: float, colour: Colour) -> None:
        """A small disc on the body."""
        ((px, py),) = self._placed([(x, y)])
        size = r * self.radius * OVERSAMPLE
        self._ink.ellipse((px - size, py - size, px + size, py + size), fill=colour)

    def line(self, points: Iterable[Point], width: float, colour: Colour, body: bool = False) -> None:
        """A line; with `body` it belongs to the silhouette."""
        placed, thick = self._placed(points), max(1, round(width * self.radius * OVERSAMPLE))
        if body:
            self._shape.line(placed, fill=255, width=thick, joint="curve")
        self._ink.line(placed, fill=colour, width=thick, joint="curve")

    def ball(self, x: float, y: float, r: float, dark: Colour, bright: Colour, steps: int = 8) -> None:
        """A round volume on the body, brightest on the side of the light."""
        lx, ly = self._light_here
        for step in range(steps):
            share = step / (steps - 1)
            shift = 0.42 * r * share
            self.dot(x + lx * shift, y + ly * shift, r * (1 - 0.8 * share), blend(dark, bright, share))

    def shine(self, x: float, y: float, r: float, strength: float = 0.8) -> None:
        """A soft white glint, shifted from (x, y) to the side of the light by twice its radius."""
        x, y = x + 2 * r * self._light_here[0], y + 2 * r * self._light_here[1]
        for share in (1, 0.75, 0.5, 0.3):
            self.dot(x, y, r * share, (255, 255, 255, round(110 * strength)))

    def lit(self, relief: float, tone: float = 1.0) -> tuple[Image.Image, Image.Image]:
        """(colours, cover) at the final size: edges raised by `relief` towards the light, all times `tone`."""
        cover = self._cover.reduce(OVERSAMPLE)
        height = np.asarray(cover.filter(ImageFilter.GaussianBlur(0.16 * self.radius)), np.float32) / 255
        fall_y, fall_x = np.gradient(height)
        slope = np.asarray(np.clip(-(fall_x * self.light[0] + fall_y * self.light[1]) * self.radius, -1, 1))
        # blurred once more: the steps of an 8-bit height would show as contour lines
        facing = Image.fromarray((127.5 + 127.5 * slope).astype(np.uint8))
        facing = facing.filter(ImageFilter.GaussianBlur(0.05 * self.radius))
        slope = np.asarray(facing, np.float32) / 127.5 - 1
        shade = tone * (1 + 0.3 * relief * slope) * (0.9 + 0.1 * np.clip(2 * height - 0.9, 0, 1))
        colours = np.asarray(self._colours.reduce(OVERSAMPLE), np.float32) * shade[..., None]
        return Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8)), cover

    def _placed(self, points: Iterable[Point]) -> list[Point]:
        cos, sin, x0, y0 = self._cos, self._sin, self._x, self._y
        return [(x0 + x * cos - y * sin, y0 + x * sin + y * cos) for x, y in points]
