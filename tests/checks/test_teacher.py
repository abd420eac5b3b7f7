import numpy as np
import pandas as pd
import pytest

from rgb2pc_lib.checks.teacher import negative_audit, spread


def test_spread_of_known_embeddings():
    rng = np.random.default_rng(0)
    axes = np.eye(8)[rng.integers(8, size=4000)] * rng.choice([-1, 1], size=(4000, 1))
    offset = np.zeros(8)
    offset[0] = 50
    table = spread(axes + offset, np.zeros(4000))
    assert table.loc["as it is", "mean cosine"] > 0.999 and table.loc["as it is", "effective rank"] < 1.1
    assert abs(table.loc["centred", "mean cosine"]) < 0.01 and table.loc["centred", "effective rank"] > 7.9


def test_a_teacher_that_knows_only_the_task_has_nothing_left_within_it():
    rng = np.random.default_rng(0)
    task = np.repeat(["a", "b", "c"], 100)
    embedding = np.repeat(10 * rng.normal(size=(3, 6)), 100, 0)
    embedding[:, 5] += 0.1 * rng.normal(size=300)
    table = spread(embedding, task)
    assert 1 < table.loc["centred", "effective rank"] < 3
    assert table.loc["centred within task", "effective rank"] == pytest.approx(1, abs=1e-6)


@pytest.fixture
def audit():
    """Steps turn in a plane by 20 degrees each; every episode has a plane of its own, and a mirrored copy."""
    episodes, steps, turn = 6, 10, np.deg2rad(20)
    keys, rows = [], []
    for e in range(episodes):
        for t in range(steps):
            vector = np.zeros(2 * episodes)
            vector[2 * e : 2 * e + 2] = np.cos(t * turn), np.sin(t * turn)
            rows.append(vector)
            keys.append((f"task_{e % 2}", f"ep_{e}", t))
    rows = np.array(rows)
    rows = np.concatenate([rows, -rows])  # mirrored episodes: the mean is zero, centring changes nothing
    keys += [(t, f"{e}_mirrored", s) for t, e, s in keys]
    return negative_audit(pd.DataFrame(keys, columns=["task", "episode", "time"]), rows)


def test_similarity_by_distance_in_time(audit):
    table = audit.by_distance(np.cos(np.deg2rad(50)))  # 40 degrees are alike, 60 are not
    assert table.index.tolist() == list(range(1, 10))
    assert np.allclose(table["median"], np.cos(np.deg2rad(20) * table.index))
    assert table["pairs"].tolist() == [12 * (10 - d) for d in range(1, 10)]
    assert table["false"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_exclusion_and_its_suggestion(audit):
    cut = np.cos(np.deg2rad(50))
    table = audit.exclusion(cut)
    assert table.index.tolist() == list(range(9))
    assert table["false at the edge"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert table.loc[0, "false"] == pytest.approx((9 + 8) / 45) and table.loc[2, "false"] == 0
    assert table.loc[0, "left out"] == 0 and table.loc[2, "left out"] == pytest.approx((9 + 8) / 45)
    assert audit.suggested(cut) == 2 and audit.suggested(0.9999) == 0 and audit.suggested(-2) == 9


def test_false_negatives_in_a_batch(audit):
    """Inside episodes 12 * (9 + 8) of 120 * 119 / 2 pairs are near; across, late steps meet early mirrored ones."""
    cut, pairs = np.cos(np.deg2rad(50)), 120 * 119 / 2
    across = audit.per_anchor(cut, 9, 33)
    a, b = np.meshgrid(np.arange(10), np.arange(10))
    opposite = (-np.cos(np.deg2rad(20 * (a - b))) >= cut).sum()  # of 100 pairs of an episode with its mirror
    assert across == pytest.approx(32 * 6 * opposite / pairs, rel=0.15)  # a sample
    assert audit.per_anchor(cut, 0, 33) - across == pytest.approx(32 * 12 * 17 / pairs)
    assert audit.per_anchor(cut, 1, 33) - across == pytest.approx(32 * 12 * 8 / pairs)
    assert audit.per_anchor(cut, 2, 33) == across
    assert len(audit.same_task) and len(audit.other_task)
    assert audit.per_anchor(-1.5, 99, 2) == pytest.approx(1 - audit.share_inside)  # all pairs across are "false"


def test_a_single_episode_has_no_pairs_across():
    keys = pd.DataFrame({"task": "a", "episode": "b", "time": range(5)})
    audit = negative_audit(keys, np.random.default_rng(0).normal(size=(5, 3)))
    assert not len(audit.same_task) and audit.share_inside == 1 and np.isfinite(audit.per_anchor(0.5, 1, 8))
