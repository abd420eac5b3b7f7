"""Training curves of one or several runs, and the verdict over seeds, on paper."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from rgb2pc_lib.judging.verdicts import verdict
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.plots import LINES, colour, line

SIDES = ("validation", "held-out")  # what a curve is of; older runs and those without validation have the latter
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")  # plotly's names of `plots.LINES`
_SHORT = {
    "student_tokens": "tokens", "batch_size": "batch", "fuse_dim": "width", "loss_mse": "MSE", "expert_drop": "drop",
    "vis_roots": "experts", "tau": "τ",
}  # fmt: skip
_SILENT = ("fusion", "eval_every", "pc_root", "rgb_root", "camera_roots", "state_root", "cloud_root", "teacher_tag")


def labels(configs: Sequence[Config]) -> list[str]:
    """Names for a legend: the fusion, and every setting in which these runs differ.

    >>> labels([Config(fusion="moe", lr=0.01), Config(fusion="moe")])
    ['moe, lr 0.01', 'moe, lr 0.003']
    """
    differs = {k: None for config in configs for k in configs[0].changes(config) if k not in _SILENT}
    out = []
    for config in configs:
        said = [config.fusion]
        for key in differs:
            value = getattr(config, key)
            said.append(f"{_SHORT.get(key, key)} {'+'.join(value) if isinstance(value, (dict, tuple)) else value}")
        out.append(", ".join(said))
    return out


def styles(configs: Sequence[Config]) -> list[tuple[str, int]]:
    """(colour, number of the dash pattern) of each run: one colour per fusion, dashes by order within it."""
    seen: dict[str, int] = {}
    out = []
    for config in configs:
        n = seen.get(config.fusion, 0)
        seen[config.fusion] = n + 1
        out.append((colour(config.fusion, []), n % len(DASHES)))
    return out


def curves(rows: Sequence[dict] | pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows of metrics -> curve name -> (steps, values): "loss", "R@1", and "gate/<expert>"."""
    table = pd.DataFrame(rows).rename(columns={f"{side}/R@1": "R@1" for side in SIDES})
    wanted = [c for c in table if c in ("loss", "R@1") or c.startswith("gate/")]
    kept = {c: table[["step", c]].dropna() for c in wanted}
    return {c: (t["step"].to_numpy(), t[c].to_numpy(float)) for c, t in kept.items()}


def smoothed(values: np.ndarray, weight: float) -> np.ndarray:
    """`[n]` averaged with what came before, the last of it with weight `1 - weight`; 0 changes nothing.

    >>> smoothed(np.array([1.0, 1.0, 4.0]), 0.5).round(2).tolist()
    [1.0, 1.0, 2.71]
    """
    age = np.arange(len(values))
    weights = np.tril(weight ** np.maximum(age[:, None] - age, 0.0))  # [n, n]
    found: np.ndarray = weights @ values / weights.sum(1)
    return found


def side_of(rows: Sequence[dict] | pd.DataFrame) -> str:
    """Which samples the curves of some rows of metrics are of."""
    columns = pd.DataFrame(rows).columns
    return next((side for side in SIDES if any(c.startswith(f"{side}/") for c in columns)), SIDES[0])


