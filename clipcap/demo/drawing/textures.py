"""Table tops and cloths, computed as float32 [side, side, 3] in 0..255 before they are turned."""

from __future__ import annotations

import math

import numpy as np
from numpy.random import RandomState
from PIL import Image

from clipcap.demo.scene import Table

WOODS = {"oak": (206, 164, 112), "walnut": (112, 74, 50)}
CLOTH_DYES = {
    "red": (196, 52, 50),
    "blue": (66, 104, 164),
    "green": (92, 138, 88),
    "yellow": (232, 188, 76),
    "grey": (140, 144, 150),
    "brown": (148, 108, 78),
}
LINEN = np.array((248, 244, 234), np.float32)


def table_top(table: Table, size: int) -> np.ndarray:
    """The table seen from above: float32 [size, size, 3]."""
    side = math.ceil(size * math.sqrt(2)) + 2  # large enough to be turned
    # RandomState's stream is frozen across numpy versions; Generator's is not.
    rng = RandomState(table.seed)
    if table.kind in WOODS:
        top = _wood(rng, side, np.array(WOODS[table.kind], np.float32), table.scale)
    elif table.kind == "marble":
        top = _marble(rng, side)
    elif table.kind == "slate":
        top = _slate(rng, side)
    else:
        top = _cloth(rng, side, table)
    picture = Image.fromarray(np.clip(top, 0, 255).astype(np.uint8))
    edge = (side - size) // 2
    turned = picture.rotate(table.angle, Image.Resampling.BILINEAR).crop((edge, edge, edge + size, edge + size))
    return np.asarray(turned, np.float32)


def _clouds(rng: RandomState, side: int, across: int, down: int) -> np.ndarray:
    """Smooth noise around 0 with `across` × `down` lumps: float32 [side, side]."""
    lumps = Image.fromarray(rng.standard_normal((down, across)).astype(np.float32))
    return np.asarray(lumps.resize((side, side), Image.Resampling.BICUBIC))


def _ramps(side: int) -> tuple[np.ndarray, np.ndarray]:
    """x [1, side] and y [side, 1] from 0 to 1."""
    ramp = np.linspace(0, 1, side, dtype=np.float32)
    return ramp[None, :], ramp[:, None]


def _wood(rng: RandomState, side: int, colour: np.ndarray, scale: float) -> np.ndarray:
    """Planks with long grain, each of another tone."""
    planks = 5 / scale
    _, y = _ramps(side)
    plank, across = np.divmod(y * planks, 1)  # [side, 1]
    tones = rng.uniform(-0.09, 0.09, 16).astype(np.float32)[plank.astype(int)]
    warp = _clouds(rng, side, 3, 14)
    grain = 0.035 * np.sin(40 * y * planks / 5 + 2.2 * warp) + 0.03 * _clouds(rng, side, 4, 70)
    joint = -0.35 * np.exp(-((np.minimum(across, 1 - across) / 0.022) ** 2))
    return colour * (1 + tones + grain + joint)[..., None]


def _marble(rng: RandomState, side: int) -> np.ndarray:
    """White stone with grey veins."""
    rough = _clouds(rng, side, 5, 5) + 0.5 * _clouds(rng, side, 11, 11) + 0.25 * _clouds(rng, side, 24, 24)
    vein = np.exp(-((rough / 0.13) ** 2)) * np.clip(0.5 + _clouds(rng, side, 3, 3), 0, 1)
    base = np.array((236, 234, 230), np.float32) + 4 * rough[..., None]
    return base - vein[..., None] * np.array((62, 58, 52), np.float32)


def _slate(rng: RandomState, side: int) -> np.ndarray:
    """Dark stone with a rough face."""
    rough = 6 * _clouds(rng, side, 6, 6) + 4 * _clouds(rng, side, 30, 30) + 3 * rng.standard_normal((side, side))
    return np.array((74, 79, 86), np.float32) + rough[..., None].astype(np.float32)


def _cloth(rng: RandomState, side: int, table: Table) -> np.ndarray:
    """Linen with a dyed pattern, threads and soft folds."""
    dye = np.array(CLOTH_DYES[table.colour], np.float32)
    x, y = _ramps(side)
    cells = 9 / table.scale
    if table.kind == "checked":
        amount = (_bands(x * cells, side) + _bands(y * cells, side)) / 2
    elif table.kind == "striped":
        amount = np.broadcast_to(_bands(x * cells, side), (side, side))
    elif table.kind == "spotted":
        amount = 1 - _spots(x * cells, y * cells, side / cells)
    else:
        amount = np.full((side, side), 0.85, np.float32)
    threads = 0.02 * rng.standard_normal((side, side)).astype(np.float32)
    folds = 0.035 * _clouds(rng, side, 4, 3)
    return (LINEN + (dye - LINEN) * amount[..., None]) * (1 + threads + folds)[..., None]


def _bands(position: np.ndarray, side: int) -> np.ndarray:
    """0 and 1 in turn, with edges about a pixel wide."""
    return np.clip(0.5 + np.sin(math.tau * position) * side / 30, 0, 1)


def _spots(x: np.ndarray, y: np.ndarray, pixels: float) -> np.ndarray:
    """1 inside of round spots on a shifted grid, 0 outside; a cell is `pixels` wide."""
    x = x + 0.5 * (np.floor(y) % 2)
    distance = np.hypot(x % 1 - 0.5, y % 1 - 0.5)
    return np.clip((0.24 - distance) * pixels + 0.5, 0, 1)
