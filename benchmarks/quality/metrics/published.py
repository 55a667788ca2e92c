"""Our scores beside published and official ones, and the Python tokenizer beside Stanford's.

python benchmarks/quality/metrics/published.py --data DATA

DATA holds `caption_eval` (`nlg-eval`, `clipscore`, `flickr8k_dev_human`, `coco`), `flickr8k` and `food`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from clipcap.evaluation.metrics import java
from clipcap.evaluation.metrics.clip_score import PROMPT, clip_score, ref_clip_score
from clipcap.evaluation.metrics.score import Scores, meteor_of_counts, score_tokens
from clipcap.evaluation.metrics.tokenize import tokenize
from clipcap.images.read import open_image
from clipcap.models.encoders.load import load_encoder
from clipcap.runtime.bundled import DEMO
from clipcap.scoring import ptb_tokenizer

NAMES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D")
OFFICIAL = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr")
# As published, digit for digit.
NLG_EVAL = "0.55 0.428174 0.284043 0.201143 0.295797 0.522104 1.242192"
NLG_EVAL_ONE = "0.799999 0.632455 0.5108729 0.0000903602 0.44434387 0.9070631 0.0"
CLIPSCORE = {
    "good": "0.6667 0.4899 0.3469 0.0000 0.3444 0.4280 0.5637",
    "bad": "0.4815 0.2404 0.1359 0.0000 0.1861 0.3121 0.2790",
}
COCO_TOKENS = 9893


class Set:
    """Captions, their references, and the scores to find, in the order of NAMES.

    Args:
        published: numbers as they were printed.
        cut: captions are parted by blanks; else the tokenizer is run.
    """

    def __init__(
        self,
        name: str,
        captions: Sequence[str],
        references: Sequence[Sequence[str]],
        published: Sequence[str],
        cut: bool = False,
    ):
        self.name, self.captions, self.references = name, list(captions), [list(several) for several in references]
        self.published, self.cut = published, cut

    def scored(self, with_java: bool) -> Scores:
        """Without METEOR, which `meteors` finds for all sets at once."""
        texts = [*self.captions, *(text for several in self.references for text in several)]
        tokens = [text.split() for text in texts] if self.cut else tokenize(texts, with_java=with_java)[0]
        self.found, rest = tokens[: len(self.captions)], iter(tokens[len(self.captions) :])
        self.wanted = [[next(rest) for _ in several] for several in self.references]
        return score_tokens(self.found, self.wanted, with_java=False)


def sets(folder: Path) -> list[Set]:
    hypotheses, *references = (
        [line for line in (folder / "nlg-eval" / name).read_text(encoding="utf-8").splitlines() if line]
        for name in ("hyp.txt", "ref1.txt", "ref2.txt")
    )
    found = [Set("nlg-eval", hypotheses, list(zip(*references)), NLG_EVAL.split(), cut=True)]
    one = ["this is a good test"], [["this is a test", "this is also a test"]]
    found.append(Set("nlg-eval, one image", *one, NLG_EVAL_ONE.split(), cut=True))
    references = read(folder / "clipscore" / "refs.json")
    for name, published in CLIPSCORE.items():
        captions = read(folder / "clipscore" / f"{name}_captions.json")
        wanted = [references[image] for image in captions]
        found.append(Set(f"clipscore, {name}", captions.values(), wanted, published.split()))
    captions, references, official = (
        read(folder / "flickr8k_dev_human" / f"{name}.json") for name in ("cands", "refs", "official_scores")
    )
    numbers = [repr(official["corpus"][name]) for name in OFFICIAL]
    found.append(Set("Flickr8k dev, human", captions.values(), [references[i] for i in captions], numbers))
    return found


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def meteors(all_sets: Sequence[Set]) -> list[float | None]:
    """METEOR of each set's tokens, Java started once; None where it does not run."""
    found = [" ".join(caption) for one in all_sets for caption in one.found]
    wanted = [[" ".join(caption) for caption in several] for one in all_sets for several in one.wanted]
    try:
        counts = java.meteor_counts(found, wanted)
    except java.Unavailable as error:
        print(f"METEOR skipped: {error}")
        return [None] * len(all_sets)
    ends = np.cumsum([0, *(len(one.found) for one in all_sets)])
    return [float(meteor_of_counts(counts[start:end].sum(axis=0))) for start, end in pairwise(ends)]


def agrees(ours: float, published: str) -> bool:
    """Whether a number is the published one to the digits given, which some round and others cut off."""
    digits = len(published.partition(".")[2])
    if digits > 12:  # written in full
        return math.isclose(ours, float(published), rel_tol=1e-12)
    cut = math.floor(ours * 10**digits) / 10**digits
    return float(published) in (round(ours, digits), round(cut, digits))


