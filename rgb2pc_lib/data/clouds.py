"""Point clouds on disk (PLY) and their tie to the image: pixel <-> ray <-> point.

Axes: camera x right, y down, z forward (OpenCV), metres. ``uv`` are pixel *indices* (u column, v row);
pixel (u, v) covers the image area [u, u + 1) x [v, v + 1), and a point is back-projected from its centre.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.numbers import as_bytes, as_positions, numbers
from rgb2pc_lib.errors import InputError, remedy

PLY_TYPES = {"f4": "float", "u1": "uchar", "u2": "ushort"}
_TYPES = {  # of PLY, old names and new ones
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8", "int64": "i8", "uint64": "u8",
}  # fmt: skip
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_HEADER = 2**20  # bytes at most
_COLOURS = ("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b")


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

    Other properties are ignored, and so is whatever stands behind the vertices. Colours of any type are taken by the
    rule of `numbers`.
    Raises InputError, naming the file, when it cannot be read or holds no ``x y z``, and for positions that are not
    finite.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        what = remedy(path, "record or copy it again", "name a PLY file")
        found = f"none that can be opened ({error.strerror})"
        raise InputError(f"{path}: expected a PLY file, found {found}; {what}") from None
    try:
        vertex = _vertices(data)
    except (ValueError, OverflowError) as error:
        what = remedy(path, "record or copy it again", "save the points as a PLY file, ascii or binary", str(error))
        raise InputError(f"{path}: expected a PLY file with x y z, found {error}; {what}") from None

    def columns(*names: str) -> np.ndarray | None:
        return np.stack([vertex[n] for n in names], axis=1) if all(n in vertex for n in names) else None  # [N, 3 or 2]

    xyz, uv = columns("x", "y", "z"), columns("u", "v")
    if xyz is None:
        absent, listed = next(axis for axis in "xyz" if axis not in vertex), ", ".join(vertex)
        raise InputError(
            f"{path}: expected a PLY file with x y z, found no property of the name {absent}, only {listed}; name the "
            "coordinates so"
        )
    rgb = next((c for c in (columns(*names) for names in _COLOURS) if c is not None), None)
    return Cloud(
        as_positions(xyz, f"{path}"),
        None if rgb is None else as_bytes(rgb, f"{path}"),
        None if uv is None else numbers(uv, f"{path}", "u and v").astype(np.float32),
    )


class _Element(NamedTuple):
    name: str
    size: int
    properties: dict[str, tuple[str, ...]]  # name -> its numpy type; of a list, those of its length and its items


def _vertices(data: bytes) -> dict[str, np.ndarray]:
    """property -> its values `[N]` of a PLY file's vertices. Raises ValueError saying what was found instead."""
    order, elements, start = _header(data[:_HEADER])
    at = next((i for i, e in enumerate(elements) if e.name == "vertex"), None)
    if at is None:
        raise ValueError("no element vertex")
    vertex = elements[at]
    if any(len(types) > 1 for types in vertex.properties.values()):
        raise ValueError("lists among the properties of its points, which are not read")
    if order == "ascii":
        return _ascii_vertices(data[start:], vertex, sum(e.size for e in elements[:at]))
    kind = np.dtype([(name, _ORDERS[order] + types[0]) for name, types in vertex.properties.items()])
    for element in elements[:at]:
        start = _after(data, start, element, _ORDERS[order])
    if start + vertex.size * kind.itemsize > len(data):
        expected = f"{vertex.size} points of {kind.itemsize} bytes"
        raise ValueError(f"a truncated one: its length of {len(data)} bytes is too short for {expected}")
    table = np.frombuffer(data, kind, vertex.size, start)
    return {name: table[name].astype(kind[name].newbyteorder("=")) for name in vertex.properties}


def _header(data: bytes) -> tuple[str, list[_Element], int]:
    """Format, elements, and where the header ends. Raises ValueError saying what was found instead."""
    if not data.startswith(b"ply"):
        raise ValueError("no 'ply' at its beginning")
    end = re.search(rb"^end_header[ \t]*\r?\n", data, re.MULTILINE)
    if not end:
        raise ValueError("no end of its header")
    order, elements = "", []
    for line in data[: end.start()].decode("latin-1").splitlines()[1:]:
        words = line.split()
        if words[:1] == ["format"] and len(words) > 1:
            order = words[1]
        elif words[:1] == ["element"] and len(words) == 3 and words[2].isdecimal():
            elements.append(_Element(words[1], int(words[2]), {}))
        elif words[:1] == ["property"] and elements and len(words) in (3, 5):
            types, name = words[1:-1], words[-1].lower()
            types = types[1:] if types[0] == "list" else types
            if not set(types) <= set(_TYPES) or name in elements[-1].properties:
                raise ValueError(f"{line.strip()!r} in its header")
            elements[-1].properties[name] = tuple(_TYPES[t] for t in types)
        elif words and words[0] not in ("comment", "obj_info"):
            raise ValueError(f"{line.strip()!r} in its header")
    if order not in _ORDERS:
        raise ValueError(f"the format {order!r}")
    return order, elements, end.end()


