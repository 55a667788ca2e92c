"""What beam search and sampling share: running captions, the stepped language model, next-token distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.kv_cache import expand, reorder, select
from clipcap.models.base import PrefixLM
from clipcap.models.kernels.last_block import read_from
from clipcap.models.kernels.shared_prefix import padded

if TYPE_CHECKING:  # imports transformers, which takes seconds
    from clipcap.captioning.fixed_step import FixedStep


@dataclass
class Hypotheses:
    """K running captions for each of N images, as rows of N·K; the first L columns of `tokens` are written."""

    tokens: Tensor  # [N, K, max_new_tokens]
    total: Tensor  # [N, K] sum of search log-probabilities
    logprob: Tensor  # [N, K] sum of log-probabilities at temperature 1
    length: Tensor  # [N, K] tokens up to and with the stop token
    stopped: Tensor  # bool [N, K]


def select_rows(state: Hypotheses, index: Tensor) -> Hypotheses:
    """The hypotheses of some images."""
    return Hypotheses(*(getattr(state, name)[index] for name in Hypotheses.__annotations__))


def stack(parts: Sequence[Hypotheses]) -> Hypotheses:
    """Hypotheses of several groups of images, as one."""
    return Hypotheses(*(torch.cat([getattr(p, name) for p in parts]) for name in Hypotheses.__annotations__))


class CachedDecoder:
    """Runs the language model one token at a time over its KV cache.

    On a GPU, steps are fixed where that gains: rows stay, and `logits` are overwritten by the next step.

    Args:
        model: in evaluation mode.
        inputs_embeds: of the prefixes, [N, P, E].
        mask: bool [N, P], False for padding within them; None where there is none.
        fixed: whether to fix the steps (default: on a GPU, for a size of batches that comes again).
    """

    def __init__(self, model: PrefixLM, inputs_embeds: Tensor, mask: Tensor | None = None, fixed: bool | None = None):
        self.model, self.mask, self.dtype = model, mask, inputs_embeds.dtype
        self._fix, self._at_once = inputs_embeds.device.type == "cuda" if fixed is None else fixed, bool(fixed)
        self._fixed: FixedStep | None = None
        # Since transformers 5.24 the cache is called `cache`; its old name warns, and will be gone.
        self.cache_name = "cache" if "cache" in signature(model.lm.forward).parameters else "past_key_values"
        more = {} if mask is None else padded(model.lm, mask)
        with read_from(model.lm, inputs_embeds.shape[1] - 1):
            out = model.lm(inputs_embeds=inputs_embeds, use_cache=True, logits_to_keep=1, **more)
        self.cache = out[self.cache_name]
        self.logits = out.logits[:, -1].float()  # [N, V]

    def expand(self, k: int, room: int, reorders: bool = False) -> None:
        """Every image's row becomes K rows, one per hypothesis: the prefix is computed once.

        Args:
            k: rows of an image.
            room: tokens that follow at most.
            reorders: whether rows will continue others.
        """
        if self._fix:
            from clipcap.captioning.fixed_step import fixed_steps

            self._fixed = fixed_steps.of(self, k, room, reorders, self._at_once)
        if self._fixed is None:
            expand(self.cache, len(self.logits), k, room)
            if self.mask is not None:
                self.mask = self.mask.repeat_interleave(k, dim=0)  # [N, P] -> [N·K, P]
        self.logits = self.logits.repeat_interleave(k, dim=0)  # [N, V] -> [N·K, V]

    @property
    def rows_stay(self) -> bool:
        """Whether no rows can be left out."""
        return self._fixed is not None

    def keep(self, rows: Tensor) -> None:
        """Keep these rows of the batch alone."""
        select(self.cache, rows)
        if self.mask is not None:
            self.mask = self.mask[rows]

    def reorder(self, rows: Tensor) -> None:
        """Each row continues another row of its image, whose mask is the same."""
        if self._fixed is None:
            reorder(self.cache, rows)
        else:
            self._fixed.reorder(rows)

    def step(self, token_ids: Tensor) -> None:
        """[N·K] next tokens → `logits` [N·K, V]."""
        if self._fixed is not None:
            self.logits = self._fixed(token_ids)
            return
        more: dict[str, Any] = {self.cache_name: self.cache}
        if self.mask is not None:
            position = self.mask.sum(dim=1, keepdim=True)  # [N·K, 1]
            self.mask = F.pad(self.mask, (0, 1), value=True)
            more |= padded(self.model.lm, self.mask, position)
        out = self.model.lm(input_ids=token_ids[:, None], use_cache=True, **more)
        self.logits = out.logits[:, -1].float()


def log_probs(
    logits: Tensor,
    tokens: Tensor | None,
    position: int,
    config: DecodeConfig,
    stop: Tensor,
    prompt_ids: list[int],
) -> tuple[Tensor, Tensor]:
    """Log-probabilities that steer the search, and those at temperature 1.

    Args:
        logits: [N, K, V] of the next token.
        tokens: [N, K, max_new_tokens], of which `position` are written.
    Returns:
        search and plain log-probabilities, each [N, K, V].
    """
    plain = logits.log_softmax(dim=-1)
    adjusted = logits
    if config.repetition_penalty != 1:
        adjusted = _penalise_repetition(logits, tokens, position, prompt_ids, config.repetition_penalty)
    if position < config.min_new_tokens:
        adjusted = adjusted.index_fill(-1, stop, -torch.inf)
    temperature = config.temp or 1.0
    if adjusted is logits and temperature == 1:
        return plain, plain
    return (adjusted / temperature).log_softmax(dim=-1), plain


def _penalise_repetition(
    logits: Tensor, tokens: Tensor | None, position: int, prompt_ids: list[int], penalty: float
) -> Tensor:
    """Make tokens already written less likely (CTRL, arXiv 1909.05858, section 4.1)."""
    seen = torch.tensor(prompt_ids, dtype=torch.long, device=logits.device).expand(*logits.shape[:2], -1)
    if tokens is not None:
        seen = torch.cat([seen, tokens[:, :, :position]], dim=-1)  # [N, K, prompt + position]
    values = logits.gather(-1, seen)
    return logits.scatter(-1, seen, torch.where(values > 0, values / penalty, values * penalty))
