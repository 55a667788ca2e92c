"""Exact search written plainly, for comparison."""

from __future__ import annotations

import numpy as np


def brute_force(rows, queries, k):
    """Rows and cosines in float64, rounded to float32; equal ones in row order."""
    rows, queries = np.asarray(rows, np.float64), queries.double().numpy()
    products = np.stack([(rows * query).sum(axis=1) / np.linalg.norm(query) for query in queries])
    scores = (products / np.linalg.norm(rows, axis=1)).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)
