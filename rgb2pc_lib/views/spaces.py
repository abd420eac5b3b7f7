"""Teacher and student side by side: their UMAPs, and how far neighbours agree in the spaces and in the pictures.

UMAP keeps neighbourhoods and invents the rest: distances between clusters, their sizes and the axes mean nothing. So
every picture comes with `neighbourhoods`, which is measured in the spaces themselves.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from plotly.subplots import make_subplots
from sklearn.neighbors import NearestNeighbors

from rgb2pc_lib.data.states import read_state, state_file
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.metrics import knn_overlap, own_ranks, trustworthiness, unit
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.look import plain
from rgb2pc_lib.views.plots import MARKS, mark, task_colours

NEIGHBOURS = 10  # of the measures
COLOURINGS = ("task", "progress", "error")  # of the figure
MEANING = {
    "task": "which task",
    "progress": "share of the episode that has passed",
    "error": "cosine distance of student and teacher",
    "rank": "place of the own cloud in retrieval, 1 = first",
}
_WORSE = ("error", "rank")  # dark where it is high
_SYMBOLS = dict(
    zip(MARKS, ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x"), strict=True)
)  # plotly's names
LEAST = 8  # samples of which a map can be drawn


@dataclass(frozen=True)
class Spaces:
    """The embeddings of a run, row for row: teacher (centred by the training mean, as in training) and student.

    >>> spaces = Spaces.of(Run.open("runs/judge/moe-seed0"))  # doctest: +SKIP
    >>> spaces.maps["teacher"].shape  # doctest: +SKIP
    (1024, 2)
    """

    name: str
    keys: pd.DataFrame  # task, episode, step, time
    held_out: np.ndarray  # [n] bool
    teacher: np.ndarray  # [n, E]
    student: np.ndarray  # [n, E]
    leading: np.ndarray  # [n] name of the expert with the largest mean gate

    @classmethod
    def of(cls, run: Run) -> Spaces:
        """Raises InputError when the run is unfinished or embeds too few samples for a map."""
        e = run.embeddings()
        if len(e["step"]) < LEAST:
            raise InputError(f"{run.folder}: embeds {len(e['step'])} samples; a map needs at least {LEAST}")
        keys = pd.DataFrame({k: e[k] for k in ("task", "episode", "step", "time")})
        leading = e["experts"][e["gates"].argmax(1)]
        return cls(run.name, keys, e["held_out"], run.centred(e), e["student"], leading)

    @functools.cached_property
    def maps(self) -> dict[str, np.ndarray]:
        """UMAP `[n, 2]` of "teacher" and "student", each made alone from all samples, scaled to spread 1.

        The student's is then turned and mirrored as a whole onto the teacher's, which changes no neighbour.
        """
        teacher, student = (_scaled(fold(x)) for x in (self.teacher, self.student))
        u, _, v = np.linalg.svd(student.T @ teacher)
        return {"teacher": teacher, "student": student @ u @ v}

    @functools.cached_property
    def progress(self) -> np.ndarray:
        """`[n]` share of the episode's recorded steps that has passed, 0..1."""
        time = self.keys.groupby(["task", "episode"])["time"]
        first, last = time.transform("min"), time.transform("max")
        return ((self.keys["time"] - first) / (last - first).clip(lower=1)).to_numpy(float)

    @functools.cached_property
    def error(self) -> np.ndarray:
        """`[n]` 1 - cosine of student and centred teacher: 0 same direction, 1 unrelated, 2 opposite."""
        return 1 - (unit(self.student) * unit(self.teacher)).sum(1)

    @functools.cached_property
    def rank(self) -> np.ndarray:
        """`[n]` place of the own teacher in retrieval, 1 = first; held-out among held-out, training among training."""
        out = np.zeros(len(self.keys), int)
        for side in (self.held_out, ~self.held_out):
            out[side] = own_ranks(self.student[side], self.teacher[side])
        return out

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """A row for each sample: task, episode, step, split, rank, error, progress, leading expert."""
        columns = {
            "split": np.where(self.held_out, "held-out", "training"), "rank": self.rank, "error": self.error,
            "progress": self.progress, "leading expert": self.leading,
        }  # fmt: skip
        return self.keys[["task", "episode", "step"]].assign(**columns)

    def nearest(self, row: int, of: str = "teacher", count: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Rows, best first, and cosines, of the teachers nearest to a row's teacher or student embedding.

        Among samples of the same side (held-out or training). The teacher leaves itself out; what the student finds
        may, and should, be its own.
        """
        side = np.flatnonzero(self.held_out == self.held_out[row])
        cosine = unit(self.teacher[side]) @ unit(getattr(self, of)[row])
        order = np.argsort(-cosine, kind="stable")
        if of == "teacher":
            order = order[side[order] != row]
        return side[order[:count]], cosine[order[:count]]

    def label(self, row: int) -> str:
        """Who a row is, in words (not escaped)."""
        key, side = self.keys.iloc[row], "held-out" if self.held_out[row] else "training"
        among = int((self.held_out == self.held_out[row]).sum())
        return f"{key.task} / {key.episode} / {key.step}, {side}, rank {self.rank[row]} of {among}"


def fold(x: np.ndarray) -> np.ndarray:
    """UMAP (McInnes et al. 2018) of `[n, E]` onto the plane, `[n, 2]`: cosine metric, 15 neighbours, a fixed seed.

    >>> fold(np.random.default_rng(0).normal(size=(50, 8))).shape  # doctest: +SKIP
    (50, 2)
    """
    import umap  # takes seconds: only where a map is drawn

    near = min(15, len(x) - 1)
    return umap.UMAP(n_neighbors=near, metric="cosine", random_state=0, n_jobs=1).fit_transform(x)


def _scaled(y: np.ndarray) -> np.ndarray:
    y = y - y.mean(0)
    return y / np.sqrt(np.square(y).sum(1).mean())


def shades(values: pd.Series) -> tuple[str, float, float]:
    """The colour scale (matplotlib's name) of a column of numbers, and the values at its ends."""
    if values.name in ("progress", "error"):
        ends = 0.0, 1.0
    else:
        known = values[np.isfinite(values)]
        ends = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    return "magma_r" if values.name in _WORSE else "viridis", *ends


def tints(values: pd.Series) -> list[str]:
    """A colour (hex) for every value of a column: by name, or for numbers on their scale; grey where unknown.

    >>> tints(pd.Series(["a", "b", "a"]))
    ['#1f77b4', '#ff7f0e', '#1f77b4']
    """
    if not pd.api.types.is_numeric_dtype(values):
        named = task_colours(values)
        return [named[v] for v in values]
    scale, low, high = shades(values)
    share = ((values - low) / ((high - low) or 1)).clip(0, 1)
    table = [to_hex(c) for c in matplotlib.colormaps[scale](np.linspace(0, 1, 64))]
    return ["#9a9a9a" if np.isnan(v) else table[round(63 * v)] for v in share]


def shapes(values: pd.Series) -> np.ndarray:
    """The number of a shape (of `MARKS`) for every value of a column `[n]`: by name; numbers all have the first.

    >>> shapes(pd.Series(["a", "b", "a"])).tolist()
    [0, 1, 0]
    """
    if pd.api.types.is_numeric_dtype(values):
        return np.zeros(len(values), int)
    return np.unique(values.astype(str), return_inverse=True)[1] % len(MARKS)


def state_columns(workspace: Workspace, keys: pd.DataFrame) -> pd.DataFrame:
    """What the state files know of these steps, `[n]` numbers a column, positions as x, y and z; NaN where unknown.

    Raises InputError for a state file that cannot be read.
    """
    found = []
    for (task, episode), steps in keys.groupby(["task", "episode"], sort=False)["step"]:
        file = workspace.state and state_file(workspace.state, task, episode)
        if not file or not file.is_file():
            continue
        state = read_state(file)
        place = {step: i for i, step in enumerate(state["steps"].tolist())}
        known = steps[steps.isin(place)]
        rows = known.map(place).to_numpy(int)
        columns: dict[str, np.ndarray] = {}
        for name, values in state.items():
            if name in ("time", "labels") or values.dtype.kind not in "iufb":
                continue
            if values.shape == (len(place),):
                columns[name] = values[rows].astype(float)
            elif values.shape == (len(place), 3):
                columns |= {f"{name} {axis}": values[rows, i].astype(float) for i, axis in enumerate("xyz")}
        found.append(pd.DataFrame(columns, index=known.index))
    return pd.concat(found).reindex(keys.index) if found else pd.DataFrame(index=keys.index)


def neighbourhoods(spaces: Spaces, k: int = NEIGHBOURS) -> pd.DataFrame:
    """How far neighbours agree, 0..1, one row for held-out and one for training samples.

    "shared, spaces": share of the k nearest neighbours that teacher and student have in common (cosine; "kNN overlap"
    in a run's summary). "shared, elsewhere": the same among samples of *other* episodes: two moments of one episode are
    alike in any space, so this asks more. "shared, maps": in the two pictures (Euclidean). "chance": what random
    neighbours have in common. "map of the teacher", "map of the student": trustworthiness (Venna & Kaski 2001), 1 where
    nothing that is near in the picture is far in the space.
    """
    rows = {}
    episode = spaces.keys.groupby(["task", "episode"]).ngroup().to_numpy()
    for name, side in (("held-out", spaces.held_out), ("training", ~spaces.held_out)):
        n = int(side.sum())
        near = min(k, n // 2 - 1)
        if near < 1:
            continue
        student, teacher, maps = spaces.student[side], spaces.teacher[side], [y[side] for y in spaces.maps.values()]
        elsewhere, by_chance = overlap_elsewhere(student, teacher, episode[side], near)
        pictured = [map_neighbours(y, near) for y in maps]
        rows[name] = {
            "samples": n,
            "neighbours": near,
            "shared, spaces": knn_overlap(student, teacher, near),
            "chance": near / (n - 1),
            "shared, elsewhere": elsewhere,
            "chance, elsewhere": by_chance,
            "shared, maps": map_overlap(maps[0], maps[1], near),
            "map of the teacher": trustworthiness(teacher, pictured[0]),
            "map of the student": trustworthiness(student, pictured[1]),
        }
    return pd.DataFrame(rows).T.astype({"samples": int, "neighbours": int})


def overlap_elsewhere(x: np.ndarray, y: np.ndarray, episode: np.ndarray, k: int) -> tuple[float, float]:
    """Share of the k nearest neighbours (cosine) *of other episodes* that two spaces agree on, and that by chance.

    NaN where some sample has no k others.

    >>> overlap_elsewhere(np.eye(4), np.eye(4), np.array([0, 0, 1, 1]), 1)
    (1.0, 0.5)
    """
    _, number, size = np.unique(episode, return_inverse=True, return_counts=True)
    others = len(episode) - size[number]  # of each row, in other episodes
    if others.min() < k:
        return float("nan"), float("nan")
    return knn_overlap(x, y, k, group=episode), float(np.mean(k / others))


def map_neighbours(x: np.ndarray, k: int) -> np.ndarray:
    """Of each point of a picture `[n, 2]` its k nearest others (Euclidean), `[n, k]`."""
    return NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)


def map_overlap(x: np.ndarray, y: np.ndarray, k: int) -> float:
    """Share of the k nearest neighbours (Euclidean) that two pictures `[n, 2]` have in common.

    >>> map_overlap(np.eye(4), 3 * np.eye(4), 2)
    1.0
    """
    near = [map_neighbours(z, k) for z in (x, y)]
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*near, strict=True)]))


