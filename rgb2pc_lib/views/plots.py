"""What a person sees: one palette, units on axes, and `save_figure`, which keeps how a figure came about."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.judging.probes import PROBES
from rgb2pc_lib.judging.rivals import CONCATENATED
from rgb2pc_lib.judging.verdicts import APART, SHUFFLED, TEACHER, gap_closed, mean_table, rivals_of
from rgb2pc_lib.views.paper import column_width

# Okabe and Ito's colours, which colour-blind readers can tell apart; the teacher is black, the control grey.
_MODELS = {TEACHER: "#000000", "moe": "#d55e00", "weighted": "#0072b2", CONCATENATED: "#8a6d3b", SHUFFLED: "#999999"}
_MODELS |= {"uniform": "#4d5d73", "moe, balanced": "#7f1d1d"}
_EXPERTS = ["#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7b5ea7", "#b0b000"]
_EXPERTS += ["#332288", "#882255", "#117733", "#661100", "#6699cc", "#cc6677"]  # Tol's muted scheme

# Colour is never the only sign: lines differ in their dashes too, and dots in their shapes.
LINES = ("-", "--", ":", "-.", (0, (9, 3)), (0, (9, 3, 2, 3)))
MARKS = ("o", "s", "^", "D", "v", "P", "X")

_FOUND = {"R@1": "o", "R@5": "s", "R@10": "^"}  # measures of retrieval, and their marks


def colour(name: str, experts: list[str]) -> str:
    """The fixed colour of a model or an expert, by its name among the experts.

    "xfeat", "xfeat only" and "moe without xfeat" share one.
    """
    name = name.removesuffix(" only").removeprefix("moe without ")
    return _MODELS.get(name) or _EXPERTS[sorted(experts).index(name) % len(_EXPERTS)]


def line(name: str, experts: list[str]) -> Any:
    """The fixed dashes of an expert, by its name among the experts.

    >>> line("xfeat", ["daisy", "xfeat"])
    '--'
    """
    return LINES[sorted(experts).index(name) % len(LINES)]


def mark(name: str, names: Iterable[str]) -> str:
    """The fixed shape of whatever bears a name, by its place among the names.

    >>> mark("push", ["push", "pull"])
    's'
    """
    return MARKS[sorted(set(names)).index(name) % len(MARKS)]


def task_colours(tasks) -> dict[str, str]:
    """A colour for each task (or any other name), by its place among them."""
    names = sorted(set(tasks))
    palette = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20" if len(names) <= 20 else "turbo"]
    places = range(len(names)) if len(names) <= 20 else np.linspace(0, 1, len(names))
    return {name: to_hex(palette(at)) for name, at in zip(names, places, strict=True)}


def png(figure: Figure, dpi: int) -> bytes:
    """A figure as PNG of at most 256 colours: to the eye the same, and a third of the bytes."""
    drawn, written = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi, bbox_inches="tight")
    full = Image.open(drawn).convert("RGB")
    palette = full.quantize(255, Image.Quantize.MAXCOVERAGE)
    small = full.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)  # colour bars show no steps
    paper = Image.fromarray(255 * (np.asarray(full) == 255).all(-1).astype(np.uint8))
    small.putpalette([*(small.getpalette() or [])[: 3 * 255], 255, 255, 255])
    small.paste(255, mask=paper)  # white stays white
    small.save(written, "png", optimize=True)
    return written.getvalue()


def save_figure(figure: Figure, name: str, folder: Path, **made_with) -> Path:
    """Write `<name>.png`, `.svg`, `.pdf` and `.json` (commit, library versions, and whatever made it).

    The PDF is for a paper: as wide as a page's text, with letters that can be read there (`views.paper`).

    >>> save_figure(figure, "judgement", RUNS / "figures", runs=["runs/judge/moe-seed0"], seeds=3)  # doctest: +SKIP
    """
    write_atomic(folder / f"{name}.png", lambda p: p.write_bytes(png(figure, 150)))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        write_atomic(folder / f"{name}.svg", partial(figure.savefig, bbox_inches="tight", metadata={"Date": None}))
    with column_width(figure):
        write_atomic(folder / f"{name}.pdf", partial(figure.savefig, format="pdf", metadata={"CreationDate": None}))
    about = {"figure": name, "commit": commit(), "matplotlib": matplotlib.__version__, **made_with}
    text = json.dumps(about, indent=2, default=str) + "\n"
    write_atomic(folder / f"{name}.json", lambda p: p.write_text(text, encoding="utf-8"))
    return folder / f"{name}.png"


def commit() -> str:
    """The project's commit, with "+" where files differ from it; "unknown" outside a repository."""
    ask = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty=+", "--abbrev=12"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def judgement_figure(long: pd.DataFrame, episodes: pd.DataFrame | None = None) -> Figure:
    """Probes (where there are any), retrieval and gap closed of every model, from `evaluate.judge`'s table."""
    table = mean_table(long)
    experts = [m.removesuffix(" only") for m in table.index if m.endswith(" only")]
    measures = [f"R2 {p}" for p in PROBES if f"R2 {p}" in table]
    figure = Figure(figsize=(11, 8.6 if measures else 4.4), layout="constrained")
    where: list[Any] = [["probes", "probes"]] * bool(measures) + [["search", "gaps"]]
    panels = figure.subplot_mosaic(where)
    if measures:
        _probes_panel(panels["probes"], table, measures, experts)
    _search_panel(panels["search"], long, experts)
    closed = gap_closed(long, episodes=episodes)
    wanted = [m for m in (*measures, *_FOUND) if m in set(closed["measure"])]
    over = "seeds and episodes" if episodes is not None and len(episodes) else "seeds"
    _gaps_panel(panels["gaps"], closed[closed["measure"].isin(wanted)], experts)
    panels["gaps"].set_title(f"Gap closed, 95 % over {over}")
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _probes_panel(
    axes: Axes, table: pd.DataFrame, measures: list[str], experts: list[str], floor: float = -0.3
) -> None:
    shown = [TEACHER, "moe", "weighted", CONCATENATED, *experts, SHUFFLED]
    for i, model in enumerate(shown):
        x = np.arange(len(measures)) + (i - (len(shown) - 1) / 2) * 0.09
        big = model in (TEACHER, "moe", "weighted")
        label = f"{model}, pooled" if model in experts else model
        style: dict[str, Any] = {"s": 70 if big else 32, "marker": MARKS[i % len(MARKS)]}
        axes.scatter(x, table.loc[model, measures].clip(floor), color=colour(model, experts), label=label, **style)
    best = {i: rivals.max() for i, m in enumerate(measures) if len(rivals := rivals_of(table, m))}
    for n, (i, value) in enumerate(best.items()):
        said = "best rival of equal width" if n == 0 else None
        axes.plot([i - 0.45, i + 0.45], [max(value, floor)] * 2, color="0.25", lw=1.5, ls="--", zorder=1, label=said)
    axes.axhline(0, color="0.8", lw=1, zorder=0)
    for edge in np.arange(len(measures) - 1) + 0.5:
        axes.axvline(edge, color="0.92", lw=1, zorder=0)
    axes.set_xticks(range(len(measures)), [m.removeprefix("R2 ") for m in measures])
    axes.set(ylabel=f"within-task R² (least drawn: {floor})", title="Linear probes, held-out episodes")
    axes.set(ylim=(floor - 0.04, 1.02), xlim=(-0.5, len(measures) - 0.5))
    axes.legend(fontsize=8, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)


