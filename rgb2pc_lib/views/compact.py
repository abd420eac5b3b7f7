"""Pictures of a compact student: what it sees, how its training went, and the ledger of all hops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rgb2pc_lib.deploy.compact import CompactRun
from rgb2pc_lib.deploy.compress import augmented
from rgb2pc_lib.judging.ledger import COSTS, FUSED, PLACES, TEACHER, compact_hops, expert_hops
from rgb2pc_lib.judging.probes import PROBES
from rgb2pc_lib.learning.metrics import unit
from rgb2pc_lib.views.curves import side_of
from rgb2pc_lib.views.plots import LINES, MARKS, colour

_FLOOR = -0.3  # of R2 that is drawn
_COMPACTS = ["#aa3377", "#228833", "#ccbb44", "#66ccee"]  # Tol's bright scheme


def hop_colour(name: str, table: pd.DataFrame) -> str:
    """The colour of a hop: teacher and experts as everywhere, the fused student blue, compact students on their own."""
    compacts = compact_hops(table)
    base = name.removesuffix(", ONNX")
    if base in compacts:
        return _COMPACTS[compacts.index(base) % len(_COMPACTS)]
    return "#0072b2" if name == FUSED else colour(name, expert_hops(table))


def pixels_figure(pixels: np.ndarray, keys: pd.DataFrame, seed: int = 0) -> Figure:
    """Frames `[n, S, S, 3]` as they are decoded (above) and as two batches see them (below)."""
    figure = Figure(figsize=(1.7 * len(pixels), 5.4), layout="constrained")
    axes = figure.subplots(3, len(pixels), squeeze=False)
    images = torch.from_numpy(np.ascontiguousarray(pixels)).float()
    drawn = [augmented(images, np.random.default_rng([seed, i])) for i in range(2)]
    for row, (label, batch) in enumerate(zip(("as decoded", "one draw", "another"), [images, *drawn], strict=True)):
        for column, image in enumerate(batch):
            axes[row, column].imshow(image.round().byte().numpy())
            axes[row, column].set(xticks=[], yticks=[])
        axes[row, 0].set_ylabel(label)
    for column, task in enumerate(keys["task"]):
        axes[0, column].set_title(task, fontsize=8)
    figure.suptitle(f"What the compact student sees, {pixels.shape[1]} pixels", fontsize=10)
    return figure


def targets_figure(embeddings: np.ndarray, keys: pd.DataFrame, most: int = 400) -> Figure:
    """Cosine similarity of the targets of at most `most` steps, sorted by task, episode and time."""
    order = keys.sort_values(["task", "episode", "time"]).index.to_numpy()
    order = order[:: int(np.ceil(len(order) / most))]
    shown, tasks = unit(embeddings[order]), keys.loc[order, "task"].to_numpy()
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shown @ shown.T, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    edges = np.flatnonzero(np.r_[True, tasks[1:] != tasks[:-1]])
    centres = (np.r_[edges[1:], len(tasks)] + edges) / 2 - 0.5
    axes.set_yticks(centres, tasks[edges], fontsize=8)
    axes.set(xticks=[], title="Targets of steps, side by side")
    figure.colorbar(picture, ax=axes, label="cosine", shrink=0.9)
    return figure


def curves_figure(runs: dict[str, CompactRun]) -> Figure:
    """Loss over the steps, and agreement with the fused student where it was measured: on frames for validation."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    loss, agreement = figure.subplots(1, 2)
    sides: list[str] = []
    for i, (name, run) in enumerate(runs.items()):
        rows = run.metrics()
        style: dict[str, Any] = {"color": _COMPACTS[i % len(_COMPACTS)], "ls": LINES[i % len(LINES)], "label": name}
        loss.plot(rows["step"], rows["loss"], lw=1.5, **style)
        column = f"{side_of(rows)}/cosine"
        sides.append(side_of(rows))
        seen = rows.dropna(subset=column)
        agreement.plot(seen["step"], seen[column], marker=MARKS[i % len(MARKS)], ms=5, **style)
    loss.set(xlabel="step", ylabel="loss", yscale="log", title="Training loss")
    agreement.set(xlabel="step", ylabel="mean cosine", ylim=(0, 1))
    agreement.set_title(f"Agreement with the fused student, {' and '.join(dict.fromkeys(sides))} frames")
    loss.legend(frameon=False, fontsize=8)
    for axes in (loss, agreement):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _probe_panel(axes: Axes, wide: pd.DataFrame, shown: dict[str, str], experts: list[str]) -> None:
    """R2 of the measures of `wide`, of each hop that has them, in its colour."""
    for i, (hop, tint) in enumerate(shown.items()):
        x = np.arange(len(wide)) + (i - (len(shown) - 1) / 2) * 0.1
        big: dict[str, Any] = {"s": 34, "alpha": 0.7} if hop in experts else {"s": 75}
        label = f"{hop}, pooled" if hop in experts else hop
        axes.scatter(x, wide[hop].clip(_FLOOR), color=tint, label=label, marker=MARKS[i % len(MARKS)], **big)
    axes.axhline(0, color="0.8", lw=1, zorder=0)
    for edge in np.arange(len(wide) - 1) + 0.5:
        axes.axvline(edge, color="0.92", lw=1, zorder=0)
    axes.set_xticks(range(len(wide)), [m.removeprefix("R2 ").removeprefix(PLACES) for m in wide.index], fontsize=9)
    axes.set_ylabel(f"within-task R²\n(least drawn: {_FLOOR})")