def in_words(table: pd.DataFrame) -> str:
    """The first row of `neighbourhoods` in a sentence."""
    side, r = table.index[0], table.iloc[0]
    return (
        f"Of the {r['neighbours']:.0f} nearest neighbours of a {side} sample, teacher and student share "
        f"{r['shared, spaces']:.0%} (chance {r['chance']:.0%}); of those in other episodes, "
        f"{r['shared, elsewhere']:.0%} (chance {r['chance, elsewhere']:.0%}); in the two maps, {r['shared, maps']:.0%} "
        f"({r['samples']:.0f} samples)."
    )


# -- pictures


def draw_map(axes, spaces: Spaces, which: str, values: pd.Series) -> None:
    """One space on one pair of axes, coloured by a column, names with a shape each: training samples small and faint,
    held-out ones large.
    """
    xy, tint, shape, held_out = spaces.maps[which], np.array(tints(values)), shapes(values), spaces.held_out
    looks: tuple[tuple[np.ndarray, dict[str, Any]], ...] = (
        (~held_out, {"s": 8, "alpha": 0.35, "lw": 0}),
        (held_out, {"s": 28, "lw": 0.5, "edgecolors": "black"}),
    )
    for side, look in looks:  # all that is held out above all that is not
        for i in np.unique(shape):
            mine = side & (shape == i)
            axes.scatter(*xy[mine].T, c=tint[mine], marker=MARKS[i], **look)
    axes.set_aspect("equal", "datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"{which}, by {values.name}")


def name_tasks(figure, spaces: Spaces) -> None:
    """The legend above a figure of maps: tasks, held-out and training."""
    tasks = task_colours(spaces.keys["task"])
    handles = [Line2D([], [], ls="", marker=mark(t, tasks), color=c, label=plain(t)) for t, c in tasks.items()]
    sides: dict[str, dict[str, Any]] = {"held-out": {"ms": 7, "mec": "black"}, "training": {"ms": 4, "alpha": 0.5}}
    handles += [Line2D([], [], ls="", marker="o", color="0.6", label=k, **style) for k, style in sides.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=6, frameon=False)


def umap_figure(spaces: Spaces) -> Figure:
    """Teacher above, student below, coloured by task, progress and error."""
    figure = Figure(figsize=(14, 9.6), layout="constrained")
    grid = figure.subplots(2, len(COLOURINGS))
    for j, by in enumerate(COLOURINGS):
        for axes, which in zip(grid[:, j], ("teacher", "student"), strict=True):
            draw_map(axes, spaces, which, spaces.table[by])
        if by != "task":
            bar = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), shades(spaces.table[by])[0])
            end = "max" if by == "error" else "neither"
            figure.colorbar(bar, ax=grid[:, j], location="bottom", label=MEANING[by], shrink=0.8, extend=end)
    name_tasks(figure, spaces)
    n, held = len(spaces.keys), int(spaces.held_out.sum())
    figure.supxlabel(
        f"UMAP of {n} samples of {plain(spaces.name)}, {held} of them held out; cosine, seed 0; the axes have no unit, "
        "and distances between clusters no meaning", fontsize=9,
    )  # fmt: skip
    return figure


