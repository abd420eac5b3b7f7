import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rgb2pc_lib.learning import losses, metrics
from rgb2pc_lib.learning.losses import NearInTime, info_nce, load_balance, normalised_mse, relational


def random(b=6, e=5, seed=0):
    return torch.randn(b, e, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_info_nce_against_the_formula():
    s, t, tau = random(seed=1), random(seed=2), 0.2
    similarity = torch.tensor([[F.cosine_similarity(a, b, 0) for b in t] for a in s], dtype=torch.float64) / tau
    there = -(similarity.diag() - similarity.exp().sum(1).log()).mean()
    back = -(similarity.diag() - similarity.exp().sum(0).log()).mean()
    torch.testing.assert_close(info_nce(s, t, tau), (there + back) / 2)


def test_info_nce_prefers_true_pairs_to_shuffled_ones():
    t = random(32, 16)
    assert info_nce(t, t, 0.1) < 0.1 < math.log(32) < info_nce(t.roll(1, 0), t, 0.1)


def test_ignored_pairs_are_no_negatives():
    s, t = random(4, seed=1), random(4, seed=2)
    ignore = torch.zeros(4, 4, dtype=torch.bool)
    ignore[0, 1] = ignore[1, 0] = True
    t2 = t.clone()
    t2[1] = s[0]  # a false negative that would hurt
    assert info_nce(s, t2, 0.1, ignore) < info_nce(s, t2, 0.1)
    everything = torch.ones(4, 4, dtype=torch.bool)
    assert info_nce(s, t, 0.1, everything) == pytest.approx(0, abs=1e-12)  # the diagonal always stays


def test_normalised_mse_is_two_minus_two_cos():
    s, t = random(seed=1), random(seed=2)
    torch.testing.assert_close(normalised_mse(s, t), (2 - 2 * F.cosine_similarity(s, t)).mean())
    assert normalised_mse(3 * t, t) == pytest.approx(0, abs=1e-12)


def test_relational_ignores_rotation_and_sees_structure():
    t = random(8, 5)
    rotation = torch.linalg.qr(random(5, 5, seed=3))[0]
    assert relational(t @ rotation, t) == pytest.approx(0, abs=1e-12)
    assert relational(t.roll(1, 0), t) > 0.01


def test_load_balance_bounds():
    present = torch.ones(2, 3, 4, dtype=torch.bool)
    even, one = torch.full((2, 3, 4), 0.25), torch.eye(4)[torch.zeros(2, 3, dtype=torch.long)]
    assert load_balance(even, present) == pytest.approx(0)
    assert load_balance(one, present) == pytest.approx(3)
    present[0] = False
    even[0] = 0
    assert load_balance(even, present) == pytest.approx(0)  # uncovered places do not count


def test_near_in_time():
    episode, time = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 2, 3, 3])
    assert NearInTime(episode, time, 1)[:].int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    assert not NearInTime(episode, time, 0)[:].any()


# -- batches whose B x B would not fit: the same values and gradients


@contextmanager
def large():
    """13 samples are a large batch: 4 rows of similarities at a time, the last time 1."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(losses, "_WHOLE", 12)
        m.setattr(metrics, "_ENTRIES", 4 * 13)
        assert [r.stop - r.start for r in losses.some_rows(13)] == [4, 4, 4, 1]
        yield


def with_gradients(loss, *inputs):
    given = [x.clone().requires_grad_() for x in inputs]
    value = loss(*given)
    return [value.detach(), *torch.autograd.grad(value, given)]


def ignored(kind):
    episode, time = torch.arange(13) % 3, torch.arange(13) // 3
    near = losses.NearInTime(episode, time, 1)
    return {"none": None, "near in time": near, "a matrix": near[:], "all": torch.ones(13, 13, dtype=torch.bool)}[kind]


@pytest.mark.parametrize("kind", ["none", "near in time", "a matrix", "all"])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_info_nce_by_rows_is_the_plain_one_with_all_gradients(kind, dtype, within):
    given = [random(13, 5, 1).to(dtype), random(13, 5, 2).to(dtype), torch.tensor(0.07, dtype=dtype)]
    plain = with_gradients(lambda *x: info_nce(*x, ignored(kind)), *given)
    with large():
        rows = with_gradients(lambda *x: info_nce(*x, ignored(kind)), *given)
    for a, b in zip(rows, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=within, atol=within * max(b.abs().max().item(), 1))
    assert kind == "all" or min(g.abs().max() for g in plain[1:]) > 1e-3  # there was something to compare


class Largest(TorchDispatchMode):
    """How many entries the largest tensor has that is made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        for tensor in tree_leaves(made):
            self.entries = max(self.entries, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return made


def test_a_large_batch_never_has_all_pairs_at_once():
    s, t = random(13, 3, 1).requires_grad_(), random(13, 3, 2)
    near = losses.NearInTime(torch.arange(13), torch.arange(13), 1)
    with Largest() as plain:
        (info_nce(s, t, 0.1, near) + relational(s, t)).backward()
    with large(), Largest() as rows:
        (info_nce(s, t, 0.1, near) + relational(s, t)).backward()
    assert plain.entries == 13 * 13 and rows.entries == 4 * 13


def test_info_nce_by_rows_has_the_gradient_of_its_values():
    given = [random(13, 5, 1), random(13, 5, 2), torch.tensor(0.3, dtype=torch.float64)]
    with large():
        assert torch.autograd.gradcheck(
            lambda *x: info_nce(*x, ignored("a matrix")), [x.requires_grad_() for x in given]
        )


def test_info_nce_by_rows_of_a_teacher_without_gradient():
    s, t = random(13, 5, 1).requires_grad_(), random(13, 5, 2)
    with large():
        loss = info_nce(s, t, 0.1)
        (gradient,) = torch.autograd.grad(loss, s)
    assert "ByRows" in type(loss.grad_fn).__name__
    torch.testing.assert_close(gradient, torch.autograd.grad(info_nce(s, t, 0.1), s)[0])


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_relational_of_a_large_batch_is_the_plain_one(dtype, within):
    s = random(13, 5, 1).to(dtype)
    for t in (random(13, 5, 2).to(dtype), s + 1e-3 * random(13, 5, 2).to(dtype)):  # far, and nearly the same
        plain = with_gradients(relational, s, t)
        with large():
            product = with_gradients(relational, s, t)
        for a, b in zip(product, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3 if dtype == torch.float32 else within, atol=within)


def test_how_many_negatives_a_sample_meets():
    rng = np.random.default_rng(0)
    episode, time = rng.integers(0, 5, 60), rng.integers(0, 30, 60)
    for within in (0, 1, 4, 99):
        near = losses.NearInTime(torch.tensor(episode), torch.tensor(time), within)[:].fill_diagonal_(True)
        by_hand = 15 * (~near).sum().item() / (60 * 59)
        assert losses.negatives(episode, time, within, batch=16) == pytest.approx(by_hand)
