"""`clipcap demo`: the main road on drawn pictures: parse, train, predict, look. No network, no GPU."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from clipcap.demo.facts import table
from clipcap.demo.plates import scenes, write_set
from clipcap.errors import ClipcapError
from clipcap.evaluation.caption_files import read_predictions
from clipcap.evaluation.evaluate import PREDICTIONS, REFERENCES, REPORT
from clipcap.evaluation.metrics.score import cider_scorer
from clipcap.images.grid import picture_grid
from clipcap.images.write import write_picture
from clipcap.runtime.bundled import DEMO
from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to

TRAIN_PICTURES, VAL_PICTURES, IN_GRID = 4000, 240, 12
TRAIN_SEED, VAL_SEED = 0, 1
# The language model learns along: before a frozen one the captions get both foods of a plate right on 22 % of the
# plates with two (benchmarks/quality/demo). With shared prefixes 32 captions are of 8 pictures, and teach less.
TRAINING = ("--tune", "full", "--lm", DEMO, "--prefix_length", "5", "--no_share_prefix", "--epochs", "4",
            "--bs", "32", "--lr", "2e-3", "--lm_lr", "1e-3")  # fmt: skip
GRID = "gallery.png"
FIRST = "plates_train"  # a folder, by which a demo is known
MADE = ("plates_*", ".plates_*", "checkpoints", "captions.jsonl*", "evaluation", GRID)  # under --out


@writes_to("out")
def run_demo(out: Path, command: Callable[[Sequence[str]], int]) -> None:
    """Draw plates, then run the commands a user runs, with the bundled CLIP and language model.

    Args:
        out: folder for everything; an earlier demo there is replaced.
        command: runs a `clipcap` command of these words; 0 is success.
    Raises:
        ClipcapError: `out` holds something else than a demo, or a step failed.
    """
    began = time.monotonic()

    def run(*words: object) -> None:
        argv = [str(word) for word in words]
        logger.info(f"\n$ clipcap {' '.join(argv)}")
        if command(argv):
            raise ClipcapError(f"the demo's {words[0]} step failed")

    scored = _can_score()
    _clear(out)
    train_set = write_set(out / FIRST, TRAIN_PICTURES, TRAIN_SEED, split="train", workers=2)
    val_set = write_set(out / "plates_val", VAL_PICTURES, VAL_SEED, split="val", workers=2)
    logger.info(
        f"drew {TRAIN_PICTURES} plates to learn from, and {VAL_PICTURES} of combinations that none of them shows"
    )
    for name, folder in (("train", train_set), ("val", val_set)):
        run("parse", "food", "--data_path", folder, "--clip_model_type", DEMO, "--out", out / f"plates_{name}.pkl")
    run("train", "--data", out / "plates_train.pkl", "--out_dir", out / "checkpoints", *TRAINING)
    run(
        "predict", "--beam", "--load_pt", out / "checkpoints", "--img", val_set / "dataset",
        "--out", out / "captions.jsonl",
    )  # fmt: skip
    evaluation = out / "evaluation"
    if not scored:
        logger.info(f"\ndone in {time.monotonic() - began:.0f} s: captions in {out / 'captions.jsonl'}")
        return
    run(
        "evaluate", "--load_pt", out / "checkpoints", "--data", out / "plates_val.pkl",
        "--train_data", out / "plates_train.pkl", "--out", evaluation,
    )  # fmt: skip
    grid = _show(evaluation, val_set, out / GRID)
    logger.info(
        f"\ndone in {time.monotonic() - began:.0f} s. Look at {evaluation / REPORT} (pictures with their captions)\n"
        f"and {grid}. Next, on photos of your own, with a CLIP and a GPT-2 that know the world:\n"
        f"  clipcap fit PHOTOS_AND_CAPTIONS --out runs/mine"
    )


def _can_score() -> bool:
    """Whether captions can be scored; stated before anything is drawn."""
    try:
        cider_scorer()
        return True
    except ClipcapError as error:
        logger.warning(f"the demo goes without scores and report: {error}")
        return False


def _clear(out: Path) -> None:
    """Remove an earlier demo; whatever else lies there stays, and the folder by which a demo is known.

    Killed at any instant, this leaves a folder that it clears again.
    """
    first = out / FIRST
    if out.exists() and any(out.iterdir()) and not first.is_dir():
        raise ClipcapError(f"--out {out}: is not empty and holds no earlier demo; choose another folder")
    made = [path for pattern in MADE for path in out.glob(pattern) if path != first]
    for path in [*made, *(first.iterdir() if first.is_dir() else ())]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _show(evaluation: Path, folder: Path, path: Path) -> Path:
    """Print what the captions tell right, and set the first pictures side by side with theirs."""
    captions = read_predictions(evaluation / PREDICTIONS)
    references = json.loads((evaluation / REFERENCES).read_text(encoding="utf-8"))
    drawn = list(islice(scenes("val", VAL_SEED), VAL_PICTURES))
    written = [captions[str(number)] for number in range(VAL_PICTURES)]
    print(f"\nshare of {VAL_PICTURES} unseen combinations captioned right (captions read back by the grammar):")
    for kind, shares in table(written, drawn).items():
        aspects = ", ".join(f"{aspect} {share:.0%}" for aspect, share in shares.items() if aspect != "pictures")
        print(f"  {kind + ':':14} {aspects} (of {shares['pictures']})")
    humans = [f"human: {references[str(i)][0]}" for i in range(IN_GRID)]
    pictures = [folder / "dataset" / f"{i}.jpg" for i in range(IN_GRID)]
    title = "Captions of held-out plates, by a captioner trained just now"
    with writing(path), replaced_file(path) as draft:
        write_picture(picture_grid(pictures, written[:IN_GRID], title, columns=4, notes=humans), draft, "PNG")
    return path
