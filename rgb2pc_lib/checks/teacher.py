"""Is the teacher fit to be distilled? How spread its embeddings are, and which negatives of InfoNCE are false."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rgb2pc_lib.learning.metrics import effective_rank, unit


def spread(teacher: np.ndarray, task: np.ndarray) -> pd.DataFrame:
    """How much of its space a teacher `[n, E]` uses: as it is, centred, and centred within each task.

    Columns: "mean cosine" of two different steps (near 1: all embeddings alike, InfoNCE has nothing to hold on to) and
    "effective rank" (of at most E).

    >>> spread(np.eye(4), np.zeros(4)).loc["as it is", "mean cosine"].item()
    0.0
    """
    within = teacher - pd.DataFrame(teacher).groupby(np.asarray(task)).transform("mean").to_numpy()
    rows = {"as it is": teacher, "centred": teacher - teacher.mean(0), "centred within task": within}
    return pd.DataFrame(
        {k: {"mean cosine": _mean_cosine(x), "effective rank": effective_rank(x)} for k, x in rows.items()}
    ).T


def _mean_cosine(x: np.ndarray) -> float:
    n, total = len(x), np.square(unit(x).sum(0)).sum()
    return float((total - np.square(unit(x)).sum()) / (n * (n - 1)))


@dataclass(frozen=True)
class NegativeAudit:
    """Cosine similarity of centred teacher embeddings: all pairs inside episodes, random pairs across them.

    InfoNCE pushes apart whatever is not the same step. A *false negative* is a pair as alike as `cut` or more.
    """

    distance: np.ndarray  # [p] steps apart, pairs of one episode
    inside: np.ndarray  # [p] their similarity
    same_task: np.ndarray  # similarities of pairs from different episodes of a task
    other_task: np.ndarray  # ... of different tasks (empty for a single task)
    share_inside: float  # of all pairs of different steps, those of one episode

    def by_distance(self, cut: float) -> pd.DataFrame:
        """One row per distance in time (steps): low (10 %), median, high (90 %), pairs, "false" (share >= `cut`)."""
        grouped = pd.Series(self.inside).groupby(self.distance)
        table = grouped.quantile([0.1, 0.5, 0.9]).unstack().set_axis(["low", "median", "high"], axis=1)
        return table.assign(pairs=grouped.size(), false=pd.Series(self.inside >= cut).groupby(self.distance).mean())

    def exclusion(self, cut: float) -> pd.DataFrame:
        """What `exclude_near` = 0, 1, 2, ... does: one row each.

        "false": share of false negatives among the pairs of one episode that are left; "left out": share of an
        episode's pairs that are no longer used; "false at the edge": the share among the nearest pairs that are left.
        """
        table = self.by_distance(cut)
        pairs, false = table["pairs"].to_numpy(float), (table["pairs"] * table["false"]).to_numpy()
        left, left_false = pairs[::-1].cumsum()[::-1], false[::-1].cumsum()[::-1]
        near = np.r_[0, table.index.to_numpy()[:-1]]
        columns = {"false": left_false / left, "left out": 1 - left / pairs.sum(), "false at the edge": false / pairs}
        return pd.DataFrame(columns, index=pd.Index(near, name="exclude_near"))

    def suggested(self, cut: float, tolerated: float = 0.5) -> int:
        """The smallest `exclude_near` from which on at most a share `tolerated` of the nearest negatives is false."""
        table = self.exclusion(cut)
        bad = table.index[table["false at the edge"] > tolerated]
        return 0 if not len(bad) else int(next((i for i in table.index if i > bad[-1]), table.index[-1] + 1))

    def per_anchor(self, cut: float, exclude_near: int, batch: int) -> float:
        """How many false negatives a step meets in a batch of so many random steps."""
        kept = self.distance > exclude_near
        across = np.concatenate([self.same_task, self.other_task]) >= cut
        inside = ((self.inside >= cut) & kept).mean() * self.share_inside
        return (batch - 1) * (inside + (across.mean() if len(across) else 0.0) * (1 - self.share_inside))


def negative_audit(keys: pd.DataFrame, teacher: np.ndarray, pairs: int = 50_000, seed: int = 0) -> NegativeAudit:
    """Compare the teacher embeddings `[n, E]`, centred, of the steps in `keys` (task, episode, time) with each other.

    Every pair within an episode; of those across episodes, `pairs` random ones.
    """
    x = unit(teacher - teacher.mean(0))
    distance, inside = [], []
    time, task = keys["time"].to_numpy(), keys["task"].to_numpy()
    groups = keys.groupby(["task", "episode"], sort=False)
    for index in groups.indices.values():
        i, j = np.triu_indices(len(index), 1)
        distance.append(np.abs(time[index[i]] - time[index[j]]))
        inside.append((x[index] @ x[index].T)[i, j])
    number = groups.ngroup().to_numpy()
    i, j = np.random.default_rng(seed).integers(len(x), size=(2, pairs))
    i, j = (k[number[i] != number[j]] for k in (i, j))
    similarity, same = (x[i] * x[j]).sum(1), task[i] == task[j]
    within = np.concatenate(inside)
    share = len(within) / (len(x) * (len(x) - 1) / 2)
    return NegativeAudit(np.concatenate(distance), within, similarity[same], similarity[~same], share)