def umap_plotly(spaces: Spaces) -> go.Figure:
    """The two maps by task, with names on hover; needs no kernel. A click on a task's name hides it in both."""
    figure = make_subplots(1, 2, subplot_titles=["teacher", "student"], horizontal_spacing=0.03)
    text = np.array([safe(spaces.label(i)) for i in range(len(spaces.keys))])
    marker = {"size": np.where(spaces.held_out, 8, 4), "opacity": np.where(spaces.held_out, 1.0, 0.4)}
    for task, tint in task_colours(spaces.keys["task"]).items():
        mine = (spaces.keys["task"] == task).to_numpy()
        look = {"color": tint, "symbol": _SYMBOLS[mark(task, spaces.keys["task"])]}
        for column, xy in enumerate(spaces.maps.values(), 1):
            figure.add_scatter(
                x=xy[mine, 0].round(3), y=xy[mine, 1].round(3), text=text[mine], hoverinfo="text", mode="markers",
                marker=look | {k: v[mine] for k, v in marker.items()}, name=safe(task), legendgroup=task,
                showlegend=False, row=1, col=column,
            )  # fmt: skip
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=look | {"size": 9}, name=safe(task),
                           legendgroup=task, row=1, col=1)  # fmt: skip
    blank = {"showticklabels": False, "zeroline": False, "showgrid": False}
    figure.update_xaxes(**blank).update_yaxes(**blank)
    return figure.update_layout(
        template="plotly_white", height=480, margin=dict(l=10, r=10, t=70, b=10), dragmode="pan",
        title=f"UMAP of {safe(spaces.name)}: large dots are held out, hover for names",
    )  # fmt: skip


def safe(text: str) -> str:
    """A user's name in a plotly text, which understands some HTML: nothing of it is markup.

    >>> safe("<b>a&b")
    '&lt;b&gt;a&amp;b'
    """
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
