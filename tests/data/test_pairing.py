"""Pairing: every gap has its reason, nothing is drawn from another episode, splits and controls are what they say."""

import functools
import shutil

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from rgb2pc_lib.data import pairing as pairing_module
from rgb2pc_lib.data.pairing import NO_EPISODE, NO_STEP, OK, pair, readable, select, split
from rgb2pc_lib.data.teacher import teacher_table
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError

STEPS = 12  # of each tiny episode; 2 tasks x 4 episodes


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("template"))


@pytest.fixture
def workspace(tmp_path, template):
    """A copy to do harm to."""
    shutil.copytree(template.teacher.parent, tmp_path, dirs_exist_ok=True)
    return Workspace(tmp_path / "teacher", {e: tmp_path / p.name for e, p in template.experts.items()}, name="tiny")


def pack(workspace, expert="left", task="push", episode="ep_0"):
    return workspace.experts[expert] / task / f"{episode}.pt"


def teacher_file(workspace, step, task="push", episode="ep_0"):
    return workspace.teacher / task / episode / f"{step}.ply.ulip_tiny.pt"


def rename_steps(path, **names):
    """Give steps of a pack other names, so that it lacks them."""
    raw = torch.load(path)
    for old, new in names.items():
        raw["frame_paths"] = [[p.replace(old, new) for p in w] for w in raw["frame_paths"]]
    torch.save(raw, path)


@pytest.fixture
def gaps(workspace):
    """One gap of each kind in push: a pack of ep_0, a step of ep_1, a teacher file of ep_2, the teacher of ep_3."""
    pack(workspace, "left", "push", "ep_0").unlink()
    rename_steps(pack(workspace, "right", "push", "ep_1"), step_0005="other_0005")
    teacher_file(workspace, "step_0007", "push", "ep_2").unlink()
    shutil.rmtree(workspace.teacher / "push" / "ep_3")
    return workspace


def steps_of(pairing, rows):
    return pairing.table.loc[rows, ["task", "episode", "step"]].apply(tuple, axis=1).tolist()


# -- the table


def test_everything_is_there(workspace):
    pairing = pair(workspace)
    table = pairing.table
    assert table.columns.tolist() == ["task", "episode", "step", "time", "left", "right", "teacher"]
    assert len(table) == 2 * 4 * STEPS and not table.duplicated(["task", "episode", "step"]).any()
    assert (table[["left", "right", "teacher"]] == OK).all(axis=None)
    assert table["time"].tolist() == list(range(STEPS)) * 8
    assert pairing.reasons().to_dict() == {OK: {"left": 96, "right": 96, "teacher": 96}}
    assert pairing.channels == tiny.CHANNELS and pairing.finest_grid == tiny.GRID
    assert pairing.experts == ["left", "right"]


def test_every_gap_has_its_reason(gaps):
    table = pair(gaps).table.set_index(["task", "episode", "step"])
    assert (table.loc["pull", ["left", "right", "teacher"]] == OK).all(axis=None)
    expected = {s: dict.fromkeys((f"ep_{e}" for e in range(4)), {OK}) for s in ("left", "right", "teacher")}
    expected["left"]["ep_0"] = {NO_EPISODE}
    expected["left"]["ep_1"] = expected["right"]["ep_1"] = {OK, NO_STEP}  # "right" calls one step otherwise
    expected["teacher"] |= {"ep_1": {OK, NO_STEP}, "ep_2": {OK, NO_STEP}, "ep_3": {NO_EPISODE}}
    for source, by_episode in expected.items():
        for episode, reasons in by_episode.items():
            assert set(table.loc[("push", episode), source]) == reasons, (source, episode)
    assert table.loc[("push", "ep_1", "step_0005"), ["left", "right", "teacher"]].tolist() == [OK, NO_STEP, OK]
    assert table.loc[("push", "ep_1", "other_0005"), ["left", "right", "teacher"]].tolist() == [NO_STEP, OK, NO_STEP]
    assert table.loc[("push", "ep_2", "step_0007"), "teacher"] == NO_STEP
    counts = pair(gaps).reasons()
    assert counts.loc["teacher"].to_dict() == {OK: 96 - 1 - STEPS, NO_STEP: 2, NO_EPISODE: STEPS}


