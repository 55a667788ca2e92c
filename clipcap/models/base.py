"""What ClipCap's captioner and CLIP-GPT have in common: a language model that continues a prefix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Self

from torch import Tensor, nn
from typing_extensions import TypeVar

from clipcap.errors import ClipcapError
from clipcap.models.config import PrefixConfig
from clipcap.models.encoders.token_spec import TokenLayout
from clipcap.models.given import Given
from clipcap.models.kernels.fused_activation import fuse_activations
from clipcap.models.language_model import add_lora, head_is_plain, output_head, token_embeddings

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

IGNORE = -100  # label of positions that count for nothing, as in torch

Config = TypeVar("Config", bound=PrefixConfig, default=PrefixConfig, covariant=True)


class PrefixLM(nn.Module, ABC, Generic[Config]):
    """A causal language model that continues the prefix of a CLIP embedding. Decoding needs no more than this.

    Args:
        config: sizes and kinds; `config.tune` decides what of the language model requires gradients.
        lm: a causal language model; used in place. A LoRA adapter that it has already is kept.
        lm_dropout: a tuned language model trains with its dropout; a frozen one never does.
    """

    config: Config
    lm: PreTrainedModel

    def __init__(self, config: Config, lm: PreTrainedModel, lm_dropout: bool = True):
        super().__init__()
        self.config = config
        fuse_activations(lm)
        self.lm = add_lora(lm, config.lora_rank) if config.tune == "lora" else lm
        self.lm_dropout = lm_dropout
        self._freeze_lm()
        self._head_is_plain = head_is_plain(self.lm)

    @abstractmethod
    def prefix(self, given: Given | Tensor) -> Tensor:
        """What is given of B images, or their CLIP embeddings [B, D] alone → the inputs before a caption, [B, P, E].

        Raises:
            ClipcapError: D is not the width this model was built for.
        """

    @abstractmethod
    def parameter_report(self) -> str:
        """How many parameters are trained and frozen, in a line or two."""

    @property
    def prefix_positions(self) -> int:
        """Positions before a caption, as `prefix` gives them."""
        return self.config.prefix_length

    @property
    def token_layout(self) -> TokenLayout | None:
        """The tokens that it reads beside the vector of an image; None where it reads the vector alone."""
        return None

    @property
    def longest_prefix(self) -> int:
        """Positions before a caption where it has the longest prompt that the model is made for."""
        return self.prefix_positions

    def prefix_mask(self, given: Given | Tensor) -> Tensor | None:
        """Which positions of `prefix` are no padding, bool [B, P]; None where all are."""
        return None

    @property
    def image_span(self) -> slice:
        """Which of them are the image's."""
        return slice(None)

    @property
    def caption_ends(self) -> tuple[int, ...]:
        """Token ids that end a caption, besides the tokenizer's end-of-text."""
        return ()

    @property
    def head(self) -> nn.Linear:
        """Hidden states → logits."""
        return output_head(self.lm)

    @property
    def token_embeddings(self) -> nn.Embedding:
        """Token ids → language-model inputs."""
        return token_embeddings(self.lm)

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """[B, T] → language-model inputs [B, T, E]."""
        return self.token_embeddings(input_ids)

    def train(self, mode: bool = True) -> Self:
        """As in torch, but a frozen language model stays in evaluation mode (no dropout)."""
        super().train(mode)
        if self.config.tune == "none" or not self.lm_dropout:
            self.lm.eval()
        return self

    def _freeze_lm(self) -> None:
        tune = self.config.tune
        for name, parameter in self.lm.named_parameters():
            parameter.requires_grad_(tune == "full" or (tune == "lora" and "lora_" in name))

    def _check_width(self, clip_embedding: Tensor) -> None:
        """Refuse CLIP embeddings [..., D] of another encoder's width."""
        width = clip_embedding.shape[-1]
        if width != self.config.clip_dim:
            encoder = f" ({self.config.encoder})" if self.config.encoder else ""
            raise ClipcapError(
                f"CLIP embeddings are {width} wide, this model expects {self.config.clip_dim}{encoder}: encode the "
                f"images with that encoder"
            )
