"""Before anything is touched: only those steps count, and a representation that knows the robot alone knows nothing."""

import numpy as np
import pandas as pd
import pytest
from scripts import load_script

from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.untouched import untouched_errors, untouched_places

STEPS, HELD = 8, 5  # of an episode, and from which the object is held


@pytest.fixture
def recordings(tmp_path):
    """Twenty episodes in which a hand goes to an object and carries it off; their keys."""
    folder, lines = tmp_path / "push", []
    folder.mkdir()
    for e in range(20):
        rng = np.random.default_rng(e)
        place, start = rng.uniform(-0.2, 0.2, 3), np.zeros(3)
        way = np.linspace(0, 1, HELD)[:, None] ** 6  # it hardly moves before it is there
        tcp = np.concatenate([start + way * (place - start), place + 0.05 * np.arange(1, STEPS - HELD + 1)[:, None]])
        carried = np.where(np.arange(STEPS)[:, None] < HELD, place, tcp)
        names = np.array([f"step_{i:04d}" for i in range(STEPS)])
        np.savez(
            folder / f"ep_{e}.npz", steps=names, tcp=tcp, object=carried, opening=np.zeros(STEPS), goal=place + 0.1,
            frame=np.array("world"),
        )  # fmt: skip
        lines += [("push", f"ep_{e}", name) for name in names]
    return tmp_path, pd.DataFrame(lines, columns=["task", "episode", "step"])


def test_only_steps_before_anything_has_moved_count(recordings):
    root, keys = recordings
    places = untouched_places(root, keys)
    step = keys["step"].str[-4:].astype(int).to_numpy()
    np.testing.assert_array_equal(places["untouched"], step < HELD)
    assert places["own"].shape == (len(keys), 4) and places["goal"].shape == places["object"].shape == (len(keys), 3)


def test_what_follows_from_the_robots_own_earns_nothing(recordings):
    root, keys = recordings
    places, fit = untouched_places(root, keys), keys["episode"].isin([f"ep_{i}" for i in range(14)]).to_numpy()
    seen = places["object"] + np.random.default_rng(0).normal(0, 0.002, places["object"].shape)
    copies = np.where(places["untouched"][:, None], 0, places["object"])  # knows where a thing is that is held
    table = untouched_errors({"sees": seen, "copies": copies}, places, keys, fit, ~fit)
    assert table[["task", "place"]].to_numpy().tolist() == [["push", "object"]]  # the goal follows from the object
    assert table.loc[0, "steps"] == 6 * HELD
    assert table.loc[0, "sees"] < 1 and table.loc[0, "copies"] > 5


def test_states_that_do_not_tell_it_are_refused(recordings):
    root, keys = recordings
    for e in range(20):
        file = root / "push" / f"ep_{e}.npz"
        np.savez(file, **{k: v for k, v in np.load(file).items() if k != "opening"})
    with pytest.raises(InputError, match="expected object, tcp and opening in every episode's file"):
        untouched_places(root, keys)


def test_places_that_are_not_finite_and_tables_without_lines_are_refused(recordings):
    root, keys = recordings
    places, nothing = untouched_places(root, keys), np.zeros(len(keys), bool)
    with pytest.raises(InputError, match="expected a task with 8 untouched steps on each side of the split"):
        untouched_errors({"own": places["own"]}, places, keys, ~nothing, nothing)
    state = dict(np.load(root / "push" / "ep_3.npz"))
    state["object"][2, 0] = np.nan
    np.savez(root / "push" / "ep_3.npz", **state)
    with pytest.raises(InputError, match="ep_3.npz: expected finite places, found others from step_0002 on; exclude"):
        untouched_places(root, keys)


def test_neighbouring_steps_do_not_choose_how_much_is_learned_by_heart():
    rng, episodes = np.random.default_rng(0), 60
    place, way = rng.uniform(-0.2, 0.2, (episodes, 3)), np.linspace(0, 1, HELD) ** 6
    tcp = (way[None, :, None] * place[:, None]).reshape(-1, 3)
    own = np.pad(tcp, ((0, 0), (0, 1)))
    by_heart = np.repeat(rng.normal(size=(episodes, 200)), HELD, 0)  # tells one episode from another, nothing else
    number = np.repeat(np.arange(episodes), HELD)
    keys = pd.DataFrame({"task": "push", "episode": number.astype(str), "step": np.tile(np.arange(HELD), episodes)})
    places = {"object": np.repeat(place, HELD, 0), "own": own, "untouched": np.ones(len(keys), bool)}
    table = untouched_errors({"own": own, "by heart": by_heart}, places, keys, number < 42, number >= 42)
    assert table.loc[0, "by heart"] < 1.2 * table.loc[0, "own"]


@pytest.fixture(scope="module")
def tool():
    return load_script(PROJECT / "tools" / "judge_untouched.py")


def test_the_command_on_a_run(tool, recorded, tmp_path, capsys):
    run = recorded.config.folder
    assert tool.main([str(run), "--look", "fixed", "--out", str(tmp_path / "table.csv")]) == 0
    assert "fixed look, before anything has moved: median error, cm" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table.columns) == ["task", "place", "steps", "proprioception", "teacher", run.name]
    both = tool.judge([tool.Run.open(run)])
    assert both["steps"].sum() > table["steps"].sum() > 0
    assert tool.main([str(tmp_path / "nothing")]) == 2
    assert tool.main([str(run), str(run)]) == 2
