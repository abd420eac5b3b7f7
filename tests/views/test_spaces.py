import asyncio
import json
import threading

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rgb2pc_lib.data.clouds import Cloud, write_ply
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.metrics import knn_overlap, retrieval
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.plots import task_colours
from rgb2pc_lib.views.spaces import (
    Spaces,
    fold,
    in_words,
    map_overlap,
    neighbourhoods,
    overlap_elsewhere,
    safe,
    state_columns,
    tints,
    umap_figure,
    umap_plotly,
)
from rgb2pc_lib.views.widgets.spaces import SpaceBrowser

TASKS, EPISODES, STEPS, E = ("<b>push", "pull"), 4, 8, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose student is the centred teacher turned (perfect neighbours), with frames and clouds."""
    root = tmp_path_factory.mktemp("spaces")
    rng = np.random.default_rng(0)
    rows = [(t, f"ep_{e}", f"step_{s:04d}", s, e == 0) for t in TASKS for e in range(EPISODES) for s in range(STEPS)]
    task, episode, step, time, held_out = (np.array(c) for c in zip(*rows, strict=True))
    teacher = rng.normal(size=(len(rows), E)) + 4 * (task == "pull")[:, None] + 10
    centred = teacher - teacher[~held_out].mean(0)
    for i, (t, e, s, *_) in enumerate(rows):
        for kind in ("rgb", "clouds"):
            (root / kind / t / e).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (i, 255 - i, 0)).save(root / "rgb" / t / e / f"{s}.png")
        write_ply(root / "clouds" / t / e / f"{s}.ply", Cloud(np.full((3, 3), i, np.float32), None, np.ones((3, 2))))
    config = Config(rgb_root=str(root / "rgb"), cloud_root=str(root / "clouds"), save_dir=str(root / "run"))
    (root / "run").mkdir()
    (root / "run" / "config.json").write_text(config.to_json())
    np.savez(root / "run" / "embeddings.npz", task=task, episode=episode, step=step, time=time, held_out=held_out,
             teacher=teacher, student=centred, gates=np.ones((len(rows), 1)), experts=np.array(["a"]))  # fmt: skip
    return root / "run"


@pytest.fixture(scope="module")
def spaces(folder):
    return Spaces.of(Run.open(folder))


@pytest.fixture
def browser(folder, spaces):
    return SpaceBrowser(Run.open(folder), spaces=spaces)


def other_student(spaces, student):
    return Spaces(spaces.name, spaces.keys, spaces.held_out, spaces.teacher, student, spaces.leading)


def test_a_perfect_student_agrees_and_a_random_one_does_not(spaces):
    table = neighbourhoods(spaces, 4)
    assert (table[["shared, spaces", "shared, elsewhere", "shared, maps"]] == 1).all(axis=None)
    assert np.allclose(spaces.error, 0) and (spaces.rank == 1).all()
    noise = other_student(spaces, np.random.default_rng(1).normal(size=spaces.teacher.shape))
    bad = neighbourhoods(noise, 4)
    assert (bad["shared, spaces"] < 0.5).all() and abs(noise.error.mean() - 1) < 0.3
    assert bad.loc["held-out", "chance"] == 4 / 15 and bad.loc["training", "samples"] == 48
    assert "(chance 27%)" in in_words(bad) and "(16 samples)" in in_words(bad)


def test_neighbours_elsewhere_leave_the_own_episode_out():
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(6), 5)
    x, y = (np.c_[10 * np.eye(6)[episode], rng.normal(size=(30, 8))] for _ in range(2))  # all they share
    shared, chance = overlap_elsewhere(x, y, episode, 4)
    assert chance == pytest.approx(4 / 25) and abs(shared - chance) < 0.15 and knn_overlap(x, y, 4) > 0.9
    assert np.isnan(overlap_elsewhere(x, y, np.zeros(30), 4)[0])


def test_figures_are_those_of_the_metrics(spaces):
    noise = other_student(spaces, spaces.teacher + 2 * np.random.default_rng(1).normal(size=spaces.teacher.shape))
    h = noise.held_out
    found = retrieval(noise.student[h], noise.teacher[h])
    assert np.mean(noise.rank[h] <= 1) == found["R@1"] < 1 and np.median(noise.rank[h]) == found["median rank"]
    assert neighbourhoods(noise).loc["held-out", "shared, spaces"] == knn_overlap(noise.student[h], noise.teacher[h], 7)


def test_maps_are_the_same_every_time_and_turning_changes_no_neighbour(spaces):
    again = fold(spaces.student)
    assert np.array_equal(again, fold(spaces.student))
    assert map_overlap(again, spaces.maps["student"], 5) == 1
    assert np.allclose(np.square(spaces.maps["teacher"]).sum(1).mean(), 1)


def test_map_overlap_is_euclidean():
    x = np.array([[1.0, 0], [2, 0], [10, 0], [11, 0]])  # all of one direction
    assert map_overlap(x, x + 5, 1) == 1 and map_overlap(x, x[[0, 2, 1, 3]], 1) == 0


def test_nearest_stay_on_their_side(spaces):
    rows, cosine = spaces.nearest(0, "teacher", 3)
    assert 0 not in rows and spaces.held_out[rows].all() and (np.diff(cosine) <= 0).all()
    assert spaces.nearest(0, "student", 3)[0][0] == 0  # a perfect student finds its own first
    assert not spaces.held_out[spaces.nearest(10)[0]].any()


def test_progress_runs_from_0_to_1_in_each_episode(spaces):
    assert spaces.progress[:STEPS].tolist() == pytest.approx(np.linspace(0, 1, STEPS))


def test_pictures(spaces):
    assert isinstance(umap_figure(spaces), Figure)
    figure = umap_plotly(spaces)
    points = [t for t in figure.data if t.text is not None]
    assert sum(len(t.x) for t in points) == 2 * len(spaces.keys)
    assert all("<" not in t.name for t in figure.data) and not any("<" in s for t in points for s in t.text)
    assert safe("<script>alert(1)</script>") == "&lt;script&gt;alert(1)&lt;/script&gt;"


def test_hover_shows_the_frame_and_click_the_cloud(browser, folder):
    root = folder.parent
    browser.hover(3)
    assert browser.maps.picture == (root / "rgb" / TASKS[0] / "ep_0" / "step_0003.png").read_bytes()
    assert "step_0003" in browser.maps.caption and browser.clicked == 0
    browser.click(33)
    assert browser.cloud.figure.data[0].x[0] == 33 and "step_0001" in browser.said.value
    assert "held-out, rank 1 of 16" in browser.said.value
    assert "its own" in browser.neighbours["student"][0][1].value
    assert "its own" not in "".join(c.value for _, c in browser.neighbours["teacher"])
    first = browser.spaces.nearest(33)[0][0]
    picture = root / "rgb" / TASKS[1] / "ep_0" / f"step_{first % STEPS:04d}.png"
    assert browser.neighbours["teacher"][0][0].value == picture.read_bytes()
    assert browser.maps.opened == 33
    assert np.frombuffer(browser.maps.thread, np.uint32).tolist() == list(range(32, 40))  # its episode


def test_a_selection_is_a_table_and_can_be_set(browser, folder):
    assert browser.selection.empty and browser.maps.selected is None
    browser.selection = [4, 2]
    found = browser.selection
    assert found.index.tolist() == [2, 4] and found["step"].tolist() == ["step_0002", "step_0004"]
    assert list(found)[:6] == ["task", "episode", "step", "split", "rank", "error"] and set(found["rank"]) == {1}
    assert found["frame"].iloc[0] == str(folder.parent / "rgb" / TASKS[0] / "ep_0" / "step_0002.png")
    assert "2 selected" in browser.chosen.value and browser.chosen.value.count("<img") == 2
    left_out = browser.excluding("blurred").exclude.out
    assert left_out == {f"{TASKS[0]}/ep_0/step_000{i}": "blurred" for i in (2, 4)}
    browser.selection = browser.table[browser.table["task"] == "pull"]
    assert len(browser.selection) == EPISODES * STEPS
    browser.selection = browser.spaces.held_out
    assert set(browser.selection["split"]) == {"held-out"} and len(browser.selection) == 16
    browser.selection = None
    assert browser.selection.empty and "Nothing is selected" in browser.chosen.value
    for wrong in ([-1], [64], ["push"], [True]):
        with pytest.raises(InputError, match="expected rows of `table`"):
            browser.selection = wrong


def test_the_worst_are_the_held_out_ones_that_are_found_last(folder, spaces):
    student = spaces.student.copy()
    student[5] = -student[5]
    browser = SpaceBrowser(Run.open(folder), spaces=other_student(spaces, student))
    browser.worst(1)
    assert browser.selection.index.tolist() == [5]


def test_what_is_drawn_in_either_map_is_the_one_selection(browser):
    at = browser.maps._xy
    for which in (0, 1):
        x, y = at[which, 7]
        box = [[x - 1e-4, y - 1e-4], [x + 1e-4, y - 1e-4], [x + 1e-4, y + 1e-4], [x - 1e-4, y + 1e-4]]
        browser.maps._told(None, {"map": which, "polygon": box}, None)
        assert 7 in browser.maps.rows and len(browser.maps.rows) < 4
    browser.maps._told(None, {"map": 0, "polygon": [[-9, -9], [-8, -9], [-8, -8]]}, None)  # nothing lies there
    assert browser.maps.rows is None
    browser.selection = [1]
    browser.maps._told(None, {"clear": True}, None)
    assert browser.maps.rows is None
    assert (at > 0).all() and (at < 1).all()


def test_colours_follow_the_drop_down_and_the_legend_selects(browser):
    before = browser.maps.tint
    assert [b.description for b in browser.legend.children[:2]] == ["● <b>push", "■ pull"]
    browser.legend.children[1].click()
    assert set(browser.selection["task"]) == {"pull"}
    browser.colour.value = "progress"
    assert browser.maps.tint != before and "share of the episode" in browser.legend.children[0].value
    for by in browser.colour.options:
        browser.colour.value = by
    assert {"rank", "split", "episode", "leading expert"} <= set(browser.colour.options)


def test_state_columns_are_found_by_step(tmp_path, spaces):
    keys = spaces.keys[spaces.keys["episode"] == "ep_1"]
    folder = tmp_path / "state" / "pull"
    folder.mkdir(parents=True)
    steps = np.array([f"step_{s:04d}" for s in range(STEPS - 1, 0, -1)])  # backwards, the first is lacking
    np.savez(folder / "ep_1.npz", steps=steps, opening=np.arange(7.0), tcp=np.ones((7, 3)), seed=np.int64(3))
    found = state_columns(Workspace(state=tmp_path / "state"), keys)
    assert list(found) == ["opening", "tcp x", "tcp y", "tcp z"] and found.index.equals(keys.index)
    mine = found.loc[keys["task"] == "pull", "opening"]
    assert mine.isna().sum() == 1 and mine.iloc[1:].tolist() == [6, 5, 4, 3, 2, 1, 0]
    assert found.loc[keys["task"] == TASKS[0]].isna().all(axis=None)
    assert tints(found["opening"])[0] == "#9a9a9a" and len(set(tints(mine))) == 8
    assert len(set(task_colours([f"task {i}" for i in range(40)]).values())) == 40


def test_names_never_become_html(browser):
    browser.selection = [0, 1]
    shown = [browser.chosen.value, browser.said.value,
             *(c.value for pairs in browser.neighbours.values() for _, c in pairs)]  # fmt: skip
    assert not any("<b>push" in text for text in shown) and "&lt;b&gt;push" in browser.said.value


def test_a_damaged_or_missing_file_keeps_the_panel_alive(browser, folder):
    file = folder.parent / "clouds" / TASKS[0] / "ep_1" / "step_0002.ply"
    whole = file.read_bytes()
    file.write_bytes(b"damaged")
    browser.click(10)
    assert "expected a PLY file" in browser.said.value and not browser.cloud.figure.data[0].x
    file.write_bytes(whole)
    picture = folder.parent / "rgb" / TASKS[0] / "ep_1" / "step_0003.png"
    picture.rename(picture.with_suffix(".away"))
    browser.click(11)
    assert browser.frame.value == b"" and browser.cloud.figure.data[0].x[0] == 11
    picture.with_suffix(".away").rename(picture)


def test_clicks_from_other_threads_are_drawn_on_the_own_loop(folder, spaces):
    async def main():
        browser = SpaceBrowser(Run.open(folder), spaces=spaces)
        seen = []
        browser._open = lambda: seen.append(threading.current_thread())
        other = threading.Thread(target=browser.click, args=(5,))
        other.start()
        other.join()
        assert not seen
        await asyncio.sleep(0.05)
        assert seen == [threading.main_thread()]

    asyncio.run(main())


def test_static_shows_the_same(browser):
    figure = browser.static(33)
    assert isinstance(figure, Figure) and len(figure.subfigs[1].axes) == 12
    assert figure.subfigs[1].axes[0].images[0].get_array()[0, 0].tolist() == [33, 222, 0]


def test_too_few_samples_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    np.savez(tmp_path / "embeddings.npz", **{k: v[:5] for k, v in Run.open(folder).embeddings().items()})
    with pytest.raises(InputError, match="embeds 5 samples; a map needs at least 8"):
        Spaces.of(Run.open(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())  # only read
