"""Plans are pure functions; gathered tokens lie where the plan says, in every expert, from the step that was paired."""

import gc
import threading
import time

import numpy as np
import pytest
import tiny
import torch
from placed import GRIDS, STEPS, TEACHER, cache, identity, make, planner  # noqa: F401

from rgb2pc_lib.data.pairing import Samples, pair, select
from rgb2pc_lib.data.sampling import Gatherer, Planner, lattice, ordered_plans
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make(tmp_path_factory.mktemp("placed"))


@pytest.fixture
def samples(workspace):
    return select(pair(workspace))


def ids_of(samples):
    keys = samples.pairing.table.loc[samples.members[:, 0], ["task", "episode", "time"]]
    return np.array([identity(task, int(episode[3:]), time) for task, episode, time in keys.itertuples(index=False)])


def same(a, b):
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in a.__dataclass_fields__)


# -- plans


def test_a_plan_is_a_pure_function_of_seed_and_number(samples):
    first = [planner(samples, drop=0.3)(n) for n in range(20)]
    other = planner(samples, drop=0.3)
    for n in np.random.default_rng(0).permutation(20):
        assert same(other(int(n)), first[n])
    changed = planner(samples, seed=1, drop=0.3)
    for field in ("samples", "positions", "draws", "keep", "seed"):
        assert not np.array_equal(getattr(changed(3), field), getattr(first[3], field)), field
        assert not np.array_equal(getattr(first[4], field), getattr(first[3], field)), field


@pytest.mark.parametrize("batch", [1, 6, 7, 60])
def test_no_sample_twice_in_a_batch_and_each_once_an_epoch(samples, batch):
    plans = planner(samples, batch)
    per_epoch = 60 // batch
    for epoch in range(3):
        seen = np.concatenate([plans(epoch * per_epoch + i).samples for i in range(per_epoch)])
        assert len(set(seen)) == len(seen) == per_epoch * batch  # with 6: all 60; with 7: all but 4
    if batch < 60:
        assert not np.array_equal(plans(0).samples, plans(per_epoch).samples), "epochs differ in order"


def test_only_training_samples_are_planned(samples):
    index = np.arange(0, 60, 3)
    plans = Planner(samples, index, 5, 4, 0)
    assert {s for n in range(4) for s in plans(n).samples} == set(index)


def test_a_batch_larger_than_the_training_set(samples):
    with pytest.raises(InputError, match="--batch_size 61 is larger than the 60 training samples"):
        planner(samples, 61)


def test_positions_fill_the_unit_square(samples):
    plans = planner(samples, 32, 10)
    at = np.concatenate([plans(n).positions.reshape(-1, 2) for n in range(50)])
    assert at.min() >= 0 and at.max() < 1
    counts = np.histogram2d(*at.T, bins=4, range=[[0, 1], [0, 1]])[0]
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)
    assert len(np.unique(at, axis=0)) == len(at), "each sample has its own"


@pytest.mark.parametrize("tokens", [16, 17, 500])
def test_at_the_grids_size_every_cell_comes_once(samples, tokens):
    plan = planner(samples, tokens=tokens)(0)
    pack = samples.pairing.packs["square"]["push", "ep_0"]  # the finest: 16 cells against 15
    assert plan.positions.shape == (8, 16, 2)
    assert all(sorted(pack.cells(at)) == list(range(16)) for at in plan.positions)
    assert planner(samples, tokens=15)(0).positions.shape == (8, 15, 2)


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.9])
def test_expert_drop(samples, drop):
    keep = np.concatenate([planner(samples, 30, drop=drop)(n).keep for n in range(100)])
    assert keep.any(1).all(), "never all"
    both_dropped = drop**2  # then one of the two is taken back
    assert abs((~keep).mean(0) - (drop - both_dropped / 2)).max() < 5 * np.sqrt(0.25 / 3000)


def test_ordered_plans(samples):
    at = lattice((3, 3))
    plans = list(ordered_plans(samples, np.array([5, 2, 9, 7, 1]), 2, at))
    assert [p.samples.tolist() for p in plans] == [[5, 2], [9, 7], [1]]
    for p in plans:
        assert p.keep.all() and all(np.array_equal(x, at) for x in p.positions)
        assert np.array_equal(p.teacher, samples.teacher_rows[p.samples])


