"""What a demo picture holds: food on a plate on a table, chosen by seed, and the split it belongs to.

Lengths and positions are shares of the picture's side, angles are degrees, y grows downwards.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import combinations, groupby
from random import Random
from typing import Literal, NamedTuple

HELD_OUT_SHARE = 0.15

COLOURS = ("white", "black", "red", "pink", "yellow", "green", "blue", "purple")  # of plates
SHAPES = ("round", "square", "oval")  # of plates
DECORS = ("plain", "gold-rimmed", "spotted")  # of plates
TABLES = ("oak", "walnut", "marble", "slate", "plain", "checked", "striped", "spotted")  # the last four: cloths
CLOTH_COLOURS = ("red", "blue", "green", "yellow", "grey", "brown")
CUTLERY = ("fork", "knife", "spoon")
CORNER_THINGS = ("coffee", "tea", "juice", "napkin")


class Kind(NamedTuple):
    """How a food may lie: the largest tilt to either side, its size, and the colours it comes in."""

    tilt: float = 180
    size: float = 1.0
    tints: tuple[str, ...] = ("",)


FOODS = {
    "apple": Kind(tilt=30, tints=("red", "green")),
    "banana": Kind(size=1.12),
    "broccoli": Kind(tilt=60),
    "burger": Kind(tilt=14, size=1.03),
    "carrot": Kind(size=1.05),
    "cherry": Kind(tilt=40, size=0.88),
    "cookie": Kind(),
    "donut": Kind(tints=("pink", "chocolate")),
    "egg": Kind(size=1.05),
    "pancake": Kind(size=1.08),
    "pizza": Kind(size=1.08),
    "strawberry": Kind(size=0.95),
    "sushi": Kind(size=0.92),
    "tomato": Kind(),
}


@dataclass(frozen=True)
class Item:
    """One piece of food."""

    food: str
    tint: str
    x: float
    y: float
    radius: float
    angle: float
    seed: int


@dataclass(frozen=True)
class Plate:
    """The plate; `width` and `height` are half axes before it is turned."""

    colour: str
    shape: str
    decor: str
    x: float
    y: float
    width: float
    height: float
    angle: float
    tone: float


@dataclass(frozen=True)
class Table:
    """The table below the plate."""

    kind: str
    colour: str
    angle: float
    scale: float
    seed: int


@dataclass(frozen=True)
class Thing:
    """Something beside the plate."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float
    seed: int


@dataclass(frozen=True)
class Light:
    """Where the light comes from and how it falls."""

    angle: float
    brightness: float
    warmth: float
    shadow: float


