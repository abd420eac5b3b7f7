"""Uses of correspondence: pieces with known answers, and a tiny aligned run in which every point has one place."""

import dataclasses
import functools

import numpy as np
import pandas as pd
import pytest
import tiny
from PIL import Image

from rgb2pc_lib.data.geometry import Placement
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging import correspondence as c
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train
from rgb2pc_lib.views import correspondence as view
from rgb2pc_lib.views.widgets.correspondence import CorrespondenceBrowser

NAMES = np.array(["background", "table", "robot", "object", "distractor", "goal"])


@pytest.fixture(scope="module")
def matcher(tmp_path_factory):
    """An aligned run on tiny data, with frames, and a state that calls points above the middle an object."""
    root = tmp_path_factory.mktemp("matcher")
    workspace = tiny.make_points(root)
    rng = np.random.default_rng(0)
    for folder in sorted((root / "teacher").glob("*/*")):
        steps = sorted(p.name.split(".")[0] for p in folder.iterdir())
        frames, state = (root / kind / folder.parent.name for kind in ("rgb", "state"))
        (frames / folder.name).mkdir(parents=True)
        state.mkdir(parents=True, exist_ok=True)
        for step in steps:
            Image.fromarray(rng.integers(0, 255, (160, 200, 3), np.uint8)).save(frames / folder.name / f"{step}.png")
        labels = rng.choice([1, 3], (len(steps), 16)).astype(np.uint8)
        np.savez(state / f"{folder.name}.npz", steps=steps, labels=labels, label_names=NAMES, tcp=np.zeros((12, 3)),
                 frame="world", world_to_camera=np.eye(4))  # fmt: skip
    workspace = dataclasses.replace(workspace, rgb=root / "rgb", state=root / "state")
    config = Config(validation=0.0, amp="off",
        route="geometric", fusion="moe", steps=80, batch_size=16, student_tokens=12, fuse_dim=32, moe_hidden=16,
        eval_every=0, save_dir=str(root / "run"),
    ).with_workspace(workspace)  # fmt: skip
    for _ in train(config):
        pass
    return c.Matcher.open(Run.open(root / "run"))


def test_a_point_lights_its_cell_and_a_pixel_its_point(matcher):
    placement = Placement((160, 200), (4, 4))
    hits = []
    for sample in matcher.held_out[:6].tolist():
        uv = matcher.step(sample).uv
        for point in range(16):
            heat = matcher.image_map(sample, point)
            assert heat.shape == (4, 4) and np.abs(heat).max() <= 1 + 1e-5
            hits.append(heat.argmax() == placement.cells(uv[[point]])[0])
            hits.append(matcher.cloud_map(sample, uv[point]).argmax() == point)
            assert tuple(matcher.found_patch(sample, point)) in set(map(tuple, placement.centres()))
    assert np.mean(hits) > 0.85


def test_what_stood_still_is_found_again(matcher):
    """Four of 16 points keep place and code, and expert "left" tells them apart; "right" knows nothing."""
    found = c.summary(c.found_again(matcher), ["points", "features"], "found")["mean"]["still"]
    assert found[c.FUSED] > 0.85 and found["left"] > 0.95 and found["right"] < 0.3


def test_labels_that_mean_nothing_are_not_learned(matcher):
    """The labels are drawn by lot, so no features can name the points of other episodes: IoU stays near chance."""
    table = c.summary(c.segmentation(matcher, steps=3), ["features"], "iou")
    assert table["mean"].max() < 0.45 and list(table.index) == [c.FUSED, c.POINTS, c.COLOUR, "left", "right"]


def test_spreading_covers_what_it_says(matcher, monkeypatch):
    monkeypatch.setattr(c, "clicks", lambda step, count, rng: np.arange(0, 16, 2))
    table = c.spreading(matcher)
    assert set(table["target"]) == {c.SAME, c.LATER} and table["iou"].between(0, 1).all()  # one episode a task held out
    assert len(table[table["method"] == "nearest pixel"]) == 2
    assert set(table["direction"]) == {c.TO_CLOUD, c.TO_IMAGE, c.PIXELS}


def test_spread_takes_the_nearest():
    x = np.eye(4)
    assert c.spread(x[:2], np.array([7, 9]), np.array([[0.1, 0.9, 0, 0], [0.9, 0.1, 0, 0]])).tolist() == [9, 7]
    pixels = np.array([[0.0, 0.0], [10.0, 10.0]])  # two numbers are places: the nearest by distance
    assert c.spread(pixels, np.array([1, 2]), np.array([[2.0, 3.0], [9.0, 20.0]])).tolist() == [1, 2]


def test_iou_by_hand():
    predicted, true = np.array([1, 1, 2, 2, 3]), np.array([1, 2, 2, 2, 1])
    assert c.mean_iou(predicted, true, np.array([1])) == pytest.approx(1 / 3)
    assert c.mean_iou(predicted, true, np.array([1, 2, 3, 5])) == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)


def test_clicks_are_of_every_label_that_is_there():
    step = c.Step(0, np.zeros((40, 2)), np.zeros((40, 3)), np.repeat([1, 2, 4], [20, 12, 8]), {})
    chosen = c.clicks(step, 5, np.random.default_rng(0))
    assert len(set(chosen)) == 10 and np.bincount(step.labels[chosen], minlength=5).tolist() == [0, 5, 5, 0, 0]


