"""Which candidate to take: the likeliest, the one nearest to the others, or to the captions of neighbours.

python -m benchmarks.quality.prompts.choosing --load_pt CHECKPOINT … --train train.pkl --val val.pkl [--towers TOWERS]

Of several captioners, such as those of three seeds, each rule's differences are joined photo by photo. Self-retrieval
needs a text tower of the stored features, trained by `clipcap contrastive features`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from benchmarks.measure import machine
from benchmarks.quality.prompts.guidance import guided, mean_photo
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import CANDIDATES, DecodeConfig
from clipcap.captioning.prompting import open_consensus
from clipcap.evaluation.metrics.recall import own_ranks
from clipcap.evaluation.metrics.score import score
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features
from clipcap.models.encoders.load import load_encoder
from clipcap.models.encoders.locked_image import LockedImageEncoder
from clipcap.retrieval.exact import search
from clipcap.scoring.cider_reward import CiderReward, bad_endings

SAMPLES, LONGEST, RESAMPLED = 20, 40, 2000
HEAD = "| choice | CIDEr-D | to beam 5 [95 %] | own photo in 10, median rank | different captions | bad endings |"


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

    captioner.consensus = open_consensus(captioner.model.config, train.path)
    how = DecodeConfig(beam=True, rerank="consensus", max_new_tokens=LONGEST)
    chosen = [several[0].text for several in captioner.caption(photos, how)]
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
        f"`--rerank consensus`: of {CANDIDATES} beams, nearer neighbours and likely captions counting more": chosen,
        **{f"beam 5, guidance {g:g}": guided(captioner, val, rows, null, g) for g in (1, 1.5, 2)},
    }


@dataclass(frozen=True)
class Judged:
    """One captioner's captions of the held-out photos under one rule: CIDEr-D [N], and rank of its own photo [N]."""

    captions: list[str]
    cider: np.ndarray
    ranks: np.ndarray | None


def judge(captions: list[str], wanted: list[list[str]], vectors: Tensor, towers: LockedImageEncoder | None) -> Judged:
    """Score captions against references, and by how well each finds its own photo of vectors [N, D]."""
    cider = score(captions, wanted, with_java=False).per_image["CIDEr-D"]
    ranks = own_ranks(towers.project(vectors.float()), towers.encode_texts(captions)) if towers else None
    return Judged(captions, np.asarray(cider), ranks)


def line(name: str, ours: list[Judged], beam: list[Judged]) -> str:
    """A row of the table: the mean of all captioners, the differences to beam search photo by photo."""
    captions = [caption for one in ours for caption in one.captions]
    differences = np.mean([one.cider - other.cider for one, other in zip(ours, beam)], axis=0)  # [N]
    rng = np.random.default_rng(1)
    means = [rng.choice(differences, len(differences)).mean() for _ in range(RESAMPLED)]
    low, high = np.percentile(means, [2.5, 97.5])
    ranks = [one.ranks for one in ours if one.ranks is not None]
    found = f"{np.mean(np.stack(ranks) <= 10):.1%}, {np.median(ranks):g}" if ranks else ""
    different = np.mean([len(set(one.captions)) / len(one.captions) for one in ours])
    mean, gain = np.mean([one.cider for one in ours]), f"{differences.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
    return f"| {name} | {mean:.3f} | {gain} | {found} | {different:.2f} | {bad_endings(captions):.1%} |"


def main() -> None:
    """Print a table row for each rule: CIDEr-D, its difference to beam search, and what else it changes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load_pt", required=True, nargs="+", help="captioners")
    parser.add_argument("--train", required=True, help="features trained on")
    parser.add_argument("--val", required=True, help="features with several captions of each image")
    parser.add_argument("--towers", help="text tower for these features: self-retrieval")
    parser.add_argument("--limit", type=int, default=250, help="images")
    parser.add_argument("--temp", type=float, default=0.7, help="temperature of the samples")
    args = parser.parse_args()
    train, val = read_features(args.train), read_features(args.val)
    rows = np.unique(val.caption_rows)[: args.limit].tolist()
    wanted, vectors = [val.captions_of(int(row)) for row in rows], val.rows(rows)  # vectors: [N, D]
    towers = load_encoder(args.towers) if args.towers else None
    if towers is not None and not isinstance(towers, LockedImageEncoder):
        parser.exit(1, f"{args.towers}: not a checkpoint of `clipcap contrastive features`\n")
    found: dict[str, list[Judged]] = {}
    for path in args.load_pt:
        for name, captions in choices(Captioner.from_pretrained(path), train, val, rows, args.temp).items():
            found.setdefault(name, []).append(judge(captions, wanted, vectors, towers))
    print(machine(), "", HEAD, "| --- " * HEAD.count(" |") + "|", sep="\n")
    for name, several in found.items():
        print(line(name, several, found["beam 5"]))


if __name__ == "__main__":
    main()
