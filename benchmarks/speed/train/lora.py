"""LoRA behind image tokens: ours beside transformers' Trainer with peft, as most people train today.

python -m benchmarks.speed.train.lora [--tokens 196] [--turns 2] [--device cuda] [--dtype bfloat16] [--cpu_time]

Both have a language model of SmolLM2-135M's sizes with the same adapter, one linear layer from each image token to
a position, the captions of Flickr8k (five per image) and AdamW. The usual way has a row per caption, padded to the
longest of its batch; ours computes an image's positions once for its captions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from benchmarks.measure import Clock, Comparison, clock_of, machine, table
from benchmarks.speed.train.bench import CASES, Bench, How, smollm2
from clipcap.models.base import IGNORE
from clipcap.models.language_model import add_lora
from clipcap.training.dataset import CaptionDataset

LM = Callable[[], PreTrainedModel]
RANK, WIDTH = 16, 384  # of the adapter; of an image token
CASE = replace(CASES["smollm2-five"], title="SmolLM2-135M with LoRA, image tokens: five per image, batch 40")


class UsualModel(nn.Module):
    """Image tokens → linear layer → `inputs_embeds` of a language model with an adapter of peft."""

    def __init__(self, lm: PreTrainedModel):
        super().__init__()
        self.lm = add_lora(lm, RANK).requires_grad_(False)
        for name, parameter in self.lm.named_parameters():
            parameter.requires_grad_("lora_" in name)
        self.projection = nn.Linear(WIDTH, self.lm.config.hidden_size)

    def forward(self, tokens: Tensor, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        embeds = torch.cat([self.projection(tokens), self.lm.get_input_embeddings()(input_ids)], dim=1)
        return {"loss": self.lm(inputs_embeds=embeds, attention_mask=attention_mask, labels=labels).loss}


class Examples(torch.utils.data.Dataset):
    """A caption and its image's tokens [N, W]."""

    def __init__(self, data: CaptionDataset, captions: np.ndarray, tokens: Tensor):
        self.data, self.captions, self.tokens = data, captions, tokens

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        caption = self.captions[index]
        ids = self.data.tokens[self.data.starts[caption] : self.data.starts[caption + 1]].astype(np.int64)
        return {"ids": torch.from_numpy(ids), "tokens": self.tokens[self.data.features.caption_rows[caption]]}


def collate(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Padded to the longest of the batch."""
    tokens = torch.stack([example["tokens"] for example in examples])  # [B, N, W]
    ids = nn.utils.rnn.pad_sequence([example["ids"] for example in examples], True, IGNORE)  # [B, T]
    none = torch.full(tokens.shape[:2], IGNORE)
    labels = torch.cat([none, ids], dim=1)
    mask = torch.cat([torch.ones_like(none), (ids != IGNORE).long()], dim=1)
    return {"tokens": tokens, "input_ids": ids.clamp(min=0), "attention_mask": mask, "labels": labels}


class Times(TrainerCallback):
    """Seconds of each step."""

    def __init__(self, clock: Clock):
        self.clock, self.seconds = clock, []

    def on_step_begin(self, *args: object, **kwargs: object) -> None:
        self.start = self.clock()

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.seconds.append(self.clock() - self.start)


def usual(bench: Bench, lm: LM, tokens: Tensor, steps: int, how: How, clock: Clock) -> list[float]:
    """Seconds a caption of each step of the Trainer but the first."""
    captions = np.random.default_rng(0).permutation(len(bench.data))[: bench.batch * steps]
    times = Times(clock)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder, per_device_train_batch_size=bench.batch, max_steps=steps, learning_rate=1e-3, report_to=[],
            save_strategy="no", logging_strategy="no", remove_unused_columns=False, disable_tqdm=True,
            bf16=how.dtype == "bfloat16", use_cpu=how.device == "cpu", dataloader_pin_memory=how.device != "cpu",
        )  # fmt: skip
        examples = Examples(bench.data, captions, tokens)
        trainer = Trainer(UsualModel(lm()), options, collate, examples, callbacks=[times])
        trainer.train()
    return [seconds / bench.batch for seconds in times.seconds[1:]]


def compare(count: int, turns: int, how: How, clock: Clock, lm: LM = smollm2) -> Comparison:
    """Steps of the usual way, then as many of ours."""
    layout = {"tokens": "import", "token_count": count, "token_width": WIDTH, "prefix_length": count}
    model = {**CASE.model, **layout, "mapping_type": "project", "tune": "lora", "lora_rank": RANK}
    bench = Bench(replace(CASE, model=model, lm=lm), how)
    tokens = torch.randn(bench.data.features.num_images, count, WIDTH, generator=torch.Generator().manual_seed(0))
    bench.data.features = replace(bench.data.features, tokens=tokens.half())
    result = Comparison(CASE.title, "≥ 2", plain=usual(bench, lm, tokens, turns + 1, how, clock))
    mine = bench.steps(max(turns, 3))
    for _ in range(3 if how.device != "cpu" else 1):  # the second one captures, the third replays
        bench.ours(mine[:1] if how.device == "cpu" else mine)
    for step in mine[:turns]:
        start = clock()
        items = bench.ours([step])
        result.ours.append((clock() - start) / items)
    result.notes.append(f"{count} tokens an image")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=196)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cpu_time", action="store_true", help="for a busy machine, with OMP_NUM_THREADS=1")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else clock_of(torch.device(args.device))
    print(machine(), flush=True)
    print(table([compare(args.tokens, args.turns, How(args.device, args.dtype), clock)]))


if __name__ == "__main__":
    main()
