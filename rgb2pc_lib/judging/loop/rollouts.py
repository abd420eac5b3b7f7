"""Roll-outs: policies act in scenes side by side, so that the encoders see batches; every outcome is a line on disk."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.loop.scenes import LOOKS, Policy, Scene, Seen


@dataclass(frozen=True)
class Outcome:
    """One roll-out: a line of the table."""

    representation: str
    task: str
    look: str  # fixed or random
    seed: int  # of the environment: the same one is the same placement and look, whoever acts
    head: int  # seed of the policy head
    success: bool  # Meta-World's own
    length: int  # control steps until success, or until the time was over


@dataclass
class _Episode:
    """A roll-out on its way."""

    scene: Scene
    look: str
    seed: int
    length: int = 0
    success: bool = False
    film: list[np.ndarray] = field(default_factory=list)

    def act(self, chunk: np.ndarray, horizon: int) -> None:
        for action in chunk[: horizon - self.length]:
            self.length += 1
            if self.scene.act(action):
                self.success = True
                break


def roll_outs(
    policy: Policy, scenes: Sequence[Scene], wanted: Sequence[tuple[str, int]], horizon: int, cloud: bool = False
) -> Iterator[tuple[str, int, bool, int, list[np.ndarray]]]:
    """Roll a policy out from every (look, environment seed) that is wanted, in as many scenes at once as there are.

    The policy looks, all scenes in one batch, and its whole chunk is carried out before it looks again. Yields look,
    seed, success, length and the images seen, as each one ends.
    """
    coming, running = list(wanted)[::-1], list[_Episode]()
    idle = list(scenes)
    while coming or running:
        while coming and idle:
            look, seed = coming.pop()
            scene = idle.pop()
            scene.begin(seed, LOOKS[look])
            running.append(_Episode(scene, look, seed))
        seen: list[Seen] = [episode.scene.look(cloud) for episode in running]
        for episode, one, chunk in zip(running, seen, policy(seen), strict=True):
            episode.film.append(one.image)
            episode.act(chunk, horizon)
        ended = [e for e in running if e.success or e.length >= horizon]
        running = [e for e in running if not (e.success or e.length >= horizon)]
        for e in ended:
            idle.append(e.scene)
            e.film.append(e.scene.look(False).image)
            yield e.look, e.seed, e.success, e.length, e.film


# -- the table on disk

_COLUMNS = [f.name for f in fields(Outcome)]


def append(path: Path, outcome: Outcome) -> None:
    """Add a line, whole: processes may add to one file side by side."""
    line = ",".join(f'"{v}"' if isinstance(v, str) else str(int(v)) for v in astuple(outcome)) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def open_table(path: Path) -> pd.DataFrame:
    """What is in the table, made with its header where there is none; a half-written last line is taken away.

    Raises InputError naming a file that is no such table.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(",".join(_COLUMNS) + "\n", encoding="utf-8")
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(data.rfind(b"\n") + 1)
    return read_table(path)


def read_table(path: Path) -> pd.DataFrame:
    """The roll-outs of a table: the columns of `Outcome`, one row each; the last of a roll-out that is there twice.

    Raises InputError naming a file that is missing or no such table.
    """
    kinds = {"seed": int, "head": int, "success": int, "length": int}
    try:
        lines = path.read_text(encoding="utf-8")
        whole = lines[: lines.rfind("\n") + 1]  # a line may just be being written
        table = pd.read_csv(io.StringIO(whole), keep_default_na=False)
        if list(table.columns) != _COLUMNS:
            raise ValueError(f"the columns {', '.join(table.columns)}")
        table = table.astype(kinds)
        if not set(table["success"]) <= {0, 1} or not set(table["look"]) <= set(LOOKS):
            raise ValueError("a success that is not 0 or 1, or an unknown look")
    except (OSError, ValueError) as e:
        raise InputError(
            f"{path}: expected roll-outs with {', '.join(_COLUMNS)}, found {e}; delete it, and they are made again"
        ) from None
    table = table.astype({"success": bool})
    return table.drop_duplicates(_COLUMNS[:4], keep="last", ignore_index=True)
