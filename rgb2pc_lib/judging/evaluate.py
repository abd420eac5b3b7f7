"""Judgement: is the student as useful as the teacher?

Always the same table, always on held-out samples: agreement with the teacher, retrieval, and probes fitted on training
episodes, for the teacher, the students, each expert alone, all experts concatenated, and the shuffled control.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rgb2pc_lib.data.listing import tasks as list_tasks
from rgb2pc_lib.data.sampling import Gatherer, lattice, ordered_plans
from rgb2pc_lib.data.workspace import FAST, Workspace, portable
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.metrics import agreement, knn_overlap, linear_cka, retrieval
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.learning.runs import Config, Run
from rgb2pc_lib.learning.train import Progress, train

TEACHER, CONCATENATED, SHUFFLED = "teacher", "experts concatenated", "shuffled control"
LOWER_IS_BETTER = ("median rank", "tcp cm", "object cm")
# columns "R2 <name>"; what a recording lacks is left out
PROBES = ("tcp", "left tcp", "right tcp", "object", "tcp-object", "distance", "opening", "progress")
_ALPHAS = np.logspace(-1, 5, 7)
_LONG = ["model", "seed", "measure", "value"]


# -- probes


def load_targets(root: Path, keys: pd.DataFrame) -> dict[str, np.ndarray]:
    """Probe targets `[n, d]` of the given samples, from `<root>/<task>/<episode>.npz` (see data/README.md).

    Positions are turned into the frame of the clouds (metres): a camera-frame cloud cannot know where the world is.
    Targets are those that every episode has. Raises InputError naming the file when an episode or a step is missing.
    """
    parts: list[tuple[np.ndarray, dict]] = []
    for (task, episode), group in keys.groupby(["task", "episode"], sort=False):
        path = root / task / f"{episode}.npz"
        try:
            with np.load(path, allow_pickle=False) as z:
                state = dict(z)
            row_of = {s: i for i, s in enumerate(state["steps"].tolist())}
            rows = np.array([row_of[s] for s in group["step"]])
            values = _positions(state, rows)
            if {"tcp", "object"} <= values.keys():
                values["tcp-object"] = values["object"] - values["tcp"]
                values["distance"] = np.linalg.norm(values["tcp-object"], axis=1, keepdims=True)
            values |= {k: state[k][rows, None] for k in ("opening", "progress") if k in state}
        except (OSError, KeyError, ValueError) as e:
            raise InputError(f"{path}: expected the state of {len(group)} steps, found: {e!r}") from None
        parts.append((group.index.to_numpy(), values))
    order = np.argsort(np.concatenate([index for index, _ in parts]))
    common = [k for k in PROBES if all(k in values for _, values in parts)]
    return {k: np.concatenate([values[k] for _, values in parts])[order] for k in common}


def _positions(state, rows):  # in the frame of the clouds; those in a camera whose pose is unknown cannot be told
    pose = np.eye(4)
    if str(state["frame"]) == "camera":
        if "world_to_camera" not in state:
            return {}
        pose = state["world_to_camera"]
        pose = pose[rows] if pose.ndim == 3 else pose  # of a camera that moves there is one a step
    names = {"tcp": "tcp", "left_tcp": "left tcp", "right_tcp": "right tcp", "object": "object"}
    turned = {k: (pose[..., :3, :3] @ state[k][rows][..., None])[..., 0] for k in names if k in state}
    return {names[k]: x + pose[..., :3, 3] for k, x in turned.items()}


def probe(features: np.ndarray, targets: dict, keys: pd.DataFrame, held_out: np.ndarray) -> dict[str, float]:
    """Linear probes on frozen features `[n, d]`, fitted on training episodes and scored on held-out ones.

    Ridge regression; its strength is chosen per target by cross-validation over training episodes. R2 is *within task*:
    variance around each task's own mean, so knowing the task earns nothing. "tcp cm" and "object cm" are median errors
    in centimetres. "task accuracy" is a logistic regression's.
    """
    fit, score = ~held_out, held_out
    x = StandardScaler().fit(features[fit]).transform(features).astype(np.float64)
    groups = (keys["task"] + "/" + keys["episode"]).to_numpy()
    names = list(targets)
    y = np.concatenate([targets[k] for k in names], 1)
    columns = np.repeat(np.arange(len(names)), [targets[k].shape[1] for k in names])
    mean, scale = y[fit].mean(0), y[fit].std(0) + 1e-9
    predicted = _ridge(x[fit], (y[fit] - mean) / scale, groups[fit], columns, x[score]) * scale + mean
    out = {}
    task = keys["task"].to_numpy()[score]
    around = y[score] - pd.DataFrame(y[score]).groupby(task).transform("mean").to_numpy()
    for i, name in enumerate(names):
        error = (y[score] - predicted)[:, columns == i]
        out[f"R2 {name}"] = float(1 - (error**2).sum() / (around[:, columns == i] ** 2).sum())
        if name in ("tcp", "object"):
            out[f"{name} cm"] = float(100 * np.median(np.linalg.norm(error, axis=1)))
    if len(set(task)) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
            out["task accuracy"] = float(
                classifier.fit(features[fit], keys["task"][fit]).score(features[score], keys["task"][score])
            )
    return out


def _ridge(x, y, groups, columns, x_new) -> np.ndarray:
    """Ridge with one strength per target (a target may span several columns), by 4-fold group cross-validation."""
    errors = np.zeros((len(_ALPHAS), y.shape[1]))
    for a, b in GroupKFold(min(4, len(set(groups)))).split(x, groups=groups):
        for i, alpha in enumerate(_ALPHAS):
            errors[i] += ((Ridge(alpha).fit(x[a], y[a]).predict(x[b]).reshape(len(b), -1) - y[b]) ** 2).sum(0)
    total = np.stack([errors[:, columns == c].sum(1) for c in range(columns.max() + 1)], 1)  # [alphas, targets]
    best = total.argmin(0)[columns]
    out = np.empty((len(x_new), y.shape[1]))
    for i in np.unique(best):
        out[:, best == i] = Ridge(_ALPHAS[i]).fit(x, y[:, best == i]).predict(x_new).reshape(len(x_new), -1)
    return out


# -- one representation


def judge_features(features, teacher, targets, keys, held_out) -> dict[str, float]:
    """A representation that lives in its own space: probes, and agreement that needs no common space."""
    h = held_out
    row = {"CKA": linear_cka(features[h], teacher[h]), "kNN overlap": knn_overlap(features[h], teacher[h])}
    return row | (probe(features, targets, keys, h) if targets else {})


def judge_run(run: Run, state_root: Path | None) -> dict[str, float]:
    """A student, from its run's folder: agreement, retrieval (exact, and one step of tolerance) and probes."""
    e = run.embeddings()
    keys, h = _keys(e), e["held_out"]
    if (
        run.config.route == "geometric"
    ):  # its space is its own: nothing in it can be compared with the teacher's vectors
        return judge_features(e["student"], e["teacher"], load_targets(state_root, keys) if state_root else {}, keys, h)
    mean = e["teacher"][~h].mean(0)
    student, teacher = e["student"], e["teacher"] - mean
    episode = keys.groupby(["task", "episode"]).ngroup().to_numpy()
    row = {**retrieval(student[h], teacher[h]), **agreement(student[h], teacher[h])}
    row["R@1 within 1 step"] = retrieval(student[h], teacher[h], episode[h], e["time"][h], 1)["R@1"]
    return row | (probe(student, load_targets(state_root, keys), keys, h) if state_root else {})