def _search_panel(axes: Axes, long: pd.DataFrame, experts: list[str]) -> None:
    students = ["moe", "weighted", *(f"{e} only" for e in experts), SHUFFLED]
    seeds = long.loc[long["seed"] >= 0, "seed"].nunique()
    at = long.set_index(["model", "measure"]).sort_index()["value"]
    for i, model in enumerate(students):
        for measure, marker in _FOUND.items():
            values = at[model, measure]
            axes.plot([values.min(), values.max()], [i, i], color=colour(model, experts), lw=5, alpha=0.35)
            axes.plot(values.mean(), i, marker, ms=8, color=colour(model, experts))
            if values.mean() > 0.1:  # chance level needs no figure
                axes.text(values.mean(), i - 0.2, f"{values.mean():.2f}", ha="center", va="bottom", fontsize=8)
    for measure, marker in _FOUND.items():
        axes.plot([], [], marker, color="0.3", label=measure)
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    axes.set_yticks(range(len(students)), students)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(students) - 0.5, -0.6), title="The own cloud found from RGB, held out")
    axes.set(xlabel=f"share of held-out steps (bars: {seeds} seeds)")


def _gaps_panel(axes: Axes, closed: pd.DataFrame, experts: list[str]) -> None:
    there = closed.groupby("measure", sort=False)["a gap"].first()
    wanted = there.index[there == "yes"]
    for k, student in enumerate(("moe", "weighted")):
        rows = closed[closed["student"] == student].set_index("measure").loc[wanted]
        y = np.arange(len(wanted)) + (k - 0.5) * 0.25
        error = np.array([rows["closed"] - rows["low"], rows["high"] - rows["closed"]])
        axes.errorbar(
            rows["closed"], y, xerr=error, fmt=MARKS[k], capsize=3, color=colour(student, experts), label=student
        )
    axes.axvline(0, color="0.6", lw=1)
    axes.axvline(1, color="k", lw=1)
    axes.set_yticks(range(len(wanted)), [m.removeprefix("R2 ") for m in wanted])
    axes.invert_yaxis()
    lines = {said: ", ".join(m.removeprefix("R2 ") for m in there.index[there == said]) for said in ("no", APART)}
    words = {"no": "no gap", APART: "a gap is not told apart"}
    axes.set_xlabel("\n".join(["0 = best rival, 1 = teacher", *(f"{words[k]}: {v}" for k, v in lines.items() if v)]))
    axes.legend(fontsize=8, loc="best")
