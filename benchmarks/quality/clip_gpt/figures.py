"""What a CLIP-GPT has learnt of held-out pictures, against chance, shuffled pairs, CLIP's text tower, a captioner.

python -m benchmarks.quality.clip_gpt.figures --train demo_out/plates_train.pkl --val demo_out/plates_val.pkl \
    --captioner demo_out/checkpoints --lm demo --out runs/clip_gpt
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import machine
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.clip_gpt.captioner import ClipGptCaptioner
from clipcap.clip_gpt.config import TrainClipGptConfig
from clipcap.clip_gpt.train import train_clip_gpt
from clipcap.demo.tiny import make_gpt2
from clipcap.evaluation.metrics.recall import recall
from clipcap.evaluation.metrics.score import Scores, score
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features, write_features
from clipcap.models.encoders.load import load_encoder
from clipcap.training.config import TrainConfig
from clipcap.training.train import train

MODEL, SHUFFLED, CAPTIONER, COMMON = "CLIP-GPT", "shuffled pairs", "prefix captioner", "most common caption"
TOGETHER = 64  # captions imagined or encoded at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="features to learn from")
    parser.add_argument("--val", type=Path, required=True, help="features of pictures held out")
    parser.add_argument("--lm", help="language model (default: a new, small GPT-2 with a tokenizer of --train)")
    parser.add_argument("--captioner", type=Path, help="prefix captioner (default: one is trained here)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--bs", type=int, default=32)
    parser.add_argument("--embedding_weight", type=float, default=0.2)
    parser.add_argument("--normalize_prefix", action="store_true", help="as in `clipcap train-clip-gpt`")
    parser.add_argument("--out", type=Path, default=Path("runs/clip_gpt"), help="checkpoints, and figures.json")
    args = parser.parse_args()
    print(machine(), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    training, held_out = read_features(args.train), read_features(args.val)
    lm = args.lm or str(new_lm(args.out / "gpt2", training))
    loop = {"val": str(args.val), "lm": lm, "epochs": args.epochs, "save_every": args.epochs, "bs": args.bs,
            "lr": args.lr, "val_captions": 8}  # fmt: skip
    own = {"embedding_weight": args.embedding_weight, "normalize_prefix": args.normalize_prefix}
    mixed = args.out / "shuffled.pkl"
    if not mixed.exists():
        write_shuffled(training, mixed)
    figures: dict[str, dict[str, float]] = {}
    captions: dict[str, list[str]] = {}
    for name, data in ((MODEL, args.train), (SHUFFLED, mixed)):
        folder = args.out / name.replace(" ", "_")
        config = TrainClipGptConfig.of(data=str(data), out_dir=str(folder), **loop, **own)
        figures[name] = timed(folder, lambda config=config: train_clip_gpt(config))
        model = ClipGptCaptioner.from_pretrained(folder)
        figures[name] |= found(held_out, in_parts(model.imagine, held_out.captions))
        captions[name] = written(model, held_out)
    encoder = load_encoder(held_out.meta.encoder)
    figures["CLIP's text tower"] = found(held_out, in_parts(encoder.encode_texts, held_out.captions))
    figures["chance"] = {f"recall@{k}": k / held_out.num_images for k in (1, 5, 10)}
    figures[CAPTIONER], captioner = {}, args.captioner
    if captioner is None:
        captioner = args.out / "captioner"
        config = TrainConfig.of(data=str(args.train), out_dir=str(captioner), only_prefix=bool(args.lm), **loop)
        figures[CAPTIONER] = timed(captioner, lambda: train(config))
    captions[CAPTIONER] = written(Captioner.from_pretrained(captioner), held_out)
    figures[COMMON] = {}
    captions[COMMON] = [Counter(training.captions).most_common(1)[0][0]] * held_out.num_images
    scored = scores_of(captions, held_out)
    for name, scores in scored.items():
        low, high = scores.interval("CIDEr-D")
        figures[name] |= {"CIDEr-D": scores.corpus["CIDEr-D"], "from": low, "to": high}
    for name, values in figures.items():
        print(f"{name}: " + ", ".join(f"{what} {value:.3f}" for what, value in values.items()))
    outcome = scored[MODEL].compare(scored[CAPTIONER], "CIDEr-D", n=10_000)
    print(f"{MODEL} against the {CAPTIONER}: CIDEr-D {outcome.difference:+.3f} [{outcome.low:+.3f}, "
          f"{outcome.high:+.3f}], p {outcome.p_value:.4f}")  # fmt: skip
    (args.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def new_lm(folder: Path, training: Features) -> Path:
    """A GPT-2 that has read nothing yet."""
    return folder if folder.exists() else make_gpt2(folder, training.captions, width=128, layers=3)


def write_shuffled(training: Features, path: Path) -> None:
    """The training set, each picture's captions given to another picture."""
    rows = training.rows(np.random.default_rng(0).permutation(training.num_images))
    write_features(path, embeddings=rows.numpy(), image_ids=list(training.image_ids),
                   image_paths=[None] * training.num_images,
                   captions=[training.captions_of(row) for row in range(training.num_images)],
                   meta=replace(training.meta, source="shuffled"))  # fmt: skip


def timed(folder: Path, run: Callable[[], object]) -> dict[str, float]:
    """Train, unless the folder holds that run; seconds by the clock and of CPU time."""
    note = folder / "time.json"
    if not note.exists():
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        spent = {"training s": time.perf_counter() - wall, "CPU s": time.process_time() - cpu}
        note.write_text(json.dumps(spent), encoding="utf-8")
    return json.loads(note.read_text(encoding="utf-8"))


def in_parts(embed: Callable[[Sequence[str]], Tensor], captions: Sequence[str]) -> Tensor:
    """Embeddings of M captions, [M, D]."""
    captions = list(captions)
    return torch.cat([embed(captions[i : i + TOGETHER]).float() for i in range(0, len(captions), TOGETHER)])


def found(held_out: Features, texts: Tensor) -> dict[str, float]:
    """How often captions' embeddings [M, D] find their picture."""
    images = held_out.rows(np.arange(held_out.num_images))  # [N, D]
    scores = recall(images, texts, held_out.caption_rows.tolist())
    return {f"recall@{k}": scores[f"t2i_r{k}"] for k in (1, 5, 10)}


def written(captioner: Captioner, held_out: Features) -> list[str]:
    """The caption of each held-out picture, by beam search."""
    rows = held_out.rows(np.arange(held_out.num_images))  # [N, D]
    return [first.text for first, *_ in captioner.caption(list(rows), DecodeConfig(beam=True))]


def scores_of(captions: dict[str, list[str]], held_out: Features) -> dict[str, Scores]:
    """The captions of each model against the human ones."""
    references = [held_out.captions_of(row) for row in range(held_out.num_images)]
    return {name: score(said, references, with_java=False) for name, said in captions.items()}


if __name__ == "__main__":
    main()