def pooled_features(data: Data) -> dict[str, np.ndarray]:
    """Mean token of each expert over its whole grid, `[n, C]`, for all samples."""
    samples = data.samples
    gatherer = Gatherer(samples)
    plans = ordered_plans(samples, np.arange(len(samples)), 16, lattice(samples.pairing.finest_grid))
    parts: dict[str, list] = {name: [] for name in samples.expert_rows}
    for batch in gatherer.run(plans):
        for m, (name, tokens) in enumerate(batch.tokens.items()):
            there = batch.present[:, :, m : m + 1]
            parts[name].append(((tokens.float() * there).sum(1) / there.sum(1).clamp(min=1)).numpy())
    return {name: np.concatenate(rows) for name, rows in parts.items()}


# -- the whole table


def judged_config(workspace: Workspace, steps: int | None = None) -> Config:
    """The settings of the judged runs: small enough for two CPU cores, and tiny with RGB2PC_FAST=1."""
    steps = steps or (20 if FAST else 400)
    config = Config(steps=steps, eval_every=0, save_every=steps, student_tokens=32, amp=True).with_workspace(workspace)
    if FAST:
        tasks = tuple(list_tasks(workspace.require("teacher").teacher)[:2])
        config = dataclasses.replace(config, tasks=tasks, batch_size=32, student_tokens=32)
    return config


def line_up(config: Config, seeds: int, out: Path, ablations: bool = False) -> list[tuple[str, Config]]:
    """(row name, config) of every training behind the table: both fusions, each expert alone, the control.

    With `ablations` also "uniform" (equal weights) and "moe without <expert>", where there is more than one expert.
    """
    rows = []
    for seed in range(seeds):
        base = dataclasses.replace(config, seed=seed, shuffle_pairs=False)
        students = {"weighted": {"fusion": "weighted"}, "moe": {"fusion": "moe"}}
        for name, root in config.vis_roots.items():
            students[f"{name} only"] = {"fusion": "weighted", "vis_roots": {name: root}}
        students[SHUFFLED] = {"fusion": "moe", "shuffle_pairs": True}
        if ablations and len(config.vis_roots) > 1:
            students["uniform"] = {"fusion": "uniform"}
            for name in config.vis_roots:
                rest = {k: v for k, v in config.vis_roots.items() if k != name}
                students[f"moe without {name}"] = {"fusion": "moe", "vis_roots": rest}
        for name, changes in students.items():
            folder = out / f"{name.replace(' ', '-')}-seed{seed}"
            rows.append((name, dataclasses.replace(base, **changes, save_dir=portable(folder))))
    return rows


