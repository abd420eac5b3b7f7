"""Correspondence on paper: similarity over image and cloud, spread labels, painted clouds, and their figures."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from rgb2pc_lib.judging.correspondence import (
    ALIGNED,
    BOTH,
    COLOUR,
    FUSED,
    PIXELS,
    POINTS,
    TO_CLOUD,
    TO_IMAGE,
    Matcher,
    clicks,
    examples,
    namer,
    painter,
    spread,
    summary,
)
from rgb2pc_lib.learning.places import TOLERANCE
from rgb2pc_lib.views.look import plain
from rgb2pc_lib.views.plots import MARKS, colour

HEAT = matplotlib.colormaps["inferno"]
LABELS = {"background": "#dddddd", "table": "#b8b8b8", "robot": "#0072b2", "object": "#e69f00",
          "distractor": "#cc79a7", "goal": "#009e73"}  # fmt: skip
_TO_CLOUD, _TO_IMAGE = f"aligned, {TO_CLOUD}", f"aligned, {TO_IMAGE}"
_OURS = {FUSED: "#d55e00", POINTS: "#7f1d1d", COLOUR: "#444444", "nearest pixel": "#999999",
         _TO_CLOUD: "#d55e00", _TO_IMAGE: "#d55e00", ALIGNED: "#d55e00", BOTH: "#7f1d1d"}  # fmt: skip


def tint(name: str, experts: list[str]) -> str:
    """The colour of a kind of features or a model: ours, else an expert's."""
    return _OURS.get(name) or colour(name, experts)


def heat(similarity: np.ndarray) -> np.ndarray:
    """Similarities of one map -> 0 to 1 between their median and their maximum: what stands out is bright."""
    low, high = np.median(similarity), similarity.max()
    return ((similarity - low) / max(high - low, 1e-9)).clip(0, 1)


def heated(image: np.ndarray | None, similarity: np.ndarray, size: tuple[int, int], scale: int = 2) -> np.ndarray:
    """A similarity map `[H, W]` over its grey image of `size` (height, width), uint8 `[scale * height, ...]`."""
    shape = (scale * size[1], scale * size[0])
    warm = Image.fromarray((255 * heat(similarity)).astype(np.uint8)).resize(shape, Image.Resampling.BILINEAR)
    share = np.asarray(warm)[..., None] / 255
    if image is None:
        return (HEAT(share[..., 0])[..., :3] * 255).astype(np.uint8)
    grey = np.asarray(Image.fromarray(image).convert("L").resize(shape))[..., None] * 0.6
    return (grey * (1 - 0.85 * share) + 255 * HEAT(share[..., 0])[..., :3] * 0.85 * share).clip(0, 255).astype(np.uint8)


def cloud_axes(axes, xyz: np.ndarray, colours, title: str, size: float = 4.0) -> None:
    """Points in the world's frame, seen about as the camera sees them."""
    axes.scatter(*xyz.T, c=colours, s=size, depthshade=False, linewidths=0, rasterized=True)
    axes.view_init(elev=40, azim=-35)
    axes.set_box_aspect([max(np.ptp(v), 1e-6) for v in xyz.T], zoom=1.5)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9)


