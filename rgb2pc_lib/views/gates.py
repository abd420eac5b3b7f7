"""Pictures of the gates: over the image, on the points, over training, by task and progress, and what each is worth.

A gate is always drawn on one fixed scale from 0 to 1, so that pictures of different experts, steps and runs compare.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image, ImageDraw, ImageFont

from rgb2pc_lib.checks.sources import rgb_file, step_cloud
from rgb2pc_lib.data.clouds import Cloud
from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.gates import GateReader, entropy, gate_means, variation
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.look import MOST_POINTS, cloud_scene, plain
from rgb2pc_lib.views.plots import MARKS, colour, line, mark

SCALE = matplotlib.colormaps["viridis"]  # of a gate, always from 0 to 1
LEADING = "leading expert"  # the view in which every place has the colour of its largest gate
OPACITY = 0.65


# -- one step


def rgb_of(reader: GateReader, task: str, episode: str, step: str) -> np.ndarray:
    """uint8 `[H, W, 3]`: the RGB frame of a step, or an even grey where the workspace names no RGB."""
    file = rgb_file(reader.run.config.workspace, task, episode, step)
    return read_image(file) if file else np.full((224, 224, 3), 160, np.uint8)


def gate_colours(gates: np.ndarray, experts: Sequence[str], view: str) -> np.ndarray:
    """Colours `[..., 3]` in 0..1 of gates `[..., M]`: one expert's on the fixed scale, or the leading expert's own.

    Places that no expert covers are white in the leading view.
    """
    if view != LEADING:
        return SCALE(gates[..., list(experts).index(view)])[..., :3]
    palette = np.array([to_rgb(colour(name, list(experts))) for name in experts])
    return np.where(gates.any(-1, keepdims=True), palette[gates.argmax(-1)], 1.0)


def painted(image: np.ndarray, gates: np.ndarray, experts: Sequence[str], view: str, opacity: float) -> np.ndarray:
    """Gates `[h, w, M]` over the grey image: uint8 `[H, W, 3]`. Every place of the lattice is one square.

    In the leading view each expert's places bear its number, 1 for the first.
    """
    grey = (image.astype(float) @ [0.299, 0.587, 0.114])[..., None] / 255
    small = (255 * gate_colours(gates, experts, view)).round().astype(np.uint8)
    large = np.asarray(Image.fromarray(small).resize(image.shape[1::-1], Image.Resampling.NEAREST)) / 255
    out = (255 * ((1 - opacity) * grey + opacity * large)).round().astype(np.uint8)
    return _numbered(out, gates) if view == LEADING else out


def _numbered(picture: np.ndarray, gates: np.ndarray) -> np.ndarray:
    """The leading experts' places with their numbers, each at the place nearest to the middle of its own."""
    drawn = Image.fromarray(picture)
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=max(len(picture) // 14, 8))
    leads, cell = np.where(gates.any(-1), gates.argmax(-1), -1), np.divide(picture.shape[:2], gates.shape[:2])
    for m in range(gates.shape[-1]):
        mine = np.argwhere(leads == m)
        if len(mine):
            row, column = (mine[np.linalg.norm(mine - mine.mean(0), axis=1).argmin()] + 0.5) * cell
            pen.text((column, row), str(m + 1), "white", font, "mm", stroke_width=2, stroke_fill="black")
    return np.asarray(drawn)


def gate_figure(reader: GateReader, task: str, episode: str, step: str, opacity: float = OPACITY) -> Figure:
    """The gates of one step: the image, one panel an expert, and which expert leads where."""
    image, gates = rgb_of(reader, task, episode, step), reader.map(task, episode, step)
    views = [*reader.experts, LEADING]
    figure = Figure(figsize=(2.45 * (len(views) + 1) + 0.6, 3.1), layout="constrained")
    panels = figure.subplots(1, len(views) + 1)
    panels[0].imshow(image)
    panels[0].set_title("RGB", fontsize=10)
    for axes, view in zip(panels[1:], views, strict=True):
        axes.imshow(painted(image, gates, reader.experts, view, opacity), interpolation="nearest")
        mean = "" if view == LEADING else f", mean {gates[..., reader.experts.index(view)].mean():.2f}"
        axes.set_title(plain(view + mean), fontsize=10)
    for axes in panels:
        axes.axis("off")
    _scale_bar(figure, list(panels[:-1]))
    _legend(figure, reader.experts)
    figure.suptitle(plain(f"Gates of {reader.run.name} at {task} / {episode} / {step}"), fontsize=11)
    return figure


def strip_figure(reader: GateReader, task: str, episode: str, columns: int = 6, opacity: float = OPACITY) -> Figure:
    """How the gates move through an episode: one row an expert, one column a step, evenly spaced in time."""
    rows = reader.keys[(reader.keys["task"] == task) & (reader.keys["episode"] == episode)]
    if rows.empty:
        raise InputError(f"{reader.run.folder}: its data hold no episode {task}/{episode}")
    chosen = rows.iloc[np.unique(np.linspace(0, len(rows) - 1, columns).round().astype(int))]
    maps = reader.maps(chosen.index.to_numpy())
    views = [*reader.experts, LEADING]
    figure = Figure(figsize=(1.75 * len(chosen) + 1.2, 1.75 * len(views) + 0.9), layout="constrained")
    panels = figure.subplots(len(views), len(chosen), squeeze=False)
    for j, (step, gates) in enumerate(zip(chosen["step"], maps, strict=True)):
        image = rgb_of(reader, task, episode, step)
        panels[0, j].set_title(plain(step), fontsize=9)
        for axes, view in zip(panels[:, j], views, strict=True):
            axes.imshow(painted(image, gates, reader.experts, view, opacity), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if j == 0:
                axes.set_ylabel(plain(view), fontsize=10)
    _scale_bar(figure, list(panels[:-1].ravel()))
    _legend(figure, reader.experts)
    figure.suptitle(plain(f"Gates of {reader.run.name} through {task} / {episode}"), fontsize=11)
    return figure


def _scale_bar(figure: Figure, axes: list) -> None:
    figure.colorbar(ScalarMappable(Normalize(0, 1), SCALE), ax=axes, label="gate (share of trust)", fraction=0.03)


def _legend(figure: Figure, experts: Sequence[str]) -> None:
    handles = [Patch(color=colour(e, list(experts)), label=plain(f"{i} {e}")) for i, e in enumerate(experts, 1)]
    figure.legend(handles=handles, loc="outside lower right", ncols=min(len(experts), 6), frameon=False, fontsize=9,
                  title="colours of the leading expert", title_fontsize=9)  # fmt: skip


# -- in space


def gates_at_points(cloud: Cloud, gates: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Gates `[N, M]` of the points, looked up at their pixels in an image of height and width `shape`.

    Points outside the image get zeros. Raises InputError for a cloud whose pixels are unknown.
    """
    if cloud.uv is None:
        raise InputError("the cloud has no uv: gates live in the image, and nothing ties its points to pixels")
    size = np.array([shape[1], shape[0]])
    at = (np.floor(cloud.uv) + 0.5) / size  # [N, 2] fractions of the image
    inside = ((at >= 0) & (at < 1)).all(1)
    column, row = (at.clip(0, 1 - 1e-6) * (gates.shape[1], gates.shape[0])).astype(int).T
    return gates[row, column] * inside[:, None]


def cloud_marks(reader: GateReader, task: str, episode: str, step: str, view: str, gates=None) -> tuple[Cloud, dict]:
    """The step's cloud, and properties of a plotly Scatter3d that paint it with its gates.

    Raises InputError where the step has no cloud, or one without pixels.
    """
    found = step_cloud(reader.run.config.workspace, reader.data.samples.pairing, task, episode, step)
    if found is None:
        raise InputError(f"{task}/{episode}/{step}: neither the teacher's files nor the workspace hold its points")
    cloud = found[0]
    keep = slice(None, None, max(-(-len(cloud) // MOST_POINTS), 1))
    cloud = Cloud(cloud.xyz[keep], None, None if cloud.uv is None else cloud.uv[keep])
    gates = reader.map(task, episode, step) if gates is None else gates
    values = gates_at_points(cloud, gates, rgb_of(reader, task, episode, step).shape[:2])  # [N, M]
    colours = (255 * gate_colours(values, reader.experts, view)).round().astype(np.uint8)
    x, y, z = cloud.xyz.round(4).T
    said = [", ".join(f"{e} {v:.2f}" for e, v in zip(reader.experts, row, strict=True)) for row in values]
    return cloud, {"x": x, "y": y, "z": z, "marker.color": [f"#{c.tobytes().hex()}" for c in colours], "text": said}


def gate_cloud(reader: GateReader, task: str, episode: str, step: str, view: str) -> go.Figure:
    """The gates of one expert (or `LEADING`) on the points of a step, in metres, on the fixed scale from 0 to 1."""
    cloud, marks = cloud_marks(reader, task, episode, step, view)
    figure = cloud_canvas()
    figure.data[0].update(marks)
    shown = [view] if view != LEADING else []
    name = f"gate of {view}" if shown else "leading expert"
    figure.update_layout(scene=cloud_scene(cloud), title=f"{name}: {task} / {episode} / {step}", height=460)
    if not shown:
        for e in reader.experts:
            mark = {"size": 8, "color": colour(e, reader.experts)}
            figure.add_scatter3d(x=[None], y=[None], z=[None], mode="markers", marker=mark, name=e)
        figure.update_layout(showlegend=True)
        figure.data[1].marker.showscale = False
    return figure


def cloud_canvas() -> go.Figure:
    """An empty plotly scene for painted points, with the scale of a gate beside it."""
    stops = [[i / 8, matplotlib.colors.to_hex(SCALE(i / 8))] for i in range(9)]
    bar = {"colorscale": stops, "cmin": 0, "cmax": 1, "color": [0], "showscale": True, "size": 0.01,
           "colorbar": {"title": "gate", "thickness": 12, "len": 0.8}}  # fmt: skip
    points = go.Scatter3d(mode="markers", marker={"size": 2.5}, hovertemplate="%{text}<extra></extra>",
                          showlegend=False)  # fmt: skip
    scale = go.Scatter3d(x=[None], y=[None], z=[None], mode="markers", marker=bar, showlegend=False, hoverinfo="skip")
    return go.Figure([points, scale], {"margin": {"l": 0, "r": 0, "t": 40, "b": 0}, "template": "plotly_white",
                                       "uirevision": "kept", "showlegend": False})  # fmt: skip


# -- over training, tasks and progress


def weights_figure(students: dict[str, Sequence[Run]]) -> Figure:
    """Mean gate of each expert over training, one panel a student: `{"moe": [run of seed 0, run of seed 1], ...}`.

    Thick: mean over the runs; thin: each of them.
    """
    experts = sorted({name for runs in students.values() for run in runs for name in run.config.vis_roots})
    figure = Figure(figsize=(4.2 * len(students) + 0.8, 3.9), layout="constrained")
    panels = figure.subplots(1, len(students), sharey=True, squeeze=False)[0]
    for axes, (name, runs) in zip(panels, students.items(), strict=True):
        tables = [run.metrics().drop_duplicates("step", keep="last").set_index("step").sort_index() for run in runs]
        for expert in experts:
            lines = pd.concat([t[f"gate/{expert}"] for t in tables if f"gate/{expert}" in t], axis=1)
            style = {"color": colour(expert, experts), "ls": line(expert, experts)}
            axes.plot(lines.index, lines.to_numpy(), lw=0.8, alpha=0.5, **style)
            axes.plot(lines.mean(axis=1), lw=2.4, label=plain(expert), **style)
        axes.axhline(1 / len(experts), color="0.6", lw=1, ls=":")
        axes.set(xlabel="training step", ylim=(0, 1), title=plain(name))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("mean gate over a training batch")
    panels[0].legend(fontsize=9, ncols=2, loc="upper left", frameon=False)
    seeds = ", ".join(f"{len(runs)} of {plain(name)}" for name, runs in students.items())
    figure.supxlabel(f"thick: mean over seeds, thin: one seed (seeds: {seeds}); dotted: equal trust", fontsize=9)
    return figure


def statistics_figure(run: Run, bins: int = 5) -> Figure:
    """Mean gates by task (a table in colours) and over the progress of an episode, with intervals over episodes."""
    by_task, by_progress = gate_means(run), gate_means(run, "progress", bins)
    experts = list(by_task["expert"].unique())
    table = by_task.pivot(index="group", columns="expert", values="mean")[experts]
    figure = Figure(figsize=(12, 1.7 + max(0.34 * len(table), 2.4)), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(table, SCALE, vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(table.to_numpy()):
        left.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color="k" if value > 0.55 else "w")
    left.set_xticks(range(len(experts)), [plain(e) for e in experts])
    counts = by_task.groupby("group")["episodes"].first()
    left.set_yticks(range(len(table)), [plain(f"{t} ({counts[t]})") for t in table.index])
    left.set_title("Mean gate by task (episodes)")
    left.spines[:].set_visible(False)
    left.tick_params(length=0)
    for expert in experts:
        rows = by_progress[by_progress["expert"] == expert]
        error = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        right.errorbar(rows["group"], rows["mean"], yerr=error, fmt=f"{mark(expert, experts)}-", capsize=3,
                       color=colour(expert, experts), label=plain(expert))  # fmt: skip
    right.set(xlabel="progress (share of the episode that is over)", ylabel="mean gate", xlim=(0, 1), ylim=(0, 1),
              title="Mean gate by progress, 95 % interval over episodes")  # fmt: skip
    right.legend(fontsize=9, ncols=2, frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    _scale_bar(figure, [left])
    figure.suptitle(plain(f"{run.name}: all {len(run.embeddings()['time'])} steps"), fontsize=11)
    return figure


def spread_figure(maps: dict[str, np.ndarray], keys: pd.DataFrame) -> Figure:
    """How decided the gates are, and where they change, for `{"moe": gates [n, H, W, M], ...}`.

    Left: the normalised entropy of every place. Right: shares of the gates' variance, see `gates.variation`.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    edges = np.linspace(0, 1, 41)
    shares = pd.DataFrame({name: variation(m, keys) for name, m in maps.items()})
    for name, m in maps.items():
        values = entropy(m.reshape(-1, m.shape[-1]))
        if values.std() < 0.01:  # a single bar would flatten all others
            left.axvline(values.mean(), color=colour(name, []), lw=2, label=f"{name}, {values.mean():.2f} everywhere")
            continue
        weights = np.full(len(values), 1 / len(values))
        left.hist(values, edges, weights=weights, color=colour(name, []), alpha=0.6,
                  label=f"{name}, mean {values.mean():.2f}")  # fmt: skip
    left.set(xlabel="entropy (0: one expert decides, 1: all equal)", ylabel="share of places", xlim=(0, 1.02),
             title="How decided is each place?")  # fmt: skip
    left.legend(fontsize=9, frameon=False)
    tints = matplotlib.colormaps["cividis"](np.linspace(0.05, 0.95, len(shares)))
    start = np.zeros(len(maps))
    for (part, values), tint in zip(shares.iterrows(), tints, strict=True):
        right.barh(list(maps), values, left=start, color=tint, label=part, height=0.55)
        start += values.to_numpy()
    for i, name in enumerate(maps):
        if not shares[name].any():
            right.text(0.02, i, "the gates hardly change", va="center", fontsize=9, color="0.4")
    right.set(xlim=(0, 1), xlabel="share of the gates' variance", title="Where do the gates change?")
    right.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, -0.5), frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def switch_off_figure(costs: dict[str, pd.DataFrame], gates: dict[str, dict[str, float]], measure: str, n: int):
    """What an expert is worth to the trained student, beside how much it is trusted.

    `costs`: name of the student -> `gates.switch_off_cost`; `gates`: the same names -> mean gate of each expert; `n`:
    held-out samples behind each value.
    """
    experts = list(next(iter(gates.values())))
    first = next(iter(costs.values()))
    seeds = int(first["seeds"].iloc[0])
    figure = Figure(figsize=(12, 1.9 + 0.34 * len(first)), layout="constrained")
    level, scatter = figure.subplots(1, 2, width_ratios=[1.2, 1])
    for k, (name, cost) in enumerate(costs.items()):
        y = np.arange(len(cost)) + (k - (len(costs) - 1) / 2) * 0.26
        error = np.nan_to_num(np.array([cost["mean"] - cost["low"], cost["high"] - cost["mean"]]))
        level.errorbar(
            cost["mean"], y, xerr=error, fmt=MARKS[k % len(MARKS)], capsize=3, color=colour(name, experts), label=name
        )
        for e in experts:
            if f"without {e}" in cost.index:
                at = gates[name][e], -cost.loc[f"without {e}", "change"]
                scatter.scatter(*at, color=colour(e, experts), marker=MARKS[k % len(MARKS)], s=60)
    level.axhline(0.5, color="0.85", lw=1)
    level.axvline(0, color="0.6", lw=1)
    level.set_yticks(range(len(first)), [plain(c) for c in first.index])
    level.invert_yaxis()
    most = max(float(c[["mean", "high"]].max(axis=None)) for c in costs.values())
    title = "The trained student, with experts switched off"
    level.set(xlabel=f"held-out {measure}", xlim=(-0.02, min(1.02, 1.05 * most)), title=title)
    level.legend(fontsize=9)
    handles = [Patch(color=colour(e, experts), label=plain(e)) for e in experts]
    marks = [
        Line2D([], [], ls="", marker=MARKS[k % len(MARKS)], color="0.4", label=name) for k, name in enumerate(costs)
    ]
    scatter.legend(handles=[*handles, *marks], fontsize=9, ncols=2)
    scatter.axhline(0, color="0.6", lw=1)
    scatter.set(xlabel="mean gate on held-out steps", ylabel=f"{measure} lost without it", xlim=(0, 1),
                title="Is trust the same as worth?")  # fmt: skip
    for axes in (level, scatter):
        axes.spines[["top", "right"]].set_visible(False)
    said = f"bars: 95 % interval over {seeds} seeds" if seeds > 1 else "one seed: no intervals"
    figure.supxlabel(f"{said}; {n} held-out samples; nothing is trained again", fontsize=9)
    return figure
