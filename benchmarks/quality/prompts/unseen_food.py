"""A food that training has not shown: named from a datastore, or from a list, without training.

python -m benchmarks.quality.prompts.unseen_food --demo demo_out [--foods apple] [--renaming 0 0.3]

All plates of one food are left out of training. Fifty of them, with their captions, then join the datastore of the
prediction; or the food's name joins the list. Held-out plates are captioned before and after. With --known the list
of the training has the name already, though no plate and no caption of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import machine
from clipcap.captioning.config import DecodeConfig, LoadConfig
from clipcap.captioning.load_captioner import load_captioner
from clipcap.cli.main import main as clipcap
from clipcap.demo.facts import fact_shares
from clipcap.demo.grammar import parse
from clipcap.demo.plates import scenes, write_set
from clipcap.demo.run import TRAIN_PICTURES, TRAIN_SEED, TRAINING, VAL_SEED
from clipcap.demo.scene import FOODS, Scene
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features, write_features
from clipcap.runtime.bundled import DEMO

HELD_OUT, IN_DATASTORE, PROMPT_CAPTIONS = 1000, 50, 2  # the bundled language model has 128 positions
BEAMS = DecodeConfig(beam=True, max_new_tokens=40)


@dataclass(frozen=True)
class Setting:
    """Plates with one food left out of training.

    Args:
        out: folder of everything that is made.
        food: left out.
        known: whether the list of the training has its name.
    """

    out: Path
    food: str
    known: bool

    def shows(self, scene: Scene) -> bool:
        """Whether a plate has the food."""
        return self.food in [food for food, _ in scene.facts.foods]

    def write(self, training: Features) -> None:
        """Features without the food, those with fifty plates of it besides, those fifty alone, and both lists."""
        drawn = list(islice(scenes("train", TRAIN_SEED), TRAIN_PICTURES))
        shown = np.array([self.shows(drawn[int(image)]) for image in training.image_ids])
        fifty = np.random.default_rng(0).permutation(np.flatnonzero(shown))[:IN_DATASTORE]
        without = np.flatnonzero(~shown)
        for name, rows in (("without", without), ("with", [*without, *fifty]), ("only", fifty)):
            if not self.features(name).exists():
                _write(self.features(name), training, sorted(map(int, rows)))
        self.words(True).write_text("\n".join(FOODS) + "\n")
        self.words(False).write_text("\n".join(food for food in FOODS if food != self.food) + "\n")

    def features(self, name: str) -> Path:
        """A file of features: without the food, with fifty plates of it, or those only."""
        return self.out / f"{self.food}_{name}.pkl"

    def words(self, all_foods: bool) -> Path:
        """A list of foods: all, or all but this one."""
        return self.out / f"{self.food}_{'all' if all_foods else 'other'}.txt"

    def prompts(self, kind: str) -> dict[str, dict[str, Any]]:
        """Where a prediction finds its prompts, without the food and with it."""
        if kind == "entities":
            return {name: {"entities": str(self.words(name == "with"))} for name in ("without", "with")}
        stores = {name: {"datastore": str(self.features(name))} for name in ("without", "with", "only")}
        return stores | {"only, no gate": {**stores["only"], "prompt_gate": -1.0}}

    def checkpoint(self, kind: str, renaming: float, seed: int, epochs: int) -> Path:
        """The captioner of these options, trained if it is not there."""
        folder = self.out / f"{self.food}{'_known' * self.known}_{kind}_{renaming:g}_{epochs}_{seed}"
        if folder.exists():
            return folder
        words = ["train", "--data", self.features("without"), "--out_dir", folder, *TRAINING, "--epochs", epochs,
                 "--seed", seed, "--prompts", kind, "--entities", self.words(self.known)]  # fmt: skip
        words += ["--renaming", renaming]
        reading = ["--datastore", self.features("without"), "--prompt_captions", PROMPT_CAPTIONS]
        words += reading if kind == "captions" else []
        if clipcap([str(word) for word in words]):
            raise SystemExit("training failed, see above")
        return folder


def _write(path: Path, features: Features, rows: Sequence[int]) -> None:
    paths = features.image_paths
    write_features(
        path,
        embeddings=features.rows(np.array(rows)),
        image_ids=[str(features.image_ids[row]) for row in rows],
        image_paths=[paths[row] for row in rows],
        captions=[features.captions_of(row) for row in rows],
        meta=features.meta,
    )


def report(
    name: str, setting: Setting, checkpoint: Path, load: dict[str, Any], held_out: Features, drawn: Sequence[Scene]
) -> None:
    """Caption all held-out plates with these prompts, and print what is right of those with the food and without."""
    captioner = load_captioner(LoadConfig(load_pt=str(checkpoint), **load))
    found = [several[0] for several in captioner.caption(list(held_out.rows(slice(None))), BEAMS)]
    shown = np.array([setting.shows(scene) for scene in drawn])
    single = np.array([len(scene.facts.foods) == 1 for scene in drawn])
    rows = np.flatnonzero(shown)
    read = [_foods([one.caption for one in found[i].retrieved or ()]) for i in rows]
    prompted = np.mean([setting.food in foods for foods in read])
    said = np.mean([setting.food in _foods([found[i].text]) for i in rows])
    cells = [f"{prompted:.0%}", f"{said:.0%}"]
    for chosen in (shown, shown & single, shown & ~single, ~shown):
        rows = np.flatnonzero(chosen)
        right = fact_shares([found[i].text for i in rows], [drawn[i] for i in rows])["all"]
        cells.append(f"{right:.1%} of {len(rows)}")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _foods(texts: Sequence[str]) -> set[str]:
    """The foods that captions name; a word of a list is a caption, too."""
    return {food for text in texts for food, _ in parse(text).foods}


def main() -> None:
    """Print a row for each captioner, with and without the food in its datastore or list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo_out"), help="folder that `clipcap demo` made")
    parser.add_argument("--foods", nargs="+", default=["apple"], choices=FOODS)
    parser.add_argument("--kinds", nargs="+", default=["captions", "entities"])
    parser.add_argument("--renaming", type=float, nargs="+", default=[0, 0.3])
    parser.add_argument("--known", action="store_true", help="the list of the training has the food's name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    print(machine(), flush=True)
    out = args.demo / "unseen_food"
    out.mkdir(exist_ok=True)
    plates = out / "held_out"
    if not (out / "held_out.pkl").exists():
        write_set(plates, HELD_OUT, VAL_SEED, split="val", workers=1)
        words = ["parse", "food", "--data_path", plates, "--clip_model_type", DEMO, "--out", out / "held_out.pkl"]
        if clipcap([str(word) for word in words]):
            raise SystemExit("parsing failed, see above")
    held_out = read_features(str(out / "held_out.pkl"))
    drawn = list(islice(scenes("val", VAL_SEED), HELD_OUT))
    drawn = [drawn[int(image)] for image in held_out.image_ids]
    for food in args.foods:
        setting = Setting(out, food, args.known)
        setting.write(read_features(str(args.demo / "plates_train.pkl")))
        for kind in args.kinds:
            for renaming in args.renaming:
                for seed in args.seeds:
                    checkpoint = setting.checkpoint(kind, renaming, seed, args.epochs)
                    for name, load in setting.prompts(kind).items():
                        title = f"{food}, {kind}, renaming {renaming:g}, seed {seed}, {name}"
                        report(title, setting, checkpoint, load, held_out, drawn)


if __name__ == "__main__":
    main()
