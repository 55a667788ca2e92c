"""Plain decoding: the published method, one image at a time, everything computed anew at every token.

As in the original, the language model takes all tokens so far and gives the logits of every position; all beams'
scores over the whole vocabulary compete; sampling sorts the whole vocabulary. Not slow on purpose: the same language
model, threads and numbers as ours, no gradients, and the activation as one operation, as ours has it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipcap.models.caption_model import ClipCaptionModel


class PlainDecoding:
    """Token ids of one embedding [1, D] at a time; no token stops a caption."""

    def __init__(self, model: ClipCaptionModel, tokens: int):
        self.model, self.tokens = model, tokens

    def _log_probs(self, inputs: Tensor) -> Tensor:
        """[K, L, E] → [K, V] of the next token."""
        return self.model.lm(inputs_embeds=inputs, use_cache=False).logits[:, -1].softmax(-1).log()

    def _longer(self, inputs: Tensor, token: Tensor) -> Tensor:
        """[K, L, E] and [K] → [K, L + 1, E]."""
        return torch.cat([inputs, self.model.embed_tokens(token[:, None])], dim=1)

    @torch.inference_mode()
    def beam(self, clip_embedding: Tensor, beams: int = 5) -> list[int]:
        """The best beam."""
        inputs = self.model.prefix(clip_embedding)  # [1, P, E]
        total, token = self._log_probs(inputs)[0].topk(beams)  # [K]
        written, inputs = token[:, None], inputs.expand(beams, -1, -1)
        for length in range(2, self.tokens + 1):
            inputs = self._longer(inputs, token)
            scores = total[:, None] + self._log_probs(inputs)  # [K, V]
            average, best = (scores / length).flatten().topk(beams)
            parent, token = best // scores.shape[1], best % scores.shape[1]
            total, inputs = average * length, inputs[parent]
            written = torch.cat([written[parent], token[:, None]], dim=1)  # [K, length]
        return written[total.argmax()].tolist()

    @torch.inference_mode()
    def greedy(self, clip_embedding: Tensor) -> list[int]:
        """The most likely token at every position."""
        return self._one_by_one(clip_embedding, lambda log_probs, step: log_probs.argmax())

    @torch.inference_mode()
    def sample(self, clip_embedding: Tensor, uniforms: Tensor, top_p: float = 0.8) -> list[int]:
        """Nucleus sampling; `uniforms` [tokens] in [0, 1) say which token of the distribution's nucleus is drawn."""

        def draw(log_probs: Tensor, step: int) -> Tensor:
            ordered, order = log_probs.sort(descending=True)
            upto = ordered.exp().cumsum(0)
            inside = int((upto < top_p).sum()) + 1
            return order[int((upto[:inside] <= uniforms[step] * upto[inside - 1]).sum())]

        return self._one_by_one(clip_embedding, draw)

    def _one_by_one(self, clip_embedding: Tensor, choose) -> list[int]:  # noqa: ANN001
        inputs, written = self.model.prefix(clip_embedding), []  # [1, P, E]
        for step in range(self.tokens):
            token = choose(self._log_probs(inputs)[0], step)
            written.append(int(token))
            inputs = self._longer(inputs, token[None])
        return written
