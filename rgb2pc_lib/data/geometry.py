"""Where things are: pixels, tokens and points of one scene, in each other's coordinates.

Four coordinates of a place in an image, all (horizontal, vertical), and the arrows between them:

    uv         pixel *indices* of the original image, as clouds carry them: pixel u covers [u, u + 1)
    fractions  of the original image, 0 to 1: what plans and packs speak (`uv_to_fractions`, `fractions_to_uv`)
    token      of one expert's grid: cell j covers [j, j + 1) (`Placement.to_token`, `.to_uv`)
    cell       row-major index of the token that covers a place, -1 where the expert does not see it

Centres lie at an index + 0.5. An expert's resize scales both axes of what it keeps, a crop keeps a box of the image,
and patches divide that box evenly: so a `Placement` is an image size, a grid and a box (by `packs.token_box`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from rgb2pc_lib.data.clouds import project, transform
from rgb2pc_lib.data.packs import FeaturePack, grid_cells, grid_coordinates, token_box

LOOKUPS = ("nearest", "bilinear")


def uv_to_fractions(uv: np.ndarray, size: tuple[int, int]) -> NDArray[np.float64]:
    """Pixel indices `[..., 2]` of an image of `size` (height, width) -> fractions of it, those of the pixels' centres.

    >>> uv_to_fractions(np.array([0.0, 239.0]), (240, 320)) * [320, 240]
    array([  0.5, 239.5])
    """
    return (np.asarray(uv, np.float64) + 0.5) / np.array(size[::-1], np.float64)


def fractions_to_uv(fractions: np.ndarray, size: tuple[int, int]) -> NDArray[np.float64]:
    """The way back: a fraction of 0 is the left edge of pixel 0, half a pixel before its centre: -0.5."""
    return np.asarray(fractions, np.float64) * np.array(size[::-1], np.float64) - 0.5


@dataclass(frozen=True)
class Placement:
    """How one expert's grid of tokens lies on an image.

    >>> wide = Placement((240, 320), (28, 37))
    >>> wide.to_token(np.array([0.0, 0.0])).round(3), wide.cells(np.array([[0.0, 0.0], [319.0, 239.0], [320.0, 0.0]]))
    (array([0.058, 0.058]), array([   0, 1035,   -1]))
    """

    size: tuple[int, int]  # height, width of the original image, pixels
    grid: tuple[int, int]  # H, W
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)  # x0, y0, x1, y1 of what the grid covers, fractions

    @classmethod
    def of(cls, pack: FeaturePack, size: tuple[int, int]) -> Placement:
        """That of an opened pack over images of `size` (height, width)."""
        return cls((size[0], size[1]), pack.grid, pack.box)

    @classmethod
    def by_rule(cls, expert: str, size: tuple[int, int], grid: tuple[int, int], **meta: Any) -> Placement:
        """By an expert's name alone, and what its packs' `meta` would say (for instance `process_res_method`)."""
        return cls((size[0], size[1]), (grid[0], grid[1]), token_box(meta, grid, expert, size))

    def to_token(self, uv: np.ndarray) -> np.ndarray:
        """Pixel indices `[..., 2]` -> token coordinates `[..., 2]`; outside the box they leave [0, W) x [0, H)."""
        return grid_coordinates(uv_to_fractions(uv, self.size), self.grid, self.box)

    def to_uv(self, token: np.ndarray) -> np.ndarray:
        """Token coordinates `[..., 2]` -> pixel indices; the centre of cell (0, 0) is token (0.5, 0.5)."""
        x0, y0, x1, y1 = self.box
        low, extent = np.array([x0, y0]), np.array([x1 - x0, y1 - y0])
        return fractions_to_uv(low + np.asarray(token, float) / np.array(self.grid[::-1]) * extent, self.size)

    def cells(self, uv: np.ndarray) -> np.ndarray:
        """Row-major cell under each place `[...]`, -1 where the expert does not see it; a border is the next cell's."""
        return grid_cells(self.to_token(uv), self.grid)

    def sees(self, uv: np.ndarray) -> np.ndarray:
        """Bool `[...]`: whether the expert sees this place."""
        return self.cells(uv) >= 0

    def centres(self) -> np.ndarray:
        """Pixel indices `[H*W, 2]` of the cells' centres, row-major."""
        h, w = self.grid
        row, col = np.indices((h, w)) + 0.5
        return self.to_uv(np.stack([col, row], -1).reshape(-1, 2))

    @property
    def patch(self) -> tuple[float, float]:
        """Height and width of a cell, in pixels of the original image."""
        x0, y0, x1, y1 = self.box
        return (y1 - y0) * self.size[0] / self.grid[0], (x1 - x0) * self.size[1] / self.grid[1]