def _after(data: bytes, start: int, element: _Element, order: str) -> int:
    """Where an element that is not needed ends."""
    sizes = [tuple(np.dtype(t).itemsize for t in types) for types in element.properties.values()]
    if all(len(size) == 1 for size in sizes):
        return start + element.size * sum(size[0] for size in sizes)
    big: Literal["big", "little"] = "big" if order == ">" else "little"
    signed = [types[0][0] == "i" for types in element.properties.values()]
    for _ in range(element.size):
        for size, sign in zip(sizes, signed, strict=True):
            if start > len(data):
                raise ValueError(f"a truncated one: it ends before its points, in the {element.size} {element.name}")
            length = int.from_bytes(data[start : start + size[0]], big, signed=sign) if len(size) > 1 else 0
            start += size[0] + max(length, 0) * size[-1]
    return start


def _ascii_vertices(body: bytes, vertex: _Element, before: int) -> dict[str, np.ndarray]:
    lines = [line for line in io.BytesIO(body) if line.strip()][before:][: vertex.size]
    if len(lines) < vertex.size:
        raise ValueError(f"a truncated one: a length of {len(lines)} lines for {vertex.size} points")
    words = b" ".join(lines).split()
    if len(words) != vertex.size * len(vertex.properties):
        raise ValueError(f"{len(words)} numbers for {vertex.size} points of {len(vertex.properties)} properties")
    table = np.array(words, np.float64).reshape(vertex.size, -1) if words else np.zeros((0, len(vertex.properties)))
    return {
        name: _as_told(table[:, i], types[0]) for i, (name, types) in enumerate(vertex.properties.items())
    }  # fmt: skip


def _as_told(values: np.ndarray, kind: str) -> np.ndarray:
    """Numbers of a text in the type that the header tells, where they are of that type; else as they are."""
    if kind[0] == "f":
        return values
    limits = np.iinfo(kind)
    fits = np.isfinite(values).all() and (values % 1 == 0).all()
    return values.astype(kind) if fits and (values >= limits.min).all() and (values <= limits.max).all() else values


def count_points(path: str | Path) -> int:
    """How many points a PLY file holds, told from its header alone. Raises InputError naming a file without it."""
    try:
        with Path(path).open("rb") as file:
            header = file.read(_HEADER).partition(b"end_header")[0]
    except OSError as error:
        what = remedy(path, "copy it again", "name a PLY file")
        raise InputError(
            f"{path}: expected a PLY file, found none that can be opened ({error.strerror}); {what}"
        ) from None
    found = re.search(rb"element vertex (\d+)", header)
    if not found:
        what = remedy(path, "copy it again", "save the points as a PLY file")
        raise InputError(f"{path}: expected a PLY file, found no 'element vertex' in its header; {what}")
    return int(found[1])


def write_ply(path: str | Path, cloud: Cloud) -> None:
    """Write a binary little-endian PLY file, atomically; whole-numbered uv become the smallest integers that fit.

    Raises InputError for colours and positions that do not fit.
    """
    xyz = cloud.xyz if cloud.xyz.dtype == np.float32 else as_positions(cloud.xyz, f"{path}")
    fields = [(name, "<f4", xyz[:, i]) for i, name in enumerate("xyz")]
    if cloud.rgb is not None:
        rgb = as_bytes(cloud.rgb, f"{path}")
        fields += [(name, "u1", rgb[:, i]) for i, name in enumerate(("red", "green", "blue"))]
    if cloud.uv is not None:
        kind = _uv_type(cloud.uv)
        fields += [(name, kind, cloud.uv[:, i]) for i, name in enumerate("uv")]

    table = np.empty(len(cloud), [(name, kind) for name, kind, _ in fields])
    for name, _, values in fields:
        table[name] = values
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud)}"]
    header += [f"property {PLY_TYPES[kind[-2:]]} {name}" for name, kind, _ in fields]

    content = "\n".join([*header, "end_header\n"]).encode() + table.tobytes()
    write_atomic(Path(path), lambda p: p.write_bytes(content))


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