def test_packs_without_names_and_unreadable_ones(workspace):
    raw = torch.load(pack(workspace))
    torch.save({k: v for k, v in raw.items() if k != "frame_paths"}, pack(workspace))
    pack(workspace, "right", "pull", "ep_2").write_bytes(b"nothing")
    table = pair(workspace).table.set_index(["task", "episode", "step"])
    assert table.loc[("push", "ep_0"), "left"].str.contains(r"push/ep_0\.pt: no list 'frame_paths'").all()
    assert table.loc[("pull", "ep_2"), "right"].str.contains(r"pull/ep_2\.pt: not a readable torch file").all()
    assert (table.loc[("push", "ep_1"), "left"] == OK).all()
    with pytest.raises(InputError, match=r"ep_\d\.pt: (no list|not a readable)"):
        select(pair(workspace), fallback="skip")
    with pytest.raises(InputError, match=r"ep_0\.pt: no list"):
        select(pair(workspace, tasks=["push"]))


def test_an_unreadable_pack_shows_where_nothing_else_tells_its_steps(workspace):
    pack(workspace, "left").write_bytes(b"nothing")
    pairing = pair(workspace.only("left"), teacher=False)
    row = pairing.table[pairing.table["episode"].eq("ep_0") & pairing.table["task"].eq("push")]
    assert len(row) == 1 and "not a readable torch file" in row["left"].item()


def test_pooled_teacher_without_names_says_so(workspace):
    shutil.rmtree(workspace.teacher / "push" / "ep_0")
    (workspace.teacher / "push" / "ep_0.zarr").mkdir()
    table = pair(workspace).table.set_index(["task", "episode", "step"])
    assert table.loc[("push", "ep_0"), "teacher"].str.contains(r"ep_0\.zarr: no frame_paths\.json").all()
    assert len(select(pair(workspace, tasks=["pull"]))) == 4 * STEPS


def test_numbers_of_steps_count(tmp_path):
    names = ["step_9", "step_10", "step_100"]
    tiny.write_pack(tmp_path / "a", "push", "ep_10", names, np.ones((3, 2, 2, 4)), window=3)
    tiny.write_pack(tmp_path / "a", "push", "ep_9", ["first", "second", "3rd"], np.ones((3, 2, 2, 4)), window=3)
    table = pair(Workspace(experts={"a": tmp_path / "a"}), teacher=False).table
    assert table["episode"].tolist() == ["ep_9"] * 3 + ["ep_10"] * 3
    assert table["step"].tolist() == ["3rd", "first", "second", *names]
    assert table["time"].tolist() == [0, 1, 2, 9, 10, 100]  # ranks where names have no numbers


@pytest.mark.parametrize("name", ["task", "episode", "step", "time", "teacher", "usable", "dinov3.large", "values"])
def test_reserved_names(workspace, name):
    with pytest.raises(InputError, match=f"an expert cannot be called {name}"):
        pair(Workspace(teacher=workspace.teacher, experts={name: workspace.experts["left"]}))


def test_tasks(workspace):
    assert set(pair(workspace, ["pull"]).table["task"]) == {"pull"}
    assert list(pair(workspace, ["pull"]).packs["left"]) == [("pull", f"ep_{e}") for e in range(4)]
    with pytest.raises(InputError, match=r"task\(s\) fold not found; the roots hold pull, push"):
        pair(workspace, ["push", "fold"])


def test_packs_of_different_models_are_named(workspace):
    names = [f"step_{i:04d}" for i in range(4)]
    tiny.write_pack(workspace.experts["left"], "push", "ep_9", names, np.ones((4, 4, 4, 13)))
    with pytest.raises(InputError, match=r"packs of expert 'left' differ: .*12 channels.*13 channels"):
        select(pair(workspace))
    assert len(select(readable(pair(workspace)))) == 2 * 4 * STEPS  # it is the odd one that is left out