def curves_figure(
    runs: Sequence[Run | tuple[Config, Sequence[dict]]], smoothing: float = 0.0, log: bool = False
) -> Figure:
    """Loss, retrieval on validation samples, and the mean gates of every run.

    A run is its folder, or its config and rows of metrics. `smoothing` and `log` are of the loss, see `smoothed`.

    >>> curves_figure([Run.open("runs/judge/moe-seed0")])  # doctest: +SKIP
    """
    pairs = [(r.config, r.metrics()) if isinstance(r, Run) else r for r in runs]
    configs = [config for config, _ in pairs]
    experts = sorted({name for c in configs for name in c.vis_roots})
    across = max(2, min(len(pairs), 4))
    below = -(-len(pairs) // across)
    figure = Figure(figsize=(12, 3.7 + 2.7 * below), layout="constrained")
    (top,), (bottom,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[3.7, 2.7 * max(below, 1)])
    loss, found = top.subplots(1, 2)
    gates = np.atleast_1d(bottom.subplots(max(below, 1), across, sharey=True)).ravel()
    names = labels(configs) if configs else []
    for (_, rows), name, (tint, dash) in zip(pairs, names, styles(configs), strict=True):
        drawn = curves(rows)
        steps, values = drawn.get("loss", ([], np.array([])))
        style = {"color": tint, "ls": LINES[dash], "label": name, "lw": 1.6}
        loss.plot(steps, smoothed(values, smoothing), **style)
        found.plot(*drawn.get("R@1", ([], [])), marker="o", ms=3.5, **style)
    said = f"smoothed by {smoothing:g}" if smoothing else "one batch a point"
    loss.set(xlabel="training step", ylabel="loss", title=f"Training loss ({said})", yscale="log" if log else "linear")
    sides = " and ".join(dict.fromkeys(side_of(rows) for _, rows in pairs)) or SIDES[0]
    found.set(xlabel="training step", ylabel="R@1", title=f"Own cloud ranked first, {sides} samples")
    found.set(xlim=(0, 1.03 * max((c.steps for c in configs), default=1)), ylim=(0, 1.08 * found.get_ylim()[1]))
    if pairs:
        loss.legend(fontsize=9, loc="upper right")
    for axes, (_, rows), name in zip(gates, pairs, names, strict=False):
        drawn = curves(rows)
        for expert in experts:
            if f"gate/{expert}" in drawn:
                style = {"color": colour(expert, experts), "ls": line(expert, experts)}
                axes.plot(*drawn[f"gate/{expert}"], label=expert, lw=1.6, **style)
        axes.set(xlabel="training step", ylim=(0, 1), title=f"Mean gates: {name}")
    for axes in gates[len(pairs) :]:
        axes.set_axis_off()
    if pairs:
        gates[0].set_ylabel("mean gate of each expert")
        gates[0].legend(fontsize=9, ncols=2)
    else:
        loss.text(0.5, 0.5, "no run yet", ha="center", transform=loss.transAxes, color="0.5")
    for axes in (loss, found, *gates):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def curves_plotly(runs: Sequence[Run], names: Sequence[str]) -> go.Figure:
    """Loss and retrieval of several runs in one pair of axes, each in its fusion's colour with a dash of its own."""
    figure = make_subplots(
        1, 2, subplot_titles=("Training loss", "Own cloud ranked first (R@1)"), horizontal_spacing=0.09
    )
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        drawn = curves(run.metrics())
        line = {"color": colour(run.config.fusion, []), "dash": DASHES[i % len(DASHES)], "width": 2}
        for column, curve in ((1, "loss"), (2, "R@1")):
            x, y = drawn.get(curve, ([], []))
            figure.add_scatter(x=x, y=y, name=name, legendgroup=name, showlegend=column == 1, line=line, row=1,
                               col=column, mode="lines" if column == 1 else "lines+markers")  # fmt: skip
    figure.update_xaxes(title_text="training step", rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    return figure.update_layout(template="plotly_white", height=300, autosize=True,
                                margin={"l": 50, "r": 15, "t": 40, "b": 45})  # fmt: skip


def verdict_figure(long: pd.DataFrame, measure: str, against: str, experts: Sequence[str], n: int) -> Figure:
    """`evaluate.verdict`: every student with its interval over seeds, and the difference from one of them.

    `long` is `evaluate.judge_students`'s table and `n` the number of held-out samples behind each value. Small ticks
    are the seeds.
    """
    table = verdict(long, measure, against)
    by_seed = long[(long["measure"] == measure) & (long["seed"] >= 0)].pivot(
        index="seed", columns="model", values="value"
    )
    seeds = len(by_seed)
    order = [*table["mean"].sort_values(ascending=False).index]
    at = np.arange(len(order))
    figure = Figure(figsize=(12, 1.6 + 0.36 * len(order)), layout="constrained")
    level, gain = figure.subplots(1, 2, sharey=True)
    gains = by_seed.sub(by_seed[against], axis=0)
    parts = (
        (level, by_seed, ("mean", "low", "high")),
        (gain, gains, ("difference", "difference low", "difference high")),
    )
    for axes, values, (middle, low, high) in parts:
        for y, name in zip(at, order, strict=True):
            row, tint = table.loc[name], colour(name, list(experts))
            face = "white" if name.startswith("moe without") else tint
            bar = [[row[middle] - row[low]], [row[high] - row[middle]]]
            known = np.isfinite(bar).all()
            axes.errorbar(row[middle], y, xerr=bar if known else None, fmt="o", ms=8, capsize=4, color=tint, mfc=face)
            axes.plot(values[name], np.full(seeds, y + 0.28), "|", ms=6, color=tint)
        axes.grid(axis="x", color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
    level.set_yticks(at, order)
    level.invert_yaxis()
    level.set(xlabel=f"held-out {measure}", xlim=(0, 1.03 * level.get_xlim()[1]))
    if measure.removeprefix("R@").isdigit():
        chance = int(measure.removeprefix("R@")) / n
        level.axvline(chance, color="0.6", lw=1, ls=":")
        level.set_xlabel(f"held-out {measure} (dotted: chance, {chance:.3f})")
    level.set_title("Finding the own point cloud from RGB")
    gain.axvline(0, color="0.4", lw=1)
    gain.set(xlabel=f"difference in {measure}, paired by seed", title=f"Gain over {against}")
    said = f"95 % interval over {seeds} seeds" if seeds > 1 else "none, as there is one seed"
    figure.supxlabel(
        f"dot: mean, bar: {said}, tick: a seed; {n} held-out samples; hollow: the mixture without one of its experts",
        fontsize=9,
    )
    return figure
