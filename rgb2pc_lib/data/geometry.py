"""Where things are: pixels, tokens and points of one scene, in each other's coordinates.

Four coordinates of a place in an image, all (horizontal, vertical), and the arrows between them:

    uv         pixel *indices* of the original image, as clouds carry them: pixel u covers [u, u + 1)
    fractions  of the original image, 0 to 1: what plans and packs speak (`uv_to_fractions`, `fractions_to_uv`)
    token      of one expert's grid: cell j covers [j, j + 1) (`Placement.to_token`, `.to_uv`)
    cell       row-major index of the token that covers a place, -1 where the expert does not see it

Centres lie at an index + 0.5. An expert's resize scales both axes of what it keeps, a crop keeps a box of the image,
and patches divide that box evenly: so a `Placement` is an image size, a grid and a box (by `token_box`).
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from rgb2pc_lib.data.clouds import project, transform
from rgb2pc_lib.errors import InputError

if TYPE_CHECKING:
    from rgb2pc_lib.data.packs import FeaturePack

LOOKUPS = ("nearest", "bilinear")
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 of what a grid covers, as fractions of the image
Size = tuple[float, float]  # height, width, pixels
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


# -- grids


class Layout(NamedTuple):
    """A grid and the part of the image that it covers: where these are the same, so are the cells under positions."""

    grid: tuple[int, int]  # H, W
    box: Box  # x0, y0, x1, y1 as fractions of the image

    def cells(self, positions: np.ndarray) -> np.ndarray:
        """Cell index (row-major) under each position `[..., 2]` = (x, y) of the original image; -1 outside the box."""
        return grid_cells(grid_coordinates(positions, self.grid, self.box), self.grid)


def grid_coordinates(positions: np.ndarray, grid: tuple[int, int], box: Box) -> np.ndarray:
    """Fractions of the image `[..., 2]` -> places on a grid in cells `[..., 2]`; cell j covers [j, j + 1).

    Rounded to 1e-9 cells, so that a place on a border is on it, whatever the sizes.

    >>> grid_coordinates(np.array([1 / 49, 0.5]), (10, 49), (0.0, 0.0, 1.0, 1.0))
    array([1., 5.])
    """
    positions = np.asarray(positions, float)
    places = np.empty(positions.shape)
    for axis, cells in enumerate(grid[::-1]):  # x, then y
        start, end = box[axis], box[axis + 2]
        np.multiply(positions[..., axis] - start, cells / (end - start), out=places[..., axis])
    return np.round(places, 9, out=places)


def grid_cells(places: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Row-major cell `[...]` under places `[..., 2]` of a grid; -1 outside."""
    col, row = np.floor(places[..., 0]).astype(np.int64), np.floor(places[..., 1]).astype(np.int64)
    h, w = grid
    return np.where((col >= 0) & (col < w) & (row >= 0) & (row < h), row * w + col, -1)


def token_box(
    meta: dict[str, Any], grid: tuple[int, int], expert: str = "", raw_size: tuple[int, int] | None = None
) -> Box:
    """Part of the original image, as fractions (x0, y0, x1, y1), that an expert's grid covers; beyond 0 to 1 if padded.

    Our own packs say it. VGGT scales the width to 518 and keeps the middle 518 rows of what is then taller; in its
    padding mode it scales the longer side to 518 and pads the other: told by `meta`, else by a square grid of an image
    that is not. Depth Anything 3 in a cropping mode keeps the middle of the image scaled to 504 on its longest side
    ("lower_bound": its shortest), down to a multiple of 14: told by `meta`, else by a grid that rounding cannot give.
    Everything else resizes the whole image. Unknown raw size: the whole image is assumed (`box_doubt` says so).
    Raises InputError for a box that is none, and a grid that VGGT cannot have of such images.

    >>> token_box({"model_name": "VGGT"}, (37, 37), raw_size=(1036, 518))
    (0.0, 0.25, 1.0, 0.75)
    """
    if "box" in meta:
        return _told_box(meta["box"])
    size = _size(meta.get("raw_size")) or _size(raw_size)
    name = _name(meta, expert)
    if size and "vggt" in name:
        return _vggt_box(meta, grid, size)
    if size and ("da3" in name or "process_res_method" in meta):
        return _da3_box(meta, grid, size)
    return WHOLE