def test_nothing_to_pair(tmp_path):
    for folder in ("teacher", "a"):
        (tmp_path / folder).mkdir()
    empty = pair(Workspace(teacher=tmp_path / "teacher", experts={"a": tmp_path / "a"}))
    assert len(empty.table) == 0
    for unit in ("step", "window"):
        with pytest.raises(InputError, match="no usable sample: the roots hold no <task>/<episode>"):
            select(empty, unit=unit)


def test_raw_size_comes_from_the_frames(tmp_path, workspace):
    from PIL import Image

    raw = torch.load(pack(workspace))
    torch.save({**raw, "meta": {"model_name": "VGGT"}}, pack(workspace))
    frames = tmp_path / "rgb" / "push" / "ep_0"
    frames.mkdir(parents=True)
    (frames / "notes.txt").write_text("")
    Image.new("RGB", (480, 640)).save(frames / "step_0000.jpg")
    packs = pair(Workspace(experts=workspace.experts, rgb=tmp_path / "rgb"), teacher=False).packs["left"]
    assert packs["push", "ep_0"].box == pytest.approx((0, 84 / 686, 1, 602 / 686))
    assert packs["push", "ep_1"].box == (0, 0, 1, 1)


# -- strict, and its fallbacks


def test_strict_pairs_have_the_same_step_always(gaps):
    for fallback in ("skip", "random"):
        samples = select(pair(gaps), fallback=fallback)
        sources = {**samples.expert_rows, "teacher": samples.teacher_rows}
        has = {s: (samples.pairing.table[s] == OK).to_numpy()[samples.members] for s in sources}
        for source, rows in sources.items():
            assert np.array_equal(rows[has[source]], samples.members[has[source]]), (fallback, source)
    samples = select(pair(gaps), fallback="skip")
    for rows in samples.expert_rows.values():
        assert np.array_equal(rows, samples.teacher_rows), "teacher step == student step for all samples"


def test_skip_leaves_out_exactly_what_lacks_something(gaps):
    pairing = pair(gaps)
    whole = (pairing.table[["left", "right", "teacher"]] == OK).all(axis=1)
    samples = select(pairing, fallback="skip")
    assert samples.members[:, 0].tolist() == np.flatnonzero(whole).tolist()
    assert len(samples) == 96 - STEPS - 1 - 1 - STEPS
    keys = samples.keys()[["task", "episode", "step"]]
    assert keys.apply(tuple, axis=1).tolist() == steps_of(pairing, samples.members[:, 0])


def test_random_substitutes_within_the_episode_only_where_lacking(gaps):
    pairing = pair(gaps)
    table = pairing.table
    samples = select(pairing, fallback="random", seed=3)
    # two episodes have nothing to substitute with: "left" of ep_0 and the teacher of ep_3
    assert len(samples) == len(table) - 2 * STEPS
    assert not set(steps_of(pairing, samples.members[:, 0])) & {("push", e, f"step_{i:04d}") for e in ("ep_0", "ep_3")
                                                                for i in range(STEPS)}  # fmt: skip
    replaced = {}
    for source, rows in {**samples.expert_rows, "teacher": samples.teacher_rows}.items():
        own, used = samples.members[:, 0], rows[:, 0]
        assert (table[source][used] == OK).all()
        assert (table["episode"][used].to_numpy() == table["episode"][own].to_numpy()).all()
        assert (table["task"][used].to_numpy() == table["task"][own].to_numpy()).all()
        changed = own != used
        assert changed.tolist() == (table[source][own] != OK).tolist()
        replaced[source] = changed.sum()
    assert replaced == {"left": 1, "right": 1, "teacher": 2}
    again = select(pairing, fallback="random", seed=3)
    assert np.array_equal(again.teacher_rows, samples.teacher_rows)
    drawn = {select(pairing, fallback="random", seed=s).teacher_rows.tobytes() for s in range(8)}
    assert len(drawn) > 1, "another seed, other substitutes"


