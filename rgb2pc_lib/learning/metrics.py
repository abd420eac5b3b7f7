"""Figures of merit between two sets of embeddings; rows i of both belong to the same step.

No figure holds all n x n similarities: they are made for some rows at a time, so memory grows with n.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

_ENTRIES = 2**22  # similarities that are held at a time, 16 or 32 MB


def unit(x: np.ndarray) -> np.ndarray:
    """Rows scaled to length one (zero rows stay zero)."""
    scaled: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return scaled


def some_rows(n: int) -> Iterator[slice]:
    """The rows of an n x n matrix, cut so that each part has a bounded number of entries.

    >>> list(some_rows(3))
    [slice(0, 3, None)]
    """
    size = max(_ENTRIES // max(n, 1), 1)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def own_ranks(
    student: np.ndarray, teacher: np.ndarray, episode: np.ndarray | None = None, time: np.ndarray | None = None,
    tolerance: int = 0,
) -> np.ndarray:  # fmt: skip
    """`[n]` the place of each student's own teacher among all teachers by cosine, 1 = nearest.

    A tie with a wrong teacher counts against the student, and so does NaN. With `tolerance` t, the best of the teachers
    of the same episode at most t steps away counts as its own, and the others of them are passed over.

    >>> own_ranks(np.eye(3), np.eye(3)[[1, 0, 2]]).tolist()
    [3, 3, 1]
    """
    ours, theirs = unit(student), unit(teacher)
    rank = np.empty(len(ours), np.int64)
    for rows in some_rows(len(ours)):
        similarity = ours[rows] @ theirs.T  # [rows, n]
        if not tolerance:
            own = similarity[np.arange(len(similarity)), np.arange(rows.start, rows.stop), None]
            rank[rows] = len(ours) - np.count_nonzero(similarity < own, axis=1)
            continue
        assert episode is not None and time is not None  # which tell what is tolerated
        hit = (episode[rows, None] == episode) & (np.abs(time[rows, None] - time) <= tolerance)
        best = np.where(hit, similarity, -np.inf).max(1, keepdims=True)
        rank[rows] = 1 + np.count_nonzero(~hit & ~(similarity < best), axis=1)
    return rank


def retrieval(
    student: np.ndarray, teacher: np.ndarray, episode: np.ndarray | None = None, time: np.ndarray | None = None,
    tolerance: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Find each student's own teacher among all teachers by cosine: R@1, R@5, R@10 and the median rank (1 = best).

    With `tolerance` t, a teacher of the same episode at most t steps away counts as a hit too.

    >>> retrieval(np.eye(3), np.eye(3))["R@1"]
    1.0
    """
    rank = own_ranks(student, teacher, episode, time, tolerance)
    return {**{f"R@{k}": float((rank <= k).mean()) for k in (1, 5, 10)}, "median rank": float(np.median(rank))}


def mean_cosine(student: np.ndarray, teacher: np.ndarray) -> float:
    return float((unit(student) * unit(teacher)).sum(1).mean())


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019), 0..1; invariant to rotation and scale."""
    x, y = x - x.mean(0), y - y.mean(0)
    cross = np.linalg.norm(x.T @ y) ** 2
    return float(cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def knn_overlap(x: np.ndarray, y: np.ndarray, k: int = 10, group: np.ndarray | None = None) -> float:
    """Share of the k nearest neighbours (cosine) that both spaces agree on, averaged over rows.

    k is at most n - 1; for a single row the share is NaN. With `group` `[n]`, neighbours are looked for in other groups
    only; every row needs k rows outside its own.

    >>> knn_overlap(np.eye(4), 2 * np.eye(4), 1, group=np.array([0, 0, 1, 1]))
    1.0
    """
    k = min(k, len(x) - 1)
    if k < 1:
        return float("nan")
    spaces, shared = [unit(x), unit(y)], 0
    for rows in some_rows(len(x)):
        near = [_nearest(z, rows, k, group) for z in spaces]  # [rows, k] each
        shared += int(np.count_nonzero(near[0][:, :, None] == near[1][:, None]))
    return float(shared / (k * len(x)))


def _nearest(z: np.ndarray, rows: slice, k: int, group: np.ndarray | None) -> np.ndarray:
    """Of each of these rows of unit vectors, the k nearest others, in any order."""
    similarity = z[rows] @ z.T  # [rows, n]
    if group is None:
        similarity[np.arange(len(similarity)), np.arange(rows.start, rows.stop)] = -np.inf
    else:
        similarity[group[rows, None] == group] = -np.inf
    near: np.ndarray = torch.from_numpy(similarity).topk(k, 1, sorted=False).indices.numpy()  # numpy: six times slower
    return near


def trustworthiness(x: np.ndarray, near: np.ndarray) -> float:
    """1 where nothing that is near in a picture is far in the space `x` `[n, E]` (Venna & Kaski 2001, cosine).

    `near` `[n, k]` are each row's k nearest others in the picture. Row i pays for each of them the number of places
    that it stands behind the k nearest in the space; k must be below n / 2.

    >>> trustworthiness(np.eye(5) + 1, np.array([[1], [0], [0], [0], [0]]))
    1.0
    """
    z, (n, k), late = unit(x), near.shape, 0
    for rows in some_rows(n):
        similarity = z[rows] @ z.T
        similarity[np.arange(len(similarity)), np.arange(rows.start, rows.stop)] = -np.inf
        for column in near[rows].T:
            own = similarity[np.arange(len(similarity)), column][:, None]
            late += int(np.maximum(np.count_nonzero(similarity > own, axis=1) + 1 - k, 0).sum())
    return 1 - late * 2 / float(n * k * (2 * n - 3 * k - 1))


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
        "kNN overlap": knn_overlap(student, teacher),
    }
