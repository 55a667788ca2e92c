"""A scene as a picture: table, things beside the plate, plate, food, light and noise, in this order."""

from __future__ import annotations

import math
from random import Random

import numpy as np
from numpy.random import RandomState
from PIL import Image, ImageFilter

from clipcap.demo.drawing import foods, tableware
from clipcap.demo.drawing.pen import Pen
from clipcap.demo.drawing.textures import table_top
from clipcap.demo.scene import Item, Light, Plate, Scene, Thing

GLAZES = {
    "white": (242, 241, 237),
    "black": (48, 48, 53),
    "red": (192, 44, 42),
    "pink": (242, 172, 190),
    "yellow": (242, 200, 72),
    "green": (96, 152, 98),
    "blue": (70, 116, 186),
    "purple": (132, 88, 160),
}
GOLD = (206, 164, 82)
SHADOW = (26, 18, 14)
# How much light from the side changes a sprite, by what it is.
RELIEF = {"egg": 0.5, "napkin": 0.4, "fork": 0.5, "knife": 0.5, "spoon": 0.5, "sushi": 0.8, "tomato": 0.6}


def draw(scene: Scene, size: int = 128) -> Image.Image:
    """The picture of a scene, `size` pixels wide and high, with the same bytes on every run."""
    picture = Image.fromarray(table_top(scene.table, size).astype(np.uint8))
    for thing in scene.things:
        _stamp(picture, thing, scene.light)
    picture = _with_plate(picture, scene.plate, scene.light)
    for item in scene.items:
        _stamp(picture, item, scene.light)
    return _exposed(picture, scene)


def _stamp(picture: Image.Image, what: Item | Thing, light: Light) -> None:
    """Put a piece of food or a thing on the picture, with its shadow."""
    size = picture.width
    rng = Random(what.seed)
    radius = what.radius * size
    pen = Pen(radius, what.angle, light.angle, rng, centre=(what.x * size, what.y * size))
    if isinstance(what, Item):
        name, height = what.food, 0.12 * radius
        foods.PAINTERS[name](pen, what.tint)
    else:
        name, height = what.kind, 0.02 * size
        tableware.PAINTERS[name](pen, what.colour)
    colours, cover = pen.lit(RELIEF.get(name, 1.0), tone=rng.uniform(0.94, 1.06))
    _cast_shadow(picture, cover, (pen.left, pen.top), height, light)
    picture.paste(colours, (pen.left, pen.top), cover)


def _cast_shadow(
    picture: Image.Image, cover: Image.Image, corner: tuple[int, int], height: float, light: Light
) -> None:
    """Darken the picture under a cover `height` pixels above it."""
    border = math.ceil(2 * height) + 2
    shape = Image.new("L", (cover.width + 2 * border, cover.height + 2 * border))
    shape.paste(cover, (border, border))
    shape = shape.filter(ImageFilter.GaussianBlur(0.8 * height)).point(lambda value: value * light.shadow)
    angle = math.radians(light.angle)
    left = corner[0] - border - round(height * math.cos(angle))
    top = corner[1] - border - round(height * math.sin(angle))
    picture.paste(SHADOW, (left, top), shape)


def _with_plate(picture: Image.Image, plate: Plate, light: Light) -> Image.Image:
    """The picture with the plate on it.

    `ring` is 0 in the middle of the plate and 1 on its edge, whatever its shape: profile and decor of the clay
    are functions of it.
    """
    size = picture.width
    u, v = _plate_axes(plate, size)
    ring = _squircle(u, v) if plate.shape == "square" else np.hypot(u, v)
    out_y, out_x = np.gradient(ring)
    steep = np.hypot(out_x, out_y) + 1e-6
    cover = np.clip((1 - ring) * min(plate.width, plate.height) * size + 0.5, 0, 1)
    _cast_shadow(picture, Image.fromarray((cover * 255).astype(np.uint8)), (0, 0), 0.028 * size, light)
    angle = math.radians(light.angle)
    # 1 where the plate's edge looks at the light, -1 where it looks away
    facing = (out_x * math.cos(angle) + out_y * math.sin(angle)) / steep
    lip, wall = _bump(ring, 0.97, 0.035), _bump(ring, 0.7, 0.045)
    shade = 1 + facing * (0.16 * lip - 0.2 * wall) - 0.05 * wall - 0.04 * np.clip(ring - 0.7, 0, 1)
    gloss = 0.2 * np.clip(facing, 0, 1) ** 6 * _bump(ring, 0.86, 0.05) + 0.22 * lip * np.clip(facing, 0, 1) ** 2
    colours = _glaze(plate, ring, u, v) * shade[..., None]
    colours += (255 - colours) * gloss[..., None]
    below = np.asarray(picture, np.float32)
    mixed = below + (colours - below) * cover[..., None]
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _plate_axes(plate: Plate, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel's place along the two axes of the plate, ±1 on its edge: float32 [size, size] each."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = grid[None, :] - np.float32(plate.x), grid[:, None] - np.float32(plate.y)
    cos, sin = math.cos(math.radians(plate.angle)), math.sin(math.radians(plate.angle))
    return (x * cos + y * sin) / plate.width, (y * cos - x * sin) / plate.height


def _squircle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The radius of (u, v) where the unit circle is a square with round corners (a superellipse of power 8)."""
    return np.sqrt(np.sqrt(np.sqrt(((u * u) ** 2) ** 2 + ((v * v) ** 2) ** 2)))


def _bump(ring: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-(((ring - centre) / width) ** 2))


def _glaze(plate: Plate, ring: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The plate's own colour with its decor: float32 [size, size, 3]."""
    base = np.array(GLAZES[plate.colour], np.float32) * (1 + 0.05 * plate.tone)
    if plate.decor == "plain":
        return np.broadcast_to(base, (*ring.shape, 3))
    if plate.decor == "gold-rimmed":
        ink, amount = GOLD, np.clip(1.5 - np.abs(ring - 0.925) / 0.018, 0, 1)
    else:
        ink = (70, 116, 186) if plate.colour == "white" else (250, 248, 240)
        amount = np.clip((0.05 - _spot_distance(plate, ring, u, v)) / 0.02 + 0.5, 0, 1)
    return base + (np.array(ink, np.float32) - base) * amount[..., None]


def _spot_distance(plate: Plate, ring: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How far each pixel lies from the next of 24 spots around the rim, in half axes of the plate."""
    if plate.shape == "square":  # six to a side
        u, v = np.abs(u), np.abs(v)
        steps, apart = 3 * np.minimum(u, v) / np.maximum(np.maximum(u, v), 1e-6), 0.85 / 3
    else:
        steps, apart = np.arctan2(v, u) * 24 / math.tau, 0.85 * math.tau / 24
    return np.hypot((steps % 1 - 0.5) * apart, ring - 0.85)


def _exposed(picture: Image.Image, scene: Scene) -> Image.Image:
    """Light that falls off across the picture, its warmth, and the grain of the camera."""
    size, light = picture.width, scene.light
    ramp = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    angle = math.radians(light.angle)
    fall = ramp[None, :] * math.cos(angle) + ramp[:, None] * math.sin(angle)
    corner = ramp[None, :] ** 2 + ramp[:, None] ** 2
    shade = light.brightness * (1.02 + 0.16 * fall - 0.2 * corner)
    tint = np.array((1 + 0.035 * light.warmth, 1, 1 - 0.05 * light.warmth), np.float32)
    pixels = np.asarray(picture, np.float32) * shade[..., None] * tint
    grain = RandomState(scene.table.seed).standard_normal((size, size)).astype(np.float32)
    pixels += scene.noise * grain[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
