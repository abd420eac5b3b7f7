"""The points of a step: where each is seen in the image, and what is known of it.

Known is the teacher's feature of the point, from the teacher's files, or its place in space, from there or from PLY.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rgb2pc_lib.data.clouds import Cloud, read_ply, transform
from rgb2pc_lib.data.geometry import uv_to_fractions
from rgb2pc_lib.data.numbers import as_positions, numbers
from rgb2pc_lib.data.packs import load_torch
from rgb2pc_lib.data.pairing import Samples, frame_size
from rgb2pc_lib.data.states import poses, rows_of, state_file, state_once
from rgb2pc_lib.data.teacher import AGAIN, TeacherFile, as_array
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
        self.looked: set[int] = set()  # samples whose pixels were compared with their image
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
        """Where the points are seen, `[N, 2]` pixel indices.

        Raises InputError where no file tells, and for what cannot be pixels of this image.
        """
        uv = self._places(sample)[0]
        if sample not in self.looked:
            _refuse_other_pixels(uv, self.size(sample), self.file(sample).path)
            self.looked.add(sample)
        return uv

    def xyz(self, sample: int) -> np.ndarray:
        """Where the points are, `[N, 3]` m. Raises InputError where no file tells."""
        xyz = self._places(sample)[1]
        if xyz is None:
            raise InputError(
                f"{self.file(sample).path}: no 'pc' [N, 3], which is needed here; extract the teacher with it, or name "
                "clouds with u and v (--cloud_root)"
            )
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
                "extract the teacher with uv, or use --point_target xyz with clouds that have u and v"
            )
        return found


def point_features(file: TeacherFile, which: np.ndarray) -> np.ndarray:
    """The teacher's features of some points of a step, `[K, E]` float32; only these are read.

    Raises InputError when the file is unreadable.
    """
    return as_array(_opened(file.path)["pc_feat"][which], file.path)


@functools.lru_cache(maxsize=4096)
def _opened(path: Path) -> Any:
    """What a step's file holds, mapped where it lies."""
    return load_torch(path, AGAIN, mmap=True, again=AGAIN)


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
            f"found {shape} and {list(uv.shape)}, so it is not known which belong together; {AGAIN} with uv"
        )
    uv, pc = numbers(as_array(uv, path), f"{path}", "uv"), raw.get("pc")
    if pc is None:
        return uv, None
    if pc.ndim != 2 or len(pc) != len(feat) or pc.shape[1] < 3:
        raise InputError(
            f"{path}: expected 'pc' [N, 3] of the {len(feat)} points of 'pc_feat', found {list(pc.shape)}; {AGAIN}"
        )
    pc = pc.detach().double().numpy() if isinstance(pc, torch.Tensor) else np.asarray(pc)
    return uv, as_positions(pc[:, :3], f"{path}: pc")


def _refuse_other_pixels(uv: np.ndarray, size: tuple[int, int], path: Path) -> None:
    """Raises InputError where most points lie outside an image of `size` (height, width), or all in its first pixel."""
    height, width = size
    if len(uv) > 1 and uv.min() >= 0 and uv.max() <= 1 and (uv % 1).any():
        raise InputError(
            f"{path}: uv from 0 to 1 are fractions of the image, expected pixels; multiply them by {width} and "
            f"{height} and take away 0.5"
        )
    outside = ((uv < -0.5) | (uv >= np.array([width, height]) - 0.5)).any(1).mean() if len(uv) else 0
    if outside > 0.5:
        raise InputError(
            f"{path}: {outside:.0%} of the points lie outside the image of {width} x {height} pixels (uv up to "
            f"{uv[:, 0].max():.0f}, {uv[:, 1].max():.0f}): they are pixels of another image size; scale them, or name "
            "the frames that they belong to (--rgb_root)"
        )


@functools.lru_cache(maxsize=8192)
def _ply_places(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    cloud: Cloud = read_ply(path)
    return None if cloud.uv is None else (cloud.uv, cloud.xyz)