def train_line_up(rows: list[tuple[str, Config]]) -> Iterator[tuple[int, Progress]]:
    """Train what is not finished yet, yielding (number of the row, progress). Unfinished runs are resumed.

    Raises InputError where a folder holds a run with other settings.
    """
    for i, (_, config) in enumerate(rows):
        run = Run(config.folder)
        if not run.holds(config):
            for progress in train(config, resume=run.file("config.json").exists()):
                yield i, progress


def judge(config: Config, rows: list[tuple[str, Config]]) -> pd.DataFrame:
    """The table, long: one line per (model, seed, measure, value). Features and the teacher have seed -1."""
    data = Data.open(config)
    state_root = config.workspace.state
    run = Run.open(rows[0][1].folder)
    e = run.embeddings()
    keys, held_out = _keys(e), e["held_out"]
    if len(keys) != len(data.samples):
        raise InputError(f"{run.folder}: embeds {len(keys)} samples, the data have {len(data.samples)}; train it again")
    targets = load_targets(state_root, keys) if state_root else {}
    features = pooled_features(data)
    features = {TEACHER: e["teacher"], **features, CONCATENATED: np.concatenate(list(features.values()), 1)}
    lines = []
    for name, x in features.items():
        row = judge_features(x, e["teacher"], targets, keys, held_out)
        lines += [(name, -1, measure, value) for measure, value in row.items()]
    return pd.concat([pd.DataFrame(lines, columns=_LONG), judge_students(rows, state_root)], ignore_index=True)


def judge_students(rows: list[tuple[str, Config]], state_root: Path | None = None) -> pd.DataFrame:
    """The students' part of the table, from their runs' folders; without `state_root` no probes, which takes seconds.

    Raises InputError for a run that is not finished.
    """
    lines = []
    for name, config in rows:
        for measure, value in judge_run(Run.open(config.folder), state_root).items():
            lines.append((name, config.seed, measure, value))
    return pd.DataFrame(lines, columns=_LONG)


def verdict(long: pd.DataFrame, measure: str = "R@1", against: str = "uniform") -> pd.DataFrame:
    """Every student of a table on one measure, with 95 % t-intervals over seeds, in the order they came.

    Columns: mean, low, high, and the mean difference from `against`, paired by seed: difference, difference low,
    difference high; seeds.
    """
    students = long[(long["measure"] == measure) & (long["seed"] >= 0)]
    by_seed = students.pivot(index="seed", columns="model", values="value")[students["model"].unique()]
    lines = {}
    for name in by_seed:
        values, gain = by_seed[name].to_numpy(), (by_seed[name] - by_seed[against]).to_numpy()
        lines[name] = (values.mean(), *interval(values), gain.mean(), *interval(gain), len(values))
    columns = ["mean", "low", "high", "difference", "difference low", "difference high", "seeds"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns)


def mean_table(long: pd.DataFrame) -> pd.DataFrame:
    """Models by measures, mean over seeds, in the order they came."""
    table = long.pivot_table(index="model", columns="measure", values="value", aggfunc="mean", sort=False)
    return table.reindex(long["model"].unique())


def gap_closed(long: pd.DataFrame, students=("weighted", "moe")) -> pd.DataFrame:
    """(student - best expert) / (teacher - best expert) per measure, with a 95 % t-interval over seeds.

    The best expert is the best single one on that measure: its mean-pooled features for probes, the student trained on
    it alone for retrieval. A teacher finds itself, so its retrieval is perfect. Where the teacher is no better than the
    best expert there is no gap, and the line says so with NaN.

    Columns: student, measure, best expert, teacher, best (value), mean (value), closed, low, high, seeds.
    """
    table = mean_table(long)
    singles = [m for m in table.index if m.endswith(" only")]
    experts = [m.removesuffix(" only") for m in singles]
    lines = []
    for measure in table.columns:
        if measure.startswith("R@"):
            rivals, top = table.loc[singles, measure], 1.0
        elif measure.startswith("R2 ") or measure.endswith(" cm") or measure == "task accuracy":
            rivals, top = table.loc[experts, measure], table.loc[TEACHER, measure]
        else:
            continue
        best = rivals.idxmin() if measure in LOWER_IS_BETTER else rivals.idxmax()
        gap = top - rivals[best]
        real = gap < 0 if measure in LOWER_IS_BETTER else gap > 0
        for student in students:
            values = long[(long["model"] == student) & (long["measure"] == measure)]["value"].to_numpy()
            closed = (values - rivals[best]) / gap if real else np.full(len(values), np.nan)
            low, high = interval(closed)
            lines.append(
                (student, measure, best, top, rivals[best], values.mean(), closed.mean(), low, high, len(values))
            )
    columns = ["student", "measure", "best expert", "teacher", "best", "mean", "closed", "low", "high", "seeds"]
    return pd.DataFrame(lines, columns=columns)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """t-interval of the mean; NaN for fewer than two values."""
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    half = stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _keys(embeddings: dict) -> pd.DataFrame:
    return pd.DataFrame({k: embeddings[k] for k in ("task", "episode", "step", "time")})
