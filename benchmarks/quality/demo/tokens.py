"""What image tokens add on the plates: the demo's recipe with the vector, with tokens, and two controls.

python -m benchmarks.quality.demo.tokens --demo demo_out [--layers 1 2] [--seeds 42] [--epochs 4]

A layer is counted from the end: 1 is the bundled CLIP's last map, 2 the map before. The controls caption each plate
by the tokens of another plate, and by its own tokens, all replaced by their mean.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import machine
from benchmarks.quality.demo.quality import in_order, report
from clipcap.captioning.captioner import Captioner
from clipcap.cli.main import main as clipcap
from clipcap.demo.facts import table
from clipcap.demo.plates import scenes
from clipcap.demo.run import TRAINING, VAL_PICTURES, VAL_SEED
from clipcap.evaluation.caption_files import captions_by_image
from clipcap.evaluation.metrics.score import score
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features
from clipcap.models.given import Given

MAPPER = ("--mapping_type", "transformer", "--num_layers", "2")
VECTOR = 0  # in place of a layer: the same mapper reads the vector alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo_out"), help="folder that `clipcap demo` made")
    parser.add_argument("--layers", type=int, nargs="+", default=[VECTOR, 1, 2], help="0: the vector alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    print(machine(), flush=True)
    drawn = list(islice(scenes("val", VAL_SEED), VAL_PICTURES))
    for layer in args.layers:
        training, held_out = (parsed(args.demo, split, layer or 1) for split in ("train", "val"))
        features = read_features(str(held_out))
        references = captions_by_image(features)
        order = [references[str(i)] for i in range(VAL_PICTURES)]
        for seed in args.seeds:
            out = args.demo / "tokens" / f"checkpoints_{layer}_{seed}"
            if not out.exists():
                words = [*MAPPER, "--epochs", str(args.epochs), "--seed", str(seed)]
                words += [] if layer else ["--no_read_tokens"]
                if clipcap(["train", "--data", str(training), "--out_dir", str(out), *TRAINING, *words]):
                    raise SystemExit("training failed, see above")
            captioner = Captioner.from_pretrained(out)
            for name, given in inputs(features, layer).items():
                found = in_order(captioner, [given[[row]] for row in range(len(given))], features)
                title = f"tokens of layer -{layer}" if layer else "vector, the same mapper"
                report(f"{title}, seed {seed}{name}", score(found, order, with_java=False), table(found, drawn))


def parsed(demo: Path, split: str, layer: int) -> Path:
    """Features of the plates of a split with the tokens of a layer."""
    out = demo / "tokens" / f"plates_{split}_{layer}"
    if not out.is_dir():
        source = demo / f"plates_{split}"
        words = ["parse", "food", "--data_path", source, "--clip_model_type", "demo", "--tokens", "grid"]
        if clipcap(list(map(str, [*words, "--layer", -layer, "--out", out]))):
            raise SystemExit("parsing failed, see above")
    return out


def inputs(features: Features, layer: int) -> dict[str, Given]:
    """What the captioner is given of all images, by control."""
    own = features.given(np.arange(features.num_images))
    if not layer:
        return {"": Given(own.vectors)}
    assert own.tokens is not None, "parsed with tokens"
    other = own[torch.arange(len(own)).roll(1)]
    mean = own.tokens.float().mean(dim=1, keepdim=True).expand_as(own.tokens).to(own.tokens.dtype)
    return {"": own, ", of another plate": other, ", their mean": Given(own.vectors, mean)}


if __name__ == "__main__":
    main()
