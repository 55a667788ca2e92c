"""Greedy decoding and sampling: temperature, top-k, top-p, repeatable by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clipcap.captioning.cached_decoder import CachedDecoder, Hypotheses, log_probs
from clipcap.captioning.config import DecodeConfig

Draw = Callable[[Tensor, Tensor, int, float], Tensor]
_LIKELIEST = 128  # tokens to sort, where they hold the whole of `top_p`


def sample(
    decoder: CachedDecoder,
    config: DecodeConfig,
    stop_ids: list[int],
    prompt_ids: list[int],
    numbers: Sequence[int],
    draw: Draw | None = None,
) -> Hypotheses:
    """Greedy decoding, or sampling from the temperature-scaled, truncated distribution.

    All randomness is drawn up front, a row of uniforms per caption from a generator seeded by (seed, number of the
    image): the samples of an image depend neither on the batch size nor on its neighbours.

    Args:
        draw: a token of each row of [N, K, V] log-probabilities (default: `draw_likeliest`).
    """
    draw = draw or draw_likeliest
    config = config.resolved()
    images, k, device = len(decoder.logits), config.num_captions, decoder.logits.device
    stop = torch.tensor(stop_ids, device=device)
    chances = None if config.greedy else uniforms(numbers, config).to(device)  # [N, K, max_new_tokens]
    decoder.expand(k, config.longest)
    zeros = torch.zeros(images, k, device=device)
    tokens = torch.zeros(images, k, config.longest, dtype=torch.long, device=device)
    state = Hypotheses(tokens, zeros, zeros, zeros, torch.zeros_like(zeros, dtype=torch.bool))
    for position in range(config.longest):
        logits = decoder.logits.unflatten(0, (images, k))  # [N·K, V] -> [N, K, V]
        search, plain = log_probs(logits, state.tokens, position, config, stop, prompt_ids)
        if chances is None:
            token = search.argmax(dim=-1)  # [N, K]
        else:
            token = draw(
                search, chances[:, :, position], config.top_k or 0, 1.0 if config.top_p is None else config.top_p
            )
        token = token.masked_fill(state.stopped, stop_ids[0])
        running = ~state.stopped
        state.tokens[:, :, position] = token
        state.total = state.total + search.gather(2, token[:, :, None])[:, :, 0].masked_fill(~running, 0)
        state.logprob = state.logprob + plain.gather(2, token[:, :, None])[:, :, 0].masked_fill(~running, 0)
        state.length = state.length + running
        state.stopped = state.stopped | torch.isin(token, stop)
        if state.stopped.all() or position + 1 == config.longest:
            break
        decoder.step(token.flatten())
    return state


def uniforms(numbers: Sequence[int], config: DecodeConfig) -> Tensor:
    """[N, K, max_new_tokens] numbers in [0, 1), for the N images of these numbers."""
    seed = torch.seed() if config.seed is None else config.seed
    rows = []
    for image in numbers:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + image) % 2**63)
        rows.append(torch.rand(config.num_captions, config.longest, generator=generator))
    return torch.stack(rows)


def draw_likeliest(log_probs: Tensor, uniform: Tensor, top_k: int, top_p: float) -> Tensor:
    """Draw a token from the `top_k` likeliest and the smallest set of probability ≥ `top_p` (arXiv 1904.09751).

    [N, K, V] and [N, K] in [0, 1) → token ids [N, K].
    """
    # Sorting all of GPT-2's vocabulary costs a third of a step; a trained model's set is a few tokens as a rule.
    likeliest, order = log_probs.topk(min(top_k or _LIKELIEST, log_probs.shape[-1]), dim=-1)  # [N, K, C]
    likeliest = likeliest.exp()
    cumulative = likeliest.cumsum(dim=-1)
    if not top_k and (cumulative[..., -1] < top_p).any():
        likeliest, order = log_probs.sort(dim=-1, descending=True)
        likeliest = likeliest.exp()
        cumulative = likeliest.cumsum(dim=-1)
    allowed = cumulative - likeliest < top_p  # mass before a token; the likeliest token always stays
    allowed[..., 0] = True
    last = allowed.sum(dim=-1, keepdim=True) - 1  # [N, K, 1]: allowed tokens are a prefix of the sorted ones
    mass = cumulative.gather(-1, last)
    choice = torch.searchsorted(cumulative, uniform[..., None] * mass, right=True)  # [N, K, 1]
    return order.gather(-1, torch.minimum(choice, last))[..., 0]
