"""What a policy learns from: of every recorded step what the robot knew of itself, and the actions that followed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from rgb2pc_lib.data.files.guarded import check_npz
from rgb2pc_lib.data.states import refuse_infinite
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

        The robot's own: `tcp` and `opening`, else `qpos`, else a constant. Actions: those of the whole roll-out
        (`actions`, in which `time` counts), else of the kept steps (`action`), else the joints of the steps that
        follow (`qpos`). Beyond an episode's end its last action is repeated. A roll-out may take as long as the
        longest demonstration for training, and at least twice the median one.
        Raises InputError naming the file where an episode has no actions, or has them of another kind than the rest,
        where they or what the robot knows are not finite, and where their number differs.
        """
        if chunk < 1:
            raise InputError(f"chunk: expected at least 1 action, found {chunk}")
        keys = data.samples.keys()
        found = from_states(state_root, keys, partial(_read, chunk))
        if len(kinds := sorted(set(found["source"]))) > 1:
            raise InputError(
                f"{state_root}: expected actions of one kind in every episode's file, found {' in some, '.join(kinds)} "
                "in others; judge them apart"
            )
        for name, said in (("actions", "actions"), ("own", "places and joints of the robot")):
            refuse_infinite(state_root, keys, found[name], said)
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
            frozenset(found["seed"].tolist()) - {_NO_SEED},
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
_NO_SEED = -1  # of an episode that was not simulated


def _read(chunk: int, state: dict[str, np.ndarray], rows: np.ndarray, path: Path) -> dict[str, np.ndarray]:
    source, actions, first = _actions(state, path)
    following = np.minimum(first[rows, None] + np.arange(chunk), len(actions) - 1)  # [s, H]
    own = ("tcp", "opening") if {"tcp", "opening"} <= state.keys() else ("qpos",) if "qpos" in state else ()
    for name in own:
        if state[name].shape[:1] != state["steps"].shape:
            wanted = f"expected [S, ...] with S = {len(state['steps'])} as in steps"
            raise InputError(f"{path}: {name}: {wanted}, found {list(state[name].shape)}; restore it from a copy")
    known = [state[k][rows].reshape(len(rows), -1) for k in own]
    seed = int(state["seed"]) if "seed" in state and state["seed"].ndim == 0 else _NO_SEED
    return {
        "actions": actions[following],
        "own": np.concatenate(known or [np.zeros((len(rows), 1))], 1),
        "length": np.full(len(rows), len(actions)),
        "seed": np.full(len(rows), seed),
        "source": np.full(len(rows), source),
    }


def _actions(state: dict[str, np.ndarray], path: Path) -> tuple[str, np.ndarray, np.ndarray]:
    """Of an episode the array's name, its actions `[L, A]`, and where among them the chunk of each kept step begins."""
    kept = np.arange(len(state["steps"]))
    if "actions" in state:
        check_npz(path, state, {"steps": ("U", "S"), "actions": ("f", "LA"), "time": ("iu", "S")})
        begins = state["time"].astype(int)
        if begins.min() < 0 or begins.max() >= len(state["actions"]):
            raise InputError(
                f"{path}: expected time to count the {len(state['actions'])} actions from 0 on, found "
                f"{begins.min()} to {begins.max()}; tell at which action each step was seen"
            )
        return "actions", state["actions"], begins
    for name, later in (("action", 0), ("qpos", 1)):
        if name in state:
            check_npz(path, state, {"steps": ("U", "S"), name: ("f", "SA")})
            return name, state[name], np.minimum(kept + later, len(kept) - 1)
    raise InputError(f"{path}: expected {_WANTED}, found {', '.join(state)}; add the actions of its steps")
