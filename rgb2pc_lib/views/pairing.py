"""Pictures of the pairing: what is there, what is shifted, how spread the teacher is, which negatives are false."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch

from rgb2pc_lib.checks.shift import ShiftCheck
from rgb2pc_lib.checks.teacher import NegativeAudit
from rgb2pc_lib.data.files.exclusions import Exclusions
from rgb2pc_lib.data.pairing import NO_EPISODE, NO_STEP, OK, Pairing
from rgb2pc_lib.data.workspace import portable
from rgb2pc_lib.judging.versus import Versus
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.look import ALARM, CALM, look, plain
from rgb2pc_lib.views.notebook import train_missing

# Okabe and Ito's colours: told apart by colour-blind readers, and by brightness in print
STATUS = {OK: "#a6d0ea", NO_STEP: "#e69f00", NO_EPISODE: "#5b4a8a", "unreadable": "#000000"}


def presence_figure(pairing: Pairing) -> Figure:
    """Which step each expert and the teacher have: one panel a source, one row an episode, one column a step."""
    table, sources = pairing.table, [*pairing.experts, "teacher"]
    groups = table.groupby(["task", "episode"], sort=False)
    row, episodes = groups.ngroup().to_numpy(), list(groups.groups)
    times = np.unique(table.loc[table["step"] != "", "time"]) if (table["step"] != "").any() else np.zeros(1)
    column = np.searchsorted(times, table["time"]).clip(max=len(times) - 1)
    nameless = (table["step"] == "").to_numpy()  # an episode of which nothing is readable: its whole row

    figure = Figure(figsize=(1.8 + 1.9 * len(sources), 1.9 + min(0.075 * len(episodes), 10)), layout="constrained")
    panels = figure.subplots(1, len(sources), sharey=True, squeeze=False)[0]
    kinds = list(STATUS)
    for axes, source in zip(panels, sources, strict=True):
        grid = np.full((len(episodes), len(times)), np.nan)
        status = np.array([kinds.index(s) if s in STATUS else len(kinds) - 1 for s in table[source]])
        grid[row, column] = status
        grid[row[nameless]] = status[nameless, None]
        extent = (-0.5, len(times) - 0.5, len(episodes) - 0.5, -0.5)
        axes.imshow(grid, ListedColormap([*STATUS.values()]), vmin=0, vmax=len(kinds) - 1, aspect="auto", extent=extent,
                    interpolation="nearest")  # fmt: skip
        ticks = np.unique(np.linspace(0, len(times) - 1, 4).round().astype(int))
        axes.set_xticks(ticks, times[ticks])
        there = int((table[source] == OK).sum())
        axes.set(title=f"{source}\n{there} of {int((~nameless).sum())} steps", xlabel="step")
        _task_rows(axes, episodes)
    panels[0].set_ylabel("episodes, by task")
    seen = [k for k in STATUS if k in (OK, NO_STEP, NO_EPISODE) or (~table[sources].isin(kinds)).any(axis=None)]
    figure.legend(handles=[Patch(color=STATUS[k], label=k) for k in seen], loc="outside lower center", ncols=len(seen),
                  frameon=False)  # fmt: skip
    return figure


def _task_rows(axes: Axes, episodes: list[tuple[str, str]]) -> None:
    """Label the rows of episodes by task, with a line between tasks."""
    tasks = pd.Series([t for t, _ in episodes])
    place = tasks.groupby(tasks, sort=False).agg(lambda s: s.index.to_numpy().mean())
    axes.set_yticks(place.to_numpy(), [plain(t) for t in place.index])
    axes.tick_params(axis="y", length=0)
    for edge in np.flatnonzero(tasks.ne(tasks.shift()))[1:]:
        axes.axhline(edge - 0.5, color="white", lw=1.5)


# -- shifted episodes


def shift_figure(*checks: ShiftCheck) -> Figure:
    """Where in time each episode's teacher fits its RGB best, per check, and how many planted faults would be found."""
    n = len(checks[0].episodes)
    room = 0.3 if any(c.table["flagged"].any() for c in checks) else None  # for the names of flagged episodes
    layout = ConstrainedLayoutEngine(wspace=room)
    figure = Figure(figsize=(4 + 4 * len(checks), 2.4 + min(0.085 * n, 10)), layout=layout)
    *maps, power = figure.subplots(1, len(checks) + 1, width_ratios=[1] * len(checks) + [0.9])
    for axes, check in zip(maps, checks, strict=True):
        table, fit = check.table, check.searched
        below = np.ma.masked_invalid(fit - np.where(np.isnan(fit), -np.inf, fit).max(1, keepdims=True))
        lowest = np.quantile(below.compressed(), 0.05) if below.count() else -1
        edge = check.reach + 0.5
        image = axes.imshow(below, "cividis", aspect="auto", extent=(-edge, edge, len(fit) - 0.5, -0.5),
                            vmin=lowest, vmax=0, interpolation="nearest")  # fmt: skip
        label = f"below the episode's best\n({check.unit})"
        figure.colorbar(image, ax=axes, location="bottom", shrink=0.9, label=label)
        wrong = table["flagged"].to_numpy()
        judged = (table["verdict"] != "cannot tell").to_numpy() & ~wrong
        axes.plot(table["shift"][judged], np.flatnonzero(judged), ".", color="white", ms=4)
        for i in np.flatnonzero(wrong):
            row = table.loc[i]
            axes.plot(row["shift"], i, "o", color="white", mec=ALARM, mew=2, ms=7, clip_on=False)
            name = axes.annotate(f"{plain(row['episode'])}: {row['shift']:+d}", (edge, i), xytext=(4, 0), color=ALARM,
                                 va="center", textcoords="offset points", fontsize=8, weight="bold",
                                 annotation_clip=False)  # fmt: skip
            name.set_in_layout(False)
        unsure = int((table["verdict"] == "cannot tell").sum())
        found = f"{wrong.sum()} of {len(fit)} episodes flagged" + f", {unsure} not judged" * bool(unsure)
        together = "too short to judge" if check.common_shift is None else f"best at {check.common_shift or 0}"
        title = f"Best shift by {check.name}\n{found}\nall together: {together}"
        axes.set(title=title, xlabel="shift of the teacher, steps")
        axes.set_xticks(check.shifts)
        _task_rows(axes, check.episodes)
        if axes is not maps[0]:
            axes.set_yticklabels([])
    _power_panel(power, checks)
    return figure


