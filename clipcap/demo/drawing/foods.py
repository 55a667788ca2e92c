"""The foods, one small function each, drawn by a pen that fills the unit circle (y grows downwards)."""

from __future__ import annotations

import math
from collections.abc import Callable

from clipcap.demo.drawing.pen import Pen, blend, blob, circle, ellipse, path, smooth

LEAF, DARK_LEAF = (96, 158, 62), (58, 112, 44)
STEM = (104, 72, 38)


def _around(count: int, radius: float, first: float = 0.0) -> list[tuple[float, float, float]]:
    """(x, y, angle in degrees) of `count` points on a circle."""
    angles = [first + 360 * i / count for i in range(count)]
    return [(radius * math.cos(math.radians(a)), radius * math.sin(math.radians(a)), a) for a in angles]


def _scattered(pen: Pen, count: int, reach: float) -> list[tuple[float, float]]:
    """Points spread evenly over a disc, like seeds in a sunflower, each a little off its place."""
    spots = []
    for i in range(count):
        r, a = reach * math.sqrt((i + 0.5) / count), 2.39996 * i + pen.rng.uniform(-0.25, 0.25)
        spots.append((r * math.cos(a), r * math.sin(a)))
    return spots


def apple(pen: Pen, tint: str) -> None:
    """From the side: two shoulders, a dimple, a stem with a leaf."""
    dark, bright = {"red": ((176, 20, 32), (240, 78, 62)), "green": ((112, 160, 36), (196, 222, 92))}[tint]
    half = path("0 -56  30 -72  68 -60  86 -14  72 44  40 84  0 78")
    pen.line([(0.02, -0.48), (0.04, -0.74), (0.12, -0.96)], 0.1, STEM, body=True)
    pen.body(smooth([*half, *((-x, y) for x, y in half[-2:0:-1])]), dark)
    pen.body(smooth(path("10 -72  34 -98  66 -96  46 -74")), LEAF)
    pen.line([(0.14, -0.74), (0.6, -0.94)], 0.03, DARK_LEAF)
    pen.ball(0, 0.08, 0.74, dark, bright, steps=12)
    pen.mark(ellipse(0.02, -0.52, 0.26, 0.09), blend(dark, (30, 10, 0), 0.45))
    pen.line([(0.02, -0.5), (0.04, -0.74), (0.12, -0.96)], 0.1, STEM)
    pen.shine(0, 0, 0.17)


def banana(pen: Pen, _: str) -> None:
    """A crescent with brown tips and long ridges."""
    back = path("-90 -42  -72 12  -30 48  22 52  66 22  86 -20")
    belly = path("98 -44  86 -52  72 -34  48 -6  12 8  -28 0  -62 -30")
    pen.body(smooth([*back, *belly, (-0.78, -0.52)]), (244, 206, 58))
    pen.mark(smooth([*back, (0.5, 0.16), (0.1, 0.32), (-0.36, 0.24), (-0.7, -0.14)]), (222, 172, 36))
    pen.mark(smooth(path("-68 -24  -30 12  14 20  56 2  14 13  -28 5")), (255, 236, 140))
    pen.mark(smooth(path("84 -34  80 -60  102 -60  102 -36")), (122, 104, 40))
    pen.dot(0.94, -0.5, 0.09, (84, 60, 30))
    pen.dot(-0.87, -0.48, 0.11, (92, 66, 32))
    for _spot in range(4):
        x = pen.rng.uniform(-0.5, 0.5)
        pen.dot(x, 0.36 - 0.5 * x * x + pen.rng.uniform(-0.12, 0.06), 0.035, (150, 104, 40, 170))


def broccoli(pen: Pen, _: str) -> None:
    """A branching pale stem under a crown of bumpy florets."""
    pen.body(smooth(path("-20 92  20 92  24 50  60 10  0 -10  -60 10  -24 50")), (166, 196, 104))
    pen.line([(0.02, 0.9), (0.02, 0.3)], 0.05, (132, 168, 78))
    pen.line([(0.06, 0.55), (0.34, 0.2)], 0.05, (132, 168, 78))
    crown = [(-0.6, -0.02, 0.34), (0.6, -0.02, 0.34), (-0.36, -0.42, 0.38), (0.36, -0.42, 0.38)]
    crown += [(0, -0.6, 0.36), (-0.2, 0.02, 0.32), (0.22, 0.02, 0.32), (0, -0.24, 0.36)]
    for x, y, r in crown:
        pen.body(blob(x, y, r, pen.rng, 0.06), (44, 98, 42))
        pen.ball(x, y, r * 0.86, (52, 112, 48), (112, 176, 76), steps=4)
        for bx, by, _angle in _around(6, 0.66 * r, pen.rng.uniform(0, 60)):
            pen.dot(x + bx, y + by, 0.28 * r, (66, 132, 56))
            pen.shine(x + bx, y + by, 0.1 * r, 0.25)


