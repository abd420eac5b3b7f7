"""Where a calibrated camera looks: the ray of every place of the image, as packs of one more expert.

What stands where *for the robot* follows from an image only together with the place of the camera. Experts that see
pixels must guess it; a camera that is calibrated, or moved by the robot itself, knows it. Its rays, in the world's
frame, then stand beside the experts' tokens like an expert of their own, and fusion does the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from rgb2pc_lib.data.files.exclusions import NOTHING, Exclusions
from rgb2pc_lib.data.files.faults import AT_ONCE, Faults
from rgb2pc_lib.data.listing import step_name
from rgb2pc_lib.data.pictures import image_size
from rgb2pc_lib.data.states import poses, read_state, rows_of, state_file
from rgb2pc_lib.encoders.extract import check_kept, list_frames, read_kept
from rgb2pc_lib.encoders.images import Expert, square
from rgb2pc_lib.encoders.pack_file import new_pack
from rgb2pc_lib.errors import InputError, tell

NAME = "rays"
GRID = 14, 14
_DIRECTION, _MOMENT = (0.5, 1.0, 2.0, 4.0), (0.25, 0.5, 1.0, 2.0)  # half periods in one unit, and in one metre
CHANNELS = 6 * (len(_DIRECTION) + len(_MOMENT))
LICENCE, LAYER = "none needed", "Plücker"
_FAR = 0.2  # of a side: cameras are off by a few hundredths; K of frames of half or twice the size by a quarter or more


def plucker(K: np.ndarray, world_to_camera: np.ndarray, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Plücker coordinates `[Hf, Wf, 6]` of the rays through the middle of each place: direction and moment.

    The direction d has length 1; the moment is p x d of any point p on the ray, m. Both are in the world's frame.

    Args:
        K: `[3, 3]` intrinsics in pixels, pixel centres at index + 0.5.
        world_to_camera: `[4, 4]`, m, axes of OpenCV.
        size: height and width of the image that K is of, pixels.

    Source: Plücker 1865; as what a network is told of a camera: Sitzmann et al., Light Field Networks (2021).

    >>> K = np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]])
    >>> plucker(K, np.eye(4), (100, 100), (1, 1))[0, 0].tolist()  # straight ahead, through the origin
    [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    """
    rotation, shift = world_to_camera[:3, :3], world_to_camera[:3, 3]
    y, x = (size[i] * (np.arange(grid[i]) + 0.5) / grid[i] for i in (0, 1))
    pixels = np.stack([*np.meshgrid(x, y), np.ones(grid)], -1)
    d = pixels @ np.linalg.inv(K).T @ rotation  # the inverse of a rotation is its transpose
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    return np.concatenate([d, np.cross(-rotation.T @ shift, d)], -1)


def ray_tokens(K: np.ndarray, world_to_camera: np.ndarray, size: tuple[int, int], grid=GRID) -> np.ndarray:
    """Tokens `[Hf, Wf, C]` float32: sines and cosines of `plucker`, so that a small layer tells nearby rays apart."""
    rays = plucker(K, world_to_camera, size, grid)
    waves = [np.pi * s * part for part, scales in ((rays[..., :3], _DIRECTION), (rays[..., 3:], _MOMENT))
             for s in scales]  # fmt: skip
    return np.concatenate([f(w) for w in waves for f in (np.sin, np.cos)], -1).astype(np.float32)


class Camera(NamedTuple):
    """A calibrated camera where it stands now, as a state file tells it of a step.

    >>> float(Camera(np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), np.eye(4)).K[0, 0])  # focal length, px
    100.0
    """

    K: np.ndarray  # [3, 3] intrinsics in pixels of its frames, pixel centres at index + 0.5
    world_to_camera: np.ndarray  # [4, 4], m, axes of OpenCV


Cameras = Sequence[Camera] | None  # one a frame, where they are calibrated
# where the camera stands while it is measured what a look costs, which is the same anywhere
SOMEWHERE = Camera(np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), np.eye(4))


@dataclass(frozen=True, kw_only=True)
class RayEncoder(Expert):
    """The rays as an expert that is live: it is told the cameras of the frames, whose pixels it does not see."""

    device: str = "cpu"

    def __call__(self, images: torch.Tensor, cameras: Cameras) -> torch.Tensor:
        """Tokens `[B, Hf, Wf, C]` float32 of the cameras of images `[B, H, W, 3]`.

        Raises InputError where a camera is missing, or is none. K that looks like that of larger or smaller frames is
        told; it may be right, as of frames that were cut from others.

        >>> here = Camera(np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), np.eye(4))
        >>> live_rays()(torch.zeros(1, 100, 100, 3), [here]).shape
        torch.Size([1, 14, 14, 48])
        """
        if cameras is None or len(cameras) != len(images):
            raise InputError(
                f"expert {NAME}: expected the camera of each of {len(images)} frames, found "
                f"{len(cameras) if cameras else 'none'}; give K and world_to_camera beside the frames, or embed packs"
            )
        size = images.shape[1], images.shape[2]
        found = [_checked(np.asarray(K), np.asarray(pose)) for K, pose in cameras]
        if cameras[0] is not SOMEWHERE:
            _tell_far(np.stack([K for K, _ in found]), size)
        return torch.from_numpy(np.stack([ray_tokens(*camera, size) for camera in found])).to(self.device)


