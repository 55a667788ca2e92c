"""Two dual encoders from scratch on Flickr8k: recall on photos held out, against chance, epoch by epoch.

python -m benchmarks.quality.contrastive.real_photos [--epochs 30] [--only vit pair] [--out runs/contrastive]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
from tokenizers.processors import TemplateProcessing
from transformers import ConvNextImageProcessor, DistilBertConfig, DistilBertModel, ResNetConfig, ResNetModel

from benchmarks.measure import machine
from benchmarks.speed.train.bench import SHARED
from clipcap.contrastive.config import ContrastiveConfig
from clipcap.contrastive.train import train_contrastive
from clipcap.demo.tiny import make_tokenizer

PIXELS, VOCABULARY, SEQUENCE = 96, 4000, 32
FLICKR8K = SHARED / "data" / "flickr8k"
VIT = {"resolution": PIXELS, "patch_size": 16, "vision_width": 128, "vision_layers": "4", "text_width": 64}


def resnet(folder: Path) -> str:
    """The ResNet of transformers, built small, with its image processor."""
    config = ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": PIXELS}).save_pretrained(folder)
    return str(folder)


def distilbert(folder: Path) -> str:
    """DistilBERT, built small, with a tokenizer of the training captions."""
    lines = (FLICKR8K / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    trained = set((FLICKR8K / "Flickr_8k.trainImages.txt").read_text(encoding="utf-8").split())
    captions = (text for name, text in (line.split("\t") for line in lines) if name.split("#")[0] in trained)
    tokenizer = make_tokenizer(captions, VOCABULARY)
    end = tokenizer.eos_token
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    sizes = {"dim": 128, "n_layers": 3, "n_heads": 2, "hidden_dim": 512, "max_position_embeddings": SEQUENCE}
    config = DistilBertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    DistilBertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def trained(name: str, options: dict, epochs: int, out: Path) -> list[dict[str, float]]:
    """The epochs of a run, from its log where it is done already."""
    run = out / name
    if not (run / "clip-best").exists():
        rates = {"head_lr": 1e-3, "image_lr": 1e-3, "text_lr": 1e-3}
        config = ContrastiveConfig.of(data_path=str(FLICKR8K), out_dir=str(run), epochs=epochs, save_every=epochs,
                                   flip=True, **rates, **options)  # fmt: skip
        train_contrastive("flickr8k", config)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument(
        "--only", nargs="+", choices=("vit", "pair"), default=["vit", "pair"], help="which of the two"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/contrastive"), help="checkpoints, and recall.png")
    args = parser.parse_args()
    if not FLICKR8K.is_dir():
        parser.exit(1, f"{FLICKR8K}: no such folder; set CLIPCAP_SHARED to the folder that holds data/flickr8k\n")
    print(machine())
    args.out.mkdir(parents=True, exist_ok=True)
    pair = {"vision_model": resnet(args.out / "resnet"), "text_model": distilbert(args.out / "distilbert")}
    runs = {"OpenAI's architecture (ViT)": ("vit", VIT),
            "ResNet + DistilBERT": ("pair", pair | {"from_scratch": True, "max_seq_length": SEQUENCE})}  # fmt: skip
    lines = (FLICKR8K / "Flickr_8k.devImages.txt").read_text(encoding="utf-8").split()
    chance = 10 / len(lines)
    for title, (name, options) in runs.items():
        if name not in args.only:
            continue
        epochs = trained(name, options, args.epochs, args.out)
        best = max(epochs, key=lambda epoch: epoch["t2i_r10"])
        print(f"{title}: recall@10 image to text {best['i2t_r10']:.3f}, text to image {best['t2i_r10']:.3f}, "
              f"median rank {best['t2i_median']:.0f} of {len(lines)}; chance {chance:.3f}", flush=True)  # fmt: skip
        plt.plot([epoch["t2i_r10"] for epoch in epochs], marker="o", label=title)
    plt.axhline(chance, color="grey", linestyle="--", label="chance")
    plt.xlabel("epoch")
    plt.ylabel(f"text-to-image recall@10 of {len(lines)} photos held out")
    plt.ylim(bottom=0)
    plt.legend()
    plt.savefig(args.out / "recall.png", dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
