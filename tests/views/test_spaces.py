import asyncio
import json
import threading

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from rgb2pc_lib.data.clouds import Cloud, write_ply
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.metrics import knn_overlap, retrieval
from rgb2pc_lib.learning.runs import Config, Run
from rgb2pc_lib.views.spaces import (
    Spaces,
    fold,
    in_words,
    map_overlap,
    neighbourhoods,
    overlap_elsewhere,
    safe,
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
    return Spaces(spaces.name, spaces.keys, spaces.held_out, spaces.teacher, student)


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
    assert browser.thumbnail.value == (root / "rgb" / TASKS[0] / "ep_0" / "step_0003.png").read_bytes()
    assert "step_0003" in browser.caption.value and browser.clicked == 0
    browser.click(33)
    assert browser.cloud.data[0].x[0] == 33 and "step_0001" in browser.said.value
    assert "held-out, rank 1 of 16" in browser.said.value
    assert "its own" in browser.neighbours["student"][0][1].value
    assert "its own" not in "".join(c.value for _, c in browser.neighbours["teacher"])
    first = browser.spaces.nearest(33)[0][0]
    picture = root / "rgb" / TASKS[1] / "ep_0" / f"step_{first % STEPS:04d}.png"
    assert browser.neighbours["teacher"][0][0].value == picture.read_bytes()
    for which, figure in browser.maps.items():
        assert np.allclose((figure.data[1].x[0], figure.data[1].y[0]), browser.spaces.maps[which][33])


def test_a_selection_in_one_map_is_lit_in_the_other(browser):
    browser.select([4, 2])
    assert [f.data[0].selectedpoints for f in browser.maps.values()] == [(2, 4)] * 2
    browser.select(None)
    assert all(f.data[0].selectedpoints is None for f in browser.maps.values())


def test_colours_follow_the_drop_down(browser):
    before = browser.maps["teacher"].data[0].marker.color
    browser.colour.value = "progress"
    now = browser.maps["teacher"].data[0].marker.color
    assert now != before and now == browser.maps["student"].data[0].marker.color
    assert "share of the episode" in browser.legend.value


def test_names_never_become_html(browser):
    shown = [browser.legend.value, browser.caption.value, browser.said.value,
             *(c.value for pairs in browser.neighbours.values() for _, c in pairs)]  # fmt: skip
    assert not any("<b>push" in text for text in shown) and "&lt;b&gt;push" in browser.caption.value
    assert not any("<" in text for text in browser.maps["teacher"].data[0].text)


def test_a_damaged_or_missing_file_keeps_the_panel_alive(browser, folder):
    file = folder.parent / "clouds" / TASKS[0] / "ep_1" / "step_0002.ply"
    whole = file.read_bytes()
    file.write_bytes(b"damaged")
    browser.click(10)
    assert "expected a PLY file" in browser.said.value and not browser.cloud.data[0].x
    file.write_bytes(whole)
    picture = folder.parent / "rgb" / TASKS[0] / "ep_1" / "step_0003.png"
    picture.rename(picture.with_suffix(".away"))
    browser.click(11)
    assert browser.thumbnail.value == b"" and browser.cloud.data[0].x[0] == 11
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
