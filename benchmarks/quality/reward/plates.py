"""Self-critical training on drawn plates, from a mapper that cross-entropy has trained; with and without the end.

python -m benchmarks.quality.reward.plates --demo demo_out [--seeds 1 2 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.measure import machine
from benchmarks.quality.text_only.plates import captions_of, run_config, scores_of
from clipcap.evaluation.metrics.score import Scores
from clipcap.features.files import read_features
from clipcap.scoring.cider_reward import bad_endings
from clipcap.training.train import train

REWARDS = {"cider": {}, "without the end": {"reward_end": False}, "anchored": {"xe_weight": 0.1}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=Path("demo_out"), help="folder that `clipcap demo` made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="a run of each")
    parser.add_argument("--rewards", nargs="+", choices=list(REWARDS), default=["cider", "without the end"])
    parser.add_argument("--epochs", type=int, default=2, help="over the images, five samples each")
    parser.add_argument("--sample_by", choices=["beam", "chance"], default="beam", help="as of `clipcap train`")
    parser.add_argument("--lr", type=float, default=1e-4, help="peak learning rate of the mapper")
    args = parser.parse_args()
    demo, held_out = args.demo, read_features(str(args.demo / "plates_val.pkl"))
    print(machine())
    for seed in args.seeds:
        start = demo / "text_only" / f"paired_{seed}"
        if not (start / "clipcap-best").exists():
            train(run_config(demo, start, seed, 2, data=str(demo / "plates_train.pkl")))
        before = scores_of(captions_of(start, held_out), held_out)
        print(f"cross-entropy, seed {seed}: {line_of(before)}", flush=True)
        for name in args.rewards:
            out = demo / "reward" / f"{name.replace(' ', '_')}_{args.sample_by}_{seed}"
            if not (out / "clipcap-best").exists():
                options = {
                    "sample_by": args.sample_by,
                    "objective": "reward",
                    "weights_dir": str(start / "clipcap-best"),
                    "prefix_length": None,
                }
                sizes = {"data": str(demo / "plates_train.pkl"), "bs": 160, "lr": args.lr, **REWARDS[name]}
                train(run_config(demo, out, seed, args.epochs, **{**sizes, **options}))
            after = scores_of(captions_of(out, held_out), held_out)
            gain = after.compare(before, "CIDEr-D")
            print(
                f"{name}, seed {seed}: {line_of(after)}; {gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] "
                f"p {gain.p_value:.3f}",
                flush=True,
            )


def line_of(scores: Scores) -> str:
    """CIDEr-D and what shows a reward that is gamed."""
    endings = bad_endings([" ".join(tokens) for tokens in scores.tokens])
    return (
        f"CIDEr-D {scores.corpus['CIDEr-D']:.3f}, distinct {scores.diversity['distinct']:.2f}, "
        f"bad endings {endings:.1%}, {scores.diversity['length']:.1f} words"
    )


if __name__ == "__main__":
    main()
