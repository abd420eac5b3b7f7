"""The geometric route on tiny data where each cell shows exactly one point: known answers, controls, resuming."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch

from rgb2pc_lib.data.geometry import uv_to_fractions
from rgb2pc_lib.data.sampling import Gatherer, Planner
from rgb2pc_lib.data.step_points import PointReader
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.evaluate import Questions, judge_run
from rgb2pc_lib.learning.alignment import Alignment, Alike, PointPlanner, anchor_of, anchors, centre, consistency
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.learner import Learner
from rgb2pc_lib.learning.places import elsewhere
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.learning.runs import Run, build_student
from rgb2pc_lib.learning.train import train

SMALL = Config(validation=0.0, amp="off",
    route="geometric", steps=80, batch_size=16, student_tokens=12, fuse_dim=32, moe_hidden=16, lr=3e-3, eval_every=0,
    save_every=30, fusion="moe",
)  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return tiny.make_points(tmp_path_factory.mktemp("points"))


@pytest.fixture(scope="module")
def aligned(workspace, tmp_path_factory):
    return run(workspace, tmp_path_factory.mktemp("run"))


def config(workspace, folder, **changes) -> Config:
    return dataclasses.replace(SMALL, save_dir=str(folder), **changes).with_workspace(workspace)


def run(workspace, folder, **changes) -> Run:
    made = config(workspace, folder, **changes)
    for _ in train(made):
        pass
    return Run.open(made.folder)


def planner(workspace, **changes) -> tuple[PointPlanner, PointReader, Data]:
    made = config(workspace, "unused", **changes)
    data = Data.open(made)
    reader = PointReader(data.samples, made.workspace, made.point_target)
    base = Planner(data.samples, data.training, made.batch_size, made.student_tokens, made.seed)
    return PointPlanner(base, reader, made), reader, data


# -- known answers


def test_points_find_their_patches(aligned):
    """Held out: nearly every point finds the one cell that shows it; in another step's image it finds nothing."""
    found = aligned.summary["held-out"]
    assert found["point to patch"] > 0.85 and found["patch to point"] > 0.85
    assert found["in another image"] < found["chance"] + 0.1 < 0.2
    assert aligned.summary["gates"]["left"] > 0.8  # the expert that knows nothing is not asked
    assert "R@1" not in found  # its embeddings are no teacher's
    assert set(judge_run(aligned, Questions.of(aligned, None))[0]) == {"CKA", "kNN overlap", "width"}


def test_an_expert_that_knows_nothing_is_chance(workspace, tmp_path):
    blind = run(workspace.only("right"), tmp_path)
    found = blind.summary["held-out"]
    assert found["point to patch"] < found["chance"] + 0.1


def test_points_of_other_steps_teach_nothing(workspace, tmp_path):
    control = run(workspace, tmp_path, shuffle_pairs=True).summary["held-out"]
    assert control["point to patch"] < control["chance"] + 0.1


def test_beside_distillation_both_are_learned(workspace, tmp_path):
    both = run(workspace, tmp_path, route="distill", loss_geometric=1.0, steps=120).summary["held-out"]
    assert both["point to patch"] > 0.7 and both["R@1"] > 0.3  # of 24 held-out steps: chance is 0.04


def test_xyz_says_nothing_about_codes(workspace, tmp_path):
    """Places in space are drawn apart from the codes: aligning with xyz runs, and what it finds is chance."""
    found = run(workspace, tmp_path, point_target="xyz", steps=40).summary["held-out"]
    assert found["point to patch"] < found["chance"] + 0.1


def test_a_point_in_two_steps_gets_one_feature(workspace, tmp_path):
    """Of a still point's tokens one expert's stay, the other's change: with the extra loss embeddings agree more."""
    distances = {}
    for weight in (1e-9, 2.0):
        lines = run(workspace, tmp_path / str(weight), loss_consistency=weight, steps=30, fusion="uniform").metrics()
        distances[weight] = lines["loss/consistency"].iloc[-2:].mean()
    assert distances[2.0] < 0.8 * distances[1e-9]


# -- the run


def test_resuming_gives_the_same_numbers(workspace, aligned, tmp_path):
    made = config(workspace, tmp_path)
    loop = train(made)
    for progress in loop:
        if progress.step == 41:
            loop.close()
            break
    for _ in train(made, resume=True):
        pass
    again = Run.open(tmp_path)
    for ours, theirs in zip(again.student()[0].state_dict().values(), aligned.student()[0].state_dict().values(),
                            strict=True):  # fmt: skip
        assert torch.equal(ours, theirs)
    assert again.summary == aligned.summary
    assert again.metrics()["loss"].tolist() == aligned.metrics()["loss"].tolist()


