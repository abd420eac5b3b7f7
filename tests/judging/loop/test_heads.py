"""Heads learn what features tell, nothing else, and the same from the same seed."""

import dataclasses

import numpy as np
import pytest
import torch

from rgb2pc_lib.judging.loop.heads import (
    HeadSettings,
    Reader,
    Scale,
    action_error,
    action_spread,
    best_head,
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


def test_a_head_reads_few_components_and_all_that_it_is_told():
    rng = np.random.default_rng(0)
    hidden, told = rng.normal(size=(600, 3)), rng.normal(size=(600, 2))
    x = hidden @ rng.normal(size=(3, 200)) + rng.normal(0, 1.5, (600, 200))
    actions = np.stack([hidden[:, 0] + told[:, 0], hidden[:, 1]], 1)[:, None]
    known = np.concatenate([x, told], 1)
    read = Reader.of(known, 2, few=3)(known)
    assert read.shape == (600, 5) and np.abs(np.corrcoef(read.T) - np.eye(5)).max() < 0.15
    np.testing.assert_allclose(read[:, 3:], Scale.of(told)(told), atol=1e-6)
    fit, new = slice(0, 200), slice(200, None)
    error = {}
    for few in (3, None):
        head = train_head(known[fit], actions[fit], 0, SMALL, 2, few)
        error[few] = action_error(head(known[new]), actions[new], action_spread(actions[fit])).mean()
    assert error[3] < 0.7 * error[None]
    assert Reader.of(told, 2, 3)(told).shape == (600, 2)  # nothing but what is told


def test_steps_for_choices_decide_what_is_read():
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(900, 3))
    wide = hidden @ rng.normal(size=(3, 200)) + rng.normal(0, 1.5, (900, 200))
    fit, check, new = (np.isin(np.arange(900) // 300, k) for k in range(3))
    last = np.concatenate([10 * rng.normal(size=(900, 8)), hidden], 1)  # what matters has the least spread
    settings, actions = dataclasses.replace(SMALL, few=3), hidden[:, None, :1]
    for x, read in ((wide, "3"), (last, "all")):
        best = best_head(train_head, x, actions, fit, check, 0, settings)
        assert best.read == read and best.training < best.validation < 0.6
        blind = best_head(train_head, x, actions, fit, np.zeros(900, bool), 0, settings)
        assert blind.read == "all" and np.isnan(blind.validation)
    told = best_head(train_head, last, actions, fit, check, 0, settings, told=11)
    assert told.read == "all" and action_error(told.head(last[new]), actions[new], np.ones(1)).mean() < 0.3


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
