"""The default recipe against the original's, on the same features, steps and seeds.

python -m benchmarks.quality.demo.recipes --demo demo_out [--epochs 2]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.measure import machine
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.demo.run import VAL_PICTURES
from clipcap.evaluation.caption_files import captions_by_image
from clipcap.evaluation.metrics.score import score
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features
from clipcap.training.config import TrainConfig
from clipcap.training.train import train

SEEDS, BATCH, PREFIX = (1, 2, 3), 32, 5  # the prefix of `clipcap demo`
RECIPES = {
    "default": {"share_prefix": False},
    "reference": {"recipe": "reference"},
    "reference, warm-up scaled": {"recipe": "reference", "warmup": 0.1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo_out"), help="folder that `clipcap demo` made")
    parser.add_argument("--epochs", type=int, default=2, help="of each run, with the same steps for all")
    args = parser.parse_args()
    demo, epochs = args.demo, args.epochs
    print(machine())
    training, held_out = (read_features(str(demo / f"plates_{name}.pkl")) for name in ("train", "val"))
    steps = epochs * -(-len(training.captions) // BATCH)
    print(
        f"{steps} steps of {BATCH} captions, peak learning rate 4e-3, beam search, {VAL_PICTURES} held-out pictures"
    )
    print(f"{'recipe':28}{'seed':>5}{'CIDEr-D':>9}{'BLEU-4':>8}{'words':>7}{'ended':>7}")
    for name, options in RECIPES.items():
        for seed in SEEDS:
            out = demo / "recipes" / f"{name.replace(' ', '_').replace(',', '')}_{epochs}_{seed}"
            if not out.exists():
                warmup = options.get("warmup")
                chosen = {flag: value for flag, value in options.items() if flag != "warmup"}
                data = {"data": str(demo / "plates_train.pkl"), "val": str(demo / "plates_val.pkl"), "lm": "demo"}
                loop = {"epochs": epochs, "save_every": epochs, "bs": BATCH, "lr": 4e-3, "seed": seed}
                if warmup is not None:
                    loop["warmup_steps"] = round(warmup * steps)
                model = {"only_prefix": True, "prefix_length": PREFIX}
                train(TrainConfig.of(**data, **loop, **chosen, **model, out_dir=str(out)))
            report(name, seed, out, held_out)


def report(name: str, seed: int, checkpoint: Path, held_out: Features) -> None:
    captioner = Captioner.from_pretrained(checkpoint)
    recipe = captioner.model.config.recipe
    how = DecodeConfig(beam=True, recipe=recipe, max_new_tokens=67)
    rows = held_out.rows(np.arange(held_out.num_images))  # [N, D]
    found = [several[0] for several in captioner.caption(list(rows), how)]
    references = captions_by_image(held_out)
    wanted = [references[str(i)] for i in held_out.image_ids]
    scores = score([caption.text.strip() for caption in found], wanted, with_java=False)
    ended = sum(caption_ended(captioner, caption.text, recipe) for caption in found) / len(found)
    print(f"{name:28}{seed:5}{scores.corpus['CIDEr-D']:9.3f}{scores.corpus['BLEU-4']:8.3f}"
          f"{scores.diversity['length']:7.1f}{ended:7.2f}", flush=True)  # fmt: skip


def caption_ended(captioner: Captioner, text: str, recipe: str) -> bool:
    """Whether a caption came to its end before the limit of tokens."""
    if recipe == "reference":
        return text.rstrip().endswith(".")
    return len(captioner.tokenizer(text)["input_ids"]) < 66


if __name__ == "__main__":
    main()
