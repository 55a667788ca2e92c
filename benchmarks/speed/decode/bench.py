"""Decoding: captions a second, memory and share of the machine's limit, beside the plain baseline.

python -m benchmarks.speed.decode.bench [--case beam-40 ...] [--turns 3] [--no_memory] [--cpu_time]
"""

from __future__ import annotations

import gc
import time
from copy import deepcopy
from dataclasses import dataclass
from statistics import median

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.measure import SIDES, Clock, Comparison, flags_of, forget_peak, machine, matmul_flops, peak_gib, table
from benchmarks.plain_decoding import PlainDecoding
from benchmarks.speed.decode.arithmetic import decode_bytes, decode_flops
from clipcap.captioning.beam_search import beam_search
from clipcap.captioning.cached_decoder import CachedDecoder
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.sampling import sample, uniforms
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.config import ModelConfig
from clipcap.models.kernels.packed_linear import pack_for_rows

TOKENS = 20
MAPPERS = {
    10: ModelConfig(mapping_type="mlp", prefix_length=10, clip_dim=512),
    40: ModelConfig(mapping_type="transformer", prefix_length=40, prefix_length_clip=40, clip_dim=640),
}
WAYS = {
    "beam": DecodeConfig(beam=True, max_new_tokens=TOKENS),
    "greedy": DecodeConfig(greedy=True, max_new_tokens=TOKENS),
    "sample": DecodeConfig(seed=0, max_new_tokens=TOKENS),
}
# Random weights say nearly the same of every token. Times this, the nucleus of a step holds some tens of tokens, as a
# trained model's, and scores lie far enough apart for both sides to choose the same tokens.
SHARPER = 10.0


@dataclass(frozen=True)
class Case:
    """What is decoded how."""

    title: str
    target: str
    way: str
    prefix: int
    images: int


CASES = {
    "beam-10": Case("beam 5, prefix 10, one image", "", "beam", 10, 1),
    "beam-40": Case("beam 5, prefix 40, one image", "≥ 5.5", "beam", 40, 1),
    "beam-40-32": Case("the same, 32 images", "≥ 25", "beam", 40, 32),
    "greedy-40": Case("greedy, prefix 40, one image", "", "greedy", 40, 1),
    "greedy-40-32": Case("the same, 32 images", "", "greedy", 40, 32),
    "sample-10": Case("sampling, prefix 10, one image", "≥ 4", "sample", 10, 1),
    "sample-40": Case("sampling, prefix 40, one image", "≥ 4", "sample", 40, 1),
    "sample-40-32": Case("the same, 32 images", "≥ 20", "sample", 40, 32),
}