def _power_panel(axes: Axes, checks) -> None:
    for check, style in zip(checks, ("o-", "D--", "s:"), strict=False):
        share = check.power()["flagged"]
        axes.plot(share.index, share, style, color=CALM, label=check.name)
    axes.set(ylim=(-0.03, 1.05), xlabel="planted shift, steps", ylabel="share of episodes flagged",
             title="Would a fault be found?\neach episode shifted in turn\n(0 = as filed)")  # fmt: skip
    axes.set_xticks(share.index)
    axes.legend(frameon=False, loc="center right")
    axes.spines[["top", "right"]].set_visible(False)


def before_after_figure(cases: dict[str, tuple], task: str, episode: str, step: str) -> Figure:
    """One episode in several states of pairing, side by side.

    Args:
        cases: label -> (workspace, pairing, list of ShiftCheck). One row each: the step's points over its grey image,
            then the episode's fit at every shift, flagged or not.
    """
    checks = len(next(iter(cases.values()))[2])
    figure = Figure(figsize=(3.4 + 3.6 * checks, 3.5 * len(cases)), layout="constrained")
    grid = figure.subplots(len(cases), 1 + checks, squeeze=False, sharey="col")
    for (label, (workspace, pairing, found)), row in zip(cases.items(), grid, strict=True):
        seen = look(workspace, pairing, {}, task, episode, step)
        if seen.drawn_over is not None:
            row[0].imshow(seen.drawn_over)
        row[0].set_title(f"{label}: the teacher's points\nover the grey RGB of {plain(step)}", fontsize=10)
        row[0].axis("off")
        for axes, check in zip(row[1:], found, strict=True):
            at = check.episodes.index((task, episode))
            verdict = check.table.loc[at]
            colour = ALARM if verdict["flagged"] else CALM
            axes.plot(check.shifts, check.searched[at], "o-", color="0.6", ms=4)
            axes.axvline(0, color="0.85", lw=1, zorder=0)
            axes.plot(verdict["shift"], verdict["best fit"], "o", color=colour, ms=9)
            axes.set_title(f"{label}, by {check.name}: {verdict['verdict']}", color=colour, fontsize=10)
            axes.set(xlabel="shift of the teacher, steps", ylabel=f"fit ({check.unit})")
            axes.set_xticks(check.shifts)
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def planted(config: Config, every: int, by: int) -> dict[str, int]:
    """Faults for a demonstration: "task/episode" of every so many training episodes -> a shift of `by` steps.

    What is held out, or for validation, stays as it is.
    """
    data = Data.open(config)
    keys = data.samples.keys().loc[data.training, ["task", "episode"]].drop_duplicates()
    return {f"{task}/{episode}": by for task, episode in keys.iloc[::every].itertuples(index=False, name=None)}