def live_rays(device: str = "cpu") -> RayEncoder:
    """The expert, on a device."""
    return RayEncoder(
        name=NAME, channels=CHANNELS, view=square(GRID[0], GRID[0]), img_size=GRID[0], patch_size=1, licence=LICENCE,
        layer=LAYER, device=device,
    )  # fmt: skip


def _checked(K: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A camera that was given live. Raises InputError for what is none."""
    if K.shape != (3, 3) or pose.shape != (4, 4) or not (np.isfinite(K).all() and np.isfinite(pose).all()):
        raise InputError(
            f"expert {NAME}: expected finite K [3, 3] and world_to_camera [4, 4], found {list(K.shape)} and "
            f"{list(pose.shape)}; give them as in the state files"
        )
    if _singular(K) or np.abs(pose[:3, :3] @ pose[:3, :3].T - np.eye(3)).max() > 1e-3:
        raise InputError(
            f"expert {NAME}: K cannot be inverted, or world_to_camera does not rotate, so it is no camera; check them"
        )
    return K, pose


def _tell_far(K: np.ndarray, size: tuple[int, int]) -> None:
    """Say where a principal point of `K [n, 3, 3]` lies far from the middle of images of height and width `size`."""
    points, (height, width) = K[:, :2, 2] / K[:, 2:, 2], size
    off = np.abs(points / (width, height) - 0.5).max(1)
    if off.max() > _FAR:
        x, y = points[off.argmax()]
        tell(
            f"expert {NAME}: K has its principal point at ({x:.0f}, {y:.0f}), far from the middle of frames of {width} "
            f"x {height} pixels. Unless these were cut from others, K is of another size; scale it to theirs"
        )


def extract_rays(
    rgb_root: Path, state_root: Path, out: Path, *, tasks: Iterable[str] = (), faults: Faults = AT_ONCE,
    exclude: Exclusions = NOTHING, progress: bool = True,
) -> tuple[int, int]:  # fmt: skip
    """Write `out/<task>/<episode>.pt` for every episode of frames; the numbers of packs (written, kept).

    The camera of a step is that of the state file: `K` and `world_to_camera`, one for the episode or one a step. Packs
    of the same cameras are kept. K that looks like that of larger or smaller frames is told.
    Raises InputError for a missing root or task. An episode whose state lacks a step or
    the camera, or whose pack is of another camera, is put into `faults`.

    >>> extract_rays(workspace.rgb, workspace.state, Path("features_rays"))  # doctest: +SKIP
    (64, 0)
    """
    written = kept = 0
    episodes = list_frames(rgb_root, tasks, faults, exclude)
    for (task, episode), files in tqdm(episodes.items(), desc=NAME, unit="episode", disable=not progress):
        path = out / task / f"{episode}.pt"
        with faults.at(f"{task}/{episode}"):
            size = image_size(files[0])
            K, pose = _cameras(state_file(state_root, task, episode), [step_name(file.name) for file in files])
            _tell_far(K, size)
            meta = _meta(K, pose, size) | {"task_name": task, "episode_name": episode}
            if path.exists():
                found = read_kept(path, files, exclude, (task, episode))
                check_kept(path, found, meta | {"num_frames": len(files)}, ("model_name", "weights", "num_frames"))
                kept += 1
                continue
            names = [file.relative_to(rgb_root).as_posix() for file in files]
            with new_pack(path, names, GRID, meta, window=1, stride=1) as put:
                for place in range(len(files)):
                    put(place, torch.from_numpy(ray_tokens(K[place], pose[place], size)))
            written += 1
    return written, kept


def _cameras(path: Path, steps: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """`K [n, 3, 3]` and the pose `[n, 4, 4]` of the camera at each step."""
    state = read_state(path)
    rows = rows_of(state, steps, path)
    pose, K = poses(state, rows, path, "camera"), state.get("K")
    if pose is None or K is None:
        lacking = " and ".join(name for name, known in (("K", K), ("world_to_camera", pose)) if known is None)
        raise InputError(f"{path}: expected the camera of its frames, found no {lacking}; add it from the calibration")
    if K.shape[-2:] != (3, 3) or K.ndim not in (2, 3) or (K.ndim == 3 and len(K) != len(state["steps"])):
        raise InputError(f"{path}: K: expected 3 x 3, or one a step, found {list(K.shape)}; write it so")
    K = K[rows] if K.ndim == 3 else np.broadcast_to(K, (len(rows), 3, 3))
    if not np.isfinite(K).all() or _singular(K):
        raise InputError(f"{path}: K cannot be inverted, so it is no camera; restore the file from a copy")
    return K, pose


def _singular(K: np.ndarray) -> bool:
    """Whether an intrinsic matrix, or one of several, cannot be inverted."""
    return bool(np.abs(np.linalg.det(K)).min() < 1e-9)


def _meta(K: np.ndarray, pose: np.ndarray, size: tuple[int, int]) -> dict:
    digest = hashlib.sha256(np.concatenate([K.ravel(), pose.ravel(), size]).astype(np.float64).tobytes()).hexdigest()
    return {
        "model_name": NAME, "weights": f"none; cameras {digest[:16]}", "licence": LICENCE, "layer": LAYER,
        "enc_embed_dim": CHANNELS, "raw_size": list(size), "box": [0.0, 0.0, 1.0, 1.0], "look_ahead": 0,
    }  # fmt: skip