def box_doubt(
    meta: dict[str, Any], grid: tuple[int, int], expert: str = "", raw_size: tuple[int, int] | None = None
) -> str:
    """Why the box of a grid is only assumed, or nothing where it is known."""
    told, frames = _size(meta.get("raw_size")), _size(raw_size)
    if told and frames and not _alike(told, frames):
        other = f"the RGB frames have {frames[1]:g} x {frames[0]:g}"
        return f"made from images of {told[1]:g} x {told[0]:g} pixels, but {other}"
    size = told or frames
    if "box" in meta:
        return ""
    name, shown = _name(meta, expert), f"{grid[0]} x {grid[1]} tokens"
    if not size and ("vggt" in name and grid[0] == grid[1] or "crop" in _method(meta)):
        return f"{shown} of images of unknown size, taken for the whole image; name the frames' folder (--rgb_root)"
    if size and ("vggt" in name or "da3" in name) and token_box(meta, grid, expert, raw_size) == WHOLE:
        cells = size[0] / size[1] * grid[1]
        if abs(cells - grid[0]) > 1 + 0.5 * max(size[0] / size[1], 1):
            return f"{shown}, which is not the shape of {size[1]:g} x {size[0]:g} pixels, taken for the whole image"
    return ""


def _name(meta: dict[str, Any], expert: str) -> str:
    return f"{meta.get('model_name', '')} {expert}".lower()


def _method(meta: dict[str, Any]) -> str:  # how images were brought to size, where a pack says it
    return " ".join(str(meta.get(k, "")) for k in ("process_res_method", "preprocess_mode", "mode")).lower()


def _size(value: object) -> Size | None:
    """Height and width, where a value is that."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(v, Real) for v in value):
        return None
    return (float(value[0]), float(value[1])) if min(value) > 0 else None


def _alike(a: Size, b: Size) -> bool:  # the same shape, up to a pixel's rounding
    return bool(abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b))


def _told_box(value: Any) -> Box:
    numbers = isinstance(value, list | tuple) and all(isinstance(v, Real) for v in value)
    if not numbers or len(value) != 4 or not value[0] < value[2] or not value[1] < value[3]:
        raise InputError(f"expected 'box' in meta as x0, y0, x1, y1 with x0 < x1 and y0 < y1, found {value!r}")
    x0, y0, x1, y1 = map(float, value)
    return x0, y0, x1, y1


def _vggt_box(meta: dict[str, Any], grid: tuple[int, int], size: Size) -> Box:
    height, width = size
    scaled = round(height * 518 / width / 14) * 14  # rows, when the width is 518
    rows, columns = min(scaled, 518) // 14, 37
    square = tuple(grid) == (37, 37)
    if "pad" in _method(meta) or (square and rows < 37):
        h, w = (scaled, 518) if width >= height else (518, round(width * 518 / height / 14) * 14)
        top, left = (518 - h) // 2, (518 - w) // 2
        return -left / w, -top / h, (518 - left) / w, (518 - top) / h
    if grid[1] == columns and grid[0] != rows:
        raise InputError(
            f"its grid of {grid[0]} x {grid[1]} tokens is neither VGGT's cropped ({rows} x 37) nor its padded "
            f"(37 x 37) view of images of {width:g} x {height:g} pixels; are the RGB frames those it was made from? If "
            "so, put the part of the image that the grid covers into its meta as 'box'"
        )
    if scaled > 518:
        top = (scaled - 518) // 2
        return 0.0, top / scaled, 1.0, (top + 518) / scaled
    return WHOLE


def _da3_box(meta: dict[str, Any], grid: tuple[int, int], size: Size) -> Box:
    method, reach = _method(meta), meta.get("process_res")
    reach = float(reach) if isinstance(reach, Real) and float(reach) > 0 else 504.0
    side = min(size) if "lower" in method else max(size)
    scaled = [round(length * reach / side) for length in size]
    cut = [s // 14 for s in scaled] == list(grid) != [(s + 7) // 14 for s in scaled]  # no rounding gives this grid
    if "crop" not in method and not (cut and not method.strip()):
        return WHOLE
    kept = [14 * cells for cells in grid]
    (y0, y1), (x0, x1) = (((s - k) // 2 / s, ((s - k) // 2 + k) / s) for s, k in zip(scaled, kept, strict=True))
    return x0, y0, x1, y1


# -- pixels


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
    box: Box = WHOLE

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
