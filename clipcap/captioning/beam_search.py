"""Batched beam search, as the original searches: one image's result does not depend on the others."""

from __future__ import annotations

import torch
from torch import Tensor

from clipcap.captioning.cached_decoder import CachedDecoder, Hypotheses, log_probs, select_rows, stack
from clipcap.captioning.config import BEAMS, DecodeConfig


def beam_search(
    decoder: CachedDecoder, config: DecodeConfig, stop_ids: list[int], prompt_ids: list[int]
) -> Hypotheses:
    """The original's beam search over N images at once. Finished images leave the batch."""
    config = config.resolved()
    beams, device = config.beam_size or BEAMS, decoder.logits.device
    images = len(decoder.logits)
    stop = torch.tensor(stop_ids, device=device)

    search, plain = log_probs(decoder.logits[:, None], None, 0, config, stop, prompt_ids)  # [N, 1, V] each
    total, token = search[:, 0].topk(beams)  # [N, K] each
    tokens = torch.zeros(images, beams, config.longest, dtype=torch.long, device=device)
    tokens[:, :, 0] = token
    length = torch.ones_like(total)
    live = Hypotheses(tokens, total, plain[:, 0].gather(1, token), length, torch.isin(token, stop))
    decoder.expand(beams, config.longest, reorders=True)

    done: list[Hypotheses | None] = [None] * images
    where = torch.arange(images, device=device)  # which image each row of the batch is
    for position in range(1, config.longest):
        finished = live.stopped.all(dim=1)
        if finished.all() if decoder.rows_stay else finished.any():
            _retire(done, live, where, finished)
            keep = (~finished).nonzero()[:, 0]
            if not len(keep):
                return stack([found for found in done if found is not None])
            live, where = select_rows(live, keep), where[keep]
            decoder.keep((keep[:, None] * beams + torch.arange(beams, device=device)).flatten())
        decoder.step(live.tokens[:, :, position - 1].flatten())
        logits = decoder.logits.unflatten(0, (-1, beams))  # [N·K, V] -> [N, K, V]
        search, plain = log_probs(logits, live.tokens, position, config, stop, prompt_ids)
        live, parent = _advance(live, search, plain, position, stop)
        rows = torch.arange(len(parent), device=device)[:, None] * beams + parent  # [N, K] rows of the batch
        decoder.reorder(rows.flatten())
    _retire(done, live, where, torch.ones(len(where), dtype=torch.bool, device=device))
    return stack([found for found in done if found is not None])


def _advance(
    live: Hypotheses, search: Tensor, plain: Tensor, position: int, stop: Tensor
) -> tuple[Hypotheses, Tensor]:
    """One step of the competition: the K candidates of best average survive, with their parents [N, K].

    A finished beam is one candidate (its own average, unchanged); a live one has its K best tokens, more of which
    cannot survive. Ties go to the earlier beam, as in the original.
    """
    beams = search.shape[1]
    length = live.length + (~live.stopped)  # [N, K]
    gain, token = search.topk(beams, dim=-1)  # [N, K, K]
    logprob = live.logprob[:, :, None] + plain.gather(2, token)
    frozen = live.stopped[:, :, None]
    first = torch.arange(beams, device=search.device) == 0  # a finished beam's one candidate
    gain = torch.where(frozen, torch.where(first, 0.0, -torch.inf), gain)
    token = torch.where(frozen, 0, token)
    logprob = torch.where(frozen, live.logprob[:, :, None], logprob)

    average = (live.total[:, :, None] + gain) / length[:, :, None]  # [N, K, K]
    average, best = average.flatten(1).topk(beams)  # [N, K]
    parent = best // beams
    token = token.flatten(1).gather(1, best)
    tokens = live.tokens.gather(1, parent[:, :, None].expand_as(live.tokens))
    tokens[:, :, position] = token
    length = length.gather(1, parent)
    stopped = live.stopped.gather(1, parent)
    survivors = Hypotheses(
        tokens=tokens,
        total=average * length,
        logprob=logprob.flatten(1).gather(1, best),
        length=length,
        stopped=stopped | torch.isin(token, stop),
    )
    return survivors, parent


def _retire(done: list[Hypotheses | None], live: Hypotheses, where: Tensor, finished: Tensor) -> None:
    """Move the finished images' hypotheses to their place in `done`."""
    for row in finished.nonzero()[:, 0].tolist():
        done[int(where[row])] = select_rows(live, torch.tensor([row], device=where.device))