# -- what is gathered


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [6, 16])
def test_token_k_is_the_same_place_and_step_in_every_expert(tmp_path, dtype, tokens):
    samples = select(pair(make(tmp_path, dtype=dtype)))
    ids = ids_of(samples)
    plans = [planner(samples, tokens=tokens)(n) for n in range(7)]
    for plan, batch in zip(plans, Gatherer(samples).run(plans), strict=True):
        assert batch.present.all() and batch.present.shape == (8, tokens, 2)
        np.testing.assert_allclose(batch.positions.numpy(), plan.positions, atol=1e-7)
        assert np.array_equal(batch.samples, plan.samples)
        for expert, (h, w) in GRIDS.items():
            got = batch.tokens[expert]
            assert got.dtype == dtype and got.shape == (8, tokens, 5)
            x, y, step = got[..., :3].float().numpy().transpose(2, 0, 1)
            rounding = 4e-3 if dtype == torch.bfloat16 else 1e-3
            assert (abs(x - plan.positions[..., 0]) <= 0.5 / w + rounding).all(), "the cell under the position"
            assert (abs(y - plan.positions[..., 1]) <= 0.5 / h + rounding).all()
            expected = torch.tensor(ids[plan.samples], dtype=torch.float32).to(dtype).float().numpy()
            assert (step == expected[:, None]).all(), "strict: the student's step is the sample's"
        np.testing.assert_allclose(batch.teacher.numpy(), np.tile(ids[plan.samples][:, None], TEACHER), atol=1e-4)


@pytest.mark.parametrize("copy", ["middle", "last", "random"])
def test_the_copy_of_a_frame_is_the_policys(samples, copy):
    plan = planner(samples, 60)(0)
    (batch,) = Gatherer(samples, frame_copy=copy).run([plan])
    window, frame = batch.tokens["wide"][:, 0, 3:].int().numpy().T
    step = ids_of(samples)[plan.samples] % 20
    assert (window + frame == step).all()
    pack = samples.pairing.packs["wide"]["push", "ep_0"]
    places = [pack.where(f"step_{s:04d}", copy, d) for s, d in zip(step, plan.draws, strict=True)]
    assert places == list(zip(window, frame, strict=True))
    assert torch.equal(batch.tokens["wide"][:, 0, 3:], batch.tokens["square"][:, 0, 3:]), "the same for all experts"
    spread = len({(w, f) for w, f, s in zip(window, frame, step, strict=True) if s == 5})
    assert spread > 1 if copy == "random" else spread == 1


@pytest.mark.parametrize("asked", ["middle", "random"])
def test_a_pack_of_other_copies_is_refused(samples, asked, monkeypatch):
    pack = samples.pairing.packs["wide"]["push", "ep_0"]
    monkeypatch.setitem(pack.meta, "frame_copy", "last")
    with pytest.raises(InputError, match=rf"ep_0.pt.*'last', and '{asked}' is asked for; give --frame_copy last"):
        Gatherer(samples, frame_copy=asked)
    Gatherer(samples, frame_copy="last")


def test_dropping_ends(samples):
    late = planner(samples, drop=0.9, drop_batches=3)
    assert not late(2).keep.all() and late(3).keep.all()


def test_dropped_experts_are_absent(samples):
    plan = planner(samples, drop=0.6)(0)
    (batch,) = Gatherer(samples).run([plan])
    assert np.array_equal(batch.present.numpy(), np.repeat(plan.keep[:, None], 6, 1))
    assert not batch.present.all()


def test_outside_the_box_is_absent(tmp_path):
    workspace = make(tmp_path)
    for path in workspace.experts["wide"].glob("*/*.pt"):
        raw = torch.load(path)
        torch.save({**raw, "meta": {"box": [0.0, 0.25, 1.0, 0.75]}}, path)
    samples = select(pair(workspace))
    plan = planner(samples, 30, 8)(0)
    (batch,) = Gatherer(samples).run([plan])
    inside = (plan.positions[..., 1] >= 0.25) & (plan.positions[..., 1] < 0.75)
    assert np.array_equal(batch.present[..., 1].numpy(), inside) and batch.present[..., 0].all()
    y = batch.tokens["wide"][..., 1].float().numpy() / 2 + 0.25  # the cell's centre, from the band to the image
    assert (abs(y - plan.positions[..., 1])[inside] <= 0.25 / 3 + 1e-3).all()


