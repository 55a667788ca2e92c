"""CIDEr-D of runs of `clipcap fit`, beside the most common caption and that of the nearest training photo.

python -m benchmarks.quality.fit.figures runs/mine
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from benchmarks.quality.baselines import nearest
from clipcap.evaluation.caption_files import captions_by_image
from clipcap.evaluation.metrics.score import score
from clipcap.features.files import read_features


def figures(run: Path) -> dict[str, str]:
    """CIDEr-D with its 95 % interval, of the captioner and of the two captions that need none."""
    training, held_out = (read_features(run / "data" / f"photos_{split}.pkl") for split in ("train", "val"))
    references = captions_by_image(held_out)
    written = {str(one["image_id"]): one["caption"] for one in _predictions(run)}
    order = [row for row, image in enumerate(held_out.image_ids) if str(image) in written]
    wanted = [references[str(held_out.image_ids[row])] for row in order]
    closest = nearest(training, held_out)
    everything = {
        "most common caption": [Counter(training.captions).most_common(1)[0][0]] * len(order),
        "nearest training photo": [closest[row] for row in order],
        "fit": [written[str(held_out.image_ids[row])] for row in order],
    }
    return {name: _cider(captions, wanted) for name, captions in everything.items()}


def _predictions(run: Path) -> list[dict[str, str]]:
    return json.loads((run / "evaluation" / "predictions.json").read_text(encoding="utf-8"))


def _cider(captions: list[str], wanted: list[list[str]]) -> str:
    scores = score(captions, wanted, None, False, False)
    low, high = scores.interval("CIDEr-D")
    return f"{scores.corpus['CIDEr-D']:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        print(folder, *(f"{name} {value}" for name, value in figures(Path(folder)).items()), sep="; ")
