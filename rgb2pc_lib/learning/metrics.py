"""Figures of merit between two sets of embeddings; rows i of both belong to the same step."""

from __future__ import annotations

import numpy as np


def unit(x: np.ndarray) -> np.ndarray:
    """Rows scaled to length one (zero rows stay zero)."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def retrieval(student: np.ndarray, teacher: np.ndarray, episode=None, time=None, tolerance: int = 0) -> dict:
    """Find each student's own teacher among all teachers by cosine: R@1, R@5, R@10 and the median rank (1 = best).

    With `tolerance` t, a teacher of the same episode at most t steps away counts as a hit too.

    >>> retrieval(np.eye(3), np.eye(3))["R@1"]
    1.0
    """
    similarity = unit(student) @ unit(teacher).T  # [n, n]
    hit = np.eye(len(similarity), dtype=bool)
    if tolerance:
        episode, time = np.asarray(episode), np.asarray(time)
        hit = (episode[:, None] == episode) & (np.abs(time[:, None] - time) <= tolerance)
    best = np.where(hit, similarity, -np.inf).max(1, keepdims=True)
    rank = 1 + ((similarity >= best) & ~hit).sum(1)  # a tie with a wrong teacher counts against the student
    return {**{f"R@{k}": float((rank <= k).mean()) for k in (1, 5, 10)}, "median rank": float(np.median(rank))}


def mean_cosine(student: np.ndarray, teacher: np.ndarray) -> float:
    return float((unit(student) * unit(teacher)).sum(1).mean())


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019), 0..1; invariant to rotation and scale."""
    x, y = x - x.mean(0), y - y.mean(0)
    cross = np.linalg.norm(x.T @ y) ** 2
    return float(cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def knn_overlap(x: np.ndarray, y: np.ndarray, k: int = 10) -> float:
    """Share of the k nearest neighbours (cosine) that both spaces agree on, averaged over rows."""
    near = []
    for z in (x, y):
        similarity = unit(z) @ unit(z).T
        np.fill_diagonal(similarity, -np.inf)
        near.append(np.argpartition(-similarity, k - 1, axis=1)[:, :k])
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*near, strict=True)]))


def effective_rank(x: np.ndarray) -> float:
    """exp(entropy) of the normalised squared singular values of the rows: how many directions are in use."""
    energy = np.linalg.svd(x, compute_uv=False) ** 2
    share = energy / energy.sum()
    return float(np.exp(-(share * np.log(np.maximum(share, 1e-30))).sum()))


def agreement(student: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
    """Cosine (both as given), linear CKA and 10-NN overlap."""
    return {
        "cosine": mean_cosine(student, teacher),
        "CKA": linear_cka(student, teacher),
        "kNN overlap": knn_overlap(student, teacher, min(10, len(student) - 1)),
    }
