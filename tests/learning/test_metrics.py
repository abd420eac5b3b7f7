import numpy as np
import pytest

from rgb2pc_lib.learning.metrics import agreement, effective_rank, knn_overlap, linear_cka, mean_cosine, retrieval


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
