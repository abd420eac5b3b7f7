"""Point clouds on disk (PLY) and their tie to the image: pixel <-> ray <-> point.

Axes: camera x right, y down, z forward (OpenCV), metres. ``uv`` are pixel *indices* (u column, v row);
pixel (u, v) covers the image area [u, u + 1) x [v, v + 1), and a point is back-projected from its centre.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from trimesh.exchange.ply import load_ply

from rgb2pc_lib.errors import InputError

PLY_TYPES = {"f4": "float", "u1": "uchar", "u2": "ushort"}


@dataclass(frozen=True)
class Cloud:
    """N points; the colours and the pixels they were seen at may be unknown.

    >>> Cloud(np.zeros((2, 3), np.float32)).rgb is None
    True
    """

    xyz: np.ndarray  # float32 [N, 3], metres
    rgb: np.ndarray | None = None  # uint8 [N, 3]
    uv: np.ndarray | None = None  # float32 [N, 2], pixel indices: column, row

    def __len__(self) -> int:
        return len(self.xyz)


def read_ply(path: str | Path) -> Cloud:
    """Read the vertices of an ascii or binary PLY file: ``x y z``, optionally ``red green blue`` and ``u v``.

    Other properties and other elements are ignored. Floating-point colours are taken as fractions of 255.
    Raises InputError, naming the file, when it cannot be read or holds no ``x y z``.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            vertex = load_ply(file)["metadata"]["_ply_raw"]["vertex"]
    except OSError as error:
        raise InputError(f"{path}: expected a PLY file, found none that can be opened ({error.strerror})") from error
    except Exception as error:  # a damaged file fails anywhere in the parser
        raise InputError(f"{path}: expected a PLY file with x y z, found: {error}; record or copy it again") from error

    def columns(*names: str) -> np.ndarray | None:
        if not all(name in vertex["properties"] for name in names):
            return None
        if not vertex["length"]:
            return np.zeros((0, len(names)))
        return np.stack([np.asarray(vertex["data"][name]).ravel() for name in names], axis=1)  # [N, len(names)]

    xyz, rgb, uv = columns("x", "y", "z"), columns("red", "green", "blue"), columns("u", "v")
    if xyz is None:
        raise InputError(f"{path}: expected a PLY file with x y z, found only {', '.join(vertex['properties'])}")
    if rgb is not None and rgb.dtype.kind == "f":
        rgb = (rgb * 255).round()
    return Cloud(
        xyz.astype(np.float32),
        None if rgb is None else rgb.astype(np.uint8),
        None if uv is None else uv.astype(np.float32),
    )


def count_points(path: str | Path) -> int:
    """How many points a PLY file holds, told from its header alone. Raises InputError naming a file without it."""
    with Path(path).open("rb") as file:
        header = file.read(4096).partition(b"end_header")[0]
    found = re.search(rb"element vertex (\d+)", header)
    if not found:
        raise InputError(f"{path}: expected a PLY file, found no 'element vertex' in its header; copy it again")
    return int(found[1])


def write_ply(path: str | Path, cloud: Cloud) -> None:
    """Write a binary little-endian PLY file, atomically; whole-numbered uv become the smallest integers that fit.

    (trimesh writes no per-point u and v, hence this writer; it reads what is written here.)
    """
    fields = [(name, "<f4", cloud.xyz[:, i]) for i, name in enumerate("xyz")]
    if cloud.rgb is not None:
        fields += [(name, "u1", cloud.rgb[:, i]) for i, name in enumerate(("red", "green", "blue"))]
    if cloud.uv is not None:
        kind = _uv_type(cloud.uv)
        fields += [(name, kind, cloud.uv[:, i]) for i, name in enumerate("uv")]

    table = np.empty(len(cloud), [(name, kind) for name, kind, _ in fields])
    for name, _, values in fields:
        table[name] = values
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud)}"]
    header += [f"property {PLY_TYPES[kind[-2:]]} {name}" for name, kind, _ in fields]

    path = Path(path)
    half_written = path.with_name(path.name + ".tmp")
    half_written.write_bytes("\n".join([*header, "end_header\n"]).encode() + table.tobytes())
    os.replace(half_written, path)


def _uv_type(uv: np.ndarray) -> str:
    if uv.size and (uv.min() < 0 or uv.max() > 65535 or np.any(uv != np.rint(uv))):
        return "<f4"
    return "<u2" if uv.size and uv.max() > 255 else "u1"


def project(xyz: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Camera-frame points [..., 3] (m) to image coordinates [..., 2] (px; a pixel's centre is at index + 0.5).

    >>> project(np.array([0.1, 0.0, 2.0]), np.array([[100.0, 0, 64], [0, 100, 64], [0, 0, 1]]))
    array([69., 64.])
    """
    places: np.ndarray = (xyz @ K.T)[..., :2] / xyz[..., 2:]
    return places


def back_project(depth: np.ndarray, K: np.ndarray) -> np.ndarray:
    """Depth image [H, W] (m along the optical axis) to camera-frame points [H, W, 3] through each pixel's centre."""
    v, u = np.indices(depth.shape) + 0.5
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], axis=-1)
    points: np.ndarray = rays * depth[..., None]
    return points


def transform(xyz: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Points [..., 3] moved by a rigid 4x4 transform, for example ``world_to_camera``."""
    moved: np.ndarray = xyz @ pose[:3, :3].T + pose[:3, 3]
    return moved
