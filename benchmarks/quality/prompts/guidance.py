"""Guidance: what the photo adds to a token's log-probability, counted more than once (arXiv 2307.16686)."""

from __future__ import annotations

import torch
from torch import Tensor

from clipcap.captioning.beam_search import beam_search
from clipcap.captioning.cached_decoder import CachedDecoder
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import resolve, stop_token_ids
from clipcap.captioning.kv_cache import expand
from clipcap.captioning.tidy import tidy
from clipcap.features.feature_set import Features
from clipcap.models.base import PrefixLM
from clipcap.models.given import Given, with_tokens
from clipcap.models.language_model import max_positions

TOGETHER = 16  # photos decoded together


class GuidedDecoder(CachedDecoder):
    """Decodes two prefixes at once: log p = log p(null) + strength · (log p(photo) − log p(null)).

    Args:
        model: in evaluation mode.
        prefixes: of N photos, [N, P, E].
        null: of no photo in particular, [1, P, E].
        strength: 1 is plain decoding.
    """

    def __init__(self, model: PrefixLM, prefixes: Tensor, null: Tensor, strength: float):
        self.strength = strength
        super().__init__(model, torch.cat([prefixes, null.expand_as(prefixes)]))

    @property
    def logits(self) -> Tensor:
        """Guided log-probabilities of the next token, [N·K, V]."""
        photo, null = self._both.log_softmax(dim=-1).chunk(2)
        return null + self.strength * (photo - null)

    @logits.setter
    def logits(self, both: Tensor) -> None:
        self._both = both  # [2·N·K, V]

    def expand(self, k: int, room: int, reorders: bool = False) -> None:
        expand(self.cache, len(self._both), k, room)
        self._both = self._both.repeat_interleave(k, dim=0)

    def keep(self, rows: Tensor) -> None:
        rows = self._with_null(rows)
        self._both = self._both[rows]
        super().keep(rows)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(self._with_null(rows))

    def step(self, token_ids: Tensor) -> None:
        super().step(token_ids.repeat(2))

    def _with_null(self, rows: Tensor) -> Tensor:
        """Rows of the photos, and the same of the null prefixes behind them."""
        return torch.cat([rows, rows + len(self._both) // 2])


def mean_photo(training: Features) -> Given:
    """No photo in particular: the mean of all vectors, and of all tokens at each place."""
    rows = training.given(slice(None))
    vectors = rows.vectors.float().mean(dim=0, keepdim=True)
    return Given(vectors) if rows.tokens is None else with_tokens(vectors, rows.tokens.float().mean(0, keepdim=True))


@torch.inference_mode()
def guided(captioner: Captioner, photos: Features, rows: list[int], null: Given, strength: float) -> list[str]:
    """A caption of each row, by five beams."""
    model, tokenizer = captioner.model, captioner.tokenizer
    config = resolve(DecodeConfig(beam=True), model).fit_to(max_positions(model.lm) - model.longest_prefix)
    stop, captions = stop_token_ids(tokenizer, config, model.caption_ends), []
    for start in range(0, len(rows), TOGETHER):
        given = photos.given(rows[start : start + TOGETHER])
        decoder = GuidedDecoder(model, model.prefix(given), model.prefix(null), strength)
        found = beam_search(decoder, config, stop, [])
        best = (found.total / found.length).argmax(dim=1).tolist()  # [N]
        for image, beam in enumerate(best):
            ids = found.tokens[image, beam, : int(found.length[image, beam])].tolist()
            captions.append(tidy(str(tokenizer.decode([i for i in ids if i not in stop]))))
    return captions
