"""Heads learn what features tell, nothing else, and the same from the same seed."""

import numpy as np
import pytest
import torch

from rgb2pc_lib.judging.loop.heads import (
    HeadSettings,
    Scale,
    action_error,
    action_spread,
    thinned,
    train_head,
)

SMALL = HeadSettings(steps=400, batch_size=64, dropout=0.0)


def task(n=400, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)) * [1, 10, 0.1, 1, 1, 1] + 3
    actions = np.stack([np.tanh(x[:, :1] - 3), x[:, 2:3] - 3], 1).repeat(2, 2)  # [n, 2, 2]
    return x, actions


@pytest.mark.parametrize("kind", ["mlp", "diffusion"])
def test_a_head_learns(kind):
    if kind == "diffusion":
        pytest.importorskip("diffusers")
    from rgb2pc_lib.judging.loop.proof import HEADS

    x, actions = task()
    fit, new = slice(0, 300), slice(300, None)
    head = HEADS[kind](x[fit], actions[fit], 0, SMALL)
    spread = action_spread(actions[fit])
    error = action_error(head(x[new]), actions[new], spread)
    assert error.shape == (100,) and head(x[new]).shape == (100, 2, 2)
    blind = action_error(np.broadcast_to(actions[fit].mean(0), (100, 2, 2)), actions[new], spread)
    assert error.mean() < 0.35 * blind.mean()
    np.testing.assert_allclose(head(x[new])[:7], head(x[new][:7]), atol=1e-5)  # whatever else is in the batch
    np.testing.assert_array_equal(HEADS[kind](x[fit], actions[fit], 0, SMALL)(x[new]), head(x[new]))
    assert np.abs(HEADS[kind](x[fit], actions[fit], 1, SMALL)(x[new]) - head(x[new])).max() > 1e-4


def test_what_never_changes_in_training_cannot_explode():
    x, actions = task()
    x[:, 5] = 7.0
    head = train_head(x, actions, 0, SMALL)
    moved = x.copy()
    moved[:, 5] += 1e-4
    assert np.abs(head(moved) - head(x)).max() < 0.2
    assert Scale.of(np.zeros((3, 0)))(np.zeros((2, 0))).shape == (2, 0)
    assert np.isfinite(train_head(np.ones((5, 2)), np.ones((5, 1, 1)), 0, SMALL)(np.zeros((1, 2)))).all()


def test_what_is_left_out():
    x, generator = torch.ones(200, 10), torch.Generator().manual_seed(0)
    some = thinned(x, 0.5, 4, generator)
    assert set(some[:, :6].flatten().tolist()) == {0.0, 2.0} and abs(some[:, :6].mean() - 1) < 0.1
    assert (some[:, 6:] == 1).all()  # told
    assert thinned(x, 0.5, 10, generator) is x and thinned(x, 0.0, 4, generator) is x


def test_errors_are_in_standard_deviations():
    actions = np.array([[[0.0, 5.0]], [[2.0, 5.0]]])
    spread = action_spread(actions)
    assert spread.tolist() == [1.0, 1.0]  # the second never changes
    assert action_error(actions + [1.0, 0.0], actions, spread).tolist() == [0.5, 0.5]