def retrained(config: Config, decided: Exclusions, out: Path, seeds: int = 3) -> Versus:
    """What decisions are worth: A is trained on the data as filed, B with the decisions, and all else is the same.

    So many seeds of each are trained below `out`, where finished runs are kept. Both are judged on the steps that both
    hold out, of episodes about which nothing was decided: there the pairs are right in either case.

    >>> retrained(config, browser.decided, out / "mended").table  # A, B, difference, low, high  # doctest: +SKIP
    """
    sides = [config.workspace.excluding(()), config.workspace.excluding(decided.lines)]
    rows = [_retraining(config.with_workspace(side), seed, out) for side in sides for seed in range(seeds)]
    train_missing(
        list({config.folder: (name, config) for name, config in rows}.values())
    )  # one where nothing is decided
    runs = [Run.open(c.folder) for _, c in rows]
    return Versus.of(runs[:seeds], runs[seeds:], decided)


def _retraining(config: Config, seed: int, out: Path) -> tuple[str, Config]:
    config = dataclasses.replace(config, seed=seed, save_dir="")
    name = f"{'decided' if config.exclude else 'as-filed'}-{hashlib.sha256(config.to_json().encode()).hexdigest()[:8]}"
    return name, dataclasses.replace(config, save_dir=portable(out / name))


# -- the teacher


def spread_figure(table: pd.DataFrame) -> Figure:
    """The teacher-spread meter, from `teacher_checks.spread`."""
    figure = Figure(figsize=(9, 2.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    shown = (
        ("mean cosine", 1, "Mean cosine of two steps: lower is better", "{:.2f}"),
        ("effective rank", max(table["effective rank"].max() * 1.2, 2), "Effective rank: higher is better", "{:.1f}"),
    )
    for axes, (name, limit, title, style) in zip(panels, shown, strict=True):
        values = table[name]
        axes.barh(range(len(table)), values.clip(lower=0), color=["0.6", CALM, "#009e73"][: len(table)], height=0.6)
        for i, v in enumerate(values):
            axes.text(max(v, 0) + 0.015 * limit, i, style.format(v), va="center")
        axes.set(xlim=(0, 1.08 * limit), title=title, xlabel=name)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(table)), table.index)
    panels[0].invert_yaxis()
    return figure


def negatives_figure(audit: NegativeAudit, exclude_near: int, cut: float, batch: int = 64) -> Figure:
    """Which negatives are false: similarity against distance in time, and what `exclude_near` leaves of them."""
    near, table = audit.by_distance(cut), audit.exclusion(cut)
    figure = Figure(figsize=(12, 5), layout="constrained")
    like, left = figure.subplots(1, 2, width_ratios=[1.35, 1])
    like.fill_between(near.index, near["low"], near["high"], color=CALM, alpha=0.2, lw=0, label="80 % of the pairs")
    like.plot(near.index, near["median"], "o-", color=CALM, label="same episode, median")
    end = near.index[-1] + 0.5
    for name, values, colour in (("same task", audit.same_task, "#009e73"), ("other task", audit.other_task, "0.45")):
        if len(values):
            middle, high = np.quantile(values, [0.5, 0.9])
            like.hlines(middle, 0.5, end, color=colour, ls="--", label=f"another episode, {name}: median (dots: 90 %)")
            like.hlines(high, 0.5, end, color=colour, ls=":")
    like.axhline(cut, color=ALARM, lw=1, label=f"cut {cut:.2f}: at or above it, a false negative")
    if exclude_near:
        label = f"left out by exclude_near = {exclude_near}"
        like.axvspan(0.5, exclude_near + 0.5, color="0.9", zorder=0, label=label)
    lowest = min(-0.4, near["low"].min())
    like.set(xlim=(0.5, end), ylim=(lowest, 1.02), title="How alike are two steps in the teacher?",
             xlabel="distance in time, steps", ylabel="cosine of the centred embeddings")  # fmt: skip
    like.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    left.plot(table.index, table["false at the edge"], "o-", color=ALARM, label="false, of the nearest that are left")
    left.plot(table.index, table["false"], "D-", color="#e69f00", ms=4, label="false, of all that are left")
    left.plot(table.index, table["left out"], "--", color="0.5", label="left out")
    left.axvline(exclude_near, color="0.8", lw=6, zorder=0)
    left.set(ylim=(-0.02, 1.02), xlabel="exclude_near, steps", ylabel="share of pairs within an episode",
             title=negatives_title(audit, exclude_near, cut, batch).replace(": ", ":\n"))  # fmt: skip
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
    for axes in (like, left):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def negatives_title(audit: NegativeAudit, exclude_near: int, cut: float, batch: int) -> str:
    """What a choice of `exclude_near` means for a batch, in a line."""
    count = audit.per_anchor(cut, exclude_near, batch)
    return f"exclude_near = {exclude_near}: a step meets {count:.2f} false negatives in a batch of {batch}"
