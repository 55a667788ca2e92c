"""What prompts of retrieved captions are worth on photos of Flickr8k.

python -m benchmarks.quality.prompts.real_photos --lm FOLDER --demo demo_out [--epochs 4] [--seeds 1]

Two captioners of the same features and steps: one reads two captions of similar training photos, one reads none. With
--first_flags both go on from one that was trained without prompts. Then what the first one reads is exchanged:
nothing, two human captions of the photo itself, or captions of drawn plates. Vectors are those of a pretrained
EfficientNet-Lite0. The language model is tuned along.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.measure import machine
from benchmarks.quality.real_photos.pretrained import ENCODER, EfficientNetLite, install
from benchmarks.quality.seeds import describe
from benchmarks.speed.train.bench import SHARED
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig, LoadConfig
from clipcap.captioning.load_captioner import load_captioner
from clipcap.cli.main import main as clipcap
from clipcap.evaluation.metrics.score import Scores, score
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import read_features, write_features
from clipcap.prompts.datastore import Retrieved
from clipcap.prompts.prompter import Counts
from clipcap.prompts.template import PromptText
from clipcap.scoring.cider_reward import bad_endings

PROMPT_CAPTIONS, PLATES, LONGEST = 2, 200, 40
HEAD = "| captions | CIDEr-D | gain | copied | distinct | bad endings | words |"
BEAMS = DecodeConfig(beam=True, max_new_tokens=LONGEST)


@dataclass
class Given:
    """A prompter that gives images, in their order, the prompts of these texts."""

    text: PromptText
    texts: Sequence[Sequence[str]]
    encoder: str | None = None
    counts: Counts = field(default_factory=Counts)

    def find(self, vectors: Tensor) -> tuple[list[list[int]], list[tuple[Retrieved, ...]]]:
        """As of any `Prompter`."""
        own = self.texts[self.counts.images : self.counts.images + len(vectors)]
        self.counts.images += len(vectors)
        return self.text.prompts(own), [()] * len(vectors)


def stored(out: Path, split: str, count: int) -> Path:
    """The stored vectors of the first photos of a split, under the name of their encoder."""
    path = out / f"{split}_{count}.pkl"
    if not path.exists():
        features = read_features(str(SHARED / "features" / f"flickr8k_{split}_efficientnet_lite0.pkl"))
        some = features.subset_by_row(np.arange(min(count, features.num_images)))
        write_features(
            path, embeddings=some.rows(slice(None)), image_ids=list(some.image_ids),
            image_paths=list(some.image_paths), captions=some.captions_by_row(),
            meta=replace(some.meta, encoder=ENCODER),
        )  # fmt: skip
    return path


def plates(out: Path, demo: Path) -> Path:
    """Drawn plates as EfficientNet-Lite0 sees them, with their captions: a datastore of another world."""
    path = out / "plates.pkl"
    if not path.exists():
        drawn = read_features(str(demo / "plates_val.pkl")).subset_by_row(np.arange(PLATES))
        photos = [demo / "plates_val" / "dataset" / f"{name}.jpg" for name in drawn.image_ids]
        vectors, _ = EfficientNetLite()(photos)
        write_features(
            path, embeddings=vectors, image_ids=list(drawn.image_ids), image_paths=list(map(str, photos)),
            captions=drawn.captions_by_row(), meta=FeatureMeta(encoder=ENCODER),
        )  # fmt: skip
    return path


def trained(out: Path, name: str, train: Path, words: Sequence[object]) -> Path:
    """A captioner, trained if it is not there yet."""
    folder = out / name
    if not (folder / "clipcap-best").exists() or not (folder / "curves.html").exists():
        flags = ["train", "--data", train, "--out_dir", folder, "--tune", "full", *words]
        if clipcap([str(word) for word in flags]):
            raise SystemExit("training failed, see above")
    return folder


class Table:
    """Rows of scores of held-out photos, each against the first.

    Args:
        references: the human captions of each photo.
        training: captions trained on.
    """

    def __init__(self, references: list[list[str]], training: Sequence[str]):
        self.references, self.training = references, training
        self.first: Scores | None = None

    def row(self, name: str, captions: list[str]) -> None:
        """Score captions, and print them beside the first row's."""
        found = score(captions, self.references, training=self.training, with_java=False)
        low, high = found.interval("CIDEr-D")
        gain = ""
        if self.first is not None:
            by = found.compare(self.first, "CIDEr-D", n=10_000)
            gain = describe(by)
        self.first = self.first or found
        print(f"| {name} | {found.corpus['CIDEr-D']:.3f} [{low:.3f}, {high:.3f}] | {gain} | "
              f"{found.diversity['copied']:.1%} | {found.diversity['distinct']:.2f} | {bad_endings(captions):.1%} | "
              f"{found.diversity['length']:.1f} |", flush=True)  # fmt: skip


