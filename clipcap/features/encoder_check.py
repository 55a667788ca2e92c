"""Which encoder made the features, and refusing to mix encoders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import FeatureMeta, Features
from clipcap.models.encoders.locked_image import projected_network
from clipcap.models.encoders.names import WIDTHS, guess_encoder
from clipcap.models.encoders.token_spec import TokenLayout

if TYPE_CHECKING:  # its import takes transformers, and seconds
    from clipcap.models.base import PrefixLM


def with_encoder(features: Features, encoder: str | None) -> Features:
    """The features with their encoder filled in where the file does not say: `encoder`, or a guess.

    Raises:
        ClipcapError: `encoder` is not the one the file names, or has another width.
    """
    meta, path = features.meta, features.path
    if meta.encoder and not meta.encoder_guessed:
        if encoder not in (None, meta.encoder):
            raise ClipcapError(
                f"{path}: was parsed with {meta.encoder}, not {encoder}: leave out --clip_model_type, "
                f"or parse the images again with --clip_model_type {encoder}"
            )
        return features
    if encoder is not None and WIDTHS.get(encoder, features.dim) != features.dim:
        raise ClipcapError(
            f"{path}: embeddings are {features.dim} wide, those of {encoder} are {WIDTHS[encoder]}: "
            "name the encoder they were parsed with in --clip_model_type"
        )
    name = encoder or guess_encoder(features.dim)
    meta = replace(meta, encoder=name, encoder_guessed=encoder is None and name is not None)
    return replace(features, meta=meta)


def check_same_encoder(
    features_meta: FeatureMeta,
    dim: int,
    encoder: str | None,
    weights_id: str | None,
    expected_dim: int,
    path: str | Path,
    what: str,
) -> None:
    """Refuse features of another encoder than `what` (for example "this checkpoint") expects.

    Weights decide where both fingerprints are known: one model may go by a name here and by a path there. A
    guessed name decides nothing.

    Args:
        features_meta: of the features at `path`, which are `dim` wide.
        encoder: name that `what` expects, with its weights' fingerprint and its width.
    Raises:
        ClipcapError: says both sides.
    """
    ours, theirs = features_meta.encoder or "encoder not known", encoder or "encoder not known"
    both = features_meta.encoder_weights_id is not None and weights_id is not None
    other_name = encoder and features_meta.encoder not in (None, encoder) and not features_meta.encoder_guessed
    if dim != expected_dim:
        found = f"embeddings are {dim} wide ({ours}), {what} expects {expected_dim} ({theirs})"
    elif both and features_meta.encoder_weights_id != weights_id:
        found = (
            f"embeddings were made with {ours} of weights {features_meta.encoder_weights_id}, "
            f"{what} expects {theirs} of weights {weights_id}"
        )
    elif not both and other_name:
        found = f"embeddings were made with {ours}, {what} expects {theirs}"
    else:
        return
    raise ClipcapError(f"{path}: {found}: {_advice(features_meta, encoder, path)}")


def _advice(meta: FeatureMeta, encoder: str | None, path: str | Path) -> str:
    """How to come by features of an encoder, for those of another one."""
    if encoder is None:
        return "parse the images again with the encoder it expects"
    if meta.encoder and projected_network(encoder) == meta.encoder:
        return f"move them by `clipcap features project {path} --clip_model_type {encoder} --out NAME.pkl`"
    return f"parse the images again with --clip_model_type {encoder}"


def check_tokens(features: Features, layout: TokenLayout | None, what: str) -> None:
    """Refuse features without the tokens that `what` reads.

    Args:
        features: with their tokens, where they have some.
        layout: of the tokens that are read; None where only vectors are.
    Raises:
        ClipcapError: says both sides.
    """
    found = features.meta.tokens
    if layout is not None and found != layout:
        there = "none" if found is None else f"tokens {found}"
        imported = layout.kind == "import"
        advice = "import such" if imported else f"parse the images again with {layout.flags()}"
        raise ClipcapError(f"{features.path}: holds {there}, {what} reads tokens {layout}: {advice}")


def for_model(features: Features, model: PrefixLM) -> Features:
    """The features as a model reads them: without tokens where it reads none.

    Raises:
        ClipcapError: it reads tokens that they do not hold.
    """
    check_tokens(features, model.token_layout, "the captioner")
    return features if model.token_layout or features.tokens is None else features.without_tokens()