def lookup(features: Tensor, placement: Placement, uv: np.ndarray, how: str = "nearest") -> tuple[Tensor, Tensor]:
    """What a grid of tokens says at places: features `[N, C]` float32, and whether the expert sees them `[N]`.

    Args:
        features: `[H, W, C]`, the tokens of one image.
        uv: `[N, 2]`, pixel indices.
        how: "nearest", the token that covers the place; "bilinear", between the four nearest centres, and constant
            from the outermost centres to the border.

    Rows that the expert does not see are zero.
    """
    if how not in LOOKUPS:
        raise ValueError(f"how must be one of {', '.join(LOOKUPS)}, not {how!r}")
    cells = placement.cells(uv)
    seen = torch.from_numpy(cells >= 0)
    if how == "nearest":
        found = features.reshape(-1, features.shape[-1]).float()[torch.from_numpy(cells.clip(0))]
    else:
        at = torch.from_numpy(placement.to_token(uv) / np.array(placement.grid[::-1]) * 2 - 1).float()  # -1 to 1
        image = features.float().permute(2, 0, 1)[None]  # [1, C, H, W]
        found = F.grid_sample(image, at[None, None], padding_mode="border", align_corners=False)[0, :, 0].T
    return found * seen[:, None], seen


# -- cameras


@dataclass(frozen=True)
class Camera:
    """A view with known intrinsics K [3, 3] (px) and pose world_to_camera [4, 4] (m, OpenCV axes).

    >>> camera = Camera(np.array([[100.0, 0, 32], [0, 100, 32], [0, 0, 1]]), np.eye(4), (64, 64))
    >>> camera.see(np.array([[0.0, 0.0, 2.0], [0.0, 0.0, -2.0]]))
    (array([[31.5, 31.5],
           [31.5, 31.5]]), array([ 2., -2.]), array([ True, False]))
    """

    K: np.ndarray
    world_to_camera: np.ndarray
    size: tuple[int, int]  # height, width, pixels

    def see(self, world: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World points `[N, 3]` -> pixel indices `[N, 2]`, depths `[N]` (m), and whether they are inside the image."""
        xyz = transform(world, self.world_to_camera)
        depth = xyz[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            uv = project(xyz, self.K) - 0.5
        inside = (depth > 0) & np.all((uv >= -0.5) & (uv < np.array(self.size[::-1]) - 0.5), axis=1)
        return uv, depth, inside

    def world(self, xyz: np.ndarray) -> np.ndarray:
        """Points `[N, 3]` of this camera's frame, in the world's."""
        return transform(xyz, np.linalg.inv(self.world_to_camera))

    def resized(self, size: tuple[int, int]) -> Camera:
        """The same view after its image was resized as a whole to (height, width)."""
        scale = np.array([size[1] / self.size[1], size[0] / self.size[0], 1.0])
        return Camera(self.K * scale[:, None], self.world_to_camera, (size[0], size[1]))


def visible(
    world: np.ndarray, camera: Camera, seen: np.ndarray, radius: float = 6.0, tolerance: float = 0.04
) -> np.ndarray:
    """Which world points `[N, 3]` a view sees, judged by the cloud `seen` [M, 3] (world) that was recorded from it.

    A point is visible when it falls inside the image, some recorded point lies within `radius` pixels of it, and none
    of those is nearer to the camera by more than `tolerance` metres. Where nothing was recorded nothing is claimed.
    A surface that slants by s metres a pixel needs a tolerance of about s * radius.
    """
    uv, depth, inside = camera.see(world)
    at, recorded, within = camera.see(seen)
    out = np.zeros(len(world), bool)
    if not within.any() or not inside.any():
        return out
    near = cKDTree(at[within]).query_ball_point(uv[inside], radius)
    recorded = recorded[within]
    out[inside] = [bool(n) and recorded[n].min() > z - tolerance for n, z in zip(near, depth[inside], strict=True)]
    return out


def same_points(ours: np.ndarray, theirs: np.ndarray, within: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Points of two clouds in one frame, `[N, 3]` and `[M, 3]`, that are the same place: nearest to each other.

    Returns the indices (i, j) of the pairs at most `within` metres apart. Two steps of one scene share what stood
    still; two views share what both see.

    >>> same_points(np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([[1.001, 0, 0], [5, 0, 0]]))
    (array([1]), array([0]))
    """
    distance, j = cKDTree(theirs).query(ours)
    back = cKDTree(ours).query(theirs)[1]
    i = np.flatnonzero((back[j] == np.arange(len(ours))) & (distance <= within))
    return i, j[i]
