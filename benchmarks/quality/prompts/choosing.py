"""Which candidate to take: the likeliest, the one nearest to the others, or to the captions of neighbours.

python -m benchmarks.quality.prompts.choosing --load_pt CHECKPOINT --train train.pkl --val val.pkl
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from benchmarks.quality.prompts.guidance import guided, mean_photo
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.evaluation.metrics.score import score
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features
from clipcap.retrieval.exact import search
from clipcap.scoring.cider_reward import CiderReward, bad_endings

SAMPLES, LONGEST, RESAMPLED = 20, 40, 2000


def nearest_to(texts: CiderReward, candidates: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    """The candidate of the largest mean CIDEr-D to its others, with the training set's document frequencies."""
    values = texts.score_against(others, candidates, [True] * len(candidates))
    return candidates[int(np.argmax(values))]


def by_consensus(texts: CiderReward, candidates: Sequence[str]) -> str:
    """The candidate of minimum Bayes risk among themselves."""
    others = [[*candidates[:i], *candidates[i + 1 :]] for i in range(len(candidates))]
    return nearest_to(texts, candidates, others)


def choices(
    captioner: Captioner, train: Features, val: Features, rows: list[int], temp: float
) -> dict[str, list[str]]:
    """The caption of each of these held-out images under each rule."""
    photos, vectors = [val.given([row]) for row in rows], val.rows(rows)  # vectors: [N, D]
    index = train.image_index
    references = [[train.captions[int(i)] for i in np.flatnonzero(index == image)] for image in np.unique(index)]
    texts = CiderReward(references, end=False)
    beams = {}
    for size in (5, 10):
        how = DecodeConfig(beam=True, num_captions=size, beam_size=size, max_new_tokens=LONGEST)
        beams[size] = [[c.text for c in several] for several in captioner.caption(photos, how)]
    how = DecodeConfig(beam=False, temp=temp, top_p=0.9, num_captions=SAMPLES, seed=1, max_new_tokens=LONGEST)
    samples = [[c.text for c in several] for several in captioner.caption(photos, how)]
    mixed = [[several[i] for i in np.random.default_rng(0).permutation(SAMPLES)] for several in samples]
    near = search(train, vectors, 15)[0].tolist()
    said = [[text for row in rows for text in train.captions_of(row)] for rows in near]

    def by_neighbours(candidates: Sequence[Sequence[str]], count: int = len(near[0])) -> list[str]:
        own = [texts_of[: 5 * count] for texts_of in said]
        return [nearest_to(texts, several, [one] * len(several)) for several, one in zip(candidates, own)]

    null = mean_photo(train)
    return {
        "beam 5": [several[0] for several in beams[5]],
        "likeliest of 20 samples": [several[0] for several in samples],
        "consensus of 10 samples": [by_consensus(texts, several[:10]) for several in mixed],
        "consensus of 20 samples": [by_consensus(texts, several) for several in mixed],
        "of 20 samples, by the captions of 4 neighbours": by_neighbours(samples, 4),
        "of 20 samples, by the captions of 15 neighbours": by_neighbours(samples),
        "of the 5 beams, by the captions of 15 neighbours": by_neighbours(beams[5]),
        "beam 10": [several[0] for several in beams[10]],
        "of the 10 beams, by the captions of 15 neighbours": by_neighbours(beams[10]),
        **{f"beam 5, guidance {g:g}": guided(captioner, val, rows, null, g) for g in (1, 1.5, 2)},
    }


def main() -> None:
    """Print a table row for each rule: CIDEr-D, its difference to beam search, and what else it changes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load_pt", required=True, help="captioner")
    parser.add_argument("--train", required=True, help="features trained on")
    parser.add_argument("--val", required=True, help="features with several captions of each image")
    parser.add_argument("--limit", type=int, default=250, help="images")
    parser.add_argument("--temp", type=float, default=0.7, help="temperature of the samples")
    args = parser.parse_args()
    train, val = read_features(args.train), read_features(args.val)
    rows = np.unique(val.caption_rows)[: args.limit].tolist()
    wanted = [val.captions_of(int(row)) for row in rows]
    found = choices(Captioner.from_pretrained(args.load_pt), train, val, rows, args.temp)
    first = None
    print(
        "| choice | CIDEr-D | to beam 5 [95 %] | different captions | bad endings |\n| --- | --- | --- | --- | --- |"
    )
    for name, captions in found.items():
        scores = score(captions, wanted, None, False, False).per_image
        cider = np.asarray(next(values for metric, values in scores.items() if metric.startswith("CIDEr")))
        first = cider if first is None else first
        rng = np.random.default_rng(1)
        differences = cider - first
        means = [differences[rng.integers(len(rows), size=len(rows))].mean() for _ in range(RESAMPLED)]
        low, high = np.percentile(means, [2.5, 97.5])
        print(
            f"| {name} | {cider.mean():.3f} | {differences.mean():+.3f} [{low:+.3f}, {high:+.3f}] | "
            f"{len(set(captions)) / len(captions):.2f} | {bad_endings(captions):.1%} |"
        )


if __name__ == "__main__":
    main()
