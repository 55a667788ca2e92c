"""The published method, plainly: no cache, no batching, no tricks. Written apart from the package, to check it."""

from __future__ import annotations

import math

import torch


def log_probs(model, embedding, tokens, temperature=1.0):
    """Next-token log-probabilities after the prefix of one image and some tokens, everything computed anew."""
    prefix = model.mapper(embedding[None])
    if tokens:
        written = model.lm.get_input_embeddings()(torch.tensor([tokens]))
        prefix = torch.cat([prefix, written], dim=1)
    with torch.no_grad():
        logits = model.lm(inputs_embeds=prefix).logits[0, -1]
    return torch.log_softmax(logits / temperature, dim=-1)


def beam_search(model, embedding, beams, stop_ids, longest, temperature=1.0):
    """[(tokens, average log-probability)] of one image, best first, as the original searches."""
    first = log_probs(model, embedding, [], temperature)
    hypotheses = []
    for token in first.argsort(descending=True)[:beams].tolist():
        hypotheses.append(([token], first[token].item(), token in stop_ids))
    for _ in range(1, longest):
        if all(stopped for _, _, stopped in hypotheses):
            break
        candidates = []
        for tokens, total, stopped in hypotheses:
            if stopped:
                candidates.append((total / len(tokens), tokens, total, True))
                continue
            following = log_probs(model, embedding, tokens, temperature)
            for token in following.argsort(descending=True)[:beams].tolist():
                longer, grown = [*tokens, token], total + following[token].item()
                candidates.append((grown / len(longer), longer, grown, token in stop_ids))
        candidates.sort(key=lambda candidate: -candidate[0])
        hypotheses = [(tokens, total, stopped) for _, tokens, total, stopped in candidates[:beams]]
    scored = [(tokens, total / len(tokens)) for tokens, total, _ in hypotheses]
    return sorted(scored, key=lambda pair: -pair[1])


def greedy(model, embedding, stop_ids, longest):
    """Token ids of one image, the most likely one at every step."""
    tokens = []
    while len(tokens) < longest and (not tokens or tokens[-1] not in stop_ids):
        tokens.append(int(log_probs(model, embedding, tokens).argmax()))
    return tokens


def loss(model, embeddings, token_lists):
    """Mean negative log-likelihood over all tokens of all captions, one caption at a time."""
    total, count = 0.0, 0
    for embedding, tokens in zip(embeddings, token_lists):
        for position, token in enumerate(tokens):
            total -= log_probs(model, embedding, tokens[:position])[token].item()
            count += 1
    assert math.isfinite(total)
    return total / count