def ledger_figure(table: pd.DataFrame) -> Figure:
    """Probes of embeddings and, where there are any, of spatial tokens; retrieval and costs of every hop."""
    wide = table.pivot_table(index="measure", columns="hop", values="value", sort=False)
    compacts, experts = compact_hops(table), expert_hops(table)
    told = [f"R2 {p}" for p in PROBES if f"R2 {p}" in wide.index]
    places = [f"R2 {PLACES}{p}" for p in PROBES if f"R2 {PLACES}{p}" in wide.index]
    figure = Figure(figsize=(11, 11 if places else 8), layout="constrained")
    panels = figure.subplot_mosaic("pp;ss;rc" if places else "pp;rc")
    search, cost = panels["r"], panels["c"]
    shown = {hop: hop_colour(hop, table) for hop in (TEACHER, *experts, FUSED, *compacts)}
    _probe_panel(panels["p"], wide.loc[told], shown, experts)
    panels["p"].set_title("Linear probes of the embedding, held-out episodes")
    if places:
        _probe_panel(panels["s"], wide.loc[places], shown, experts)
        panels["s"].set_title("The same probes of 4 x 4 spatial tokens, as so many principal components")
    lowest = panels["s" if places else "p"]
    handles, labels = panels["p"].get_legend_handles_labels()
    lowest.legend(handles, labels, fontsize=8, ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)

    names = [FUSED, *compacts]
    for i, hop in enumerate(names):
        for measure, marker in (("R@1", "o"), ("R@5", "s"), ("R@10", "^")):
            value = wide.at[measure, hop]
            search.plot(value, i, marker, ms=9, color=hop_colour(hop, table))
            above = measure != "R@10"  # it stands close to R@5
            place: dict[str, Any] = {"va": "bottom" if above else "top", "ha": "center", "fontsize": 8}
            search.text(value, i + (-0.14 if above else 0.16), f"{value:.2f}", **place)
    for measure, marker in (("R@1", "o"), ("R@5", "s"), ("R@10", "^")):
        search.plot([], [], marker, color="0.3", label=measure)
    search.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    search.set_yticks(range(len(names)), names)
    search.set(xlim=(0, 1.03), ylim=(len(names) - 0.5, -0.6), xlabel="share of held-out steps")
    search.set(title="The own cloud found from RGB")

    times = wide.loc[COSTS[1]].dropna()
    for i, (hop, value) in enumerate(times.items()):
        cost.barh(i, value, color=hop_colour(hop, table), height=0.55, alpha=0.6 if hop.endswith("ONNX") else 1)
        size, memory = wide.at[COSTS[0], hop], wide.at[COSTS[2], hop]
        more = "" if np.isnan(size) else f"\n{size:.1f} M parameters, {memory:.0f} MB"
        cost.text(value * 1.1, i, f"{value:.1f} ms{more}", va="center", fontsize=8)
    cost.set_yticks(range(len(times)), times.index)
    cost.set(xscale="log", xlim=(times.min() / 2, times.max() * 12), ylim=(len(times) - 0.5, -0.6))
    cost.set(xlabel="CPU ms a frame, one thread, log scale", title="From a frame to its embedding")
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
    return figure