def dots(axes, table: pd.DataFrame, experts: list[str], label: str) -> None:
    """One line a row of `summary`'s table: mean and 95 % interval, in the row's colour."""
    for i, (name, row) in enumerate(table.iterrows()):
        paint = tint(name, experts)
        axes.plot([row["low"], row["high"]], [i, i], color=paint, lw=4, alpha=0.35, solid_capstyle="butt")
        axes.plot(row["mean"], i, "o", ms=8, color=paint)
        axes.annotate(
            f"{row['mean']:.2f}", (row["mean"], i), (0, 7), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yticks(range(len(table)), table.index)
    axes.set(ylim=(len(table) - 0.4, -0.7), xlim=(0, 1), xlabel=label)
    axes.spines[["top", "right"]].set_visible(False)


def outstanding(matcher: Matcher, sample: int) -> int:
    """A point worth looking at: the labelled object's nearest to the middle of its points, else the highest point."""
    step = matcher.step(sample)
    if step.labels is None or "object" not in matcher.label_names:
        return int(step.xyz[:, 2].argmax())
    mine = np.flatnonzero(step.labels == matcher.label_names.index("object"))
    if not len(mine):
        return int(step.xyz[:, 2].argmax())
    return int(mine[np.linalg.norm(step.uv[mine] - np.median(step.uv[mine], 0), axis=1).argmin()])


def meeting_axes(axes, table: pd.DataFrame, experts: list[str]) -> None:
    """Point-to-patch retrieval of every model (dots: seeds), with its control and chance."""
    models = list(dict.fromkeys(table["model"]))
    for i, model in enumerate(models):
        rows, paint = table[table["model"] == model], tint(model, experts)
        axes.plot(rows["in another image"], [i] * len(rows), "|", ms=14, mew=2, color=paint)
        axes.plot(rows["point to patch"], [i] * len(rows), "o", ms=8, color=paint)
        mean = rows["point to patch"].mean()
        axes.annotate(f"{mean:.2f}", (mean, i), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.axvline(table["chance"].mean(), color="k", ls=":", lw=1)
    axes.set_yticks(range(len(models)), models)
    axes.set(ylim=(len(models) - 0.4, -0.7), xlim=(0, None))
    axes.set(xlabel=f"share of held-out points whose patch is found, within {TOLERANCE:.0f} px\n"
                    "tick: found in another episode's image; dotted: chance")  # fmt: skip
    axes.set_title("A point finds its patch")
    axes.spines[["top", "right"]].set_visible(False)


def patches_figure(matcher: Matcher, table: pd.DataFrame, samples: list[int]) -> Figure:
    """Steps as rows: a point in the cloud, its similarity over the image, the reverse; and how often it works."""
    figure = Figure(figsize=(13, 3.2 * len(samples)), layout="constrained")
    grid = figure.add_gridspec(len(samples), 4, width_ratios=[1, 1, 1, 1.35])
    for i, sample in enumerate(samples):
        _draw_pick([(figure, grid[i, j]) for j in range(3)], matcher, sample, outstanding(matcher, sample))
    meeting_axes(figure.add_subplot(grid[:, 3]), table, matcher.experts)
    return figure


def pick_figure(matcher: Matcher, sample: int, point: int) -> Figure:
    """One point of one step: where it is seen, what looks like it in the image, and what looks like its pixel."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    grid = figure.add_gridspec(1, 3)
    _draw_pick([(figure, grid[0, j]) for j in range(3)], matcher, sample, point)
    return figure


def _draw_pick(cells: list, matcher: Matcher, sample: int, point: int) -> None:
    step, size, image = matcher.step(sample), matcher.reader.size(sample), matcher.image(sample)
    uv, found = step.uv[point], matcher.found_patch(sample, point)
    where = plain(" / ".join(matcher.keys.loc[sample, ["task", "episode", "step"]]))
    seen, over = (figure.add_subplot(place) for figure, place in cells[:2])
    seen.imshow(np.full((*size, 3), 235, np.uint8) if image is None else image)
    seen.set_title(f"{where}\npoint {point}", fontsize=8)
    over.imshow(heated(image, matcher.image_map(sample, point), size), extent=_extent(size))
    over.plot(*found, "x", ms=9, mec="#56b4e9", mew=2.5)
    said = f"x: found, {np.linalg.norm(found - uv):.0f} px off"
    over.set_title(f"similar to the circled point\n{said}", fontsize=8)
    for axes in (seen, over):
        axes.plot(*uv, "o", ms=13, mfc="none", mec="w", mew=2.5)
        axes.axis("off")
    figure, place = cells[2]
    space = figure.add_subplot(place, projection="3d")
    similar = matcher.cloud_map(sample, uv)
    cloud_axes(space, step.xyz, HEAT(0.92 * heat(similar)), "similar to the circled pixel")
    space.plot(*step.xyz[[point]].T, "o", ms=13, mfc="none", mec="#0072b2", mew=2.5)


def _extent(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Where `imshow` puts a scaled picture so that pixel indices fit."""
    return -0.5, size[1] - 0.5, size[0] - 0.5, -0.5


def spreading_figure(matcher: Matcher, table: pd.DataFrame, sample: int, count: int = 5) -> Figure:
    """Clicks in one image, the cloud they name, the truth; beside them mean IoU by target."""
    figure = Figure(figsize=(15, 7.4), layout="constrained")
    grid = figure.add_gridspec(2, 4, height_ratios=[1, 1.1])
    step = matcher.step(sample)
    chosen = clicks(step, count, np.random.default_rng(0))
    paints = np.array([LABELS.get(n, "#000000") for n in matcher.label_names])
    axes = figure.add_subplot(grid[0, 0])
    axes.imshow(matcher.frame(sample))
    u, v = step.uv[chosen].T
    axes.scatter(u, v, c=paints[step.truth[chosen]], s=45, edgecolors="w", linewidths=1)
    axes.axis("off")
    axes.set_title(plain(" / ".join(matcher.keys.loc[sample, ["task", "episode"]])) + f"\n{count} clicks a label",
                   fontsize=10)  # fmt: skip
    named = step.truth[chosen]
    said = {
        "the cloud, named by the aligned features": spread(step.features[FUSED][chosen], named, step.features[POINTS]),
        "by nearest colour": spread(step.features[COLOUR][chosen], named, step.features[COLOUR]),
        "the simulator's labels": step.truth,
    }
    for i, (title, labels) in enumerate(said.items()):
        cloud_axes(figure.add_subplot(grid[0, i + 1], projection="3d"), step.xyz, paints[labels], title)
    handles = [Line2D([], [], marker="o", ls="", color=LABELS[matcher.label_names[c]], label=matcher.label_names[c])
               for c in np.unique(step.truth)]  # fmt: skip
    legend = figure.add_subplot(grid[1, 3])
    legend.axis("off")
    legend.legend(handles=handles, fontsize=9, loc="upper left", frameon=False)
    words = "image to cloud: clicked pixels name points\ncloud to image: clicked points name pixels\n"
    legend.text(0.02, 0.45, words + "the others: features at the points' pixels,\non both sides", fontsize=9, va="top")
    rows = summary(table, ["target", "direction", "method"], "iou")
    for i, target in enumerate(dict.fromkeys(table["target"])):
        axes = figure.add_subplot(grid[1, i])
        lines = rows.loc[target]
        across = lines.loc[[TO_CLOUD, TO_IMAGE]].droplevel("method")
        shown = pd.concat([across, lines.loc[PIXELS]])
        shown = shown.rename({TO_CLOUD: _TO_CLOUD, TO_IMAGE: _TO_IMAGE})
        dots(axes, shown, matcher.experts, "mean IoU, 95 % over episodes")
        axes.set_title(f"named: {target}", fontsize=10)
        axes.tick_params(labelleft=i == 0)
    return figure


def painted_figure(matcher: Matcher, table: pd.DataFrame, samples: list[int], features: str = FUSED) -> Figure:
    """Clouds painted by the principal components of their aligned features, named by neighbours, and the truth."""
    figure = Figure(figsize=(15, 3.5 * len(samples)), layout="constrained")
    grid = figure.add_gridspec(len(samples), 4, width_ratios=[1, 1, 1, 1.1])
    train = examples(matcher, matcher.data.training)
    paint, known = painter(train, features), namer(train, features)
    paints = np.array([LABELS.get(n, "#000000") for n in matcher.label_names])
    for i, sample in enumerate(samples):
        step = matcher.step(sample)
        where = plain(" / ".join(matcher.keys.loc[sample, ["task", "episode", "step"]]))
        shown = {
            f"{where}\n{features}, three components": paint(step.features[features]),
            "named by 15 neighbours of training episodes": paints[known.predict(step.features[features])],
            "the simulator's labels": paints[step.truth],
        }
        for j, (title, colours) in enumerate(shown.items()):
            cloud_axes(figure.add_subplot(grid[i, j], projection="3d"), step.xyz, colours, title)
    axes = figure.add_subplot(grid[:, 3])
    dots(
        axes, summary(table, ["features"], "iou"), matcher.experts, "mean IoU on held-out episodes, 95 % over episodes"
    )
    axes.set_title("kNN segmentation of points", fontsize=10)
    return figure


def again_figure(table: pd.DataFrame, experts: list[str], title: str = "") -> Figure:
    """How often a point is found again in another step, by features: what stood still, and what the gripper carried."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    rows = summary(table, ["points", "features"], "found")
    for axes, what in zip(figure.subplots(1, 2), ("still", "gripper"), strict=True):
        part = table[table["points"] == what]
        if what in rows.index:
            dots(axes, rows.loc[what], experts, "share found within 3 cm, 95 % over episodes")
            axes.axvline(part["chance"].mean(), color="k", ls=":", lw=1)
        name = {"still": "points that stood still", "gripper": "points that the gripper carried"}[what]
        axes.set_title(f"{name} (n = {part['pairs'].sum():,}; dotted: chance)", fontsize=10)
    figure.suptitle(title, fontsize=11)
    return figure


def both_figure(closed: pd.DataFrame, seeds: int) -> Figure:
    """Gap closed by distillation with and without the geometric term, from `evaluate.gap_closed`."""
    measures = [m for m, rows in closed.groupby("measure", sort=False) if rows["closed"].notna().any()]
    figure = Figure(figsize=(8, 0.42 * len(measures) + 1.6), layout="constrained")
    axes = figure.subplots()
    students = list(dict.fromkeys(closed["student"]))
    for k, student in enumerate(students):
        rows = closed[closed["student"] == student].set_index("measure").loc[measures]
        y = np.arange(len(measures)) + (k - (len(students) - 1) / 2) * 0.28
        error = np.array([rows["closed"] - rows["low"], rows["high"] - rows["closed"]])
        axes.errorbar(rows["closed"], y, xerr=error, fmt=MARKS[k], capsize=3, color=tint(student, []), label=student)
    axes.axvline(0, color="0.6", lw=1)
    axes.axvline(1, color="k", lw=1)
    axes.set_yticks(range(len(measures)), measures)
    axes.invert_yaxis()
    axes.set(xlabel=f"gap closed: 0 = best single expert, 1 = teacher (95 % interval, {seeds} seeds)")
    axes.legend(fontsize=9, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
