"""`clipcap features project`: features of an image network in the space of the text tower trained for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import check_same_encoder
from clipcap.features.feature_set import Rows
from clipcap.features.files import check_place, read_parts, write_parts
from clipcap.features.tools import contents, survey
from clipcap.models.encoders.load import load_encoder
from clipcap.models.encoders.locked_image import LockedImageEncoder
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to


@dataclass(frozen=True)
class _ProjectedRows:
    """Vectors of an image network, as a text tower's encoder projects them when they are read."""

    base: Rows
    encoder: LockedImageEncoder

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return int(self.base.shape[0]), self.encoder.dim

    @property
    def dtype(self) -> torch.dtype:
        """Of what the encoder gives."""
        return torch.float32

    def __getitem__(self, index: torch.Tensor | slice) -> torch.Tensor:
        return self.encoder.project(self.base[index].float()).cpu()


@writes_to("out")
def project(path: str | Path, out: str | Path, encoder: str) -> None:
    """Write features of an image network anew in the space of the text tower that was trained for it.

    Args:
        path: of the features.
        out: NAME.pkl, or a folder.
        encoder: a checkpoint of `clipcap contrastive features`.
    Raises:
        ClipcapError: another encoder, or features of another image network.
    """
    check_place(Path(out))
    towers = load_encoder(encoder)
    if not isinstance(towers, LockedImageEncoder):
        raise ClipcapError(
            f"--clip_model_type {encoder}: encodes photos by its own image tower, not by features of another: name a "
            f"checkpoint of `clipcap contrastive features`"
        )
    parts = read_parts(path)
    seen = survey(path, parts)
    check_same_encoder(
        seen.meta, seen.dim, towers.image.name, towers.image.weights_id, towers.image_width, path, encoder
    )
    meta = replace(
        seen.meta, encoder=towers.name, encoder_weights_id=towers.weights_id, encoder_guessed=False,
        normalized=False, dtype="float32",
    )  # fmt: skip
    projected = (replace(part, embeddings=_ProjectedRows(part.embeddings, towers)) for part in parts)
    write_parts(out, contents(projected, "float32"), meta)
    logger.info(seen.written(Path(out)))