class Bench:
    """Ours and the plain baseline with the same weights, on the same embeddings."""

    def __init__(
        self,
        case: Case,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        gpt2: GPT2Config | None = None,
    ):
        torch.manual_seed(0)
        self.case, self.config = case, WAYS[case.way]
        with torch.device(device):
            lm = GPT2LMHeadModel(gpt2 or GPT2Config())
        with torch.no_grad():
            lm.transformer.ln_f.weight.mul_(SHARPER)
        self.model = ClipCaptionModel(MAPPERS[case.prefix], lm).to(device).eval()
        self.embeddings = torch.randn(case.images, self.model.config.clip_dim).to(device)
        self.baseline = PlainDecoding(deepcopy(self.model), TOKENS)
        if dtype == torch.bfloat16:  # as the captioner does
            pack_for_rows(self.model, dtype)
        elif torch.device(device).type == "cpu" and (case.images > 1 or case.way == "beam"):
            pack_for_rows(self.model.lm)
        self.uniforms = uniforms(range(case.images), self.config)  # [N, 1, tokens]
        self.next = 0

    @torch.inference_mode()
    def ids(self) -> list[list[int]]:
        """Ours: the best caption of each image. No token stops it."""
        decoder = CachedDecoder(self.model, self.model.prefix(self.embeddings))
        if self.config.beam:
            found = beam_search(decoder, self.config, [-1], [])
        else:
            found = sample(decoder, self.config, [-1], [], range(self.case.images))
        best = found.total.argmax(dim=1)  # of captions of one length
        return found.tokens[torch.arange(len(best)), best].tolist()

    def plain_ids(self, image: int) -> list[int]:
        """Of the plain baseline: one image."""
        embedding = self.embeddings[image : image + 1]
        if self.case.way == "sample":
            return self.baseline.sample(embedding, self.uniforms[image, 0])
        return getattr(self.baseline, self.case.way)(embedding)

    def check(self) -> None:
        """Both write the same tokens for the first image; it also warms up."""
        ours, plain = self.ids()[0], self.plain_ids(0)
        if ours != plain or len(ours) != TOKENS:
            raise AssertionError(f"ours {ours}, plain {plain}")

    def plain(self) -> int:
        """One image, another one each time."""
        self.plain_ids(self.next % self.case.images)
        self.next += 1
        return 1

    def ours(self) -> int:
        """All images."""
        return len(self.ids())

    def work(self) -> tuple[float, float]:
        """Operations and bytes that each image needs."""
        hypotheses = self.config.resolved().beam_size if self.config.beam else 1
        sizes = self.model.config, self.model.lm.config, TOKENS, hypotheses
        return decode_flops(*sizes), decode_bytes(*sizes, self.case.images) / self.case.images


def read_bytes(clock: Clock = time.perf_counter, repeats: int = 5) -> float:
    """Bytes a second that are read from memory: the sum of 512 MiB over the median time."""
    numbers, times = torch.ones(1 << 27), []
    for _ in range(repeats):
        start = clock()
        numbers.sum()
        times.append(clock() - start)
    return 4 * len(numbers) / median(times)


def compare(name: str, turns: int, memory: bool, clock: Clock = time.perf_counter) -> Comparison:
    """One case: a turn is one image of the plain baseline and a batch of ours."""
    case, bench = CASES[name], Bench(CASES[name])
    bench.check()
    result = Comparison(case.title, case.target)
    flops, nbytes = bench.work()
    shares = []
    for _ in range(turns):
        least = (flops / matmul_flops(clock), nbytes / read_bytes(clock))
        result.turn(bench.plain, bench.ours, clock)
        shares.append([seconds / result.ours[-1] for seconds in least])
        print(f"{name}: plain {result.plain[-1]:.3f}, ours {result.ours[-1]:.3f} s an image, shares of the ceilings: "
              f"arithmetic {shares[-1][0]:.0%}, memory {shares[-1][1]:.0%}", flush=True)  # fmt: skip
    arithmetic, reading = (median(share) for share in zip(*shares, strict=True))
    result.notes.append(f"same tokens; {arithmetic:.0%} of the matrix product's speed, {reading:.0%} of memory's")
    if memory:
        plain, ours = (
            peak_gib("benchmarks.speed.decode.bench", "--memory_of", side, "--case", name) for side in SIDES
        )
        result.notes.append(f"memory {plain:.2f} → {ours:.2f} GiB")
    return result


def one_run(case: Case, side: str) -> None:
    """One side alone, for its peak memory."""
    bench = Bench(case)
    if side == "plain":
        del bench.model
    else:
        del bench.baseline
    gc.collect()  # a packed layer and its forward hold each other
    forget_peak(torch.device("cpu"))
    getattr(bench, side)()


def short() -> list[Comparison]:
    """One turn of two cases, for `python -m benchmarks`."""
    return [compare(name, turns=1, memory=False) for name in ("beam-40", "sample-40-32")]


def main() -> None:
    parser = flags_of(__doc__, turns=3)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    if args.memory_of:
        return one_run(CASES[args.case[0]], args.memory_of)
    print(machine(), flush=True)
    clock = time.process_time if args.cpu_time else time.perf_counter
    print(table([compare(name, args.turns, not args.no_memory, clock) for name in args.case]))


if __name__ == "__main__":
    main()
