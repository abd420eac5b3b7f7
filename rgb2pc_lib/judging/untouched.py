"""What is known of things before they are touched, which is what a policy must know to begin.

Over a whole episode the place of a thing is half told by the robot's own: once it is held, it is where the gripper is.
So these probes are fitted and scored on the steps at which nothing has moved yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from rgb2pc_lib.data.states import moved, poses, refuse_infinite
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.probes import from_states, own_of, read_answers, ridge

MOVED = 0.01  # m: an object that is farther from where it was at first has been moved
_VARIES = 0.01  # m: places that vary less, standard deviation along every axis, need not be seen
_FEW = 8  # steps of a task that are needed to fit, and to score


def untouched_places(root: Path, keys: pd.DataFrame, frame: str | None = None) -> dict[str, np.ndarray]:
    """Of steps: `object` and, where all episodes have one, `goal` `[n, 3]`, m; `own` `[n, 4]`; `untouched` `[n]` bool.

    Also `randomised` `[n]` bool, the episode's look, where it is recorded of all. Places are in the frame in which the
    teacher sees, as those of `load_answers`; `own` is what the robot knows of itself. Raises InputError where
    states lack object, tcp or opening or hold values that are not finite, or where the camera's place is not known.
    """
    found = from_states(root, keys, lambda *state: read_answers(frame, *state) | _ahead(frame, *state))
    own = own_of(found)
    missing = [k for k in ("object", "untouched") if k not in found] + ["own"] * (own is None)
    if own is None or missing:
        raise InputError(
            f"{root}: expected object, tcp and opening in every episode's file, found none that give "
            f"{', '.join(missing)}; add them"
        )
    places = {k: found[k] for k in ("object", "goal", "untouched", "randomised") if k in found} | {"own": own}
    for name in ("object", "goal", "own"):
        if name in places:
            refuse_infinite(root, keys, places[name], "places")
    return places


def _ahead(frame, state, rows, path) -> dict[str, np.ndarray]:
    """The goal at some steps of an episode, and whether nothing has moved yet."""
    pose = poses(state, rows, path, frame)
    if pose is None or "object" not in state:
        return {}
    gone = np.linalg.norm(state["object"] - state["object"][0], axis=1) > MOVED
    found = {"untouched": np.asarray(rows) < (gone.argmax() if gone.any() else len(gone))}
    if "goal" in state and state["goal"].shape[-1:] == (3,):
        goal = state["goal"] if state["goal"].ndim == 1 else state["goal"][rows]
        found["goal"] = moved(np.broadcast_to(goal, (len(rows), 3)), pose)
    return found


def untouched_errors(
    representations: Mapping[str, np.ndarray], places: dict[str, np.ndarray], keys: pd.DataFrame, fit: np.ndarray,
    score: np.ndarray,
) -> pd.DataFrame:  # fmt: skip
    """Median errors in cm of every task's object and goal, a row each, a column for each representation `[n, d]`.

    `places` of `untouched_places`; `fit` and `score` `[n]` bool. A ridge regression of a task reads the representation
    beside the robot's own, both on steps of `fit`, with its strength from cross-validation. Left out are places that do
    not vary (see `_VARIES`), a goal that is the object's place, and tasks with few such steps.
    Columns: task, place, steps (that are scored), then the representations. Raises InputError where nothing is left.
    """
    groups = (keys["task"] + "/" + keys["episode"]).to_numpy()
    lines = []
    for task in keys["task"].unique():
        of = (keys["task"] == task).to_numpy() & places["untouched"]
        a, b = of & fit, of & score
        if min(a.sum(), b.sum()) < _FEW:
            continue
        told = {k: places[k] for k in ("object", "goal") if k in places and places[k][a].std(0).max() > _VARIES}
        if "goal" in told and _follows(places["object"][a], told["goal"][a]):
            del told["goal"]
        for place, wanted in told.items():
            row: dict[str, object] = {"task": task, "place": place, "steps": int(b.sum())}
            for name, x in representations.items():
                seen = np.concatenate([x, places["own"]], 1)
                found = ridge(seen[a], wanted[a], groups[a], seen[b])
                row[name] = 100 * float(np.median(np.linalg.norm(found - wanted[b], axis=1)))
            lines.append(row)
    if not lines:
        raise InputError(
            f"expected a task with {_FEW} untouched steps on each side of the split and a place that varies from "
            "episode to episode, found none; record more episodes, or ask without a look"
        )
    return pd.DataFrame(lines, columns=["task", "place", "steps", *representations])


def _follows(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether a place is the other, moved by the same in all steps."""
    return bool((one - other).std(0).max() < _VARIES)
