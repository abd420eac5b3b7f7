"""Probes: what a linear reader finds in a frozen representation, fitted on training episodes, scored on others."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rgb2pc_lib.data.states import moved, poses, read_state, rows_of, state_file
from rgb2pc_lib.errors import InputError

LOWER_IS_BETTER = ("median rank", "tcp cm", "object cm")
PROBES = ("tcp", "left tcp", "right tcp", "object", "tcp-object", "distance", "opening", "progress")
LOOKS = {"fixed look": False, "random look": True}  # of an episode, where its state says so
_ALPHAS = np.logspace(-2, 4, 7)
_IN_CM = ("tcp", "object")
_LEAST = 1e-5  # a feature of less spread in training, in that of the widest, never changes there but for rounding


def load_targets(root: Path, keys: pd.DataFrame, frame: str | None = None) -> dict[str, np.ndarray]:
    """Probe targets `[n, d]` of the given samples, from `<root>/<task>/<episode>.npz` (see data/README.md).

    Positions (metres) are in the frame in which the teacher sees ("world" or "camera"), by default that of the clouds:
    who sees in a camera's cannot know where the world is.
    Targets are those that every episode has. Raises InputError naming the file when an episode or a step is missing.
    """
    return from_states(root, keys, partial(_targets, frame))


_OWN = ("own tcp", "own opening")


def load_answers(
    root: Path, keys: pd.DataFrame, frame: str | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray | None, np.ndarray | None]:
    """`load_targets`, what the robot knows of itself, and the episodes' looks, from one reading of the states.

    The robot knows its tcp (m, in its own frame) and its opening (m): `[n, 4]`. The look is whether an episode's is
    randomised: `[n]` bool. Either is None where it is not recorded of every episode.
    """
    found = from_states(root, keys, partial(read_answers, frame))
    return {k: found[k] for k in PROBES if k in found}, own_of(found), found.get("randomised")


def read_answers(frame: str | None, state, rows, path) -> dict[str, np.ndarray]:
    """Of some steps of an episode all that `load_answers` tells of, for `from_states`."""
    return _targets(frame, state, rows, path) | _own(state, rows, path) | _look(state, rows, path)


def own_of(found: dict[str, np.ndarray]) -> np.ndarray | None:
    """What the robot knows of itself `[n, 4]`, of what `read_answers` found; None where it is not recorded."""
    return np.concatenate([found[k] for k in _OWN], 1) if set(_OWN) <= found.keys() else None


def from_states(root: Path, keys: pd.DataFrame, read) -> dict[str, np.ndarray]:
    """`read(state, rows, file)` -> name -> `[steps, ...]` of every episode, in the order of the keys.

    Only what all episodes have. Raises InputError naming the file when an episode or a step is missing.
    """
    parts: list[tuple[np.ndarray, dict]] = []
    for (task, episode), group in keys.groupby(["task", "episode"], sort=False):
        path = state_file(root, task, episode)
        state = read_state(path)
        values = read(state, rows_of(state, group["step"].tolist(), path), path)
        parts.append((group.index.to_numpy(), values))
    order = np.argsort(np.concatenate([index for index, _ in parts]))
    common = [k for k in parts[0][1] if all(k in values for _, values in parts)]
    for name in common:
        if len(widths := {values[name].shape[1:] for _, values in parts}) > 1:
            raise InputError(
                f"{root}: expected {name} of one width in all episodes, found {sorted(widths)}; judge them apart"
            )
    return {k: np.concatenate([values[k] for _, values in parts])[order] for k in common}


def _own(state, rows, path) -> dict[str, np.ndarray]:
    kept = {k: k.removeprefix("own ") for k in _OWN}
    return {k: state[name][rows].reshape(len(rows), -1) for k, name in kept.items() if name in state}


def _look(state, rows, path) -> dict[str, np.ndarray]:
    return {k: np.full(len(rows), bool(state[k])) for k in ("randomised",) if k in state}


def _targets(frame, state, rows, path) -> dict[str, np.ndarray]:
    values = _positions(state, rows, path, frame)
    if {"tcp", "object"} <= values.keys():
        values["tcp-object"] = values["object"] - values["tcp"]
        values["distance"] = np.linalg.norm(values["tcp-object"], axis=1, keepdims=True)
    values |= {k: state[k][rows, None] for k in ("opening", "progress") if k in state}
    return {k: values[k] for k in PROBES if k in values}


def _positions(state, rows, path, frame):  # those in a camera whose pose is unknown cannot be told
    pose = poses(state, rows, path, frame)
    if pose is None:
        return {}
    names = {"tcp": "tcp", "left_tcp": "left tcp", "right_tcp": "right tcp", "object": "object"}
    return {name: moved(state[k][rows], pose) for k, name in names.items() if k in state}


def probe(features: np.ndarray, targets: dict, keys: pd.DataFrame, held_out: np.ndarray) -> dict[str, float]:
    """Linear probes on frozen features `[n, d]`, fitted on training episodes and scored on held-out ones.

    Ridge regression; its strength is chosen per target by cross-validation over training episodes. R2 is *within task*:
    variance around each task's own mean, so knowing the task earns nothing. "tcp cm" and "object cm" are median errors
    in centimetres. "task accuracy" is a logistic regression's.
    """
    return scores(probe_samples(features, targets, keys, held_out))


def probe_samples(features: np.ndarray, targets: dict, keys: pd.DataFrame, held_out: np.ndarray) -> pd.DataFrame:
    """The probes' results by held-out sample: "<target> error" and "<target> around" (its task's mean), both squared.

    With several tasks also "task right". Episodes and errors are all that `scores` and intervals need.
    """
    fit, score = ~held_out, held_out
    groups = (keys["task"] + "/" + keys["episode"]).to_numpy()
    names = list(targets)
    y = np.concatenate([targets[k] for k in names], 1)
    columns = np.repeat(np.arange(len(names)), [targets[k].shape[1] for k in names])
    mean, scale = y[fit].mean(0), y[fit].std(0) + 1e-9
    predicted = ridge(features[fit], (y[fit] - mean) / scale, groups[fit], features[score], columns) * scale + mean
    task = keys["task"].to_numpy()[score]
    around = y[score] - pd.DataFrame(y[score]).groupby(task).transform("mean").to_numpy()
    out = {"episode": groups[score]}
    for i, name in enumerate(names):
        out[f"{name} error"] = ((y[score] - predicted)[:, columns == i] ** 2).sum(1)
        out[f"{name} around"] = (around[:, columns == i] ** 2).sum(1)
    if len(set(task)) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
            classifier.fit(features[fit], keys["task"][fit])
            out["task right"] = classifier.predict(features[score]) == task
    return pd.DataFrame(out, index=keys.index[score])


def scores(samples: pd.DataFrame) -> dict[str, float]:
    """Figures of some samples of `probe_samples`: R2 within task, median errors in centimetres, task accuracy."""
    out = {}
    for name in [c.removesuffix(" error") for c in samples if c.endswith(" error")]:
        out[f"R2 {name}"] = float(1 - samples[f"{name} error"].sum() / samples[f"{name} around"].sum())
        if name in _IN_CM:
            out[f"{name} cm"] = float(100 * np.sqrt(samples[f"{name} error"]).median())
    if "task right" in samples:
        out["task accuracy"] = float(samples["task right"].mean())
    return out


def ridge(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, x_new: np.ndarray, columns: np.ndarray | None = None
) -> np.ndarray:
    """Ridge regression of targets `[n, t]` on standardised features `[n, d]`, told of new ones `[m, d]`: `[m, t]`.

    Its strength is chosen by 4-fold cross-validation over groups `[n]` (neighbouring steps tell each other) by the sum
    of squared errors: once for all columns of the targets, or for each target that `columns` `[t]` numbers.

    >>> x = np.linspace(-1, 1, 40)[:, None]
    >>> ridge(x, 3 * x + 1, np.arange(40) // 4, np.array([[0.5]])).round(1)
    array([[2.5]])
    """
    columns = np.zeros(y.shape[1], int) if columns is None else columns
    scaler = StandardScaler().fit(x)
    x, x_new = (scaler.transform(some).astype(np.float64) for some in (x, x_new))
    for some in (x, x_new):
        some[:, scaler.var_ < _LEAST**2 * scaler.var_.max()] = 0  # nothing was learned of it
    errors = np.zeros((len(_ALPHAS), y.shape[1]))
    for a, b in GroupKFold(min(4, len(set(groups)))).split(x, groups=groups):
        errors += ((_predicted(x[a], y[a], x[b]) - y[b]) ** 2).sum(1)
    total = np.stack([errors[:, columns == c].sum(1) for c in range(columns.max() + 1)], 1)  # [alphas, targets]
    best = total.argmin(0)[columns]
    told: np.ndarray = _predicted(x, y, x_new)[best, :, np.arange(y.shape[1])].T
    return told


def _predicted(x, y, x_new) -> np.ndarray:
    """Ridge regression with an intercept at every strength `[alphas, n, columns]`, from one decomposition."""
    middle, level = x.mean(0), y.mean(0)
    x, y, x_new = x - middle, y - level, x_new - middle
    if x.shape[1] <= len(x):
        values, basis = np.linalg.eigh(x.T @ x)
        left, right = x_new @ basis, basis.T @ (x.T @ y)
    else:  # fewer samples than features: in the space of the samples
        values, basis = np.linalg.eigh(x @ x.T)
        left, right = x_new @ x.T @ basis, basis.T @ y
    return np.stack([left @ (right / (values.clip(0) + alpha)[:, None]) for alpha in _ALPHAS]) + level
