"""Self-critical training on real photos, from the best captioner that cross-entropy has trained on them.

python -m benchmarks.quality.reward.real_photos --start runs/real_photos/tokens_lora_2000_42 [--steps 100]
python -m benchmarks.quality.reward.real_photos --start runs/prompts/plain_1 --lm runs/prompts/lm \
    --train runs/prompts/train_5999.pkl --dev runs/prompts/val_500.pkl --train_flags "--tune full"
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.measure import machine
from benchmarks.quality.real_photos.real_photos import compare, evaluated, report, trained
from clipcap.evaluation.caption_files import captions_by_image
from clipcap.features.files import read_features

REWARDS = {"cider": [], "without the end": ["--no_reward_end"], "anchored": ["--xe_weight", "0.1"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True, help="run of benchmarks.quality.real_photos")
    parser.add_argument(
        "--train", type=Path, help="its features (default: train_2000 or train_2000_tokens beside it)"
    )
    parser.add_argument("--dev", type=Path, help="photos held out (default: dev_500 or dev_500_tokens beside it)")
    parser.add_argument("--lm", help="its language model (default: smollm2 beside it)")
    parser.add_argument("--train_flags", default="--tune lora --lora_rank 16", help="of `clipcap train`, in one word")
    parser.add_argument("--rewards", nargs="+", choices=list(REWARDS), default=["cider"])
    parser.add_argument("--steps", type=int, default=100, help="of --images photos each")
    parser.add_argument("--images", type=int, default=32, help="a step, five samples each")
    parser.add_argument("--lr", type=float, default=1e-4, help="peak learning rate of mapper and adapter")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--bfloat16", action="store_true", help="train in bfloat16, where the processor has it")
    args = parser.parse_args()
    start: Path = args.start
    kind = "_tokens" if start.name.startswith("tokens") else ""
    train, dev = args.train or start.parent / f"train_2000{kind}", args.dev or start.parent / f"dev_500{kind}"
    held_out = read_features(str(dev))
    references = captions_by_image(held_out)
    order = [references[str(i)] for i in held_out.image_ids]
    print(machine(), flush=True)
    lm = args.lm or str(start.parent / "smollm2")
    for reward in args.rewards:
        for seed in args.seeds:
            captions = evaluated(start, dev, train, held_out)
            found = {"cross-entropy": report("cross-entropy", captions, order, False, 0)}
            epochs = -(-args.steps * args.images // read_features(str(train)).num_images)
            words = ["--objective", "reward", "--weights_dir", str(start / "clipcap-best"), "--lr", str(args.lr)]
            words += args.train_flags.split()
            words += ["--bs", str(5 * args.images), "--epochs", str(epochs), "--max_steps", str(args.steps)]
            folder = start.parent / f"reward_{reward.replace(' ', '_')}_{start.name}_{seed}"
            minutes = trained(train, dev, lm, [*words, *REWARDS[reward], "--seed", str(seed)], folder, args.bfloat16)
            name = f"{reward}, {args.steps} steps, seed {seed}"
            found[name] = report(name, evaluated(folder, dev, train, held_out), order, False, minutes)
            by = f"{name}, by neighbours"
            found[by] = report(by, evaluated(folder, dev, train, held_out, True), order, False, 0)
            compare(found)


if __name__ == "__main__":
    main()
