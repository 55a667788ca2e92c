"""Plain baselines: the published method without a trick, written to be checked against and timed against.

Not slow on purpose: the same libraries, threads, numbers and language model as ours.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from clipcap.models.mapper import Attention, TransformerMapper
from clipcap.training.dataset import CaptionDataset
from clipcap.training.tokens import reference_max_length


class PlainAttention(Attention):
    """The mapper's attention with its scores written out."""

    def forward(self, x: Tensor, first: int = 0, seen: Tensor | None = None) -> Tensor:
        """[B, N, E] → [B, N, E]."""
        queries = self.to_queries(x).unflatten(2, (self.num_heads, -1))  # [B, N, heads, E/heads]
        keys, values = self.to_keys_values(x).unflatten(2, (2, self.num_heads, -1)).unbind(2)
        scores = torch.einsum("bnhd,bmhd->bnmh", queries, keys) * queries.shape[-1] ** -0.5  # [B, N, N, heads]
        return self.project(torch.einsum("bnmh,bmhd->bnhd", scores.softmax(dim=2), values).flatten(2))


class PlainTransformerMapper(TransformerMapper):
    """The transformer mapper with plain attention, all blocks computed in full."""

    def forward(self, clip_embedding: Tensor) -> Tensor:
        """[B, D] → prefix [B, P, E]."""
        clip_tokens = self.linear(clip_embedding).unflatten(1, (self.prefix_length_clip, -1))  # [B, C, E]
        x = torch.cat([clip_tokens, self.prefix_const.expand(len(clip_tokens), -1, -1)], dim=1)  # [B, C+P, E]
        for layer in self.transformer.layers:
            x = layer(x)
        return x[:, self.prefix_length_clip :]


def plain_mapper(mapper: nn.Module) -> nn.Module:
    """A copy of a mapper with the same weights, computed plainly."""
    if not isinstance(mapper, TransformerMapper):
        return deepcopy(mapper)
    prefix_length, width = mapper.prefix_const.shape
    layers = mapper.transformer.layers
    sizes = (mapper.linear.in_features, width, prefix_length, mapper.prefix_length_clip, len(layers))
    plain = PlainTransformerMapper(*sizes, layers[0].attn.num_heads)
    for layer in plain.transformer.layers:
        layer.attn = PlainAttention(width, layer.attn.num_heads)
    plain.load_state_dict(mapper.state_dict())
    return plain


class PlainTraining:
    """The original's training: a row per caption, each padded to the set's longest, logits of every position.

    A frozen language model is in evaluation mode and its weights are not updated, but they collect gradients.

    Args:
        data: of the reference recipe: no end-of-text token, id 0 never learnt.
        mapper, lm: copied; computed on where they are.
        tuned: the language model is trained too.
    """

    def __init__(self, data: CaptionDataset, mapper: nn.Module, lm: PreTrainedModel, tuned: bool):
        self.device = lm.get_input_embeddings().weight.device
        self.data, self.mapper = data, plain_mapper(mapper).to(self.device)
        self.lm = deepcopy(lm).requires_grad_(True).train(tuned)
        self.longest = reference_max_length(data.lengths)
        trained = [*self.mapper.parameters(), *(self.lm.parameters() if tuned else ())]
        self.optimizer = torch.optim.AdamW(trained, lr=2e-5, eps=1e-6, weight_decay=0.0)

    def loss(self, captions: np.ndarray) -> Tensor:
        """Mean cross-entropy of the captions of these numbers."""
        data = self.data
        clip_embedding = data.features.rows(data.features.caption_rows[captions])
        tokens = torch.zeros(len(captions), self.longest, dtype=torch.long)  # [B, T]
        for row, number in enumerate(captions):
            ids = data.tokens[data.starts[number] : data.starts[number + 1]][: self.longest]
            tokens[row, : len(ids)] = torch.from_numpy(ids)
        tokens = tokens.to(self.device)
        prefix = self.mapper(clip_embedding.to(self.device))  # [B, P, E]
        length = prefix.shape[1]
        lengths = torch.from_numpy(data.lengths[captions])[:, None]
        mask = (torch.arange(length + self.longest) < length + lengths).float().to(self.device)  # [B, P+T]
        embeds = torch.cat([prefix, self.lm.get_input_embeddings()(tokens)], dim=1)
        logits = self.lm(inputs_embeds=embeds, attention_mask=mask).logits[:, length - 1 : -1]  # [B, T, V]
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=0)

    def step(self, captions: np.ndarray) -> None:
        """One step of the optimiser."""
        self.loss(captions).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
