"""Do generated pairs help a captioner? The sets of `synthetic.py`, by the facts that the demo's grammar reads back.

python -m benchmarks.quality.synthetic.captioner --sets runs/synthetic [--seeds 3] [--steps 300]

Rows: real alone, + cut captions, + shuffled captions (half of every batch), the same number of steps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.measure import machine
from benchmarks.quality.synthetic.synthetic import SIDE, one_food
from clipcap.captioning.captioner import Captioner
from clipcap.cli.main import main as clipcap
from clipcap.demo.drawing.draw import draw
from clipcap.demo.facts import ASPECTS
from clipcap.demo.grammar import parse
from clipcap.demo.run import TRAINING
from clipcap.demo.scene import Scene
from clipcap.evaluation.metrics.bootstrap import bootstrap_interval, paired_bootstrap
from clipcap.runtime.bundled import DEMO

ROWS = {"real alone": None, "+ cut captions": "cut", "+ shuffled captions": "shuffled"}
TEST = 240


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=Path, default=Path("runs/synthetic"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    print(machine(), flush=True)
    test = list(islice(one_food("val", 900), TEST))
    found: dict[str, list[np.ndarray]] = {row: [] for row in ROWS}
    for seed in range(args.seeds):
        for row, extra in ROWS.items():
            found[row].append(right(train(args.sets / str(seed), extra, seed, args.steps), test))
            print(f"seed {seed}  {row}: {shares(found[row][-1])}", flush=True)
    print("\n".join(table(found)))


def train(place: Path, extra: str | None, seed: int, steps: int) -> Path:
    """The demo's captioner, trained on the real plates with the set `extra` beside them."""
    out = place / "captioners" / (extra or "real")
    if not (out / f"{steps}.done").exists():
        words = ["--data", features(place, "real"), "--out_dir", out, *TRAINING, "--max_steps", steps]
        words += ["--epochs", steps, "--save_every", steps, "--warmup_steps", steps // 10, "--seed", seed]
        words += ["--extra", features(place, extra), "--extra_share", 0.5] if extra else []
        run("train", *words)
        (out / f"{steps}.done").touch()
    return out


def features(place: Path, name: str) -> Path:
    """The embeddings of a set by the demo's encoder."""
    path = place / f"{name}.pkl"
    if not path.exists():
        run("parse", "custom", "--data_path", place / name, "--clip_model_type", DEMO, "--out", path)
    return path


def run(*words: object) -> None:
    if clipcap([str(word) for word in words]):
        raise SystemExit(f"{words[0]} failed")


def right(folder: Path, test: Sequence[Scene]) -> np.ndarray:
    """[test plates, aspects and all of them]: what the captions tell right."""
    pictures = [draw(scene, SIDE * 2) for scene in test]
    captions = [found[0].text for found in Captioner.from_pretrained(folder, device="cpu").caption(pictures)]
    agreed = [parse(text).agreement(scene.facts) for text, scene in zip(captions, test, strict=True)]
    return np.array([[*(one[aspect] for aspect in ASPECTS), all(one.values())] for one in agreed], float)


def shares(hits: np.ndarray) -> str:
    names = (*ASPECTS, "all")
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in zip(names, hits.mean(0), strict=True))


def table(found: dict[str, list[np.ndarray]]) -> list[str]:
    """Means over seeds with intervals over test plates; p of the difference to the first row."""
    lines = [f"| captioner | {' | '.join((*ASPECTS, 'all'))} |", "| --- " * 6 + "|"]
    base = np.mean(found["real alone"], axis=0)
    for row, seeds in found.items():
        hits, cells = np.mean(seeds, axis=0), []
        for part in range(hits.shape[1]):
            low, high = bootstrap_interval(hits[:, part])
            cell = f"{100 * hits[:, part].mean():.1f} ({100 * low:.1f}–{100 * high:.1f})"
            if row != "real alone":
                seen = paired_bootstrap(hits[:, part], base[:, part])
                cell += f", {100 * seen.difference:+.1f} (p {seen.p_value:.3f})"
            cells.append(cell)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
