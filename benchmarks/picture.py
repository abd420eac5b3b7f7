"""The figure of a run of all benchmarks: each target as a bar, and how the ratios grow over ten times the data."""

from __future__ import annotations

import json
from pathlib import Path

from common import Row
from matplotlib.figure import Figure

from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.views.plots import save_figure

KEPT, MISSED, NONE = "#3b7ea1", "#c8553d", "#b8b8b8"


def save(rows: list[Row], folder: Path | None, **about) -> Path:
    """Write benchmarks.json, .png and .svg."""
    folder = folder or PROJECT / "figures"
    path = save_figure(draw(rows, about), "benchmarks", folder, **about)
    side = folder / "benchmarks.json"
    content = json.loads(side.read_text()) | {"rows": [r.plain() for r in rows]}
    side.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def draw(rows: list[Row], about: dict) -> Figure:
    judged = [r for r in rows if r.target is not None]
    figure = Figure(figsize=(15, 0.27 * len(judged) + 2.2), layout="constrained")
    gather = [r for r in rows if r.section == "gather"]
    left, *right = figure.subplots(1, 1 + bool(gather), width_ratios=[1.25, 1][: 1 + bool(gather)], squeeze=False)[0]
    _targets(left, judged)
    for axes in right:
        _gathering(axes, gather)
    caption = ", ".join(f"{k} {v}" for k, v in about.items())
    figure.suptitle(f"Benchmarks: {sum(r.kept for r in judged)} of {len(judged)} targets kept ({caption})")
    return figure


def _targets(axes, judged: list[Row]) -> None:
    """Each figure as a share of its limit: shorter than the line is kept (for a lower bound, limit / figure)."""
    shares = [r.target / r.figure if r.at_least else r.figure / r.target for r in judged]
    labels = [f"{r.what}, {r.size}" for r in judged]
    at = range(len(judged))[::-1]
    axes.barh(list(at), shares, color=[KEPT if r.kept else MISSED for r in judged], height=0.7)
    for y, row, share in zip(at, judged, shares, strict=True):
        sign = ">=" if row.at_least else "<="
        text = f"{row.figure:.3g} ({sign} {row.target:g})"
        axes.text(max(min(share, 1.5), 1) + 0.02, y, text, va="center", fontsize=7.5)
    axes.axvline(1, color="black", lw=1)
    axes.set_yticks(list(at), labels, fontsize=7.5)
    axes.set_xlim(0, 1.9)
    axes.set_xlabel("figure / target (target / figure for lower bounds): left of the line is kept")


def _gathering(axes, rows: list[Row]) -> None:
    """Gather / memcpy over K, one line a form and size."""
    lines: dict[tuple[str, str], list] = {}
    for row in rows:
        form = row.what.removeprefix("gather / memcpy, ")
        if form == row.what or "zarr" in form:
            continue
        tokens, episodes = row.size.split(", ")
        tokens = 1036 if tokens == "K=all" else int(tokens[2:])
        lines.setdefault((form, episodes), []).append((tokens, row.figure, row.target))
    colours = dict(zip(dict.fromkeys(f for f, _ in lines), ("#3b7ea1", "#d99a2b", "#6b6b6b"), strict=False))
    sizes = list(dict.fromkeys(e for _, e in lines))
    for (form, episodes), points in lines.items():
        x, y, _ = zip(*points, strict=True)
        style = "-" if episodes == sizes[0] else "--"
        axes.plot(x, y, style, marker="o", color=colours[form], label=f"{form}, {episodes}")
        if episodes == sizes[0] and any(t for _, _, t in points):
            limits = [(k, t) for k, _, t in points if t]
            axes.plot(*zip(*limits, strict=True), "_", ms=22, mew=2, color=colours[form], label=f"target, {form}")
    axes.axhline(1, color=NONE, lw=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks([64, 256, 1024], ["64", "256", "1024, all"])
    axes.set_ylim(0)
    axes.set_xlabel("tokens a sample and expert, K")
    axes.set_ylabel("seconds of gathering a batch / seconds of memcpy of its bytes")
    axes.legend(fontsize=8)
