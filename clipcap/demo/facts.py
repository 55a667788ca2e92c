"""How much of a picture its caption tells right: captions parsed back by the grammar, against the scene."""

from __future__ import annotations

from collections.abc import Sequence

from clipcap.demo.grammar import parse
from clipcap.demo.scene import Scene

ASPECTS = ("food", "count", "colour", "plate")


def fact_shares(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of captions right in each aspect, and in all of them together.

    Args:
        captions: one per picture, of a model or of anybody.
        scenes: what the pictures show.
    Returns:
        share by aspect, and under "all"; empty where there are no pictures.
    """
    if not captions:
        return {}
    right = [parse(caption).agreement(scene.facts) for caption, scene in zip(captions, scenes, strict=True)]
    shares = {aspect: sum(r[aspect] for r in right) / len(right) for aspect in ASPECTS}
    return shares | {"all": sum(all(r.values()) for r in right) / len(right)}


def table(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, dict[str, float]]:
    """`fact_shares` of the pictures with one food, of those with more, and of all."""
    kinds: dict[str, list[int]] = {"one food": [], "two or more": [], "all pictures": list(range(len(scenes)))}
    for number, scene in enumerate(scenes):
        kinds["one food" if len(scene.facts.foods) == 1 else "two or more"].append(number)
    return {
        kind: {"pictures": len(rows), **fact_shares([captions[i] for i in rows], [scenes[i] for i in rows])}
        for kind, rows in kinds.items()
    }