def burger(pen: Pen, _: str) -> None:
    """From the side: bun with sesame, salad, tomato, cheese, meat, bun."""
    pen.body(smooth(path("-86 48  -40 44  40 44  86 48  74 82  0 88  -74 82")), (212, 142, 66))
    pen.mark(ellipse(0, 0.86, 0.8, 0.12), (178, 108, 44))
    pen.body(smooth(path("-90 30  0 22  90 30  88 54  0 60  -88 54")), (104, 56, 34))
    for x in (-0.7, -0.4, -0.1, 0.25, 0.55):
        pen.dot(x, 0.46, 0.06, (74, 38, 22))
    drips = path("-94 20  94 20  62 32  40 50  20 32  -30 30  -52 42  -70 30")
    pen.body(drips, (252, 196, 58))
    pen.body(smooth(path("-86 8  86 8  84 22  -84 22"), 3), (214, 58, 44))
    frill = [(-0.96 + 0.16 * i, 0.16 if i % 2 else 0.02) for i in range(13)]
    pen.body(smooth([*frill, (0.8, -0.12), (-0.8, -0.12)]), (122, 182, 66))
    pen.body(smooth(path("-88 -6  -80 -50  -40 -80  40 -80  80 -50  88 -6  0 0")), (208, 130, 56))
    pen.mark(smooth(path("-66 -44  -30 -72  34 -72  62 -48  0 -36")), (232, 166, 88))
    for x, y in path("-46 -44  -20 -64  2 -40  24 -62  50 -40  -66 -24  28 -22  -24 -20  68 -18"):
        pen.mark(ellipse(x, y, 0.075, 0.045, pen.rng.uniform(-60, 60)), (255, 240, 204))


def carrot(pen: Pen, _: str) -> None:
    """A tapering root with rings and feathery leaves."""
    for x, y in path("98 -42  104 -12  106 15  96 42"):
        pen.body(smooth([(0.5, -0.06), (0.78, 0.66 * y - 0.1), (x, y), (0.8, 0.66 * y + 0.1), (0.5, 0.06)]), LEAF)
        pen.line([(0.56, 0), (x * 0.94, y * 0.9)], 0.04, DARK_LEAF)
    pen.body(smooth(path("56 -32  64 0  56 32  10 31  -50 16  -100 4  -100 -4  -50 -16  10 -31")), (240, 128, 34))
    pen.mark(smooth(path("50 -21  50 -8  0 -6  -70 -2  0 -20")), (255, 168, 84))
    for i in range(7):
        x, side = 0.44 - 0.2 * i + pen.rng.uniform(-0.04, 0.04), (-1) ** i
        edge = 0.32 * (x + 1.1) / 1.6
        pen.line([(x, side * edge), (x + 0.02, side * edge * 0.2)], 0.035, (196, 90, 18))
    pen.mark(ellipse(0.59, 0, 0.07, 0.18), (150, 118, 40))


def cherry(pen: Pen, _: str) -> None:
    """A dark red ball on a long thin stem."""
    stalk = path("0 0  6 -34  20 -66  42 -96")
    pen.line(stalk, 0.09, (108, 124, 48), body=True)
    pen.body(ellipse(0, 0.3, 0.68, 0.64), (128, 8, 28))
    pen.body(smooth(path("38 -92  6 -100  -30 -80  -2 -68")), LEAF)
    pen.line([(0.36, -0.92), (-0.2, -0.8)], 0.03, DARK_LEAF)
    pen.ball(0, 0.3, 0.62, (140, 10, 30), (222, 42, 58))
    pen.mark(ellipse(0.01, -0.18, 0.24, 0.09), (92, 4, 20))
    pen.line(stalk, 0.09, (108, 124, 48))
    pen.shine(0, 0.3, 0.15, 1)


