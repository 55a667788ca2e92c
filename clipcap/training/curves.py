"""The course of a training as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_PASSED_OVER = ("epoch", "step")


def plot_curves(log: Path, out: Path, chance: Mapping[str, float] | None = None) -> Path:
    """Draw the numbers of a `metrics.jsonl` over its epochs: losses, shares (0 to 1), and the rest, a panel each.

    Args:
        log: as `clipcap.training.loop` writes it.
        out: picture to write.
        chance: by name, what a model that knows nothing would reach; drawn as a dotted line of the same colour.
    """
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    names = [name for name in (lines[-1] if lines else {}) if name not in _PASSED_OVER]
    panels = {
        "loss": [name for name in names if name.endswith("loss")],
        "share": [name for name in names if not name.endswith("loss") and _is_share(lines, name)],
    }
    panels["rank"] = [name for name in names if not any(name in shown for shown in panels.values())]
    panels = {title: shown for title, shown in panels.items() if shown}
    figure = Figure(figsize=(5 * max(1, len(panels)), 4.6), layout="constrained")
    for axes, (title, shown) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels.items()):
        for name in shown:
            [curve] = axes.plot([line["epoch"] for line in lines], [line[name] for line in lines], label=name)
            if chance and name in chance:
                axes.axhline(chance[name], color=curve.get_color(), linestyle=":", label=f"{name} by chance")
        axes.set(xlabel="epoch", title=title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    figure.savefig(out, dpi=120)
    return out


def _is_share(lines: list[dict[str, float]], name: str) -> bool:
    return all(0 <= line[name] <= 1 for line in lines)
