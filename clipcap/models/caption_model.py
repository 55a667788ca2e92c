"""The caption model: mapping network + causal language model, its logits and its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.models.base import IGNORE, PrefixLM
from clipcap.models.config import ModelConfig
from clipcap.models.encoders.token_spec import Kind, TokenLayout
from clipcap.models.given import Given
from clipcap.models.kernels.chunked_cross_entropy import chunked_cross_entropy, weighted_cross_entropy
from clipcap.models.kernels.last_block import read_from
from clipcap.models.kernels.shared_prefix import packing, padded
from clipcap.models.language_model import max_positions
from clipcap.models.mapper import make_mapper

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel


class ClipCaptionModel(PrefixLM[ModelConfig]):
    """CLIP embedding → prefix → logits of the caption's tokens (ClipCap, sections 3.1–3.3).

    Args:
        config, lm, lm_dropout: as any `PrefixLM` takes them.

    Raises:
        ClipcapError: the prefix does not fit the language model.
    """

    text_before: Tensor  # int64, of the template
    text_after: Tensor

    def __init__(self, config: ModelConfig, lm: PreTrainedModel, lm_dropout: bool = True):
        super().__init__(config, lm, lm_dropout)
        embed_dim = self.token_embeddings.embedding_dim  # OPT's differs from its hidden size
        if self.longest_prefix >= max_positions(lm):
            text = self.longest_prefix - config.prefix_length
            fewer = f": lower --prompt_captions {config.prompt_captions}" if config.prompts == "captions" else ""
            raise ClipcapError(
                f"--prefix_length {config.prefix_length}{f' and {text} tokens of text' if text else ''} leaves no "
                f"room for a caption: {config.lm} takes {max_positions(lm)} positions{fewer}"
            )
        vocabulary = self.token_embeddings.num_embeddings
        for name in ("before", "after", "ends"):
            if not all(0 <= token < vocabulary for token in getattr(config, name)):
                raise ClipcapError(
                    f"{config.lm} has {vocabulary:,} tokens, and the checkpoint's `{name}` names others: the "
                    f"language model is not the one it was trained with"
                )
        self.mapper = make_mapper(config, embed_dim)
        for name in ("before", "after"):  # on the model's device: a CUDA graph cannot copy them there
            ids = torch.tensor(getattr(config, name), dtype=torch.long)
            self.register_buffer(f"text_{name}", ids, persistent=False)

    def prefix(self, given: Given | Tensor) -> Tensor:
        """Map CLIP embeddings to language-model inputs.

        Args:
            given: of B images; a tensor is their vectors [B, D] as stored in the feature file.
        Returns:
            prefix [B, P, E]; with the template's text and a prompt of H tokens [B, before + P + H + after, E], where
            shorter prompts have their padding before everything else.
        Raises:
            ClipcapError: D, or N and W, are not what the mapper was built for.
        """
        given = Given.of(given)
        vectors = given.vectors
        self._check_width(vectors)
        if self.config.normalize_prefix:
            vectors = vectors / vectors.norm(dim=-1, keepdim=True)
        if self.config.tokens is None:
            mapped = self.mapper(vectors)  # [B, D] -> [B, P, E]
        else:
            mapped = self.mapper(vectors, self._tokens(given), given.token_mask)  # and [B, N, W] -> [B, P, E]
        prompt = [] if given.prompt_ids is None else [self.embed_tokens(given.prompt_ids)]  # [B, H, E]
        if not (self.config.before or self.config.after or prompt):
            return mapped
        rows = mapped.shape[0]  # not len(), which would be fixed in a graph
        before, after = (
            self.embed_tokens(ids).expand(rows, -1, -1) for ids in (self.text_before, self.text_after)
        )  # [B, before, E], [B, after, E]
        whole = torch.cat([before, mapped, *prompt, after], dim=1)
        order = self._padding_first(given)
        return whole if order is None else whole.gather(1, order[:, :, None].expand_as(whole))

    def prefix_mask(self, given: Given | Tensor) -> Tensor | None:
        """As of any `PrefixLM`: prompts shorter than the longest of the batch leave padding."""
        mask = self._whole_mask(Given.of(given))
        return None if mask is None else mask.sort(dim=1, stable=True).values

    def _padding_first(self, given: Given) -> Tensor | None:
        """The order of the positions that sets all padding before the others, [B, P]."""
        mask = self._whole_mask(given)
        return None if mask is None else mask.long().argsort(dim=1, stable=True)

    def _whole_mask(self, given: Given) -> Tensor | None:
        """Which positions are no padding, where it stands before each prompt."""
        if given.prompt_mask is None:
            return None
        before = len(self.config.before) + self.config.prefix_length
        mask = F.pad(given.prompt_mask, (before, 0), value=True)  # [B, H] -> [B, before + P + H]
        return F.pad(mask, (0, len(self.config.after)), value=True)

    def _tokens(self, given: Given) -> Tensor:
        """The tokens [B, N, W] of what is given."""
        config, tokens = self.config, given.tokens
        if tokens is None or tokens.shape[1:] != (config.token_count, config.token_width):
            found = "none" if tokens is None else " x ".join(map(str, tokens.shape[1:]))
            raise ClipcapError(
                f"this captioner reads {self.token_layout} tokens of each image, and was given {found}: encode the "
                f"images as it was trained"
            )
        return tokens.to(given.vectors.dtype)

    @property
    def token_layout(self) -> TokenLayout | None:
        """As of any `PrefixLM`."""
        return token_layout(self.config)

    @property
    def prefix_positions(self) -> int:
        """As of any `PrefixLM`: the template's text counts."""
        return len(self.config.before) + self.config.prefix_length + len(self.config.after)

    @property
    def longest_prefix(self) -> int:
        """As of any `PrefixLM`."""
        return self.prefix_positions + self.config.prompt_tokens

    @property
    def image_span(self) -> slice:
        """As of any `PrefixLM`."""
        return slice(len(self.config.before), len(self.config.before) + self.config.prefix_length)

    @property
    def caption_ends(self) -> tuple[int, ...]:
        """As of any `PrefixLM`."""
        return self.config.ends

    @torch.no_grad()
    def match_norms(self, given: Given | Tensor) -> None:
        """Scale what the mapper ends in, so that its outputs are as long as token embeddings on average.

        Args:
            given: of some images.
        """
        wanted = self.token_embeddings.weight.norm(dim=-1).mean()
        device = self.token_embeddings.weight.device
        found = self.prefix(Given.of(given).to(device))[:, self.image_span].norm(dim=-1).mean()
        for parameter in self.mapper.output_parameters():
            parameter.mul_(wanted / found)

    def forward(
        self,
        given: Given | Tensor,
        input_ids: Tensor,
        labels: Tensor | None = None,
        positions: Tensor | None = None,
        weights: Tensor | None = None,
        everywhere: bool = False,
    ) -> Tensor:
        """Logits of each caption token, or with `labels` the summed loss.

        Captions are padded on the right, so that no caption token can see padding and no mask is needed.

        Args:
            given: of B rows; a tensor is their CLIP embeddings [B, D].
            input_ids: [B, T], padded with any id.
            labels: [B, T], the tokens to predict; `IGNORE` where a position does not count.
            positions: [B, T], each token's place in its caption, where rows hold several captions of their image end
                to end (`clipcap.models.kernels.shared_prefix`; for the loss alone); by default they hold one.
            weights: [B, T] float32, what each label token's cross-entropy is multiplied by (default: 1).
            everywhere: compute the head at all positions, so that no shape depends on which of them count.
        Returns:
            logits [B, T, V], position t predicting token t; or the cross-entropy summed over label tokens, a
            scalar in float32: divide by the number of label tokens of the whole (global) batch.
        """
        prefix, mask = self.prefix(given), self.prefix_mask(given)  # [B, P, E], [B, P]
        if labels is None:
            inputs_embeds = torch.cat([prefix, self.embed_tokens(input_ids)], dim=1)  # [B, P+T, E]
            more = {} if mask is None else self._padded(mask, input_ids.shape[1])
            logits = self.lm(inputs_embeds=inputs_embeds, use_cache=False, **more).logits  # [B, P+T, V]
            return logits[:, prefix.shape[1] - 1 : -1]  # [B, T, V]: position P-1 predicts token 0
        # The last token of a row predicts nothing, and is left out.
        inputs_embeds = torch.cat([prefix, self.embed_tokens(input_ids[:, :-1])], dim=1)  # [B, P+T-1, E]
        inputs = {"inputs_embeds": inputs_embeds}
        if positions is not None:
            inputs |= packing(positions[:, :-1], prefix.shape[1], inputs_embeds.dtype, mask)
        elif mask is not None:
            inputs |= self._padded(mask, input_ids.shape[1] - 1)
        counted, places = labels != IGNORE, _predicted_from(positions, prefix.shape[1], labels)  # [B, T] each
        if everywhere:
            weights = counted.float() if weights is None else weights * counted
            return self._loss_at(places.flatten(), inputs, labels.clamp(min=0).flatten(), weights.flatten())
        # n label tokens: [B, T] -> [n]
        return self._loss_at(places[counted], inputs, labels[counted], None if weights is None else weights[counted])

    def _padded(self, mask: Tensor, tokens: int) -> dict[str, Tensor]:
        """What tells the language model of the padding in prefixes [B, P] that so many tokens follow."""
        return padded(self.lm, F.pad(mask, (0, tokens), value=True))

    def _loss_at(self, places: Tensor, inputs: dict[str, Tensor], labels: Tensor, weights: Tensor | None) -> Tensor:
        """Cross-entropy at these places [n] of all rows end to end: the head is a quarter of GPT-2's arithmetic."""
        if not self._head_is_plain:
            logits = self.logits_of(inputs).flatten(0, 1)[places]  # [B, L, V] -> [n, V]
            return weighted_cross_entropy(logits, labels, weights)
        hidden = self.hidden_of(inputs).flatten(0, 1)[places]  # [B, L, H] -> [n, H]
        return chunked_cross_entropy(hidden, self.head, labels, weights)

    def hidden_of(self, inputs: dict[str, Tensor]) -> Tensor:
        """Last hidden states of the language model, [B, L, H]; right from the end of the prefix on."""
        with read_from(self.lm, self.prefix_positions - 1):
            return self.lm.base_model(**inputs, use_cache=False).last_hidden_state

    def logits_of(self, inputs: dict[str, Tensor]) -> Tensor:
        """Its logits at all positions, [B, L, V]."""
        return self.lm(**inputs, use_cache=False).logits

    def parameter_report(self) -> str:
        """One line: trained and frozen parameters; a second where an MLP prefix is larger than GPT-2 itself."""
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in self.parameters() if not p.requires_grad)
        mapper = sum(p.numel() for p in self.mapper.parameters())
        lines = [
            f"parameters: {trained / 1e6:.2f} M trained (mapper {mapper / 1e6:.2f} M, language model "
            f"{(trained - mapper) / 1e6:.2f} M), {frozen / 1e6:.2f} M frozen"
        ]
        if self.config.mapping_type == "mlp" and mapper > 100e6:
            lines.append(
                f"warning: the MLP mapper has {mapper / 1e6:.0f} M parameters, since they grow with the square of "
                f"--prefix_length {self.config.prefix_length}: for long prefixes use --mapping_type transformer"
            )
        return "\n".join(lines)


def token_layout(config: ModelConfig) -> TokenLayout | None:
    """The tokens that a captioner of this configuration reads; None where it reads the vector alone."""
    if config.tokens is None:
        return None
    kind, _, number = config.tokens.partition(":")
    of_config = (config.token_layer, config.token_pool, config.token_count, config.token_width, config.token_extra)
    return TokenLayout(cast(Kind, kind), int(number or 0), *of_config)


def _predicted_from(positions: Tensor | None, prefix_length: int, labels: Tensor) -> Tensor:
    """Of each token the place that predicts it, among the P+T-1 places of all rows end to end: [B, T].

    That is the token before it, or for the first one of a caption the end of the prefix.
    """
    rows, tokens = labels.shape
    before = prefix_length - 1 + torch.arange(tokens, device=labels.device)  # [T]
    if positions is not None:
        before = before.where(positions > 0, prefix_length - 1)  # [B, T]
    first = torch.arange(rows, device=labels.device) * (prefix_length + tokens - 1)  # [B]
    return first[:, None] + before