def captions(captioner: Captioner, vectors: list[Tensor], how: DecodeConfig = BEAMS) -> list[str]:
    """The first caption of each photo."""
    return [several[0].text.strip() for several in captioner.caption(vectors, how)]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", required=True, help="language model, tuned along")
    parser.add_argument("--demo", type=Path, default=Path("demo_out"), help="folder that `clipcap demo` made")
    parser.add_argument("--photos", type=int, default=5999, help="to train on")
    parser.add_argument("--dev", type=int, default=500, help="photos held out")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--train_flags", default="", help="further flags of `clipcap train`, in one word")
    parser.add_argument("--first_flags", default="", help="those of a training without prompts that comes first")
    parser.add_argument("--prompt_dropout", type=float, default=0.15, help="as of `clipcap train`")
    parser.add_argument("--dtype", default="float32", help="of decoding, as of `clipcap predict`")
    parser.add_argument("--out", type=Path, default=Path("runs/prompts"))
    args = parser.parse_args()
    print(machine(), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    install(args.out / "packages")
    train, dev = stored(args.out, "train", args.photos), stored(args.out, "val", args.dev)
    training, held_out = read_features(str(train)), read_features(str(dev))
    vectors, references = list(held_out.rows(slice(None))), held_out.captions_by_row()
    world = plates(args.out, args.demo)
    for seed in args.seeds:
        words = ["--epochs", args.epochs, "--seed", seed]
        start = ["--lm", args.lm]
        if args.first_flags:
            first = trained(args.out, f"first_{seed}", train, [*start, *words, *args.first_flags.split()])
            start = ["--weights_dir", first]
        words = [*start, *words, *args.train_flags.split()]
        reading = ["--prompts", "captions", "--datastore", train, "--prompt_captions", PROMPT_CAPTIONS]
        reading += ["--prompt_dropout", args.prompt_dropout]
        plain = load_captioner(
            LoadConfig(load_pt=str(trained(args.out, f"plain_{seed}", train, words)), dtype=args.dtype)
        )
        folder = str(trained(args.out, f"reads_{seed}", train, [*words, *reading]))
        print(
            f"\nseed {seed}\n| captions | CIDEr-D | gain | copied | distinct | bad endings | words |\n{'| --- ' * 7}|"
        )
        table, others = Table(references, training.captions), Table([r[2:] for r in references], training.captions)
        plainly = captions(plain, vectors)
        table.row("reads nothing, trained so", plainly)
        reads = load_captioner(LoadConfig(load_pt=folder, dtype=args.dtype))
        table.row(f"reads {PROMPT_CAPTIONS} captions of similar photos", captions(reads, vectors))
        for name, gate in (("gate", None), ("no gate", -1.0)):
            other = LoadConfig(load_pt=folder, datastore=str(world), prompt_gate=gate, dtype=args.dtype)
            changed = load_captioner(other)
            table.row(f"reads captions of drawn plates, {name}", captions(changed, vectors))
        text = reads.prompter.text  # pyright: ignore
        reads.prompter = Given(text, [()] * len(vectors))
        table.row("reads nothing, trained to read", captions(reads, vectors))
        others.row("reads nothing, trained so; three references", plainly)
        reads.prompter = Given(text, [several[:2] for several in references])
        others.row(
            "reads two human captions of the photo; the other three are the references", captions(reads, vectors)
        )


if __name__ == "__main__":
    main()