def test_error_names_the_first_that_is_missing(gaps, workspace):
    with pytest.raises(InputError) as error:
        select(pair(gaps), fallback="error")
    message = str(error.value)
    assert "left lacks 13 of 97 samples (first: push/ep_0/step_0000, no such episode)" in message
    assert "right lacks 1 of 97 samples (first: push/ep_1/step_0005, step not in the episode)" in message
    assert "teacher lacks 14 of 97 samples (first: push/ep_1/other_0005, step not in the episode)" in message
    assert "--pairing_fallback skip or random" in message
    assert len(select(pair(gaps, ["pull"]), fallback="error")) == 4 * STEPS


def test_no_sample_left(workspace):
    shutil.rmtree(workspace.teacher / "push")
    pairing = pair(workspace, ["push"])
    for fallback in ("skip", "random"):
        with pytest.raises(InputError, match=r"no usable sample: teacher lacks 48 of 48 .*push/ep_0/step_0000"):
            select(pairing, fallback=fallback)


def test_loose_pairs_stay_in_the_episode(gaps):
    """A step without a teacher of its own is usable, with any teacher of its episode; nothing else changes."""
    pairing = pair(gaps)
    table = pairing.table
    strict, loose = select(pairing), select(pairing, strict=False)
    gained = set(steps_of(pairing, loose.members[:, 0])) - set(steps_of(pairing, strict.members[:, 0]))
    assert gained == {("push", "ep_2", "step_0007")}
    own, used = loose.members[:, 0], loose.teacher_rows[:, 0]
    assert (table["teacher"][used] == OK).all()
    for column in ("task", "episode"):
        assert (table[column][used].to_numpy() == table[column][own].to_numpy()).all()


# -- windows


def test_windows_pool_those_present(gaps):
    pairing = pair(gaps)
    table = pairing.table
    samples = select(pairing, unit="window", window=4)
    assert samples.members.shape[1] == 4
    by_episode = {k: v["step"].tolist() for k, v in table.loc[samples.members[:, 0]].groupby(["task", "episode"])}
    assert by_episode["pull", "ep_0"] == [f"step_{i:04d}" for i in (0, 2, 4, 6, 8)], "half overlapping"
    assert ("push", "ep_0") not in by_episode and ("push", "ep_3") not in by_episode
    for source, rows in {**samples.expert_rows, "teacher": samples.teacher_rows}.items():
        there = (table[source] == OK).to_numpy()[samples.members]
        assert np.array_equal(rows, np.where(there, samples.members, -1)), source
    in_ep_2 = (table["episode"][samples.members[:, 0]] == "ep_2").to_numpy()
    assert (samples.teacher_rows[in_ep_2] < 0).any() and (samples.expert_rows["left"] >= 0)[in_ep_2].all()
    assert len(select(pairing, fallback="random", unit="window", window=4)) == len(samples)
    with pytest.raises(InputError, match=r"left lacks 5 of 41 .*; teacher lacks 5 of 41"):
        select(pairing, fallback="error", unit="window", window=4)


def test_a_window_longer_than_its_episode(workspace):
    samples = select(pair(workspace), unit="window", window=20)
    assert len(samples) == 8 and samples.members.shape == (8, 20)
    assert ((samples.members >= 0).sum(1) == STEPS).all()
    assert samples.keys()["step"].tolist() == ["step_0005"] * 8, "the middle one names the window"
    assert samples.keys()["time"].tolist() == [5] * 8


def test_windows_never_cross_episodes(workspace):
    pairing = pair(workspace)
    for window in (1, 3, 5, 12):
        members = select(pairing, unit="window", window=window).members
        for column in ("task", "episode"):
            values = pairing.table[column].to_numpy()[members]
            assert (values == values[:, :1]).all()
        assert (np.diff(members, axis=1) == 1).all()


