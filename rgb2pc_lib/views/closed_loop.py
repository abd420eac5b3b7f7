"""The closed loop to look at: success by task and look, and film strips of what went well and what did not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from rgb2pc_lib.judging.loop import verdict
from rgb2pc_lib.judging.loop.proof import STRIP, film_file
from rgb2pc_lib.judging.rivals import PROPRIOCEPTION
from rgb2pc_lib.judging.verdicts import SHUFFLED, TEACHER
from rgb2pc_lib.views.look import ALARM, plain
from rgb2pc_lib.views.plots import colour, mark, task_colours


def success_figure(table: pd.DataFrame) -> Figure:
    """Success of every representation, a panel a look: its mean over tasks as a bar with its interval, tasks as dots.

    `table` is that of the roll-outs, as `read_proof` gives it. Bars are over the scenes that all representations met,
    as `verdict.success_table`; dots are over all that each met.
    """
    cells, means = verdict.cells(table), verdict.success_table(table).set_index(["look", "representation"])
    looks = list(dict.fromkeys(cells["look"]))
    names, tasks = list(dict.fromkeys(cells["representation"])), list(dict.fromkeys(cells["task"]))
    experts = [n.removesuffix(" only") for n in names if n.endswith(" only")]
    figure = Figure(figsize=(6.5 * len(looks), 1.6 + 0.32 * len(names)), layout="constrained")
    tints = task_colours(tasks)
    for axes, look in zip(np.atleast_1d(figure.subplots(1, len(looks), sharey=True)), looks, strict=True):
        some = cells[cells["look"] == look]
        for i, name in enumerate(names):
            of = some[some["representation"] == name]
            if of.empty:  # it was rolled out with the other look
                continue
            mean = means.loc[(look, name)]
            axes.barh(i, mean["success"], color=_colour(name, experts), alpha=0.55)
            axes.plot([mean["low"], mean["high"]], [i, i], color="0.35", lw=1)
            shift = np.linspace(-0.28, 0.28, len(of)) if len(of) > 1 else [0.0]
            for x, y, task in zip(of["success"], i + np.array(shift), of["task"], strict=True):
                axes.plot(x, y, mark(task, tasks), ms=4, color=tints[task], zorder=3)
        least, most = some["roll-outs"].min(), some["roll-outs"].max()
        n = f"{least}" if least == most else f"{least} to {most}"
        axes.set(xlim=(-0.02, 1.02), xlabel="success (bar: mean over tasks, line: its 95 % interval)")
        axes.set_title(f"{look} look, {n} roll-outs a task")
        axes.set_yticks(range(len(names)), [plain(n) for n in names])
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    for task, tint in tints.items():
        axes.plot([], [], mark(task, tasks), ms=4, color=tint, label=plain(task))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _colour(name: str, experts: list[str]) -> str:
    first = name.split(", ")[0].split(" 4x4")[0]
    known = {TEACHER, "weighted", "moe", SHUFFLED, *experts, *(f"{e} only" for e in experts)}
    return colour(first, experts) if first in known else "#bbbbbb" if first == PROPRIOCEPTION else "#666666"


def films_figure(folder: Path, task: str, names: list[str], look: str = "random") -> Figure:
    """A strip of a success and one of a failure of each representation on a task, as far as there were any.

    `folder` is a proof's. A strip runs from the first look to the last.
    """
    figure = Figure(figsize=(13, 0.8 + 0.8 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 2, squeeze=False)
    for row, name in zip(grid, names, strict=True):
        for axes, success in zip(row, (True, False), strict=True):
            path = film_file(folder, name, task, look, success)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if path.exists():
                axes.imshow(np.asarray(Image.open(path)))
            else:
                axes.imshow(np.full((1, STRIP, 3), 255))  # as long as a strip, so that titles stand at one height
                axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes, color="0.5")
        row[0].set_ylabel(plain(name), rotation=0, ha="right", va="center")
    grid[0][0].set_title("a success")
    grid[0][1].set_title("a failure")
    figure.suptitle(f"{plain(task)}, {look} look: eight looks from the first to the last")
    return figure


def errors_figure(table: pd.DataFrame) -> Figure:
    """Held-out action errors of every representation with their intervals, from `actions.error_table`."""
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(table)), layout="constrained")
    axes = figure.subplots()
    known = {"": ("0.3", "o"), "not told apart": ("0.3", "o"), "better": ("#009e73", "<")}  # a lower error is better
    looks = [known.get(said, (ALARM, ">")) for said in table["is"]]
    for i, row in enumerate(table.itertuples()):
        axes.plot([row.low, row.high], [i, i], color=looks[i][0], lw=4, alpha=0.4)
        axes.plot(row.error, i, looks[i][1], color=looks[i][0], ms=7)
    base = table.loc[table["is"] == "", ["representation", "error"]].iloc[0]
    axes.axvline(base["error"], color="0.5", lw=1, ls=":")
    axes.set_yticks(range(len(table)), [plain(name) for name in table["representation"]])
    axes.invert_yaxis()
    axes.set(xlabel="held-out action error, standard deviations (dotted: compared with)")
    axes.set_title(
        f"{table['episodes'].iloc[0]} held-out episodes; green, ◂: better than {plain(base['representation'])}"
    )
    axes.spines[["top", "right"]].set_visible(False)
    return figure
