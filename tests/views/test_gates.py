import dataclasses
import io

import numpy as np
import plotly.graph_objects as go
import pytest
import tiny
import torch
from matplotlib.figure import Figure
from PIL import Image

from rgb2pc_lib.data.clouds import Cloud
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.gates import GateReader, switch_off, switch_off_cost
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train
from rgb2pc_lib.views.gates import (
    LEADING,
    SCALE,
    gate_cloud,
    gate_colours,
    gate_figure,
    gates_at_points,
    painted,
    spread_figure,
    statistics_figure,
    strip_figure,
    switch_off_figure,
    weights_figure,
)
from rgb2pc_lib.views.widgets.gates import GateBrowser

SMALL = Config(
    validation=0.0,
    amp="off",
    steps=20,
    batch_size=32,
    student_tokens=16,
    fuse_dim=16,
    moe_hidden=16,
    eval_every=0,
    log_every=5,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short trainings on a workspace whose clouds and images are there, with a task called like a tag."""
    root = tmp_path_factory.mktemp("view")
    workspace = tiny.make(root, "place", tasks=("pull", "<b>push"))
    rng = np.random.default_rng(0)
    for path in sorted((root / "teacher").rglob("*.pt")):
        points = torch.load(path, weights_only=True)
        points["uv"] = torch.tensor(rng.integers(0, 32, (5, 2)).astype(np.float32))
        points["pc"] = torch.tensor(rng.random((5, 3)).astype(np.float32))
        torch.save(points, path)
        image = root / "rgb" / path.parent.parent.name / path.parent.name / f"{path.name.split('.')[0]}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(image)
    config = SMALL.with_workspace(dataclasses.replace(workspace, rgb=root / "rgb"))
    found = {}
    for fusion in ("weighted", "moe"):
        for _ in train(dataclasses.replace(config, fusion=fusion, save_dir=str(root / "runs" / fusion))):
            pass
        found[fusion] = Run.open(root / "runs" / fusion)
    return found


def picture(widget) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(widget.value)))


def test_painting_keeps_the_fixed_scale_and_the_place():
    image = np.zeros((8, 8, 3), np.uint8)
    gates = np.zeros((2, 2, 2))
    gates[..., 1] = 0.2
    gates[0, 1] = [0.9, 0.1]  # upper right
    out = painted(image, gates, ["a", "b"], "a", opacity=1.0)
    assert np.allclose(out[1, 6] / 255, SCALE(0.9)[:3], atol=0.01)
    assert np.allclose(out[6, 1] / 255, SCALE(0.0)[:3], atol=0.01)
    assert np.array_equal(painted(image + 200, gates, ["a", "b"], "a", 0.0), image + 200)  # grey stays grey
    other = painted(image, 0.5 * gates, ["a", "b"], "a", 1.0)
    assert np.allclose(other[1, 6] / 255, SCALE(0.45)[:3], atol=0.01)  # half the gate is never stretched to full scale


def test_leading_expert_has_its_own_colour_and_none_is_white():
    colours = gate_colours(np.array([[0.6, 0.4], [0.1, 0.9], [0.0, 0.0]]), ["a", "b"], LEADING)
    assert len({tuple(c) for c in colours.round(3).tolist()}) == 3 and (colours[2] == 1).all()


def test_points_take_the_gate_of_their_pixel():
    gates = np.arange(8, dtype=float).reshape(2, 4, 1)
    uv = np.array([[0, 0], [39, 0], [39, 19], [20, 10], [40, 5], [-1, 5]], np.float32)
    cloud = Cloud(np.zeros((6, 3), np.float32), uv=uv)
    assert gates_at_points(cloud, gates, (20, 40))[:, 0].tolist() == [0, 3, 7, 6, 0, 0]
    with pytest.raises(InputError, match="no uv"):
        gates_at_points(Cloud(np.zeros((1, 3), np.float32)), gates, (20, 40))


def test_figures_say_what_they_show(runs):
    reader = GateReader.open(runs["moe"])
    where = "pull", "ep_0", "step_0003"
    mean = reader.map(*where)[..., 0].mean()
    assert f"left, mean {mean:.2f}" in {a.get_title() for a in gate_figure(reader, *where).axes}
    strip = strip_figure(reader, "<b>push", "ep_1", columns=4)
    assert [a.get_title() for a in strip.axes[:4]] == ["step_0000", "step_0004", "step_0007", "step_0011"]
    with pytest.raises(InputError, match="no episode pull/ep_77"):
        strip_figure(reader, "pull", "ep_77")
    curves = weights_figure({name: [run] for name, run in runs.items()})
    assert [a.get_title() for a in curves.axes] == ["weighted", "moe"]
    logged = runs["moe"].metrics()["gate/left"].to_numpy()
    assert any(np.array_equal(line.get_ydata(), logged) for line in curves.axes[1].lines)
    heat = statistics_figure(runs["moe"]).axes[0]
    assert heat.images[0].get_clim() == (0, 1) and len(heat.texts) == 4
    held_out = reader.data.held_out
    maps = {name: GateReader.open(run).maps(held_out) for name, run in runs.items()}
    spread = spread_figure(maps, reader.keys.loc[held_out].reset_index(drop=True))
    assert "the gates hardly change" in {t.get_text() for t in spread.axes[1].texts}  # weighted


def test_switch_off_figure_with_one_seed_and_with_two(runs):
    tables = {name: [switch_off(run, progress=False)] for name, run in runs.items()}
    gates = {name: run.summary["gates"] for name, run in runs.items()}
    for seeds, said in ((1, "no intervals"), (2, "over 2 seeds")):
        costs = {name: switch_off_cost(t * seeds) for name, t in tables.items()}
        figure = switch_off_figure(costs, gates, "R@1", 24)
        assert isinstance(figure, Figure) and said in figure.get_supxlabel()


def test_cloud_is_painted_on_the_fixed_scale(runs):
    reader = GateReader.open(runs["moe"])
    figure = gate_cloud(reader, "pull", "ep_0", "step_0003", "left")
    assert type(figure) is go.Figure and len(figure.data[0].x) == 5
    bar = figure.data[1].marker
    assert (bar.cmin, bar.cmax) == (0, 1)
    gates = reader.map("pull", "ep_0", "step_0003")
    wanted = {f"#{(255 * np.array(SCALE(v)[:3])).round().astype(np.uint8).tobytes().hex()}" for v in gates[..., 0].flat}
    assert set(figure.data[0].marker.color) <= wanted
    named = {t.name for t in gate_cloud(reader, "pull", "ep_0", "step_0003", LEADING).data}
    assert {"left", "right"} <= named


def test_browser_follows_its_controls(runs):
    browser = GateBrowser(runs["moe"])
    assert browser.expert.options == ("left", "right", LEADING) and browser.step.max == 11
    over, rgb, colours = picture(browser.over), picture(browser.rgb), browser.cloud.figure.data[0].marker.color
    browser.opacity.value = 0.2
    assert not np.array_equal(picture(browser.over), over) and browser.cloud.figure.data[0].marker.color == colours
    browser.opacity.value = 0.65
    assert np.array_equal(picture(browser.over), over)
    browser.expert.value = "right"
    assert not np.array_equal(picture(browser.over), over) and np.array_equal(picture(browser.rgb), rgb)
    assert browser.cloud.figure.data[0].marker.color != colours and "gate of right" in browser.caption.value
    browser.step.value = 7
    assert "step_0007" in browser.name.value and not np.array_equal(picture(browser.rgb), rgb)
    assert browser.static().get_suptitle().endswith("/ step_0007")
    browser.task.value = "pull"
    assert browser.chosen == ("pull", "ep_0", "step_0007")


def test_browser_says_what_is_missing_and_stays_alive(runs, tmp_path):
    browser = GateBrowser(runs["moe"])
    workspace = runs["moe"].config.workspace
    broken = workspace.rgb / "pull" / "ep_2" / "step_0005.png"
    kept = broken.read_bytes()
    broken.write_bytes(b"damaged")
    try:
        browser.task.value, browser.episode.value, browser.step.value = "pull", "ep_2", 5
        assert "step_0005.png" in browser.said.value
    finally:
        broken.write_bytes(kept)
    browser.step.value = 6
    assert "leads at" in browser.said.value and "step_0006" in browser.name.value