def cookie(pen: Pen, _: str) -> None:
    """A baked round with dark chocolate chips."""
    pen.body(blob(0, 0, 0.93, pen.rng, 0.035), (196, 136, 74))
    pen.mark(blob(0, 0, 0.8, pen.rng, 0.05), (216, 160, 96))
    pen.mark(blob(0, 0, 0.5, pen.rng, 0.1), (226, 174, 110))
    for x, y in _scattered(pen, 14, 0.85):
        pen.dot(x + 0.1, y - 0.07, 0.05, (176, 116, 58, 150))
    for x, y in _scattered(pen, 9, 0.78):
        pen.mark(blob(x, y, pen.rng.uniform(0.11, 0.16), pen.rng, 0.2), (70, 38, 24))
        pen.shine(x, y, 0.035, 0.6)


def donut(pen: Pen, tint: str) -> None:
    """A ring with icing and sprinkles."""
    icing = {"pink": (244, 136, 170), "chocolate": (92, 50, 32)}[tint]
    pen.body(blob(0, 0, 0.95, pen.rng, 0.02), (212, 148, 82))
    pen.mark(blob(0, 0, 0.86, pen.rng, 0.07), icing)
    pen.mark(blob(0, 0, 0.42, pen.rng, 0.08), (204, 138, 74))
    pen.cut(circle(0, 0, 0.3))
    for x, y, _ in _around(18, 0.62, pen.rng.uniform(0, 20)):
        turn, out = pen.rng.uniform(0, math.pi), pen.rng.uniform(0.82, 1.22)
        dx, dy, x, y = 0.07 * math.cos(turn), 0.07 * math.sin(turn), x * out, y * out
        colour = pen.rng.choice(((255, 255, 255), (255, 220, 70), (98, 190, 230), (120, 210, 120), (250, 90, 90)))
        pen.line([(x - dx, y - dy), (x + dx, y + dy)], 0.06, colour)
    pen.shine(0, 0, 0.3, 0.12)


def egg(pen: Pen, _: str) -> None:
    """Fried, sunny side up: an uneven white with a crisp edge, a round yolk."""
    pen.body(blob(0, 0, 0.92, pen.rng, 0.1), (238, 214, 168))
    pen.mark(blob(0, 0, 0.86, pen.rng, 0.08), (255, 253, 247))
    x, y = pen.rng.uniform(-0.15, 0.15), pen.rng.uniform(-0.15, 0.15)
    pen.dot(x, y, 0.5, (244, 236, 216))
    pen.dot(x, y, 0.43, (236, 144, 20))
    pen.ball(x, y, 0.4, (246, 160, 24), (255, 208, 72), steps=6)
    pen.shine(x, y, 0.09, 1)
    for bx, by in path("60 30  -50 50  -60 -40"):
        pen.dot(bx, by, 0.06, (242, 232, 210))


def pancake(pen: Pen, _: str) -> None:
    """A golden round with a pale edge, syrup and a pat of butter."""
    pen.body(blob(0, 0, 0.94, pen.rng, 0.02), (240, 204, 134))
    pen.mark(blob(0, 0, 0.86, pen.rng, 0.02), (206, 136, 62))
    pen.mark(blob(0, 0, 0.7, pen.rng, 0.04), (220, 154, 76))
    spill = []
    for x, y, _angle in _around(10, 1):
        reach = pen.rng.uniform(0.36, 0.74)
        spill.append((reach * x, reach * y))
    pen.mark(smooth(spill), (150, 74, 18, 190))
    pen.shine(0.05, 0.05, 0.2, 0.2)
    pen.mark(path("-27 -20  22 -27  29 18  -20 25"), (226, 182, 66))
    pen.mark(path("-25 -22  20 -28  25 10  -19 16"), (255, 236, 140))


def pizza(pen: Pen, _: str) -> None:
    """A slice: puffed crust, melted cheese, pepperoni and basil."""
    pen.body(smooth(path("-89 -60  -48 -82  0 -90  48 -82  89 -60  72 -36  0 -50  -72 -36")), (206, 142, 74))
    pen.body(smooth(path("-79 -50  0 -68  79 -50  43 20  7 92  -7 92  -43 20")), (206, 76, 34))
    pen.mark(smooth(path("-70 -46  0 -62  70 -46  37 16  0 84  -37 16")), (252, 204, 92))
    pen.mark(smooth(path("-60 -66  0 -82  60 -66  0 -74")), (230, 176, 106))
    for x, y in path("-30 -30  32 -26  2 22"):
        x, y = x + pen.rng.uniform(-0.05, 0.05), y + pen.rng.uniform(-0.05, 0.05)
        pen.dot(x, y, 0.2, (150, 32, 24))
        pen.dot(x, y, 0.165, (204, 62, 46))
        pen.shine(x, y, 0.05, 0.35)
    for x, y, turn in ((0.03, -0.1, 30), (-0.16, 0.08, -50), (0.06, 0.54, 80)):
        pen.mark(ellipse(x, y, 0.11, 0.05, turn), DARK_LEAF)


