import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.manifold import trustworthiness as trustworthiness_at_once
from sklearn.neighbors import NearestNeighbors

from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.learning import metrics
from rgb2pc_lib.learning.metrics import (
    agreement,
    effective_rank,
    knn_overlap,
    linear_cka,
    mean_cosine,
    own_ranks,
    retrieval,
    trustworthiness,
)


def random(n=40, d=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_perfect_and_shuffled_retrieval():
    x = random(200, 16)
    assert retrieval(x, x) == {"R@1": 1, "R@5": 1, "R@10": 1, "median rank": 1}
    lost = retrieval(np.roll(x, 3, 0), x)
    assert lost["R@10"] < 0.2 and lost["median rank"] > 50


def test_rank_by_hand():
    teacher = np.eye(3)
    student = np.array([[0.5, 1.0, 0.0], [0.0, 1.0, 0.0], [0.9, 0.8, 0.7]])  # own teacher is 2nd, 1st, 3rd
    out = retrieval(student, teacher)
    assert out["R@1"] == pytest.approx(1 / 3) and out["R@5"] == 1 and out["median rank"] == 2


def test_a_collapsed_student_does_not_win_by_ties():
    assert retrieval(np.ones((20, 4)), np.ones((20, 4)))["R@10"] == 0


def test_embeddings_that_are_not_numbers_are_found_last():
    x, lost = random(30), np.full((30, 6), np.nan)
    assert retrieval(lost, x)["median rank"] == 30
    assert retrieval(lost, x, np.zeros(30), np.arange(30), 1)["R@10"] == 0


def test_tolerance_accepts_the_neighbour_in_time_only():
    teacher, student = np.eye(4), np.eye(4)[[1, 0, 3, 2]]  # everybody finds its neighbour
    episode, time = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert retrieval(student, teacher)["R@1"] == 0
    assert retrieval(student, teacher, episode, time, 1)["R@1"] == 1
    assert retrieval(student, teacher, np.arange(4), time, 1)["R@1"] == 0


def test_agreement_knows_rotations():
    x = random()
    q = np.linalg.qr(random(6, 6, 1))[0]
    assert agreement(x, x) == pytest.approx({"cosine": 1, "CKA": 1, "kNN overlap": 1})
    assert linear_cka(x, 3 * x @ q) == pytest.approx(1) and knn_overlap(x, x @ q) == pytest.approx(1)
    assert mean_cosine(x, x @ q) < 0.9
    assert linear_cka(x, random(seed=5)) < 0.4 and knn_overlap(x, random(seed=5), 5) < 0.4


def test_effective_rank():
    assert effective_rank(np.eye(5)) == pytest.approx(5)
    assert effective_rank(np.outer(np.arange(1, 6), np.ones(4))) == pytest.approx(1)


def some_pairs(n=300, d=8):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d))
    return x, x + rng.normal(size=(n, d)), rng.integers(0, 9, n), rng.integers(0, 40, n)


def test_figures_in_blocks_are_those_made_at_once(monkeypatch):
    x, y, episode, time = some_pairs()
    figures = [
        lambda: own_ranks(x, y),
        lambda: own_ranks(x, y, episode, time, 2),
        lambda: knn_overlap(x, y),
        lambda: knn_overlap(x, y, 7, group=episode),
    ]
    whole = [figure() for figure in figures]
    monkeypatch.setattr(metrics, "_ENTRIES", 700)  # two rows at a time
    for figure, expected in zip(figures, whole, strict=True):
        assert np.allclose(figure(), expected)
    similarity = metrics.unit(x) @ metrics.unit(y).T
    assert (own_ranks(x, y) == (similarity >= similarity.diagonal()[:, None]).sum(1)).all()


def test_neighbours_of_other_groups_only():
    x, y, episode, _ = some_pairs()
    near = []
    for z in map(metrics.unit, (x, y)):
        distance = np.where(episode[:, None] == episode, np.inf, -z @ z.T)
        near.append(np.argsort(distance, axis=1)[:, :5])
    by_hand = np.mean([len(np.intersect1d(a, b)) / 5 for a, b in zip(*near, strict=True)])
    assert knn_overlap(x, y, 5, group=episode) == pytest.approx(by_hand)


def test_trustworthiness_is_that_of_scikit_learn():
    x, y, _, _ = some_pairs()
    for k in (1, 5, 20):
        near = NearestNeighbors(n_neighbors=k).fit(y[:, :2]).kneighbors(return_distance=False)
        theirs = trustworthiness_at_once(x, y[:, :2], n_neighbors=k, metric="cosine")
        assert trustworthiness(x, near) == pytest.approx(theirs, abs=1e-9)


def test_figures_of_very_few_steps():
    x = random(3)
    assert agreement(x, x)["kNN overlap"] == 1  # asked for 10 neighbours, there are two
    assert np.isnan(knn_overlap(x[:1], x[:1]))


MEMORY = """
import json, resource
import numpy as np
from rgb2pc_lib.learning import metrics
rng = np.random.default_rng(0)
n = 12_000
x = rng.normal(size=(n, 16)).astype(np.float32)
y, episode, near = x[::-1].copy(), np.arange(n) // 50, rng.integers(0, n, (n, 3))
calls = {
    "retrieval": lambda i: metrics.retrieval(x[i], y[i], episode[i], np.arange(n)[i], 1),
    "agreement": lambda i: metrics.agreement(x[i], y[i]),
    "elsewhere": lambda i: metrics.knn_overlap(x[i], y[i], 5, episode[i]),
    "trustworthiness": lambda i: metrics.trustworthiness(x[i], near[i] % len(x[i])),
}
peaks = []
for n_steps in (256, n):
    for call in calls.values():
        call(slice(n_steps))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(json.dumps(dict(zip(calls, np.subtract(peaks[4:], peaks[3]).tolist()))))
"""


def test_memory_does_not_grow_with_the_square_of_the_steps():
    """All pairs of 12,000 steps would be 576 MB of float32."""
    out = subprocess.run([sys.executable, "-c", MEMORY], cwd=PROJECT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    more = json.loads(out.stdout)  # MB
    assert len(more) == 4 and max(more.values()) < 200, more
