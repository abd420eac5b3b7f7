"""One step, however it is cut into parts: the same loss and the same gradients."""

import dataclasses

import numpy as np
import pytest
import torch

from rgb2pc_lib.data.sampling import Gatherer, Planner
from rgb2pc_lib.learning import losses, metrics, ranks
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.learner import Learner
from rgb2pc_lib.learning.objective import Distillation
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.learning.runs import Run, build_student
from rgb2pc_lib.learning.train import train

PLAIN = Config(
    validation=0.0, amp="off", batch_size=32, student_tokens=9, fuse_dim=16, moe_hidden=16, grad_clip=0.0, device="cpu"
)
EVERYTHING = {
    "fusion": "moe", "gate_noise": 0.3, "load_balance": 0.1, "expert_drop": 0.4, "learn_tau": True, "loss_mse": 0.5,
    "loss_relational": 0.3, "exclude_near": 2, "teacher_points": 3, "frame_copy": "random",
}  # fmt: skip


def one_step(workspace, n=3, **changes):
    """What `step` gives, and the gradients it leaves, by name."""
    config = dataclasses.replace(PLAIN, **changes).with_workspace(workspace)
    data = Data.open(config)
    planner = Planner(data.samples, data.training, 32, config.student_tokens, 0, config.expert_drop)
    gatherer = Gatherer(data.samples, config.frame_copy, config.teacher_points)
    student = build_student(config, data.samples.pairing.channels, gatherer.table.shape[1])
    learner = Learner(Distillation(config, student, torch.from_numpy(gatherer.table.mean(0)).float(), data.samples))
    told = learner.step(n, gatherer.run(learner.plans(planner(n))))
    gradients = {k: p.grad for k, p in student.named_parameters()} | {"log_tau": learner.objective.log_tau.grad}
    return told, gradients


@pytest.mark.parametrize("changes", [{}, EVERYTHING, {"amp": "on"}], ids=["defaults", "everything", "amp"])
@pytest.mark.parametrize("micro_batch", [1, 5, 16])
def test_micro_batches_change_no_loss_and_no_gradient(left, monkeypatch, changes, micro_batch):
    (loss, terms, gates), gradients = one_step(left, **changes)
    monkeypatch.setattr(losses, "_WHOLE", 16)  # and the loss by rows, as in a large batch
    monkeypatch.setattr(metrics, "_ENTRIES", 32 * 5)
    (again, parts, shares), pieced = one_step(left, micro_batch=micro_batch, **changes)
    within = 1e-2 if "amp" in changes else 2e-6  # bfloat16 has 8 bits: sums of the same products in another order
    assert again == pytest.approx(loss, rel=within)
    assert parts == pytest.approx(terms, rel=within, abs=within) and shares == pytest.approx(gates, rel=within)
    largest = max(g.abs().max().item() for g in gradients.values())
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(pieced[name], gradient, rtol=0, atol=3 * within * largest, msg=name)


def test_a_part_is_read_twice_and_never_more_than_asked_for(left):
    config = dataclasses.replace(PLAIN, micro_batch=5).with_workspace(left)
    data = Data.open(config)
    planner = Planner(data.samples, data.training, 32, 9, 0)
    learner = Learner(Distillation(config, build_student(config, {"left": 12}, 16), torch.zeros(16), data.samples))
    whole, plans = planner(0), learner.plans(planner(0))
    assert [len(p.samples) for p in plans] == 2 * [5, 5, 5, 5, 5, 5, 2]
    for half in (plans[:7], plans[7:]):
        np.testing.assert_array_equal(np.concatenate([p.samples for p in half]), whole.samples)
        np.testing.assert_array_equal(np.concatenate([p.positions for p in half]), whole.positions)


def test_every_rank_has_its_own_part(left, monkeypatch):
    config = PLAIN.with_workspace(left)
    data = Data.open(config)
    planner = Planner(data.samples, data.training, 32, 9, 0)
    seen = []
    for rank in range(2):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(ranks, "world", lambda: 2)
        learner = Learner(Distillation(config, build_student(config, {"left": 12}, 16), torch.zeros(16), data.samples))
        (plan,) = learner.plans(planner(0))
        seen.append(plan.samples)
        np.testing.assert_array_equal(plan.teacher, planner(0).teacher)
    np.testing.assert_array_equal(np.concatenate(seen), planner(0).samples)


def test_a_run_goes_on_with_another_micro_batch(left, tmp_path):
    made = dataclasses.replace(PLAIN, steps=12, eval_every=0, log_every=1).with_workspace(left)
    whole, parted = (dataclasses.replace(made, save_dir=str(tmp_path / name)) for name in ("whole", "parted"))
    list(train(whole))
    for progress in train(parted):
        if progress.step == 5:
            break
    list(train(dataclasses.replace(parted, micro_batch=7), resume=True))
    one, other = (Run.open(c.folder).metrics()["loss"].to_numpy() for c in (whole, parted))
    np.testing.assert_allclose(other, one, rtol=1e-5)