def strawberry(pen: Pen, _: str) -> None:
    """A pointed red heart with seeds and a green crown."""
    half = path("34 -66  72 -42  72 6  40 60  0 95")
    pen.body(smooth([(0, -0.56), *half, *((-x, y) for x, y in half[-2::-1])]), (200, 22, 40))
    pen.ball(0, 0.0, 0.58, (208, 26, 44), (242, 74, 74))
    for row, width in ((-0.3, 3), (-0.06, 4), (0.18, 3), (0.42, 2), (0.66, 1)):
        for i in range(width):
            x = (i - (width - 1) / 2) * 0.32 + pen.rng.uniform(-0.03, 0.03)
            pen.mark(ellipse(x, row, 0.035, 0.055), (255, 220, 120))
    pen.line([(0, -0.6), (0.06, -0.96)], 0.09, (120, 160, 70), body=True)
    for x, y in path("-60 -54  -34 -32  0 -26  34 -32  60 -54  28 -84  -28 -84"):
        pen.body(smooth([(-0.14 * y, -0.66 + 0.14 * x), (x, y), (0.14 * y, -0.66 - 0.14 * x)], 4), LEAF)
        pen.line([(0, -0.66), (x * 0.8, y * 0.8 - 0.13)], 0.03, DARK_LEAF)


def sushi(pen: Pen, _: str) -> None:
    """A maki roll from above: seaweed, rice, salmon, cucumber and avocado."""
    pen.body(circle(0, 0, 0.93), (28, 44, 36))
    pen.mark(circle(0, 0, 0.79), (244, 242, 232))
    for x, y in _scattered(pen, 44, 0.72):
        grain = ellipse(x, y, 0.07, 0.035, pen.rng.uniform(0, 180))
        pen.mark(grain, pen.rng.choice(((255, 255, 252), (226, 222, 206))))
    pen.mark(blob(-0.12, -0.08, 0.33, pen.rng, 0.08), (246, 128, 82))
    for y in (-0.24, -0.1, 0.04):
        pen.line([(-0.36, y + 0.04), (0.08, y - 0.06)], 0.035, (255, 190, 154))
    pen.mark(blob(0.24, 0.02, 0.2, pen.rng, 0.1), (104, 172, 78))
    pen.dot(0.24, 0.02, 0.11, (196, 222, 140))
    pen.mark(blob(0.02, 0.28, 0.17, pen.rng, 0.1), (226, 212, 112))


def tomato(pen: Pen, _: str) -> None:
    """A slice: red skin, pale walls, chambers of jelly with seeds."""
    pen.body(blob(0, 0, 0.94, pen.rng, 0.02), (190, 22, 24))
    pen.mark(circle(0, 0, 0.85), (236, 84, 62))
    pen.mark(circle(0, 0, 0.82), (228, 66, 48))
    chambers = pen.rng.choice((5, 6))
    width = 0.2 if chambers == 5 else 0.17
    for x, y, angle in _around(chambers, 0.5):
        pen.mark(ellipse(x, y, 0.25, width + 0.03, angle), (248, 136, 90))
        pen.mark(ellipse(x, y, 0.22, width, angle), (196, 44, 26))
        for u, v in path("-8 -8  6 -6  -2 9  10 6"):
            turn = math.radians(angle)
            sx, sy = x + u * math.cos(turn) - v * math.sin(turn), y + u * math.sin(turn) + v * math.cos(turn)
            pen.mark(ellipse(sx, sy, 0.05, 0.032, angle), (255, 222, 130))
    pen.dot(0, 0, 0.17, (250, 156, 116))
    pen.shine(0, 0, 0.28, 0.1)


PAINTERS: dict[str, Callable[[Pen, str], None]] = {
    painter.__name__: painter
    for painter in (
        apple, banana, broccoli, burger, carrot, cherry, cookie, donut, egg, pancake, pizza, strawberry, sushi, tomato
    )
}  # fmt: skip
