"""What a person sees: one palette, units on axes, and `save_figure`, which keeps how a figure came about."""

from __future__ import annotations

import io
import json
import subprocess
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.judging.probes import PROBES
from rgb2pc_lib.judging.rivals import CONCATENATED
from rgb2pc_lib.judging.verdicts import SHUFFLED, TEACHER, gap_closed, mean_table, rivals_of

# Okabe and Ito's colours, which colour-blind readers can tell apart; the teacher is black, the control grey.
_MODELS = {TEACHER: "#000000", "moe": "#d55e00", "weighted": "#0072b2", CONCATENATED: "#8a6d3b", SHUFFLED: "#999999"}
_MODELS |= {"uniform": "#4d5d73", "moe, balanced": "#7f1d1d"}
_EXPERTS = ["#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7b5ea7", "#b0b000"]


def colour(name: str, experts: list[str]) -> str:
    """The fixed colour of a model or an expert, by its name among the experts.

    "xfeat", "xfeat only" and "moe without xfeat" share one.
    """
    name = name.removesuffix(" only").removeprefix("moe without ")
    return _MODELS.get(name) or _EXPERTS[sorted(experts).index(name) % len(_EXPERTS)]


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


def save_figure(figure: Figure, name: str, folder: Path = PROJECT / "figures", **made_with) -> Path:
    """Write `<name>.png`, `<name>.svg` and `<name>.json` (commit, library versions, and whatever made it).

    >>> save_figure(figure, "judgement", runs=["runs/judge/moe-seed0"], seeds=3)  # doctest: +SKIP
    """
    write_atomic(folder / f"{name}.png", lambda p: p.write_bytes(png(figure, 150)))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        write_atomic(folder / f"{name}.svg", partial(figure.savefig, bbox_inches="tight", metadata={"Date": None}))
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


def judgement_figure(long: pd.DataFrame) -> Figure:
    """Probes, retrieval and gap closed of every model side by side, from `evaluate.judge`'s table."""
    table = mean_table(long)
    experts = [m.removesuffix(" only") for m in table.index if m.endswith(" only")]
    seeds = long.loc[long["seed"] >= 0, "seed"].nunique()
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    probes, search, gaps = figure.subplots(1, 3, width_ratios=[1.3, 1, 1])

    floor = -0.3
    measures = [f"R2 {p}" for p in PROBES if f"R2 {p}" in table]
    shown = [TEACHER, "moe", "weighted", CONCATENATED, *experts, SHUFFLED]
    for i, model in enumerate(shown):
        x = np.arange(len(measures)) + (i - (len(shown) - 1) / 2) * 0.09
        big = model in (TEACHER, "moe", "weighted")
        label = f"{model}, pooled" if model in experts else model
        style = {"s": 70, "marker": "o"} if big else {"s": 32, "marker": "D"}
        probes.scatter(x, table.loc[model, measures].clip(floor), color=colour(model, experts), label=label, **style)
    best = {i: rivals.max() for i, m in enumerate(measures) if len(rivals := rivals_of(table, m))}
    for n, (i, value) in enumerate(best.items()):
        said = "best rival of equal width" if n == 0 else None
        probes.plot([i - 0.45, i + 0.45], [max(value, floor)] * 2, color="0.25", lw=1.5, ls="--", zorder=1, label=said)
    probes.axhline(0, color="0.8", lw=1, zorder=0)
    for edge in np.arange(len(measures) - 1) + 0.5:
        probes.axvline(edge, color="0.92", lw=1, zorder=0)
    probes.set_xticks(range(len(measures)), [m.removeprefix("R2 ") for m in measures])
    probes.set(ylabel=f"within-task R² (values below {floor} drawn there)", title="Linear probes, held-out episodes")
    probes.set(ylim=(floor - 0.04, 1.02))
    probes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False)

    students = ["moe", "weighted", *(f"{e} only" for e in experts), SHUFFLED]
    at = long.set_index(["model", "measure"]).sort_index()["value"]
    for i, model in enumerate(students):
        for measure, marker in (("R@1", "o"), ("R@5", "s"), ("R@10", "^")):
            values = at[model, measure]
            search.plot([values.min(), values.max()], [i, i], color=colour(model, experts), lw=5, alpha=0.35)
            search.plot(values.mean(), i, marker, ms=8, color=colour(model, experts))
            if values.mean() > 0.1:  # chance level needs no figure
                search.text(values.mean(), i - 0.2, f"{values.mean():.2f}", ha="center", va="bottom", fontsize=8)
    for measure, marker in (("R@1", "o"), ("R@5", "s"), ("R@10", "^")):
        search.plot([], [], marker, color="0.3", label=measure)
    search.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    search.set_yticks(range(len(students)), students)
    search.set(xlim=(-0.03, 1.03), ylim=(len(students) - 0.5, -0.6), title="The own cloud found from RGB, held out")
    search.set(xlabel=f"share of held-out steps (bars: range over {seeds} seeds)")

    closed = gap_closed(long)
    wanted = [m for m in [*measures, "R@1", "R@5", "R@10"] if m in set(closed["measure"])]
    none = [m for m in wanted if closed.loc[closed["measure"] == m, "closed"].isna().all()]
    wanted = [m for m in wanted if m not in none]
    for k, student in enumerate(("moe", "weighted")):
        rows = closed[closed["student"] == student].set_index("measure").loc[wanted]
        y = np.arange(len(wanted)) + (k - 0.5) * 0.25
        error = np.array([rows["closed"] - rows["low"], rows["high"] - rows["closed"]])
        gaps.errorbar(rows["closed"], y, xerr=error, fmt="o", capsize=3, color=colour(student, experts), label=student)
    gaps.axvline(0, color="0.6", lw=1)
    gaps.axvline(1, color="k", lw=1)
    gaps.set_yticks(range(len(wanted)), [m.removeprefix("R2 ") for m in wanted])
    gaps.invert_yaxis()
    left_out = ", ".join(m.removeprefix("R2 ") for m in none)
    gaps.set(xlabel="0 = best rival, 1 = teacher" + (f"\nno gap to close: {left_out}" if none else ""))
    gaps.set(title=f"Gap closed, 95 % interval over {seeds} seeds")
    gaps.legend(fontsize=8, loc="best")
    for axes in (probes, search, gaps):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
