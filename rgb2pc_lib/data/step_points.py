"""The points of a step: where each is seen in the image, and what is known of it.

Known is the teacher's feature of the point, from the teacher's files, or its place in space, from there or from PLY.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rgb2pc_lib.data.clouds import Cloud, read_ply, transform
from rgb2pc_lib.data.geometry import uv_to_fractions
from rgb2pc_lib.data.packs import load_torch
from rgb2pc_lib.data.pairing import Samples, frame_size
from rgb2pc_lib.data.states import poses, rows_of, state_file, state_once
from rgb2pc_lib.data.teacher import TeacherFile, as_array
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError

KINDS = ("teacher", "xyz")


@dataclass(eq=False)
class PointReader:
    """Points of samples, by sample number.

    >>> reader = PointReader(samples, workspace)  # doctest: +SKIP
    >>> reader.fractions(0).shape, reader.known(0, np.arange(8)).shape  # doctest: +SKIP
    ((1024, 2), (8, 256))
    """

    samples: Samples
    workspace: Workspace
    kind: str = "teacher"  # what is known of a point: one of KINDS

    def __post_init__(self) -> None:
        table = self.samples.pairing.table
        self.rows: list[int] = self.samples.teacher_rows[:, 0].tolist()
        self.where: list[tuple[str, str, str]] = list(zip(table["task"], table["episode"], table["step"], strict=True))

    def file(self, sample: int) -> TeacherFile:
        task, episode, step = self.where[self.rows[sample]]
        return self.samples.pairing.teacher[task, episode][step]

    def ply(self, sample: int) -> Path:
        task, episode, step = self.where[self.rows[sample]]
        return (self.workspace.clouds or Path("no cloud root")) / task / episode / f"{step}.ply"

    def size(self, sample: int) -> tuple[int, int]:
        """Height and width of a sample's image, pixels. Raises InputError where nothing tells it."""
        return self._size(self.where[self.rows[sample]][:2])

    @functools.cache  # noqa: B019, a reader lives as long as its data
    def _size(self, episode: tuple[str, str]) -> tuple[int, int]:
        packs = [found[episode] for found in self.samples.pairing.packs.values() if episode in found]
        told = next((p.meta["raw_size"] for p in packs if p.meta.get("raw_size")), None)
        size = told or frame_size(self.workspace.rgb, episode)
        if size is None:
            raise InputError(
                f"{packs[0].path}: its meta has no 'raw_size' and there is no RGB frame of this episode, so pixels "
                "cannot be placed in the image; name the folder of frames (--rgb_root)"
            )
        return tuple(size)

    def fractions(self, sample: int) -> np.ndarray:
        """Where the points are seen, `[N, 2]` fractions of the image."""
        return uv_to_fractions(self.uv(sample), self.size(sample))

    def uv(self, sample: int) -> np.ndarray:
        """Where the points are seen, `[N, 2]` pixel indices. Raises InputError where no file tells."""
        return self._places(sample)[0]

    def xyz(self, sample: int) -> np.ndarray:
        """Where the points are, `[N, 3]` m. Raises InputError where no file tells."""
        xyz = self._places(sample)[1]
        if xyz is None:
            raise InputError(f"{self.file(sample).path}: no 'pc' [N, 3], which is needed here; re-extract this step")
        return xyz

    def world(self, sample: int) -> np.ndarray:
        """Where the points are, `[N, 3]` m, in a frame that all steps of an episode share.

        Clouds in a camera's frame are moved by the state's `world_to_camera` where there is one; without state, the
        camera is taken to stand still within an episode.
        """
        if not self.workspace.state:
            return self.xyz(sample)
        task, episode, step = self.where[self.rows[sample]]
        path = state_file(self.workspace.state, task, episode)
        state = state_once(path)
        pose = poses(state, rows_of(state, [step], path), path)
        if pose is None:
            raise InputError(f"{path}: clouds in a camera's frame, and no array world_to_camera [4, 4]; add it")
        return transform(self.xyz(sample), np.linalg.inv(pose[0]))

    def known(self, sample: int, which: np.ndarray) -> np.ndarray:
        """What is known of some of the points: teacher features `[K, E]` or xyz `[K, 3]`, float32."""
        return self.xyz(sample)[which] if self.kind == "xyz" else point_features(self.file(sample), which)

    def _places(self, sample: int) -> tuple[np.ndarray, np.ndarray | None]:
        file = self.file(sample)
        found = _teacher_places(file.path) if file.row is None and file.path.suffix == ".pt" else None
        if found is None and self.kind == "xyz" and self.ply(sample).exists():
            found = _ply_places(self.ply(sample))
        if found is None:
            raise InputError(
                f"{file.path}: no 'uv' [N, 2] beside its features, so it is not known where its points are seen; "
                "re-extract this step with uv, or use --point_target xyz with clouds that have u and v"
            )
        return found


def point_features(file: TeacherFile, which: np.ndarray) -> np.ndarray:
    """The teacher's features of some points of a step, `[K, E]` float32; only these are read.

    Raises InputError when the file is unreadable.
    """
    return as_array(_opened(file.path)["pc_feat"][which])


@functools.lru_cache(maxsize=4096)
def _opened(path: Path) -> Any:
    """What a step's file holds, mapped where it lies."""
    return load_torch(path, "extract this step again", mmap=True)


@functools.lru_cache(maxsize=8192)  # 20 KB each for 1,024 points
def _teacher_places(path: Path) -> tuple[np.ndarray, np.ndarray | None] | None:
    raw = _opened(path)
    uv = raw["uvs"] if raw.get("uv") is None and "uvs" in raw else raw.get("uv")
    feat: Any = raw.get("pc_feat")
    if uv is None:
        return None
    if getattr(feat, "ndim", 0) != 2 or tuple(uv.shape) != (len(feat), 2):
        shape = list(getattr(feat, "shape", []))
        raise InputError(
            f"{path}: expected 'pc_feat' [N, E] and 'uv' [N, 2] of the same points, "
            f"found {shape} and {list(uv.shape)}; re-extract this step"
        )
    pc = raw.get("pc")
    return as_array(uv), None if pc is None else as_array(pc)[:, :3]


@functools.lru_cache(maxsize=8192)
def _ply_places(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    cloud: Cloud = read_ply(path)
    return None if cloud.uv is None else (cloud.uv, cloud.xyz)