@pytest.mark.parametrize("changes", [{}, {"route": "distill", "loss_geometric": 0.5}], ids=["alone", "both"])
def test_micro_batches_change_nothing(workspace, changes):
    """Parts of a batch give the whole batch's step, also with points beside the tokens."""
    made = config(workspace, "unused", expert_drop=0.0, **changes)
    plans, reader, data = planner(workspace, **changes)
    gatherer, mean = Gatherer(data.samples), torch.zeros(tiny.TEACHER_WIDTH)
    after = []
    for micro in (0, 5):
        part = dataclasses.replace(made, micro_batch=micro)
        student = build_student(part, data.samples.pairing.channels, tiny.TEACHER_WIDTH)
        centre(student, reader, data.training)
        learner = Learner(Alignment(part, student, mean, data.samples, reader))
        learner.step(0, gatherer.run(learner.plans(plans(0))))
        after.append(student.state_dict())
    for a, b in zip(*(s.values() for s in after), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("changes, said", [
    ({"strict_pairing": False}, "--no_strict_pairing"),
    ({"route": "distill", "loss_geometric": 1.0, "sample_unit": "window"}, "--loss_geometric"),
    ({"route": "distill", "loss_consistency": 1.0}, "--loss_consistency"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(SMALL, **changes)


def test_a_batch_of_more_windows_than_there_are_is_refused(workspace, tmp_path):
    with pytest.raises(InputError, match=r"--batch_size 16 is larger than the 6 windows"):
        next(iter(train(config(workspace, tmp_path, sample_unit="window", window=12))))


def test_a_teacher_without_pixels_is_refused_by_name(left, tmp_path):
    with pytest.raises(InputError, match=r"step_0000.ply.ulip_tiny.pt: no 'uv' .*extract"):
        next(iter(train(config(left, tmp_path))))


# -- what a batch holds


def test_positions_are_the_points_pixels_and_points_belong_to_them(workspace):
    plans, reader, _ = planner(workspace)
    plan = plans(3)
    assert plan.positions.shape == (16, 12, 2) and plan.points.shape == (16, 12, tiny.TEACHER_WIDTH)
    for sample, at, known in zip(plan.samples.tolist(), plan.positions, plan.points, strict=True):
        every = uv_to_fractions(reader.uv(sample), (160, 200))
        number = [np.flatnonzero((every == p).all(1))[0] for p in at]
        np.testing.assert_array_equal(known, reader.known(sample, np.array(number)))
    again = plans(3)
    np.testing.assert_array_equal(plan.positions, again.positions)
    assert not np.array_equal(plans(4).positions, plan.positions)


def test_beside_distillation_positions_are_appended(workspace):
    plans, _, _ = planner(workspace, route="distill", loss_geometric=1.0)
    plan, base = plans(2), plans.planner(2)
    assert plan.positions.shape == (16, 12 + 6, 2)
    np.testing.assert_array_equal(plan.positions[:, :12], base.positions)
    np.testing.assert_array_equal(plan.samples, base.samples)


@pytest.mark.parametrize("anchor", ["first", "middle", "last", "random"])
def test_one_frame_of_each_window_is_used(workspace, anchor):
    plans, reader, data = planner(workspace, sample_unit="window", window=5, anchor=anchor, batch_size=8)
    windows = anchors(reader.samples, data.training, 5)
    assert sorted(np.concatenate(windows)) == sorted(data.training) and {len(w) for w in windows} == {5, 2}
    of = {s: (i, w.tolist().index(s)) for i, w in enumerate(windows) for s in w.tolist()}
    used = [of[s] for n in range(3) for s in plans(n).samples.tolist()]
    places = {(len(windows[i]), k) for i, k in used}
    expected = {"first": {(5, 0), (2, 0)}, "middle": {(5, 2), (2, 0)}, "last": {(5, 4), (2, 1)}}
    assert places == expected[anchor] if anchor != "random" else len(places) > 3
    first = [of[s][0] for s in plans(0).samples.tolist()]
    assert len(set(first)) == 8  # one frame a window


def test_partners_are_the_same_places_in_another_step(workspace):
    plans, reader, _ = planner(workspace, loss_consistency=1.0)
    plan = plans(0)
    keys = reader.samples.keys()
    for a, b in zip(plan.samples[:8].tolist(), plan.samples[8:].tolist(), strict=True):
        assert keys["episode"][a] == keys["episode"][b] and keys["task"][a] == keys["task"][b] and a != b
    np.testing.assert_array_equal(plan.positions[:8, :6], plan.positions[8:, :6])  # only what stood still is shared
    np.testing.assert_allclose(plan.points[:8, :6], plan.points[8:, :6], atol=1e-5)
    assert np.abs(plan.positions[:8, 6:] - plan.positions[8:, 6:]).max() > 0.1


# -- small pieces


def test_anchor_of_a_single_frame():
    assert {anchor_of(np.array([7]), which, 0.5) for which in ("first", "middle", "last", "random")} == {7}


def test_what_is_no_negative():
    """Frames 0 and 1 are of one episode, frame 2 of another; places 0 and 1 of frame 0 are in one cell."""
    alike = Alike(
        torch.tensor([0, 0, 0, 1, 2]), torch.tensor([5, 5, 5, 5, 6]),
        torch.tensor([[0.1, 0.1], [0.15, 0.1], [0.1, 0.4], [0.1, 0.1], [0.1, 0.1]]), torch.tensor([0.1, 0.1]),
    )  # fmt: skip
    expected = [[1, 1, 0, 1, 0], [1, 1, 0, 1, 0], [0, 0, 1, 1, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert alike[:].int().tolist() == expected
    assert alike[1:3].int().tolist() == expected[1:3]


def test_consistency_of_halves():
    x = torch.randn(4, 3, 8)
    assert consistency(torch.cat([x, 2 * x])).item() == pytest.approx(0, abs=1e-6)
    assert consistency(torch.cat([x, -x])).item() == pytest.approx(2, abs=1e-6)


def test_elsewhere_never_stays(workspace):
    _, reader, data = planner(workspace)
    keys = reader.samples.keys().loc[data.held_out]
    other = keys.iloc[elsewhere(keys)]
    assert ((other["task"].to_numpy() != keys["task"]) | (other["episode"].to_numpy() != keys["episode"])).all()
