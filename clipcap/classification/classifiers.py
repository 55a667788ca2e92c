"""Classifiers of embeddings: prompts, pairs of prompts, a linear probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import Encoder

TEMPLATE = "a photo of a {}."
OPPOSITE = "no {}"
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the probe's weights, tried on a fifth of the photos
_PROMPTS = 256  # encoded at once


class Classifier(Protocol):
    """Computes a probability per label for each embedding."""

    @property
    def labels(self) -> list[str]:
        """C labels, in the order of the probabilities."""
        ...

    @property
    def exclusive(self) -> bool:
        """Whether the probabilities of a photo add up to one."""
        ...

    def probabilities(self, embeddings: Tensor) -> Tensor:
        """Embeddings [N, D] of norm 1 → [N, labels]."""
        ...


def class_vectors(encoder: Encoder, labels: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One vector of norm 1 for each label: the mean of its prompts' normalised embeddings (CLIP, section 3.1.4).

    Args:
        encoder: whose text tower reads the prompts.
        labels: C.
        templates: prompts with {} in the label's place.
    Returns:
        [C, D].
    Raises:
        ClipcapError: a template has no {}.
    """
    for template in templates:
        if "{}" not in template:
            raise ClipcapError(f"--template {template!r}: put {{}} where the label goes")
    prompts = [template.replace("{}", label) for label in labels for template in templates]
    parts = [encoder.encode_texts(prompts[i : i + _PROMPTS]) for i in range(0, len(prompts), _PROMPTS)]
    vectors = F.normalize(torch.cat(parts).cpu(), dim=1).view(len(labels), len(templates), -1)  # [C, T, D]
    return F.normalize(vectors.mean(1), dim=1)


@dataclass(frozen=True)
class ZeroShot:
    """One label per photo: softmax over the cosines with each label's vector, times the encoder's scale."""

    labels: list[str]
    vectors: Tensor  # [C, D]
    scale: float
    exclusive: bool = True

    @classmethod
    def of(cls, encoder: Encoder, labels: Sequence[str], templates: Sequence[str]) -> ZeroShot:
        """From prompts."""
        return cls(list(labels), class_vectors(encoder, labels, templates), encoder.logit_scale)

    def probabilities(self, embeddings: Tensor) -> Tensor:
        """[N, D] → [N, C], rows add up to one."""
        return (self.scale * embeddings @ self.vectors.T).softmax(1)


@dataclass(frozen=True)
class PromptPairs:
    """Each label against its own opposite, so that several labels can apply at once."""

    labels: list[str]
    vectors: Tensor  # [C, 2, D], the label's and its opposite's
    scale: float
    exclusive: bool = False

    @classmethod
    def of(cls, encoder: Encoder, pairs: Sequence[tuple[str, str]], templates: Sequence[str]) -> PromptPairs:
        """From (label, opposite)."""
        vectors = class_vectors(encoder, [text for pair in pairs for text in pair], templates)
        return cls([label for label, _ in pairs], vectors.unflatten(0, (len(pairs), 2)), encoder.logit_scale)

    def probabilities(self, embeddings: Tensor) -> Tensor:
        """[N, D] → [N, C], each between 0 and 1."""
        cosine = torch.einsum("nd,ctd->nct", embeddings, self.vectors)  # [N, C, 2]
        return (self.scale * cosine).softmax(2)[..., 0]


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression on embeddings, CLIP's own baseline (section 3.2)."""

    labels: list[str]
    weight: Tensor  # [C, D]
    bias: Tensor  # [C]
    penalty: float
    exclusive: bool = True

    @classmethod
    def fit(cls, embeddings: Tensor, names: Sequence[str]) -> LinearProbe:
        """Fit to photos with labels; the penalty is chosen on a held-out fifth of the photos.

        Args:
            embeddings: [N, D] of norm 1.
            names: their labels, N.
        Raises:
            ClipcapError: fewer than two labels.
        """
        labels = sorted(set(names))
        if len(labels) < 2:
            raise ClipcapError(f"--fit holds the label {labels[0] if labels else 'of nothing'} alone: two are needed")
        targets = torch.tensor([labels.index(name) for name in names])
        order = torch.argsort(targets, stable=True)
        held = torch.zeros(len(names), dtype=torch.bool)
        held[order[4::5]] = True  # a fifth of each label
        penalty = PENALTIES[0]
        if held.any():
            scores = {}
            for value in PENALTIES:
                weight, bias = _regression(embeddings[~held], targets[~held], len(labels), value)
                loss = F.cross_entropy(embeddings[held] @ weight.T + bias, targets[held])
                scores[value] = loss.item()
            penalty = min(scores, key=scores.__getitem__)
        return cls(labels, *_regression(embeddings, targets, len(labels), penalty), penalty)

    def probabilities(self, embeddings: Tensor) -> Tensor:
        """[N, D] → [N, C], rows add up to one."""
        return (embeddings @ self.weight.T + self.bias).softmax(1)


def _regression(inputs: Tensor, targets: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight [C, D] and bias [C] of least cross entropy plus `penalty` times the mean square of weighted inputs."""
    scale = inputs.std(0).clamp(min=1e-6)  # a penalty on raw weights would depend on the spread of the embeddings
    weight = torch.zeros(classes, inputs.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy((inputs / scale) @ weight.T + bias, targets) + penalty * weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach() / scale, bias.detach()
