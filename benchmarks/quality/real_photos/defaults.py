"""The default recipe against the one rate that came before it, on real photos: 500, 2,000 and all.

python -m benchmarks.quality.real_photos.defaults [--lm FOLDER] [--photos 500 2000 5999] [--seeds 1 2 3]

Both see the same captions as often, which takes about the same time. The default chooses rates, batch, epochs
and the best of these; before it, 2e-5 and batches of 40 were for all that is trained, and the loss chose. A third
row has the default's captions as those of similar training photos choose them (`--rerank consensus`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.measure import machine
from benchmarks.quality.real_photos.pretrained import install, language_model
from benchmarks.quality.real_photos.real_photos import compare, evaluated, features, report, trained
from clipcap.evaluation.caption_files import captions_by_image
from clipcap.features.files import read_features

BEFORE = ["--lr", "2e-5", "--bs", "40", "--select", "loss"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, nargs="+", default=[500, 2000, 5999], help="to train on")
    parser.add_argument("--dev", type=int, default=500, help="photos held out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--lm", help="another language model in place of SmolLM2")
    parser.add_argument("--tune", default="full", choices=["none", "lora", "full"], help="as of `clipcap train`")
    parser.add_argument("--bfloat16", action="store_true", help="train in bfloat16, where the processor has it")
    parser.add_argument("--out", type=Path, default=Path("runs/real_photos"))
    args = parser.parse_args()
    print(machine(), flush=True)
    out: Path = args.out
    install(out / "packages")
    lm = args.lm or language_model(out / "packages", out / "smollm2")
    for photos in args.photos:
        for seed in args.seeds:
            train, dev = features(out, photos, args.dev, anew=False, tokens=False)
            held_out = read_features(str(dev))
            references = captions_by_image(held_out)
            order = [references[str(i)] for i in held_out.image_ids]
            now, before = (out / f"{name}_{args.tune}_{photos}_{seed}" for name in ("default", "before"))
            words = ["--tune", args.tune, "--seed", str(seed)]
            found = {}
            minutes = trained(train, dev, lm, words, now, args.bfloat16)
            epochs = len((now / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
            words += [*BEFORE, "--epochs", str(epochs)]
            minutes_before = trained(train, dev, lm, words, before, args.bfloat16)
            for name, folder, took in (("before", before, minutes_before), ("default", now, minutes)):
                name = f"{name}, {photos:,} photos, {epochs} epochs, seed {seed}"
                found[name] = report(name, evaluated(folder, dev, train, held_out), order, False, took)
            name = f"the same, by neighbours, {photos:,} photos, seed {seed}"
            found[name] = report(name, evaluated(now, dev, train, held_out, True), order, False, 0)
            compare(found)


if __name__ == "__main__":
    main()