# -- the control


@pytest.mark.parametrize("seed", range(5))
def test_shuffled_is_a_derangement_fixed_by_the_seed(workspace, seed):
    samples = select(pair(workspace))
    shuffled = samples.shuffled(seed)
    assert sorted(shuffled.teacher_rows[:, 0]) == sorted(samples.teacher_rows[:, 0])
    assert (shuffled.teacher_rows != samples.teacher_rows).all()
    assert np.array_equal(samples.shuffled(seed).teacher_rows, shuffled.teacher_rows)
    assert not np.array_equal(samples.shuffled(seed + 1).teacher_rows, shuffled.teacher_rows)
    assert all(np.array_equal(shuffled.expert_rows[e], samples.expert_rows[e]) for e in samples.expert_rows)
    two = samples.take(np.array([3, 5]))
    assert two.shuffled(seed).teacher_rows.tolist() == [[5], [3]]
    with pytest.raises(InputError, match="at least two"):
        samples.take(np.array([3])).shuffled(seed)


# -- splits


def keys_of(tasks, episodes, steps=3):
    rows = [(t, f"ep_{e}", f"step_{i}") for t in tasks for e in range(episodes) for i in range(steps)]
    return pd.DataFrame(rows, columns=["task", "episode", "step"])


def parts(keys, index, *columns):
    return set(keys.loc[index, list(columns)].apply(tuple, axis=1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share, count", [(0.25, 2), (0.5, 4), (0.01, 1), (0.99, 7)])
def test_split_by_episode_takes_a_share_of_every_task(share, count, seed):
    keys = keys_of("abc", 8)
    train, none, held_out = split(keys, "episode", share, seed)
    assert not len(none)
    assert sorted([*train, *held_out]) == list(range(len(keys)))
    ours, theirs = parts(keys, train, "task", "episode"), parts(keys, held_out, "task", "episode")
    assert not ours & theirs
    assert {t: sum(task == t for task, _ in theirs) for t in "abc"} == dict.fromkeys("abc", count)
    again = split(keys, "episode", share, seed)
    assert np.array_equal(again[0], train)


@pytest.mark.parametrize("seed", range(4))
def test_split_by_task(seed):
    keys = keys_of("abcdefgh", 2)
    train, _, held_out = split(keys, "task", 0.25, seed)
    ours, theirs = parts(keys, train, "task"), parts(keys, held_out, "task")
    assert not ours & theirs and len(theirs) == 2 and len(ours) == 6


def test_split_seed_matters_and_order_of_rows_does_not():
    keys = keys_of("ab", 8)
    chosen = {frozenset(parts(keys, split(keys, seed=s)[2], "task", "episode")) for s in range(10)}
    assert len(chosen) > 5
    mixed = keys.sample(frac=1, random_state=0).reset_index(drop=True)
    assert parts(mixed, split(mixed)[2], "task", "episode") == parts(keys, split(keys)[2], "task", "episode")


def test_episodes_for_training_alone_move_nothing_that_is_held_out():
    keys = keys_of("ab", 8)
    more = keys_of("a", 5).assign(episode=lambda k: "more_" + k["episode"])
    both = pd.concat([more, keys], ignore_index=True)
    train, validation, held_out = split(both, validation=0.125, train_only=["*/more_*"])
    plain = split(keys, validation=0.125)
    for side, before in ((validation, plain[1]), (held_out, plain[2])):
        assert parts(both, side, "task", "episode") == parts(keys, before, "task", "episode")
    assert set(np.flatnonzero(both["episode"].str.startswith("more_"))) <= set(train)
    assert len(train) == len(plain[0]) + len(more)
    with pytest.raises(InputError, match=r"train_only: expected a pattern .*such as a/.*, found \*/extra_\*"):
        split(both, train_only=["*/extra_*"])
    with pytest.raises(InputError, match="expected a split by episode, found one by task"):
        split(both, "task", train_only=["*/more_*"])


def test_split_of_too_little():
    one_each = keys_of("ab", 1)
    with pytest.raises(InputError, match="at least two episodes a task are needed"):
        split(one_each, "episode")
    with pytest.raises(InputError, match="at least two tasks are needed"):
        split(keys_of("a", 4), "task")
    train, _, held_out = split(pd.concat([keys_of("a", 4), keys_of("b", 1)], ignore_index=True))
    assert len(train) and len(held_out), "a task with one episode is trained on"


@pytest.mark.parametrize("by, names", [("episode", "ab"), ("task", "abcdefgh")])
def test_validation_is_apart_from_both_and_changes_nothing_about_the_test(by, names):
    keys = keys_of(names, 8)
    plain = split(keys, by)
    train, validation, held_out = split(keys, by, validation=0.125)
    np.testing.assert_array_equal(held_out, plain[2])
    unit = ("task", "episode") if by == "episode" else ("task",)
    sides = [parts(keys, side, *unit) for side in (train, validation, held_out)]
    assert not sides[0] & sides[1] and not sides[1] & sides[2] and not sides[0] & sides[2]
    assert len(sides[1]) == (2 if by == "episode" else 1)  # one of eight, of every task's episodes or of the tasks
    assert len(split(keys_of("a", 3), validation=0.125)[1]) == 0, "too few for three sides"


def test_every_step_is_in_a_window(tmp_path):
    pairing = pair(tiny.make(tmp_path, tasks=("push",), episodes=1, steps=11))
    members = select(pairing, unit="window", window=4).members
    assert members[:, 0].tolist() == [0, 2, 4, 6, 7] and members[-1].tolist() == [7, 8, 9, 10]


# -- what is left out on purpose


def excluded(workspace, *entries, **more):
    return pair(workspace.excluding(entries), **more)


def test_excluded_episodes_and_steps_are_not_there(tmp_path):
    workspace = tiny.make(tmp_path)
    whole, found = pair(workspace), excluded(workspace, "push/ep_1 # moved", "pull/ep_0/step_0003")
    gone = (whole.table["task"] == "push") & (whole.table["episode"] == "ep_1")
    gone |= (whole.table["task"] == "pull") & (whole.table["episode"] == "ep_0") & (whole.table["step"] == "step_0003")
    pd.testing.assert_frame_equal(found.table, whole.table[~gone].reset_index(drop=True))
    assert found.excluded == {"push/ep_1": "moved", "pull/ep_0/step_0003": ""}
    assert all(("push", "ep_1") not in packs for packs in (*found.packs.values(), found.teacher))
    for unit in ("step", "window"):  # not as a substitute either
        keys = select(found, fallback="random", unit=unit).keys()
        assert not ((keys["task"] == "push") & (keys["episode"] == "ep_1")).any()


def test_an_excluded_episode_is_not_even_opened(tmp_path):
    workspace = tiny.make(tmp_path)
    (workspace.experts["left"] / "push" / "ep_1.pt").write_text("no pack")
    (workspace.experts["right"] / "push" / "ep_2.zarr").mkdir()  # beside ep_2.pt
    other = tmp_path / "teacher" / "push" / "ep_3"
    for path in other.iterdir():
        path.with_name(path.name.replace("step_", "other_")).write_bytes(path.read_bytes())  # a second series
    with pytest.raises(InputError, match="ep_1.pt: not a readable"):
        select(pair(workspace))
    found = excluded(workspace, "push/ep_1", "push/ep_2", "push/ep_3")
    assert len(select(found)) == 12 * 5


def test_entries_that_name_nothing_are_told_in_one_line(tmp_path, caplog):
    workspace = tiny.make(tmp_path, tasks=("push", "pull"))
    entries = "push/ep_1", "push/ep_9", "push/ep_0/step_0099", "pull/ep_8 shift +1", "push/ep_0/step_0001"
    excluded(workspace, *entries)
    (said,) = [r.getMessage() for r in caplog.records]
    assert "3 of the exclusion list's entries name nothing here, push/ep_9, push/ep_0/step_0099, pull/ep_8;" in said
    caplog.clear()
    excluded(workspace, *entries, tasks=["push"])
    (said,) = [r.getMessage() for r in caplog.records]
    assert "2 of the exclusion list's" in said  # those of other tasks are not asked for


def test_a_shift_pairs_with_the_teacher_of_a_later_step(tmp_path):
    workspace = tiny.make(tmp_path)
    straight, found = pair(workspace), excluded(workspace, "push/ep_1 shift +2")
    key, names = ("push", "ep_1"), [f"step_{i:04d}" for i in range(12)]
    assert found.teacher[key] == {a: straight.teacher[key][b] for a, b in zip(names[:-2], names[2:], strict=True)}
    assert found.teacher["pull", "ep_1"] == straight.teacher["pull", "ep_1"]
    rows = found.table[(found.table["task"] == "push") & (found.table["episode"] == "ep_1")]
    assert rows["teacher"].tolist() == ["ok"] * 10 + ["step not in the episode"] * 2
    assert len(select(found)) == len(select(straight)) - 2


def test_the_workspace_file_names_the_list(tmp_path):
    made = tiny.make(tmp_path)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "bad.toml").write_text('[exclude]\n"push/ep_0" = "moved"\n')
    text = '[roots]\nteacher = "teacher"\n[experts]\nleft = "features_left"\n'
    (tmp_path / "mine.toml").write_text('exclude = "lists/bad.toml"\n' + text)
    workspace = Workspace.load(tmp_path / "mine.toml")
    assert pair(workspace).excluded == {"push/ep_0": "moved"} and len(select(pair(workspace))) == 12 * 7
    assert pair(workspace.excluding([])).excluded == {} and workspace.excluding(None) is workspace
    (tmp_path / "mine.toml").write_text('exclude = "nowhere.toml"\n' + text)
    with pytest.raises(InputError, match="nowhere.toml: expected an exclusion list"):
        Workspace.load(tmp_path / "mine.toml")
    assert made.teacher == workspace.teacher


# -- episodes that cannot be read


def test_unreadable_episodes_are_left_out_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(
        pairing_module, "teacher_table", functools.partial(teacher_table, cache=tmp_path / "cache", progress=False)
    )
    workspace = tiny.make(tmp_path)
    whole = pair(workspace).table
    (workspace.experts["left"] / "push" / "ep_1.pt").write_text("no pack")
    teacher = workspace.teacher / "pull" / "ep_2"
    cut = teacher / "step_0003.ply.ulip_tiny.pt"
    cut.write_bytes(cut.read_bytes()[:300])
    nan = workspace.teacher / "pull" / "ep_3" / "step_0001.ply.ulip_tiny.pt"
    torch.save({"pc_feat": torch.full((3, tiny.TEACHER_WIDTH), torch.nan)}, nan)
    wide = workspace.teacher / "pull" / "ep_0" / "step_0005.ply.ulip_tiny.pt"
    torch.save({"pc_feat": torch.ones(3, 7)}, wide)
    found = readable(pair(workspace))
    assert found.unreadable.keys() == {"push/ep_1", "pull/ep_0", "pull/ep_2", "pull/ep_3"}
    told = {
        "push/ep_1": "not a readable torch file", "pull/ep_2": "it is cut short", "pull/ep_3": "non-finite values",
        "pull/ep_0": "of width 7, 16 in the others",
    }  # fmt: skip
    for name, said in told.items():
        assert said in found.unreadable[name] and name.split("/")[1] in found.unreadable[name]
    names = (whole["task"] + "/" + whole["episode"]).isin(list(found.unreadable))
    pd.testing.assert_frame_equal(found.table, whole[~names].reset_index(drop=True))
    assert len(select(found)) == 12 * 4
