"""`clipcap search`: words, photos, images of the index or embeddings in, the nearest pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.images.read import find_images
from clipcap.models.encoders.base import Encoder
from clipcap.models.encoders.encode_images import encode_images
from clipcap.models.encoders.load import load_encoder
from clipcap.retrieval.config import SearchConfig
from clipcap.retrieval.index import Index, Match
from clipcap.retrieval.results import check_out, show
from clipcap.runtime.places import writes_to


@writes_to("config.out")
def find(
    words: str | Sequence[str], photos: Sequence[str], config: SearchConfig, without: Sequence[str] = ()
) -> list[list[Match]]:
    """Print the pictures nearest to each query and, with `out`, write or draw them.

    Args:
        words: what to look for: one text, also word by word, or several texts of several words each.
        photos: files, globs and folders of photos to look for, or none.
        without: texts whose embeddings are subtracted from each query.
    Returns:
        the matches of each query, best first.
    Raises:
        ClipcapError: not one kind of query, a bad index or another encoder's, or `out` cannot be written.
    """
    texts = _texts(words)
    if config.softmax and texts and photos:
        return _rank(" ".join(texts), photos, config)
    if not config.index:
        raise ClipcapError("--softmax without --index ranks photos by words: give both, words and --img")
    asked = [texts or None, list(photos) or None, config.image_id, config.caption_id, config.embedding]
    if sum(query is not None for query in asked) != 1:
        raise ClipcapError("search for one of: words, --img, --image_id, --caption_id, --embedding")
    check_out(config.out)
    index = Index.open(config.index, config.clip_model_type, config.tower)
    names, queries = _queries(texts, photos, index, config)
    if without:
        queries = _subtracted(queries, _encoder(index, config).encode_texts(list(without)))
    found = index.search(queries, config.k, config.exact)
    if config.softmax:
        scale = _encoder(index, config).logit_scale
        found = [_with_shares(matches, scale) for matches in found]
        print(f"probability: the share among the {config.k} images shown")
    show(names, found, config.out)
    return found


def _texts(words: str | Sequence[str]) -> list[str]:
    """The texts of a command line: each that was quoted, or all words as one."""
    texts = [text.strip() for text in ([words] if isinstance(words, str) else words) if text.strip()]
    return texts if any(" " in text for text in texts) else [" ".join(texts)] * bool(texts)


def _subtracted(queries: Tensor, without: Tensor) -> Tensor:
    """Queries [Q, D] less each of the unwanted [W, D], all of norm 1."""
    wanted, unwanted = (torch.nn.functional.normalize(x.double().cpu(), dim=1) for x in (queries, without))
    return wanted - unwanted.sum(dim=0)


def _rank(words: str, photos: Sequence[str], config: SearchConfig) -> list[list[Match]]:
    """Rank the photos by the words: the share of each is the softmax over all of them."""
    check_out(config.out)
    index = Index.open(config.index, config.clip_model_type, config.tower) if config.index else None
    name = config.clip_model_type or (index.meta.encoder if index else None)
    if name is None:
        raise ClipcapError("--clip_model_type is missing: the encoder that compares the words with the photos")
    paths = find_images(photos)
    encoder = load_encoder(name, config.device, tokenizer=config.tokenizer)
    images = torch.nn.functional.normalize(_encoded(paths, encoder, config), dim=1).cpu()  # [N, D]
    text = torch.nn.functional.normalize(encoder.encode_texts([words]), dim=1).cpu()  # [1, D]
    scores = (images @ text.T)[:, 0]  # [N]
    order = scores.argsort(descending=True, stable=True).tolist()
    matches = [Match(str(paths[i]), "", str(paths[i]), scores[i].item(), i) for i in order]
    ranked = _with_shares(matches, encoder.logit_scale)[: config.k]
    show([words], [ranked], config.out)
    return [ranked]


def _with_shares(matches: Sequence[Match], scale: float) -> list[Match]:
    """The matches with their softmax over all of them."""
    scores = torch.tensor([match.score for match in matches], dtype=torch.float64)
    shares = (scale * scores).softmax(0).tolist()
    return [replace(match, probability=share) for match, share in zip(matches, shares, strict=True)]


def _queries(texts: list[str], photos: Sequence[str], index: Index, config: SearchConfig) -> tuple[list[str], Tensor]:
    """(what each query is called, their embeddings [Q, D])."""
    if config.embedding:
        queries = _read_embeddings(Path(config.embedding))
        return [f"{config.embedding}[{row}]" for row in range(len(queries))], queries
    if config.image_id is not None:
        return [config.image_id], index.embedding(config.image_id)[None]
    if photos:
        paths = find_images(photos)
        return [str(path) for path in paths], _encoded(paths, _encoder(index, config), config)
    if config.caption_id is not None:
        text = index.catalogue.caption(config.caption_id)
        if text is None:
            raise ClipcapError(f"{config.index}: has no caption {config.caption_id}: they are counted from 0")
        texts = [text]
    return texts, _encoder(index, config).encode_texts(texts)


def _read_embeddings(path: Path) -> Tensor:
    try:
        values = np.load(path, allow_pickle=False)
        if values.dtype.kind != "f" or values.ndim not in (1, 2) or not values.size:
            raise ValueError(f"holds {values.dtype} {list(values.shape)}")
    except (OSError, ValueError, EOFError, SyntaxError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClipcapError(f"--embedding {path}: no .npy of embeddings, [D] or [queries, D] ({reason})") from error
    return torch.from_numpy(np.atleast_2d(values).astype(np.float64))


def _encoded(paths: Sequence[Path], encoder: Encoder, config: SearchConfig) -> Tensor:
    """[Q, D], photo by photo."""
    rows = []
    for encoded in encode_images(encoder, paths, batch_size=1, frame=config.frame):
        if encoded.bad or encoded.embeddings is None:
            raise next(iter(encoded.bad.values()))
        rows.append(encoded.embeddings)  # [1, D]
    return torch.cat(rows)


def _encoder(index: Index, config: SearchConfig) -> Encoder:
    name = config.clip_model_type or index.meta.encoder
    if name is None:
        raise ClipcapError(f"{config.index}: does not say its encoder: name it with --clip_model_type")
    encoder = load_encoder(name, config.device, tokenizer=config.tokenizer)
    index.check_encoder(encoder.name, encoder.weights_id, encoder.dim, "this search")
    return encoder