@dataclass(frozen=True)
class Facts:
    """What a caption states: each food with its number, the colour of the plate and its shape.

    None: the caption does not state it.
    """

    foods: tuple[tuple[str, int | None], ...]
    colour: str | None
    plate: str | None

    def agreement(self, truth: Facts) -> dict[str, bool]:
        """Which of food, count, colour and plate are as in `truth`.

        Counts are compared food by food where the foods agree, else as numbers alone.
        """
        same_foods = [food for food, _ in self.foods] == [food for food, _ in truth.foods]
        numbers, true_numbers = ([count for _, count in facts.foods] for facts in (self, truth))
        if not same_foods:
            numbers, true_numbers = (sorted(count or 0 for count in some) for some in (numbers, true_numbers))
        return {
            "food": same_foods,
            "count": numbers == true_numbers,
            "colour": self.colour == truth.colour,
            "plate": self.plate == truth.plate,
        }


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn."""

    seed: int
    items: tuple[Item, ...]
    plate: Plate
    table: Table
    things: tuple[Thing, ...]
    light: Light
    noise: float

    @property
    def facts(self) -> Facts:
        """The combination of food × count × colour × plate that captions state and the split is made by."""
        names = sorted(item.food for item in self.items)
        foods = tuple((food, len(list(same))) for food, same in groupby(names))
        return Facts(foods, self.plate.colour, self.plate.shape)


def split_of(scene: Scene) -> Literal["train", "val"]:
    """The split of a scene: a combination lies in one split with all of its pictures."""
    foods = "+".join(f"{count} {food}" for food, count in scene.facts.foods)
    name = f"{foods} on {scene.facts.colour} {scene.facts.plate}"
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "val" if share < HELD_OUT_SHARE else "train"


def make_scene(seed: int) -> Scene:
    """The scene of a seed, the same on every run and machine."""
    rng = Random(f"plate {seed}")
    plate = _plate(rng)
    return Scene(
        seed=seed,
        items=_items(rng, plate),
        plate=plate,
        table=_table(rng),
        things=_things(rng, plate),
        light=Light(
            angle=rng.uniform(-160, -20),
            brightness=rng.uniform(0.9, 1.08),
            warmth=rng.uniform(-1, 1),
            shadow=rng.uniform(0.3, 0.55),
        ),
        noise=rng.uniform(0, 4),
    )


def _plate(rng: Random) -> Plate:
    shape = rng.choice(SHAPES)
    size = rng.uniform(0.35, 0.41)
    wide, high = {"round": (1, 1), "square": (0.93, 0.93), "oval": (1.1, 0.78)}[shape]
    return Plate(
        colour=rng.choice(COLOURS),
        shape=shape,
        decor=rng.choice(DECORS),
        x=rng.uniform(0.47, 0.53),
        y=rng.uniform(0.47, 0.53),
        width=size * wide,
        height=size * high,
        angle=rng.gauss(0, 7) + (90 if rng.random() < 0.3 else 0),
        tone=rng.uniform(-1, 1),
    )


def _items(rng: Random, plate: Plate) -> tuple[Item, ...]:
    count = rng.randint(1, 4)
    kinds = rng.sample(sorted(FOODS), 2 if count > 1 and rng.random() < 0.5 else 1)
    first = rng.randint(1, count - 1) if len(kinds) == 2 else count
    names = [kinds[0]] * first + [kinds[-1]] * (count - first)
    tints = {food: rng.choice(FOODS[food].tints) for food in kinds}
    rng.shuffle(names)
    slots, room = _slots(rng, count, plate)
    room *= rng.uniform(0.85, 1)
    items = []
    for food, (x, y) in zip(names, slots, strict=True):
        radius = room * FOODS[food].size * rng.uniform(0.94, 1.04)
        angle = rng.uniform(-1, 1) * FOODS[food].tilt
        items.append(Item(food, tints[food], x, y, radius, angle, rng.getrandbits(32)))
    return tuple(sorted(items, key=lambda item: item.y))


def _slots(rng: Random, count: int, plate: Plate) -> tuple[list[tuple[float, float]], float]:
    """Places for `count` pieces on the plate, and the radius that each may take without touching another."""
    turn = math.radians(rng.uniform(0, 360) if plate.shape == "round" else plate.angle)
    places = []
    for u, v in _arrangement(rng, count, plate.shape):
        u, v = plate.width * (u + rng.uniform(-0.03, 0.03)), plate.height * (v + rng.uniform(-0.03, 0.03))
        x, y = u * math.cos(turn) - v * math.sin(turn), u * math.sin(turn) + v * math.cos(turn)
        places.append((plate.x + x, plate.y + y))
    room = [0.46 * math.dist(one, other) for one, other in combinations(places, 2)]
    return places, min(0.64 * plate.height, *room, 1)


def _arrangement(rng: Random, count: int, shape: str) -> list[tuple[float, float]]:
    """Where the pieces go on a plate whose half axes are 1: in the middle, in a row or in a circle."""
    if count == 1:
        return [(rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1))]
    if count == 2 or (shape == "oval" and count == 3 and rng.random() < 0.5):
        reach = 0.48 if count == 2 else 0.64
        return [(reach * (2 * i / (count - 1) - 1), 0.0) for i in range(count)]
    reach = 0.57 if count == 3 else 0.6
    first = rng.uniform(0, 360) if count == 3 and shape != "oval" else 45 + rng.uniform(-8, 8)
    around = [math.radians(first + 360 * i / count) for i in range(count)]
    return [(reach * math.cos(angle), reach * math.sin(angle)) for angle in around]


def _table(rng: Random) -> Table:
    kind = rng.choice(TABLES)
    lean = rng.uniform(-12, 12) + rng.choice((0, 90))
    if kind in ("checked", "spotted") and rng.random() < 0.4:
        lean += 45
    return Table(kind, rng.choice(CLOTH_COLOURS), lean, rng.uniform(0.85, 1.25), rng.getrandbits(32))


def _things(rng: Random, plate: Plate) -> tuple[Thing, ...]:
    """Up to two pieces of cutlery where the plate leaves more room, and up to two things in free corners.

    Places are (across, along): across the gap between plate and edge, and along the cutlery.
    """
    turned = abs(plate.angle) > 45
    reach_x, reach_y = (plate.height, plate.width) if turned else (plate.width, plate.height)
    upright = reach_x <= reach_y
    reach, centre = (reach_x, plate.x) if upright else (reach_y, plate.y)
    corners = [(across, along) for across in (-1, 1) for along in (-1, 1)]
    things = []

    def put(kind: str, across: float, along: float, radius: float, angle: float) -> None:
        x, y = (across, along) if upright else (along, across)
        things.append(Thing(kind, rng.choice(CLOTH_COLOURS), x, y, radius, angle, rng.getrandbits(32)))

    for kind, side in zip(rng.sample(CUTLERY, rng.choice((0, 0, 1, 2))), rng.sample((-1, 1), 2), strict=False):
        corners = [corner for corner in corners if corner[0] != side]
        across = min(max(centre + side * (reach + 0.06), 0.055), 0.945)
        along, angle = rng.uniform(0.46, 0.54), rng.gauss(0, 4) + (0 if upright else 90)
        put(kind, across, along, rng.uniform(0.29, 0.33), angle)
    rng.shuffle(corners)
    for kind, corner in zip(rng.sample(CORNER_THINGS, rng.choice((0, 1, 1, 2))), corners, strict=False):
        across, along = (0.5 + 0.38 * way + rng.uniform(-0.02, 0.02) for way in corner)
        radius = (0.22 if kind == "napkin" else 0.145) * rng.uniform(0.92, 1.08)
        put(kind, across, along, radius, rng.uniform(-25, 25))
    return tuple(sorted(things, key=lambda thing: thing.kind != "napkin"))  # napkins lie undermost
