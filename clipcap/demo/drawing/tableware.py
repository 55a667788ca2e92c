"""What may lie beside the plate, drawn by a pen like the foods."""

from __future__ import annotations

from collections.abc import Callable

from clipcap.demo.drawing.pen import Colour, Pen, blend, circle, ellipse, path, smooth
from clipcap.demo.drawing.textures import CLOTH_DYES

STEEL, BRIGHT_STEEL, DARK_STEEL = (186, 190, 196), (236, 238, 242), (128, 132, 140)
SHADE = (60, 40, 20)


def _handle(pen: Pen) -> None:
    pen.body(smooth(path("-3 -20  3 -20  7 86  0 98  -7 86")), STEEL)
    pen.line([(0, -0.1), (0, 0.86)], 0.03, BRIGHT_STEEL)


def fork(pen: Pen, _: str) -> None:
    """Four prongs, pointing up."""
    pen.body(smooth(path("-15 -62  15 -62  13 -36  3 -18  -3 -18  -13 -36")), STEEL)
    _handle(pen)
    for x in (-0.13, -0.043, 0.043, 0.13):
        pen.line([(x, -0.98), (x, -0.55)], 0.045, STEEL, body=True)
    pen.line([(-0.08, -0.5), (-0.04, -0.3)], 0.03, BRIGHT_STEEL)


def knife(pen: Pen, _: str) -> None:
    """A table knife, pointing up."""
    pen.body(smooth(path("-5 10  -8 -60  0 -98  9 -70  9 10")), BRIGHT_STEEL)
    pen.line([(0.04, 0.05), (0.04, -0.7)], 0.03, STEEL)
    pen.body(smooth(path("-6 10  8 10  9 90  1 98  -7 90")), DARK_STEEL)
    pen.line([(0.0, 0.16), (0.0, 0.86)], 0.03, STEEL)


def spoon(pen: Pen, _: str) -> None:
    """A spoon, pointing up."""
    _handle(pen)
    pen.body(ellipse(0, -0.64, 0.18, 0.32), STEEL)
    pen.mark(ellipse(0, -0.64, 0.13, 0.26), DARK_STEEL)
    pen.mark(ellipse(0.02, -0.6, 0.1, 0.21), STEEL)
    pen.shine(0, -0.64, 0.06)


def _cup(pen: Pen, china: Colour, drink: Colour, rim: Colour) -> None:
    """A cup on its saucer, from above, the handle to the lower right."""
    pen.body(circle(0, 0, 0.98), china)
    pen.line([*circle(0, 0, 0.84), (0.84, 0)], 0.03, blend(china, SHADE, 0.2))
    pen.mark(circle(0.05, 0.05, 0.66), blend(china, SHADE, 0.28))
    pen.line([(0.4, 0.4), (0.66, 0.66)], 0.2, blend(china, SHADE, 0.12))
    pen.mark(circle(0, 0, 0.61), blend(china, (255, 255, 255), 0.6))
    pen.mark(circle(0, 0, 0.52), rim)
    pen.mark(circle(0, 0, 0.47), drink)
    pen.shine(0, 0, 0.12, 0.25)


def coffee(pen: Pen, _: str) -> None:
    """Black coffee in a white cup."""
    _cup(pen, (242, 240, 234), drink=(84, 48, 30), rim=(158, 106, 62))


def tea(pen: Pen, colour: str) -> None:
    """Tea with a slice of lemon in a coloured cup."""
    _cup(pen, blend(CLOTH_DYES[colour], (255, 255, 255), 0.25), drink=(196, 104, 34), rim=(222, 150, 72))
    pen.dot(0.1, 0.08, 0.27, (246, 206, 60))
    pen.dot(0.1, 0.08, 0.22, (255, 240, 150))
    for u, v in ((0, 0.2), (0.17, 0.1), (0.17, -0.1)):
        pen.line([(0.1 - u, 0.08 - v), (0.1 + u, 0.08 + v)], 0.03, (250, 216, 84))


def juice(pen: Pen, _: str) -> None:
    """A glass of orange juice with ice, from above."""
    drink = (252, 168, 44)
    pen.body(circle(0, 0, 0.86), (206, 220, 226))
    pen.line([*circle(0, 0, 0.8), (0.8, 0)], 0.05, (246, 251, 253))
    pen.mark(circle(0, 0, 0.68), blend(drink, SHADE, 0.22))
    pen.mark(circle(0, 0, 0.63), drink)
    for x, y, turn in ((-0.2, 0.16, 20), (0.2, -0.16, 60)):
        turned = [(x + 0.8 * u, y + 0.8 * v) for u, v in ellipse(0, 0, 0.28, 0.28, turn)[::8]]
        pen.mark(turned, (255, 214, 140, 190))
    pen.shine(0, 0, 0.2, 0.25)


def napkin(pen: Pen, colour: str) -> None:
    """A folded cloth with a stitched border."""
    dye = blend(CLOTH_DYES[colour], (255, 250, 240), 0.3)
    pen.body(smooth(path("-70 -70  0 -68  70 -70  69 0  70 70  0 69  -70 70  -69 0"), 3), dye)
    seam = path("-58 -58  58 -58  58 58  -58 58  -58 -58")
    pen.line(seam, 0.05, blend(dye, (255, 255, 255), 0.5))
    pen.line([(-0.7, 0.05), (0.7, 0.02)], 0.03, blend(dye, (0, 0, 0), 0.25))
    pen.mark([(-0.7, 0.04), (0.7, 0.01), (0.7, 0.2), (-0.7, 0.2)], (0, 0, 0, 22))


PAINTERS: dict[str, Callable[[Pen, str], None]] = {
    painter.__name__: painter for painter in (fork, knife, spoon, coffee, tea, juice, napkin)
}
