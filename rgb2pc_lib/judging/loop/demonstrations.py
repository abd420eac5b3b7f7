"""What a policy learns from: of every recorded step what the robot knew of itself, and the actions that followed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from rgb2pc_lib.data.files.guarded import check_npz
from rgb2pc_lib.data.states import state_file
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.probes import from_states
from rgb2pc_lib.learning.prepare import Data

CHUNK = 5  # actions that a policy gives at once: so many are carried out before it looks again


@dataclass(frozen=True)
class Demonstrations:
    """n recorded steps, in the order of the keys, and which side of the split each is on."""

    keys: pd.DataFrame  # task, episode, step, time
    training: np.ndarray  # [n] bool
    validation: np.ndarray  # [n] bool; these choose nothing here, and are reported
    held_out: np.ndarray  # [n] bool
    own: np.ndarray  # [n, P] float32, what the robot knows of itself
    actions: np.ndarray  # [n, H, A] float32, the chunk that begins at the step
    seeds: frozenset[int]  # of simulated episodes: fresh ones must be others
    horizons: dict[str, int]  # task -> control steps that a roll-out may take

    @classmethod
    def of(cls, data: Data, state_root: Path, chunk: int = CHUNK) -> Demonstrations:
        """The steps of a config's data, with what their state files say.

        The robot's own: `tcp` and `opening`, else `qpos`, else nothing. Actions: those of the whole roll-out
        (`actions`, in which `time` counts), else of the kept steps (`action`), else the joints of the steps that
        follow (`qpos`). Beyond an episode's end its last action is repeated. A roll-out may take as long as the
        longest demonstration for training, and at least twice the median one.
        Raises InputError naming the file where an episode has no actions, and where their number differs.
        """
        keys = data.samples.keys()
        found = from_states(state_root, keys, partial(_read, chunk))
        if "actions" not in found:
            raise InputError(f"{state_root}: expected {_WANTED} in every episode's file, found other arrays in some")
        if not np.isfinite(found["actions"]).all():
            bad = keys.loc[~np.isfinite(found["actions"]).all((1, 2))].iloc[0]
            raise InputError(
                f"{state_file(state_root, bad['task'], bad['episode'])}: expected finite actions, found others from "
                f"{bad['step']} on; exclude the episode"
            )
        index = np.arange(len(keys))
        training = np.isin(index, data.training)
        lengths = pd.Series(found["length"][training]).groupby(keys["task"].to_numpy()[training])
        return cls(
            keys,
            training,
            np.isin(index, data.validation),
            np.isin(index, data.held_out),
            found["own"].astype(np.float32),
            found["actions"].astype(np.float32),
            frozenset(found.get("seed", np.zeros(0, int)).tolist()),
            {task: int(max(2 * some.median(), some.max())) for task, some in lengths},
        )

    def of_task(self, task: str) -> np.ndarray:
        """Which steps `[n]` are of a task."""
        return (self.keys["task"] == task).to_numpy()

    @property
    def episodes(self) -> np.ndarray:
        """The episode of every step, `[n]`, as `<task>/<episode>`."""
        return (self.keys["task"] + "/" + self.keys["episode"]).to_numpy()


_WANTED = "the array actions (with time), action or qpos"


def _read(chunk: int, state: dict[str, np.ndarray], rows: np.ndarray, path: Path) -> dict[str, np.ndarray]:
    actions, first = _actions(state, path)
    following = np.minimum(first[rows, None] + np.arange(chunk), len(actions) - 1)  # [s, H]
    own = ("tcp", "opening") if {"tcp", "opening"} <= state.keys() else ("qpos",) if "qpos" in state else ()
    known = [state[k][rows].reshape(len(rows), -1) for k in own]
    out = {"actions": actions[following], "length": np.full(len(rows), len(actions))}
    out["own"] = np.concatenate([*known, np.zeros((len(rows), 0))], 1)
    return out | {k: np.full(len(rows), int(state[k])) for k in ("seed",) if k in state and state[k].ndim == 0}


def _actions(state: dict[str, np.ndarray], path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All actions `[L, A]` of an episode, and where among them the chunk of each kept step begins `[S]`."""
    kept = np.arange(len(state["steps"]))
    if "actions" in state and "time" in state:
        check_npz(path, state, {"actions": ("f", "LA"), "time": ("iu", "S")})
        return state["actions"], state["time"].astype(int)
    for name, later in (("action", 0), ("qpos", 1)):
        if name in state:
            check_npz(path, state, {"steps": ("U", "S"), name: ("f", "SA")})
            return state[name], np.minimum(kept + later, len(kept) - 1)
    raise InputError(f"{path}: expected {_WANTED}, found {', '.join(state)}; add the actions of its steps")
