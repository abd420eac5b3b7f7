"""The judgement explained: why R2 is taken within tasks, how many centimetres the probes are off, and what it says."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgb2pc_lib.judging.rivals import CONCATENATED
from rgb2pc_lib.judging.verdicts import SHUFFLED, TEACHER, gap_closed, mean_table
from rgb2pc_lib.views.look import ALARM, plain
from rgb2pc_lib.views.plots import colour, mark, task_colours


def task_means(values: np.ndarray, keys: pd.DataFrame, held_out: np.ndarray) -> np.ndarray:
    """What somebody predicts who knows the task and nothing else: the mean of its training steps, `[held-out, d]`."""
    fitted = pd.DataFrame(values[~held_out]).groupby(keys["task"].to_numpy()[~held_out]).mean()
    return fitted.loc[keys["task"].to_numpy()[held_out]].to_numpy()


def task_only(targets: dict[str, np.ndarray], keys: pd.DataFrame, held_out: np.ndarray) -> pd.DataFrame:
    """R2 on held-out samples of predicting each target from the task's name alone, plain and within task.

    Plain R2 compares with the mean over all held-out samples; within-task R2 with the mean of each task's own. Whatever
    the plain column shows is what a representation earns there for telling tasks apart.
    """
    task = keys["task"].to_numpy()[held_out]
    lines = {}
    for name, values in targets.items():
        y, error = values[held_out], values[held_out] - task_means(values, keys, held_out)
        own = pd.DataFrame(y).groupby(task).transform("mean").to_numpy()
        lines[name] = [1 - (error**2).sum() / ((y - m) ** 2).sum() for m in (y.mean(0), own)]
    return pd.DataFrame.from_dict(lines, orient="index", columns=["plain R2", "R2 within task"])


def task_only_figure(targets: dict[str, np.ndarray], keys: pd.DataFrame, held_out: np.ndarray, name: str) -> Figure:
    """One target's true values against those predicted from the task alone: as they are, and around each task's mean.

    Of a target with several axes, the one that the task tells most about.
    """
    task, y = keys["task"].to_numpy()[held_out], targets[name][held_out]
    predicted = task_means(targets[name], keys, held_out)
    own = pd.DataFrame(y).groupby(task).transform("mean").to_numpy()
    axis = int(np.argmax(own.var(0) / y.var(0)))
    pairs = {"plain": y.mean(0), "within task": own}
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    names = sorted(set(task))
    tints = task_colours(names)
    for axes, (kind, middle) in zip(figure.subplots(1, 2), pairs.items(), strict=True):
        around, told = ((v - (middle if kind == "within task" else 0))[:, axis] for v in (y, predicted))
        r2 = 1 - ((y - predicted)[:, axis] ** 2).sum() / ((y - middle)[:, axis] ** 2).sum()
        for one in names:
            style = {"color": tints[one], "marker": mark(one, names), "label": plain(one)}
            axes.scatter(told[task == one], around[task == one], s=11, alpha=0.6, **style)
        ends = [min(around.min(), told.min()), max(around.max(), told.max())]
        axes.plot(ends, ends, color="0.6", lw=1)
        less = ", less its task's mean" if kind == "within task" else ""
        axes.set(title=f"{kind}: R² {r2:.2f}", xlabel=f"predicted from the task alone{less}", ylabel=f"true{less}")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False)
    unit = "" if name in ("opening", "progress") else " (m)"
    which = f", axis {'xyz'[axis]}" if y.shape[1] == 3 else ""
    figure.suptitle(f"{name}{which}{unit}, {len(y)} held-out steps; a point on the line is a perfect prediction")
    return figure


def centimetres_figure(long: pd.DataFrame) -> Figure:
    """Median error of the position probes in centimetres, every model of the table; ticks are the seeds."""
    table = mean_table(long)
    measures = [m for m in ("tcp cm", "object cm") if m in table]
    experts = [m.removesuffix(" only") for m in table.index if m.endswith(" only")]
    order = [TEACHER, "moe", "weighted", *(f"{e} only" for e in experts), CONCATENATED, *experts, SHUFFLED]
    order = [m for m in order if m in table.index]
    figure = Figure(figsize=(12, 1.4 + 0.3 * len(order)), layout="constrained")
    titles = {"tcp cm": "Where is the gripper?", "object cm": "Where is the object?"}
    for axes, measure in zip(np.atleast_1d(figure.subplots(1, len(measures), sharey=True)), measures, strict=True):
        for i, model in enumerate(order):
            values = long.loc[(long["model"] == model) & (long["measure"] == measure), "value"]
            axes.barh(i, values.mean(), color=colour(model, experts), alpha=0.55 if model in experts else 1)
            axes.plot(values, np.full(len(values), i), "k|" if len(values) > 1 else "", ms=8)
            axes.text(values.max() + 0.15, i, f"{values.mean():.1f}", va="center", fontsize=9)
        axes.axvline(table.loc[TEACHER, measure], color="k", lw=1, ls=":")
        axes.set(xlabel="median error on held-out episodes, cm (dotted: teacher)", title=titles[measure])
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks(range(len(order)), [plain(f"{m}, pooled" if m in experts else m) for m in order])
    axes.invert_yaxis()
    return figure


def reading(
    long: pd.DataFrame, students: tuple[str, ...] = ("weighted", "moe"), episodes: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The table in words, one row a measure and student, no stronger than the intervals of `gap_closed` allow.

    Columns: measure, student, mean, best rival, its value, teacher, "student is" (above, below, or not told apart from
    the best rival) and "a gap to close" (whether the teacher is better than the best rival at all).
    """
    told = gap_closed(long, students, episodes).rename(columns={"best": "its value", "a gap": "a gap to close"})
    return told[["measure", "student", "mean", "best rival", "its value", "teacher", "student is", "a gap to close"]]


def said_colours(said: str) -> str:
    """Style of a cell of `reading`."""
    tints = {"above the best rival": "#009e73", "below the best rival": ALARM}
    return f"color: {tints[said]}" if said in tints else ""
