"""CLIP-GPT: a causal language model that reads and writes CLIP embeddings inside text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from clipcap.clip_gpt.config import ClipGptConfig, EmbeddingLoss
from clipcap.clip_gpt.embedding_loss import embedding_loss
from clipcap.clip_gpt.sequences import Layout
from clipcap.errors import ClipcapError
from clipcap.models.base import IGNORE, PrefixLM
from clipcap.models.given import Given
from clipcap.models.kernels.chunked_cross_entropy import chunked_cross_entropy
from clipcap.models.language_model import max_positions, token_embeddings


class ClipGPT(PrefixLM[ClipGptConfig]):
    """Sequences with embeddings in them → logits of their text, and predicted embeddings.

    For decoding it is a `PrefixLM` whose prefix is the text before a caption.
    Where CLIP's width is the language model's, nothing is projected, as in General-GPT.

    Args:
        config: `config.tune` decides what requires gradients; the marks' token embeddings and the projections always
            do. Its `prefix_length` is filled in.
        lm: a causal language model; used in place, and given token embeddings for the marks where it has none.
        layout: of its tokenizer.
        embedding_loss: how predicted embeddings are compared with their images'.
        contrastive_temp: temperature of the contrastive one.
        lm_dropout: a tuned language model trains with its dropout.
    """

    def __init__(
        self,
        config: ClipGptConfig,
        lm: PreTrainedModel,
        layout: Layout,
        *,
        embedding_loss: EmbeddingLoss = "mse",
        contrastive_temp: float = 1.0,
        lm_dropout: bool = True,
    ):
        if token_embeddings(lm).num_embeddings < len(layout.tokenizer):
            lm.resize_token_embeddings(len(layout.tokenizer))  # new ones about the mean of the old
        super().__init__(replace(config, prefix_length=3 + len(layout.opening)), lm, lm_dropout)
        self.layout = layout
        self.embedding_loss: EmbeddingLoss = embedding_loss
        self.contrastive_temp = contrastive_temp
        read, written = self.token_embeddings.embedding_dim, self.head.in_features
        spread = float(self.token_embeddings.weight.detach().std())
        self.project_in = _projection(config.clip_dim, read, spread)
        self.project_out = _projection(written, config.clip_dim, written**-0.5)
        self.token_hooks: list[RemovableHandle] = []
        if config.tune != "full":
            weights = [weight.requires_grad_(True) for weight in self.token_weights()]
            self.token_hooks = [weight.register_hook(_only(layout.marks)) for weight in weights]

    def token_weights(self) -> list[Tensor]:
        """Where the marks have rows: the token embeddings, and the head's where it has its own."""
        read, written = self.token_embeddings.weight, self.head.weight
        return [read] if written is read else [read, written]

    def normalised(self, clip_embedding: Tensor) -> Tensor:
        """CLIP embeddings [..., D] as the model knows them: of norm 1, unless its checkpoint says otherwise.

        Raises:
            ClipcapError: D is not the width of its encoder.
        """
        self._check_width(clip_embedding)
        return F.normalize(clip_embedding, dim=-1) if self.config.normalize_prefix else clip_embedding

    def prefix(self, given: Given | Tensor) -> Tensor:
        """The prefix of the captions of B images, of which it reads the vectors, as inputs [B, P, E]."""
        clip_embedding = Given.of(given).vectors
        prompts = [self.layout.caption_prompt(row) for row in range(len(clip_embedding))]
        batch = self.layout.batch(prompts, clip_embedding).inputs(clip_embedding.device)
        return self.inputs_embeds(batch["input_ids"], clip_embedding, batch["clip_places"], batch["clip_rows"])

    def inputs_embeds(self, input_ids: Tensor, embeddings: Tensor, clip_places: Tensor, clip_rows: Tensor) -> Tensor:
        """Token embeddings with CLIP embeddings in their places: language-model inputs [B, T, E].

        Raises:
            ClipcapError: the sequences are longer than the language model takes.
        """
        if input_ids.shape[1] > max_positions(self.lm):
            raise ClipcapError(
                f"a sequence of {input_ids.shape[1]} positions: {self.config.lm} takes {max_positions(self.lm)}: "
                f"shorten its text, or put fewer images into one sequence"
            )
        tokens = self.embed_tokens(input_ids)  # [B, T, E]
        clips = self.project_in(self.normalised(embeddings))[clip_rows]  # [C, D] -> [C, E] -> [K, E]
        return tokens.flatten(0, 1).index_copy(0, clip_places, clips.to(tokens)).view_as(tokens)

    def forward(self, text_scale: Tensor, embedding_scale: Tensor, **batch: Tensor) -> Tensor:
        """The loss of a batch: both kinds of losses, each summed and multiplied by its scale; a scalar in float32."""
        text, embedding, _ = self.losses(**batch)
        return text_scale * text + embedding_scale * embedding

    def losses(
        self,
        input_ids: Tensor,
        labels: Tensor,
        embeddings: Tensor,
        clip_places: Tensor,
        clip_rows: Tensor,
        out_places: Tensor,
        out_rows: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What `InterleavedBatch.inputs` gives → losses.

        Returns:
            the cross-entropy summed over label tokens, the loss summed over the embeddings compared, and the
            predicted embeddings [O, D] in float32.
        """
        inputs_embeds = self.inputs_embeds(input_ids, embeddings, clip_places, clip_rows)  # [B, T, E]
        counted = labels[:, 1:] != IGNORE  # [B, T - 1]: position t predicts token t + 1
        if self._head_is_plain:  # a quarter of GPT-2's arithmetic, so only where there is a label
            hidden = self.lm.base_model(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state  # [B, T, H]
            text = chunked_cross_entropy(hidden[:, :-1][counted], self.head, labels[:, 1:][counted])
        else:
            out = self.lm(inputs_embeds=inputs_embeds, use_cache=False, output_hidden_states=True)
            hidden, logits = out.hidden_states[-1], out.logits[:, :-1][counted]  # [B, T, H], [n, V]
            text = F.cross_entropy(logits.float(), labels[:, 1:][counted], reduction="sum")
        predicted = self.project_out(hidden.flatten(0, 1)[out_places]).float()  # [B·T, H] -> [O, H] -> [O, D]
        compared = out_rows != IGNORE  # [O]
        embedding = embedding_loss(
            self.embedding_loss,
            predicted[compared],
            self.normalised(embeddings),
            out_rows[compared],
            self.contrastive_temp,
        )
        return text, embedding, predicted

    def logits(self, input_ids: Tensor, embeddings: Tensor, clip_places: Tensor, clip_rows: Tensor) -> Tensor:
        """Logits of the token after each position, [B, T, V]."""
        inputs_embeds = self.inputs_embeds(input_ids, embeddings, clip_places, clip_rows)
        return self.lm(inputs_embeds=inputs_embeds, use_cache=False).logits

    def parameter_report(self) -> str:
        """One line: trained and frozen parameters."""
        lm = {id(p): p for p in self.lm.parameters()}
        marks = [] if self.config.tune == "full" else self.token_weights()
        rows = sum(len(self.layout.marks) * weight.shape[1] for weight in marks)
        own = sum(p.numel() for p in self.parameters()) - sum(p.numel() for p in lm.values())
        tuned = sum(p.numel() for p in lm.values() if p.requires_grad) - sum(weight.numel() for weight in marks)
        frozen = sum(p.numel() for p in lm.values()) - tuned - rows
        return (
            f"parameters: {(own + tuned + rows) / 1e6:.2f} M trained (projections {own / 1e6:.2f} M, language model "
            f"{(tuned + rows) / 1e6:.2f} M), {frozen / 1e6:.2f} M frozen"
        )

    @torch.inference_mode()
    def imagine(self, captions: Sequence[str]) -> Tensor:
        """The predicted CLIP embeddings of B captions, [B, D] float32 on the model's device."""
        asked = [self.layout.caption_to_clip(self.layout.ids(caption.strip())) for caption in captions]
        device = self.head.weight.device
        batch = self.layout.batch(asked, torch.zeros(1, self.config.clip_dim)).inputs(device)
        return self.losses(**batch)[2]


def _projection(inputs: int, outputs: int, std: float) -> nn.Module:
    """A linear map whose outputs have about the size of the token embeddings; none where the widths are equal."""
    if inputs == outputs:
        return nn.Identity()
    projection = nn.Linear(inputs, outputs)
    nn.init.normal_(projection.weight, std=std)
    nn.init.zeros_(projection.bias)
    return projection


def _only(rows: list[int]) -> Callable[[Tensor], Tensor]:
    """A hook that keeps the gradient of some rows alone."""

    def keep(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[rows] = gradient[rows]
        return kept

    return keep
