"""`clipcap search`: words in, a table and a picture of what fits them out."""

from __future__ import annotations

from pathlib import Path

from clipcap.contrastive_config import SearchConfig
from clipcap.encoders import load_encoder
from clipcap.errors import ClipcapError
from clipcap.features import Features, check_same_encoder, read_features
from clipcap.grid import picture_grid
from clipcap.retrieval import search


def find(query: str, config: SearchConfig) -> list[int]:
    """Print the pictures that fit the query best and, with `out`, draw them.

    Returns:
        the rows of the features, best first.
    Raises:
        ClipcapError: bad features or another encoder's; `out` cannot be written.
    """
    features = read_features(config.index, encoder=config.clip_model_type)
    name = config.clip_model_type or features.meta.encoder
    if name is None:
        raise ClipcapError(f"{config.index}: does not say its encoder: name it with --clip_model_type")
    encoder = load_encoder(name, config.device)
    check_same_encoder(
        features.meta, features.dim, encoder.name, encoder.weights_id, encoder.dim, config.index, "this search"
    )
    rows, scores = search(features, encoder.encode_texts([query]).cpu(), config.k)
    rows, scores = rows[0].tolist(), scores[0].tolist()
    print(_table(features, rows, scores))
    if config.out:
        _draw(query, features, rows, scores, Path(config.out))
    return rows


def _table(features: Features, rows: list[int], scores: list[float]) -> str:
    """Rank, cosine, image id, first caption and path of each match, in columns."""
    lines = [("rank", "score", "image", "caption", "path")]
    for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1):
        path = features.image_paths[row] or ""
        lines.append((str(rank), f"{score:.3f}", features.image_ids[row], _caption(features, row), path))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _caption(features: Features, row: int) -> str:
    return next(iter(features.captions_of(row)), "")


def _draw(query: str, features: Features, rows: list[int], scores: list[float], out: Path) -> None:
    labels = [
        f"{rank}. {_caption(features, row) or features.image_ids[row]} ({score:.2f})"
        for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1)
    ]
    sheet = picture_grid([features.image_paths[row] for row in rows], labels, title=f"“{query}”")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out)
    except (OSError, ValueError) as error:  # ValueError: a suffix that Pillow does not know
        raise ClipcapError(f"--out {out}: cannot be written: {error}") from error
    print(f"wrote {out}")