def test_painted_features_keep_their_colour(matcher):
    train = c.examples(matcher, matcher.data.training, points=8, steps=2)
    paint = c.painter(train)
    x = matcher.step(int(matcher.held_out[0])).features[c.FUSED]
    colours = paint(x)
    assert colours.shape == (16, 3) and colours.min() >= 0 and colours.max() <= 1
    np.testing.assert_allclose(paint(x[::-1]), colours[::-1])
    assert np.ptp(colours, axis=0).min() > 0.3


def test_a_run_without_places_is_refused(left, tmp_path):
    made = Config(steps=1, batch_size=8, student_tokens=4, fuse_dim=8, eval_every=0, save_dir=str(tmp_path))
    for _ in train(made.with_workspace(left)):
        pass
    with pytest.raises(InputError, match="--route geometric"):
        c.Matcher.open(Run.open(tmp_path))


def test_figures(matcher):
    figures = {"point to patch": 0.5, "in another image": 0.1, "chance": 0.06}
    table = pd.DataFrame([{"model": m, "seed": s, **figures} for m in ("geometric", "left only") for s in (0, 1)])
    samples = matcher.held_out[:2].tolist()
    figure = view.patches_figure(matcher, table, samples)
    assert [t.get_text() for t in figure.axes[-1].get_yticklabels()] == ["geometric", "left only"]
    assert "px off" in figure.axes[1].get_title()
    ways = (c.TO_CLOUD, "aligned"), (c.TO_IMAGE, "aligned"), (c.PIXELS, c.COLOUR)
    lines = [(*way, c.SAME, 0.5) for way in ways]
    spread = pd.DataFrame(lines, columns=["direction", "method", "target", "iou"])
    labels = view.spreading_figure(matcher, spread, samples[0], count=2).axes[-1].get_yticklabels()
    assert [t.get_text() for t in labels] == ["aligned, image to cloud", "aligned, cloud to image", "colour"]
    view.painted_figure(matcher, c.segmentation(matcher, steps=2), samples)
    view.again_figure(c.found_again(matcher), matcher.experts)


def test_heat_stands_out():
    assert view.heat(np.array([0.0, 0.1, 0.2, 0.9])).round(2).tolist() == [0, 0, 0.07, 1]
    assert view.heated(None, np.eye(4), (16, 20)).shape == (32, 40, 3)


def test_what_needs_labels_or_frames_says_so_where_there_are_none(matcher, monkeypatch):
    sample = int(matcher.held_out[0])
    bare = dataclasses.replace(matcher.step(sample), labels=None)
    monkeypatch.setattr(c.Matcher, "step", lambda self, sample: bare)
    file = matcher.run.config.workspace.state / matcher.keys["task"][sample] / f"{matcher.keys['episode'][sample]}.npz"
    for judged in (c.segmentation, c.found_again, functools.partial(c.spreading, count=2)):
        with pytest.raises(InputError, match=rf"{file}: no labels of the points; .*--state_root"):
            judged(matcher)
    monkeypatch.setattr(c.Matcher, "image", lambda self, sample: None)
    with pytest.raises(InputError, match="no RGB frame, which is shown here; .*--rgb_root"):
        matcher.frame(sample)


# -- the widget


def test_browser_links_image_and_cloud(matcher):
    browser = CorrespondenceBrowser(matcher)
    sample = browser.sample
    browser.pick_point(3)
    glow = list(browser.picture.figure.data[0].marker.color)
    opacity = np.array([float(g.rsplit(",", 1)[1][:-1]) for g in glow])
    assert opacity.argmax() == matcher.image_map(sample, 3).argmax() and "Point 3" in browser.said.value
    ring = browser.cloud.figure.data[1]
    assert [ring.x[0], ring.z[0]] == matcher.step(sample).xyz[3, [0, 2]].tolist()
    plain = browser.cloud.figure.data[0].marker.color
    browser.pick_pixel(*matcher.step(sample).uv[5])
    assert browser.picked[0] == "cell" and browser.cloud.figure.data[0].marker.color != plain
    assert browser.picture.figure.data[1].x[0] == Placement((160, 200), (4, 4)).centres()[browser.picked[1]][0]
    browser.pick_pixel(-50, 0)  # outside: nothing happens
    assert browser.picked[0] == "cell"


def test_browser_without_frames_shows_the_heat_alone(matcher, monkeypatch):
    monkeypatch.setattr(c.Matcher, "image", lambda self, sample: None)
    browser = CorrespondenceBrowser(matcher)
    browser.pick_point(3)
    assert browser.picture.figure.layout.images == () and "Point 3" in browser.said.value


def test_browser_follows_its_controls_and_has_a_twin(matcher):
    browser = CorrespondenceBrowser(matcher)
    browser.pick_point(3)
    before = browser.picture.figure.layout.images[0].source
    browser.step.value = 4
    assert browser.sample != matcher.held_out[0] and browser.picked == ("point", -1)
    assert browser.picture.figure.layout.images[0].source != before
    figure = browser.static("pull", None, "step_0002", point=7)
    assert figure.axes[0].get_title().startswith("pull /") and "point 7" in figure.axes[0].get_title()
    with pytest.raises(InputError, match="no step pull/nowhere/step_0002"):
        browser.static("pull", "nowhere", "step_0002")
