"""State files: what else is known of an episode's steps, for judging and for the camera's place. Never for training.

`<state root>/<task>/<episode>.npz`; every array may be missing but `steps`. Units and meaning: `data/README.md`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rgb2pc_lib.data.files.guarded import check_npz, read_npz
from rgb2pc_lib.errors import InputError

_POSITIONS = ("tcp", "left_tcp", "right_tcp", "object")
_WANTED = {
    "steps": ("U", "S"),
    "frame?": ("U", ""),
    "time?": ("iuf", "S"),
    "opening?": ("iuf", "S"),
    "progress?": ("iuf", "S"),
    "labels?": ("iu", "SN"),
    "label_names?": ("U", "L"),
    "randomised?": ("b", ""),
    **{f"{name}?": ("f", "S3") for name in _POSITIONS},
}

MEANT = {name.removesuffix("?") for name in _WANTED} | {"K", "world_to_camera"}  # arrays that something here relies on


def state_file(root: Path, task: str, episode: str) -> Path:
    return root / task / f"{episode}.npz"


def read_state(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a state file. Raises InputError naming the file and the array that is not as documented.

    >>> read_state(Path("data/sample/state/hammer/episode_0000.npz"))["tcp"].shape  # doctest: +SKIP
    (16, 3)
    """
    state = read_npz(path, _WANTED, otherwise="write it with numpy.savez, plain arrays only")
    if "world_to_camera" in state:
        axes = "S44" if state["world_to_camera"].ndim == 3 else "44"  # of a camera that moves there is one a step
        check_npz(path, state, {"steps": ("U", "S"), "world_to_camera": ("f", axes)})
    return state


state_once = functools.lru_cache(maxsize=4096)(read_state)  # for steps that are asked for one by one


def rows_of(state: dict[str, np.ndarray], steps: Sequence[str], path: Path) -> np.ndarray:
    """Where steps stand in a state. Raises InputError for one that it does not know."""
    known = {step: row for row, step in enumerate(state["steps"].tolist())}
    if lacking := [step for step in steps if step not in known]:
        raise InputError(
            f"{path}: expected the state of {len(steps)} steps, found none of {len(lacking)} of them, such as "
            f"{lacking[0]}; add their state, or exclude the episode"
        )
    return np.array([known[step] for step in steps], int)


def refuse_infinite(root: Path, keys: pd.DataFrame, values: np.ndarray, said: str) -> None:
    """Raise InputError naming the first file and step of the keys `[n]` where values `[n, ...]` are not finite."""
    if not (fine := np.isfinite(values.reshape(len(keys), -1)).all(1)).all():
        bad = keys.loc[~fine].iloc[0]
        raise InputError(
            f"{state_file(root, bad['task'], bad['episode'])}: expected finite {said}, found others from "
            f"{bad['step']} on; exclude the episode"
        )


def moved(places: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Places `[n, 3]`, each by its own pose `[n, 4, 4]`."""
    there: np.ndarray = (pose[:, :3, :3] @ places[..., None])[..., 0] + pose[:, :3, 3]
    return there


def poses(state: dict[str, np.ndarray], rows: np.ndarray, path: Path, frame: str | None = None) -> np.ndarray | None:
    """World to a frame, "camera" or "world", by default that of the clouds, `[n, 4, 4]`: the identity for the world's.

    None for a camera's whose place is unknown. Raises InputError where the clouds' is not told, or no pose.
    """
    if frame is None and "frame" not in state:
        raise InputError(f"{path}: expected the array frame, camera or world, of the clouds; add it")
    if (frame or str(state["frame"])) != "camera":
        return np.broadcast_to(np.eye(4), (len(rows), 4, 4))
    if "world_to_camera" not in state:
        return None
    pose = state["world_to_camera"]
    pose = pose[rows] if pose.ndim == 3 else np.broadcast_to(pose, (len(rows), 4, 4))
    if not np.isfinite(pose).all() or np.linalg.matrix_rank(pose).min() < 4:
        raise InputError(f"{path}: world_to_camera cannot be inverted, so it is no pose; restore the file from a copy")
    return pose