def compare(all_sets: Sequence[Set], with_java: bool) -> None:
    """A line for each set and score."""
    scores = [one.scored(with_java) for one in all_sets]
    for one, found, meteor in zip(all_sets, scores, meteors(all_sets)):
        if meteor is not None:
            found.corpus["METEOR"] = meteor
        for name, published in zip(NAMES, one.published, strict=True):
            if name in found.corpus:
                ours = found.corpus[name]
                off = abs(ours - float(published)) / max(float(published), 1e-12) if float(published) else abs(ours)
                print(
                    f"  {one.name:20} {name:8} published {published[:14]:14} ours {ours:.10f}  "
                    f"{'agrees' if agrees(ours, published) else 'DIFFERS'}, off by {off:.2g}"
                )


def tokenizers(data: Path) -> None:
    """How many captions both tokenizers cut into the same list of tokens."""
    for name, captions in {
        "Flickr8k dev, fitted on": flickr8k(data, "dev"),
        "Flickr8k train": flickr8k(data, "train"),
        "food": food(data),
    }.items():
        stanford, ours = java.stanford_tokenize(captions), ptb_tokenizer.ptb_tokenize(captions)
        differ = [i for i, (a, b) in enumerate(zip(stanford, ours, strict=True)) if a != b]
        same = len(captions) - len(differ)
        print(f"  {name:24} {same} of {len(captions)} captions, {same / len(captions):.3%}")
        for i in differ:
            print(f"    {captions[i]!r}\n      Stanford {' '.join(stanford[i])}\n      ours     {' '.join(ours[i])}")


def flickr8k(data: Path, part: str) -> list[str]:
    folder = data / "flickr8k"
    images = set((folder / f"Flickr_8k.{part}Images.txt").read_text(encoding="utf-8").split())
    lines = (folder / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
    return [line.split("\t")[1] for line in lines if line.split("#")[0] in images]


def food(data: Path) -> list[str]:
    with (data / "food" / "Captions.csv").open(newline="", encoding="utf-8") as rows:
        return [row["Captions"] for row in csv.DictReader(rows)]


def formula(folder: Path) -> None:
    """CLIPScore and RefCLIPScore with the bundled CLIP, beside the paper's formulas written out in numpy."""
    encoder = load_encoder(DEMO, "cpu")
    references = read(folder / "refs.json")
    for name in CLIPSCORE:
        captions = read(folder / f"{name}_captions.json")
        pixels = [encoder.preprocess(open_image(folder / "images" / f"{image}.jpg")) for image in captions]
        images = encoder.encode_images(torch.stack(pixels))
        texts = encoder.encode_texts([PROMPT + caption for caption in captions.values()])
        wanted = [encoder.encode_texts([PROMPT + text for text in references[image]]) for image in captions]
        ours = clip_score(images, texts).mean(), ref_clip_score(images, texts, wanted).mean()
        unit = lambda x: x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=-1, keepdims=True)  # noqa: E731
        v, c, r = unit(images), unit(texts), [unit(several) for several in wanted]
        clip = 2.5 * np.maximum((v * c).sum(axis=1), 0)
        nearest = np.array([max(0, (several @ one).max()) for several, one in zip(r, c)])
        both = 2 * clip * nearest / (clip + nearest)
        for title, mine, paper in zip(("CLIPScore", "RefCLIPScore"), ours, (clip.mean(), both.mean())):
            print(f"  {name:5}{title:13} ours {mine:.6f}  formula {paper:.6f}  off by {abs(mine - paper):.1g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    all_sets = sets(data / "caption_eval")
    results = read(data / "caption_eval" / "coco" / "captions_val2014_fakecap_results.json")
    for with_java in (True, False):
        print("tokens by Stanford's tokenizer (Java)" if with_java else "tokens by clipcap's tokenizer (Python)")
        compare(all_sets, with_java)
        tokens = sum(map(len, tokenize([result["caption"] for result in results], with_java=with_java)[0]))
        print(f"  COCO's example results: {tokens} tokens, published {COCO_TOKENS}")
    print("captions that both tokenizers cut alike")
    tokenizers(data)
    print("CLIPScore with the bundled CLIP")
    formula(data / "caption_eval" / "clipscore")
    try:
        print(f"SPICE of one caption: {java.spice(['a dog'], [['a dog']])[0]:.3f}")
    except java.Unavailable as error:
        print(f"SPICE skipped: {error}")


if __name__ == "__main__":
    main()
