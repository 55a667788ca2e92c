"""Make the bundled weights again from nothing: CLIP, language model, captioner, and the manifest of their figures.

python -m clipcap.demo.build --work demo_build
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import clipcap
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.contrastive.config import ContrastiveConfig
from clipcap.contrastive.train import train_contrastive
from clipcap.demo.facts import table
from clipcap.demo.language import train_lm
from clipcap.demo.plates import Split, scenes, write_set
from clipcap.errors import ClipcapError
from clipcap.features.config import ParseConfig
from clipcap.features.files import read_features
from clipcap.features.parse import parse
from clipcap.options import FlagParser
from clipcap.runtime.bundled import CAPTIONER, CLIP, DEMO, FOLDER, LM, TUNED, TUNED_LM
from clipcap.runtime.safe_load.torch_file import load_tensors
from clipcap.training.config import TrainConfig
from clipcap.training.train import train

SEED = 7000  # of the pictures; the demo's own have others
PICTURES, HELD_OUT, PIXELS = 30_000, 500, 96
CLIP_EPOCHS, LM_STEPS, CAPTIONER_EPOCHS = 16, 2000, 2
MANIFEST = "manifest.json"


def build(work: Path, out: Path = FOLDER, share: float = 1.0) -> dict:
    """Train all three in a work folder, then put them into `out`.

    Args:
        work: folder for pictures, features and checkpoints; each stage that is done there is not done again.
        out: folder of the bundled weights; other parts of it stay.
        share: of the usual work, for a trial.
    Returns:
        the manifest: sizes, seeds, and the figures on held-out pictures.
    """
    count = max(200, int(PICTURES * share))
    draft = work / "weights"
    draft.mkdir(parents=True, exist_ok=True)
    sets: list[tuple[Split, int, int]] = [("train", count, SEED), ("val", HELD_OUT, SEED + 1)]
    for split, pictures, seed in sets:
        if not (work / split / "Captions.csv").exists():
            write_set(work / split, pictures, seed, PIXELS, split, workers=2)
    recall = _clip(work, draft / CLIP, share)
    lm_loss = _lm(work, draft / LM, share)
    best = _captioner(work, draft)
    facts = _facts(draft, best, work / "val.pkl")
    manifest = {
        "clipcap_version": clipcap.__version__,
        "torch_version": torch.__version__,
        "pictures": {"train": count, "held out": HELD_OUT, "seed": SEED},
        "clip": recall,
        "language model": {"held-out loss per token": lm_loss},
        "captioner": facts,
    }
    (draft / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for part in (LM, TUNED_LM, CAPTIONER):
        shutil.rmtree(out / part, ignore_errors=True)
    shutil.copytree(draft, out, dirs_exist_ok=True)
    return manifest


def _clip(work: Path, file: Path, share: float) -> dict[str, float]:
    """A small ResNet of 64 pixels, on plates, stored in float16; its recall on the held-out ones.

    Counts and shapes need the large batch: among few pictures, food and colour alone tell them apart. A ViT of this
    size learns them far more slowly.
    """
    run = work / "clip"
    if not file.exists():
        with open(work / "pairs.csv", "w", encoding="utf-8", newline="") as table_file:
            writer = csv.writer(table_file)
            writer.writerow(["image", "caption", "split"])
            writer.writerows(_pairs(work))
        train_contrastive(
            "custom",
            ContrastiveConfig.of(
                data_path=str(work / "pairs.csv"), out_dir=str(run), embed_dim=128, resolution=64, vision_width=16,
                vision_layers="1,1,1,1", text_width=64, text_layers=2, bs=512,
                epochs=max(1, round(CLIP_EPOCHS * share)), head_lr=2e-3, image_lr=2e-3, text_lr=2e-3, crop=0.85,
                flip=True, weight_decay=0.05, resume=(run / "clip-last").exists(),
            ),
        )  # fmt: skip
        state = load_tensors(run / "clip-last" / CLIP)
        torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, file)
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {name: round(value, 4) for name, value in epochs[-1].items() if name[:3] in ("i2t", "t2i")}


def _pairs(work: Path) -> Iterator[tuple[str, str, str]]:
    """(image, caption, split) of both sets."""
    for split in ("train", "val"):
        with open(work / split / "Captions.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                yield f"{split}/dataset/{row['Index']}.jpg", row["Captions"], split


def _lm(work: Path, folder: Path, share: float) -> float:
    """The language model; its held-out loss."""
    note = work / "language_model.json"
    if not note.exists():
        loss = train_lm(folder, max(20, int(LM_STEPS * share)), seed=SEED)
        note.write_text(json.dumps(round(loss, 4)), encoding="utf-8")
    return json.loads(note.read_text(encoding="utf-8"))


def _captioner(work: Path, draft: Path) -> Path:
    """A mapper and the language model that learns along, each stored in float16 under its name as a bundled part."""
    for split in ("train", "val"):
        if not (work / f"{split}.pkl").exists():
            parse(
                "food",
                ParseConfig.of(
                    data_path=str(work / split), clip_model_type=str(draft / CLIP), out=str(work / f"{split}.pkl")
                ),
            )
    best = train(captioner_options(work / "train.pkl", work / "val.pkl", str(draft / LM), work / "captioner"))
    captioner = Captioner.from_pretrained(best)
    captioner.model.lm.half().save_pretrained(draft / TUNED_LM)
    captioner.tokenizer.save_pretrained(draft / TUNED_LM)
    captioner.model.config = replace(captioner.model.config, encoder=DEMO, lm=TUNED, tune="none")
    folder = captioner.save_pretrained(draft / CAPTIONER)
    weights = folder / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights)
    weights.chmod(0o644)
    return best


def captioner_options(data: Path, val: Path, lm: str, out_dir: Path) -> TrainConfig:
    """How the bundled captioner is trained: as the demo's own (`run.TRAINING`), on more plates."""
    return TrainConfig.of(
        data=str(data), val=str(val), lm=lm, out_dir=str(out_dir), tune="full", prefix_length=5, share_prefix=False,
        epochs=CAPTIONER_EPOCHS, save_every=CAPTIONER_EPOCHS, bs=32, lr=2e-3, lm_lr=1e-3,
        resume=(out_dir / "clipcap-last").exists(),
    )  # fmt: skip


def _facts(draft: Path, best: Path, features: Path) -> dict:
    """Shares of right facts in the captions of the held-out pictures."""
    held_out = read_features(str(features))
    captioner = Captioner.from_pretrained(best, lm=str(draft / LM), clip_model_type=str(draft / CLIP))
    rows = held_out.embeddings[torch.arange(held_out.num_images)]  # [N, D]
    found = captioner.caption(list(rows), DecodeConfig(beam=True))
    captions = dict(zip(map(str, held_out.image_ids), (several[0].text for several in found)))
    drawn = list(islice(scenes("val", SEED + 1), HELD_OUT))
    return table([captions[str(i)] for i in range(HELD_OUT)], drawn)


def main(argv: Sequence[str] | None = None) -> None:
    """Build from the command line."""
    parser = FlagParser(prog="python -m clipcap.demo.build", description="Make the bundled weights from nothing.")
    parser.add_argument("--work", type=Path, default=Path("demo_build"), help="work folder (default: demo_build)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the weights go (default: into the package)")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual work, for a trial (default: 1)")
    args = parser.parse_args(argv)
    try:
        print(json.dumps(build(args.work, args.out, args.share), indent=2))
    except ClipcapError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