def test_random_fallback_shows_another_step_of_the_episode(tmp_path):
    workspace = make(tmp_path)
    for path in workspace.experts["wide"].glob("*/*.pt"):
        raw = torch.load(path)
        raw["frame_paths"] = [[p.replace("step_0005", "gone_0005") for p in w] for w in raw["frame_paths"]]
        torch.save(raw, path)
    samples = select(pair(workspace), fallback="random", seed=1)  # a seed that draws no gone_0005, which is the same
    samples = samples.take(np.flatnonzero(samples.keys()["step"] == "step_0005"))
    ids = ids_of(samples)
    (batch,) = Gatherer(samples).run(ordered_plans(samples, np.arange(6), 6, lattice((2, 2))))
    assert (batch.tokens["square"][:, 0, 2].numpy() == ids).all()
    other = batch.tokens["wide"][:, 0, 2].numpy()
    assert (other != ids).all() and (other // 20 == ids // 20).all()
    np.testing.assert_allclose(batch.teacher[:, 0], ids, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_windows_are_means_over_the_members_present(tmp_path, dtype):
    workspace = make(tmp_path, dtype=dtype)
    gone = workspace.teacher / "push" / "ep_0" / "step_0001.ply.ulip_tiny.pt"
    gone.unlink()
    samples = select(pair(workspace), unit="window", window=4)
    plan = next(ordered_plans(samples, np.arange(len(samples)), len(samples), lattice((2, 2))))
    (batch,) = Gatherer(samples).run([plan])
    table = samples.pairing.table
    steps = table["step"].str[5:].astype(int).to_numpy()
    first = table.loc[samples.members[:, 0]]
    base = np.array([identity(t, int(e[3:]), 0) for t, e in zip(first["task"], first["episode"], strict=True)])
    seen = base + steps[samples.members].mean(1)
    for expert in GRIDS:
        read = batch.tokens[expert][..., 2].float().numpy()
        np.testing.assert_allclose(read, np.tile(seen[:, None], 4), rtol=1e-2 if dtype == torch.bfloat16 else 1e-3)
    there = samples.teacher_rows >= 0
    assert (~there).sum() == 1
    told = base + (steps[samples.teacher_rows] * there).sum(1) / there.sum(1)
    np.testing.assert_allclose(batch.teacher[:, 0].numpy(), told, atol=1e-4)


# -- the teacher


def test_loose_pairs_draw_any_step_of_the_own_episode(tmp_path):
    workspace = make(tmp_path)
    for path in workspace.experts["wide"].glob("*/*.pt"):  # an expert lacks a step that the teacher has
        raw = torch.load(path)
        raw["frame_paths"] = [[p.replace("step_0005", "gone_0005") for p in w] for w in raw["frame_paths"]]
        torch.save(raw, path)
    samples = select(pair(workspace), strict=False)
    plans = [planner(samples, 27, strict=False)(n) for n in range(40)]
    told = set()
    for plan, batch in zip(plans, Gatherer(samples).run(plans), strict=True):
        own, drawn = ids_of(samples)[plan.samples], batch.teacher[:, 0].round().int().numpy()
        assert (own // 20 == drawn // 20).all(), "never another episode"
        told |= set(zip(own.tolist(), drawn.tolist(), strict=True))
    assert {d % 20 for _, d in told} == set(range(STEPS)), "every step of the episode, also the one an expert lacks"
    assert abs(np.mean([o == d for o, d in told]) - 1 / STEPS) < 0.05


def test_the_control_stays_shuffled_when_pairs_are_loose(samples):
    shuffled = samples.shuffled(0)
    donors = shuffled.pairing.table.loc[shuffled.teacher_rows[:, 0]]
    plan = planner(shuffled, 60, strict=False)(0)
    drawn = shuffled.pairing.table.loc[plan.teacher[:, 0]]
    for column in ("task", "episode"):
        assert drawn[column].tolist() == donors[column].iloc[plan.samples].tolist()


def test_shuffled_samples_keep_their_tokens(samples):
    shuffled = samples.shuffled(0)
    plan = planner(shuffled, 60)(0)
    (batch,) = Gatherer(shuffled).run([plan])
    ids = ids_of(samples)[plan.samples]
    assert (batch.tokens["wide"][:, 0, 2].numpy() == ids).all()
    assert (batch.teacher[:, 0].round().numpy() != ids).all()


def test_teacher_points_are_a_random_mean_fixed_by_the_plan(samples):
    plans = [planner(samples, 60)(n) for n in range(60)]
    gatherer = Gatherer(samples, teacher_points=5)
    drawn = [b.teacher.clone() for b in gatherer.run(plans)]
    again = [b.teacher.clone() for b in gatherer.run(plans[:3])]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=False))
    ids = ids_of(samples)
    error = np.concatenate([d.numpy() - ids[p.samples][:, None] for d, p in zip(drawn, plans, strict=True)])
    spread = error.std()
    assert spread == pytest.approx(np.sqrt((1 - 1 / 40) / 5 * (1 - 4 / 39)), rel=0.1), "5 of 40 points of unit variance"
    assert abs(error.mean()) < 5 * spread / np.sqrt(error.size)
    every = next(Gatherer(samples, teacher_points=40).run(plans))
    np.testing.assert_allclose(every.teacher[:, 0].numpy(), ids[plans[0].samples], atol=1e-4)


def test_without_a_teacher_there_is_no_embedding(workspace):
    pairing = pair(workspace, teacher=False)
    rows = np.arange(5)[:, None]
    samples = Samples(pairing, rows, dict.fromkeys(GRIDS, rows), np.full_like(rows, -1))
    (batch,) = Gatherer(samples).run(ordered_plans(samples, np.arange(5), 5, lattice((2, 2))))
    assert batch.teacher.shape == (5, 0) and batch.tokens["wide"][:, 0, 2].tolist() == ids_of(samples).tolist()


# -- the thread and its buffers


def gathering():
    return [t for t in threading.enumerate() if t.name == "gather"]


def test_batches_come_in_order_into_reused_buffers(samples):
    plans = [planner(samples)(n) for n in range(30)]
    where, ids = set(), ids_of(samples)
    for plan, batch in zip(plans, Gatherer(samples, ahead=2).run(plans), strict=True):
        time.sleep(0.002 if len(where) % 2 else 0)  # the thread runs ahead and must not overwrite this batch
        assert np.array_equal(batch.samples, plan.samples)
        assert (batch.tokens["square"][..., 2].numpy() == ids[plan.samples][:, None]).all()
        where.add(batch.tokens["square"].data_ptr())
    assert len(where) == 3, "one in use, two ahead"
    assert not gathering()


def test_a_last_smaller_batch(samples):
    plans = ordered_plans(samples, np.arange(60), 25, lattice((2, 2)))
    assert [len(b.tokens["wide"]) for b in Gatherer(samples).run(plans)] == [25, 25, 10]


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_early_leaves_no_thread(samples, taken):
    asked = []

    def plans():
        while True:
            asked.append(planner(samples)(len(asked)))
            yield asked[-1]

    batches = Gatherer(samples, ahead=2).run(plans())
    for _ in range(taken):
        next(batches)
    batches.close()
    assert not gathering() and len(asked) <= taken + 4, "plans without end: it runs at most `ahead` in advance"
    batches = Gatherer(samples).run(planner(samples)(n) for n in range(10**9))
    next(batches)
    del batches
    gc.collect()
    assert not gathering(), "dropped instead of closed"


def test_errors_of_the_thread_reach_the_reader(samples):
    def plans():
        yield planner(samples)(0)
        raise InputError("plans end badly")

    batches = Gatherer(samples).run(plans())
    next(batches)
    with pytest.raises(InputError, match="plans end badly"):
        next(batches)
    assert not gathering()


def test_a_pack_that_fails_while_reading_reaches_the_reader(tmp_path):
    names, tokens = [f"step_{i:04d}" for i in range(STEPS)], np.ones((STEPS, 2, 2, 3))
    path = tiny.write_zarr(tmp_path / "a", "push", "ep_0", names, tokens, version=3)
    tiny.write_teacher(tmp_path / "teacher", "push", "ep_0", names, np.ones((STEPS, 4)), np.random.default_rng(0))
    samples = select(pair(Workspace(tmp_path / "teacher", {"a": tmp_path / "a"})))
    (path / "per_frame_features/c/3/0/0/0/0").write_bytes(b"damaged later")
    with pytest.raises(InputError, match=r"ep_0\.zarr: window 3 is unreadable"):
        list(Gatherer(samples).run(ordered_plans(samples, np.arange(STEPS), 2, lattice((2, 2)))))
    assert not gathering()


def test_zarr_and_pt_give_the_same_batch(tmp_path):
    workspace = make(tmp_path / "pt")
    for path in (tmp_path / "pt" / "wide").glob("*/*.pt"):
        features = torch.load(path)["per_frame_features"]
        frames = torch.stack([features[max(i - 3, 0), min(i, 3)] for i in range(STEPS)]).numpy()
        names = [f"step_{i:04d}" for i in range(STEPS)]
        tiny.write_zarr(tmp_path / "zarr", path.parent.name, path.stem, names, frames, dtype="f2")
    other = Workspace(workspace.teacher, {"square": workspace.experts["square"], "wide": tmp_path / "zarr"})
    a, b = (select(pair(w)) for w in (workspace, other))
    plan = planner(a, 30)(0)
    (x,), (y,) = Gatherer(a).run([plan]), Gatherer(b).run([plan])
    assert torch.equal(x.tokens["wide"][..., :3], y.tokens["wide"][..., :3]) and torch.equal(x.teacher, y.teacher)
