"""The caption model: mapping network + causal language model, its logits and its loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer

from clipcap.errors import ClipcapError
from clipcap.models.kernels.chunked_cross_entropy import head_loss
from clipcap.models.kernels.last_block import read_from
from clipcap.models.kernels.shared_prefix import packing
from clipcap.models.mapper import MLP, TransformerMapper
from clipcap.options import ModelConfig

IGNORE = -100  # label of positions that count for nothing


class ClipCaptionModel(nn.Module):
    """CLIP embedding → prefix → logits of the caption's tokens (ClipCap, sections 3.1–3.3).

    Args:
        config: sizes and kinds; `config.tune` decides what requires gradients.
        lm: a causal language model; used in place.

    Raises:
        ClipcapError: the prefix does not fit the language model.
    """

    def __init__(self, config: ModelConfig, lm: PreTrainedModel):
        super().__init__()
        self.config = config
        fuse_activations(lm)
        self.lm = add_lora(lm, config.lora_rank) if config.tune == "lora" else lm
        embed_dim = lm.get_input_embeddings().weight.shape[1]  # OPT's differs from its hidden size
        if config.prefix_length >= max_positions(lm):
            raise ClipcapError(
                f"--prefix_length {config.prefix_length} leaves no room for a caption: {config.lm} takes "
                f"{max_positions(lm)} positions"
            )
        if config.mapping_type == "mlp":
            self.mapper = MLP(config.clip_dim, embed_dim, config.prefix_length)
        else:
            self.mapper = TransformerMapper(
                config.clip_dim,
                embed_dim,
                config.prefix_length,
                config.prefix_length_clip,
                config.num_layers,
                config.num_heads,
            )
        self.lm_dropout = True
        self._freeze_lm()
        self._head_is_plain = head_is_plain(lm)

    def _freeze_lm(self) -> None:
        for name, parameter in self.lm.named_parameters():
            parameter.requires_grad_(self.config.tune == "full" or (self.config.tune == "lora" and "lora_" in name))

    def train(self, mode: bool = True) -> ClipCaptionModel:
        """As in torch, but a frozen language model stays in evaluation mode (no dropout)."""
        super().train(mode)
        if self.config.tune == "none" or not self.lm_dropout:
            self.lm.eval()
        return self

    def prefix(self, clip_embedding: Tensor) -> Tensor:
        """Map CLIP embeddings to language-model inputs.

        Args:
            clip_embedding: [B, D] as stored in the feature file.
        Returns:
            prefix [B, P, E].
        Raises:
            ClipcapError: D is not the width the mapper was built for.
        """
        if clip_embedding.shape[-1] != self.config.clip_dim:
            raise ClipcapError(
                f"CLIP embeddings are {clip_embedding.shape[-1]} wide, this model expects {self.config.clip_dim}"
                f"{f' ({self.config.encoder})' if self.config.encoder else ''}"
            )
        if self.config.normalize_prefix:
            clip_embedding = clip_embedding / clip_embedding.norm(dim=-1, keepdim=True)
        return self.mapper(clip_embedding)  # [B, D] -> [B, P, E]

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """[B, T] → language-model inputs [B, T, E]."""
        return self.lm.get_input_embeddings()(input_ids)

    def forward(
        self,
        clip_embedding: Tensor,
        input_ids: Tensor,
        labels: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits of each caption token, or with `labels` the summed loss.

        Captions are padded on the right, so that no caption token can see padding and no mask is needed.

        Args:
            clip_embedding: [B, D].
            input_ids: [B, T], padded with any id.
            labels: [B, T], the tokens to predict; `IGNORE` where a position does not count.
            positions: [B, T], each token's place in its caption, where rows hold several captions of their image end
                to end (`clipcap.models.kernels.shared_prefix`; for the loss alone); by default they hold one.
        Returns:
            logits [B, T, V], position t predicting token t; or the cross-entropy summed over label tokens, a
            scalar in float32: divide by the number of label tokens of the whole (global) batch.
        """
        prefix = self.prefix(clip_embedding)  # [B, P, E]
        if labels is None:
            inputs_embeds = torch.cat([prefix, self.embed_tokens(input_ids)], dim=1)  # [B, P+T, E]
            logits = self.lm(inputs_embeds=inputs_embeds, use_cache=False).logits  # [B, P+T, V]
            return logits[:, prefix.shape[1] - 1 : -1]  # [B, T, V]: position P-1 predicts token 0
        # The last token of a row predicts nothing, and is left out.
        inputs_embeds = torch.cat([prefix, self.embed_tokens(input_ids[:, :-1])], dim=1)  # [B, P+T-1, E]
        inputs = {"inputs_embeds": inputs_embeds}
        if positions is not None:
            inputs |= packing(positions[:, :-1], prefix.shape[1], inputs_embeds.dtype)
        counted = labels != IGNORE  # [B, T]
        places = _predicted_from(positions, prefix.shape[1], labels)[counted]  # [n], n label tokens
        return self._loss_at(places, inputs, labels[counted])

    def _loss_at(self, places: Tensor, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Cross-entropy at these places [n] of all rows end to end: the head is a quarter of GPT-2's arithmetic."""
        if not self._head_is_plain:
            logits = self.logits_of(inputs).flatten(0, 1)[places]  # [B, L, V] -> [n, V]
            return F.cross_entropy(logits.float(), labels, reduction="sum")
        hidden = self.hidden_of(inputs).flatten(0, 1)[places]  # [B, L, H] -> [n, H]
        return head_loss(hidden, self.lm.get_output_embeddings(), labels)

    def hidden_of(self, inputs: dict[str, Tensor]) -> Tensor:
        """Last hidden states of the language model, [B, L, H]; right from the end of the prefix on."""
        with read_from(self.lm, self.config.prefix_length - 1):
            return self.lm.base_model(**inputs, use_cache=False).last_hidden_state

    def logits_of(self, inputs: dict[str, Tensor]) -> Tensor:
        """Its logits at all positions, [B, L, V]."""
        return self.lm(**inputs, use_cache=False).logits


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


def max_positions(lm: PreTrainedModel) -> int:
    """Longest sequence the language model takes."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if getattr(lm.config, name, None):
            return getattr(lm.config, name)
    return 1 << 30


def head_is_plain(lm: PreTrainedModel) -> bool:
    """Whether logits are just the output embeddings, a linear layer, applied to the last hidden state.

    Some models scale or cap them afterwards (Gemma, Cohere, Granite); tried on two random positions, since no
    attribute of transformers says so.
    """
    weight, head = lm.get_input_embeddings().weight, lm.get_output_embeddings()
    probe = torch.randn(1, 2, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)  # [1, 2, E]
    training = lm.training
    lm.eval()
    with torch.no_grad():
        logits = lm(inputs_embeds=probe, use_cache=False).logits
        hidden = lm.base_model(inputs_embeds=probe, use_cache=False).last_hidden_state
        plain = head(hidden)
    lm.train(training)
    linear = type(head) is nn.Linear
    return linear and plain.shape == logits.shape and torch.allclose(plain, logits, rtol=1e-3, atol=1e-3)


def fuse_activations(lm: PreTrainedModel) -> None:
    """Let GPT-2's activation be one operation, in place: transformers writes the same formula as eight, whose results
    are a third of what training keeps and a tenth of its time on a CPU."""
    for module in list(lm.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def checkpoint_layers(lm: PreTrainedModel) -> None:
    """Let each layer of a language model compute its activations again in the backward pass, not keep them; in place.

    transformers' own switch acts in training mode alone, in which a frozen language model never is.

    Raises:
        ClipcapError: the model does not say what its layers are.
    """
    layers = [module for module in lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ClipcapError(f"--gradient_checkpointing is not possible with {lm.config.model_type} models: drop it")
    for layer in layers:
        layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def add_lora(lm: PreTrainedModel, rank: int) -> PreTrainedModel:
    """Put a LoRA adapter (arXiv 2106.09685) into the language model's attention, in place.

    Raises:
        ClipcapError: peft is not installed, or does not know this kind of model.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ClipcapError("--tune lora needs the peft package: pip install 'clipcap[lora]'") from error
    try:
        # Conv1D layers (GPT-2's) store [in, out]: peft finds the transposition out, and warns about it.
        fan_in_fan_out = lm.config.model_type == "gpt2"
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
            fan_in_fan_out=fan_in_fan_out,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for an attribute on its way out
            return get_peft_model(lm, config).get_base_model()
    except ValueError as error:
        raise ClipcapError(
            f"--tune lora: peft does not know {lm.config.model_type} models: use --tune full"
        ) from error


def parameter_report(model: ClipCaptionModel) -> str:
    """One line: trained and frozen parameters; a second where an MLP prefix is larger than GPT-2 itself."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    mapper = sum(p.numel() for p in model.mapper.parameters())
    lines = [
        f"parameters: {trained / 1e6:.2f} M trained (mapper {mapper / 1e6:.2f} M, language model "
        f"{(trained - mapper) / 1e6:.2f} M), {frozen / 1e6:.2f} M frozen"
    ]
    if model.config.mapping_type == "mlp" and mapper > 100e6:
        lines.append(
            f"warning: the MLP mapper has {mapper / 1e6:.0f} M parameters, since they grow with the square of "
            f"--prefix_length {model.config.prefix_length}: for long prefixes use --mapping_type transformer"
        )
    return "\n".join(lines)


def check_sizes(config: ModelConfig, state: dict[str, Tensor], path: Path) -> None:
    """Refuse sizes that no stored tensor has, before a network of such sizes fills the memory.

    Args:
        config: as the file at `path` has it.
        state: the tensors that belong to it.
    Raises:
        ClipcapError: names the size.
    """
    used = ["clip_dim", *["prefix_length_clip", "num_layers"] * (config.mapping_type == "transformer")]
    largest = max([len(state), *(side for tensor in state.values() for side in tensor.shape)])
    for name in [*used, *["lora_rank"] * (config.tune == "lora")]:
        if getattr(config, name) > largest:
            raise ClipcapError(f"{path}: {name} is {getattr(config, name)}, but no tensor beside it is that large")
