"""Any packs -> packs as documented: objects instead of dicts, bare tensors, torch files of before 2020, zarr.

With `frame_copy`, each frame is written once, not once a window: flat files for slow disks and in place of zarr.

Only on request, and never in place. Objects are read without running any code of the file: an inert class stands in
for each class that the file names and takes its attributes; a file that calls anything is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.serialization import config as serialization
from tqdm import tqdm

from rgb2pc_lib.data import system
from rgb2pc_lib.data.files.faults import AT_ONCE, Faults
from rgb2pc_lib.data.files.guarded import first_line
from rgb2pc_lib.data.files.writing import new_file
from rgb2pc_lib.data.listing import IMAGES, natural_key, steps_of
from rgb2pc_lib.data.packs import KEY, FeaturePack, choose, frames_ahead, list_packs, load_torch, locate, open_zarr
from rgb2pc_lib.errors import InputError, remedy

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def convert(
    source: Path, out: Path, rgb_root: Path | None = None, dtype: str | None = None, stride: int = 0,
    frame_copy: str | None = None, progress=True, faults: Faults = AT_ONCE,
) -> tuple[int, int]:  # fmt: skip
    """Write `out/<task>/<episode>.pt` for every pack under `source`; the numbers (written, kept).

    A pack that is in `out` already is kept, so an interrupted conversion goes on where it stopped. One that cannot be
    converted is put into `faults`.

    Args:
        rgb_root: frames `<task>/<episode>/step_0000.png|jpg`, for packs that do not say the names of their steps.
        dtype: fp16, bf16 or fp32 (none: as it is).
        stride: frames between windows, for such packs where their number does not tell it.
        frame_copy: "middle" or "last": only this copy of each frame (none: all windows).

    Raises InputError for a missing root, one without packs, and an `out` at or below `source`.

    >>> convert(Path("features_vggt_old"), Path("features_vggt"), dtype="fp16")  # doctest: +SKIP
    (64, 0)
    """
    if frame_copy not in (None, "middle", "last"):
        raise InputError(f"one copy a frame cannot be {frame_copy}; choose middle or last, or keep all windows")
    for root in (source, rgb_root):
        if root is not None and not root.is_dir():
            raise InputError(f"{root}: expected a folder, found none; check --from and --rgb_root")
    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"{out}: lies in the folder that is converted, {source}; choose another --out")
    broken: dict[tuple[str, str], str] = {}
    packs = list_packs(source, broken)
    faults.add_episodes(broken)
    if not (packs or broken):
        raise InputError(f"{source}: expected packs <task>/<episode>.pt or .zarr, found none; check --from")
    written, kept = 0, 0
    with tqdm(packs.items(), desc=source.name, unit="pack", disable=not progress) as bar:
        for (task, episode), path in bar:
            bar.set_postfix_str(f"{task}/{episode}")
            target = out / task / f"{episode}.pt"
            with faults.at(f"{task}/{episode}"):
                if target.exists():
                    _check_kept(target, dtype, frame_copy)
                    kept += 1
                else:
                    steps = steps_of(rgb_root / task / episode, IMAGES) if rgb_root else {}
                    frames = [p.name for p in steps.values()]
                    write_pack(target, as_pack(path, frames, dtype, stride, frame_copy), path)
                    written += 1
    return written, kept


def as_pack(
    path: Path, frames: Sequence[str] = (), dtype: str | None = None, stride: int = 0, frame_copy: str | None = None
) -> dict:
    """What a file holds, as the documented dict. Raises InputError naming the file where that cannot be told."""
    if path.suffix == ".zarr":
        array, names, meta, _ = open_zarr(path)
        found: Any = {KEY: array, "frame_paths": names, "meta": meta}
    else:
        found = plain(read_inert(path))
    if isinstance(found, torch.Tensor):
        found = {KEY: found}
    features: Any = found.get(KEY) if isinstance(found, dict) else None
    if isinstance(features, np.ndarray):
        features = torch.from_numpy(features)
    zarr = path.suffix == ".zarr"
    if not (zarr or isinstance(features, torch.Tensor)) or features.ndim != 5:
        what = f"one with {sorted(map(str, found))}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise InputError(f"{path}: expected an object or tensor with '{KEY}' [W, T, H, W, C], found {what}; remove it")
    names = found.get("frame_paths") or name_frames(path, features.shape[:2], frames, stride)
    rest = {k: v for k, v in found.items() if isinstance(v, str | int | float | list)}  # fields of an old object
    meta = found.get("meta") if isinstance(found.get("meta"), dict) else {}
    meta = {k: v for k, v in rest.items() if k != "frame_paths"} | meta
    if frame_copy:
        ahead, told = frames_ahead(meta, features.shape[:2], path.parent.parent.name)
        meta |= {"window_size": 1, "windows_of": features.shape[1]} if features.shape[1] > 1 else {}
        features, names, places = _one_copy(path, features, names, frame_copy)
        meta |= {"frame_copy": frame_copy, "num_windows": len(features)}
        meta |= {"look_ahead": [[int(ahead[place])] for place in places]} if told else {}
    elif zarr:
        whole = torch.empty(features.shape, dtype=getattr(torch, str(features.dtype)))
        for w, window in enumerate(whole):
            window.copy_(_window(path, features, w))
        features = whole
    features = _cast(path, features.detach(), dtype).contiguous()
    if features.untyped_storage().nbytes() > features.nbytes:  # a slice, which would be written with all it is cut from
        features = features.clone()
    meta["save_dtype"] = {v: k for k, v in DTYPES.items()}[features.dtype]
    pack = {KEY: features, "frame_paths": names, "meta": meta}
    if isinstance(found.get("features"), torch.Tensor):
        pack["features"] = found["features"]
    return pack


def write_pack(target: Path, pack: dict, source: Path) -> None:
    """Write a pack that appears under its name only when it is whole and opens as a pack."""
    size = pack[KEY].nbytes
    with new_file(target, size, alone=True) as partial:
        alignment = {"save.storage_alignment": system.PAGE if size > 2**20 else 64}  # rows in fewer pages
        with serialization.patch(alignment):  # type: ignore[attr-defined]  # torch adds it when it is imported
            torch.save(pack, partial)
        try:
            FeaturePack.open(partial)
        except InputError as e:
            raise InputError(str(e).replace(str(partial), str(source))) from None


# -- reading without running


class _Inert:
    """Stands in for a class that a file names: it takes attributes and does nothing."""

    def __new__(cls, *args):
        return object.__new__(cls)

    def __init__(self, *args):  # making an object skips this; calling the class, which is how code is run, does not
        raise RuntimeError(f"it calls {type(self).__name__}, which would run code")


class _InertPath:
    """Stands in for the path classes: their parts, joined."""

    def __new__(cls, *parts):
        return "/".join(map(str, parts))


def read_inert(path: Path):
    """What a torch file holds, with inert objects in place of those whose classes it names.

    Raises InputError naming the file when it is unreadable or calls a function.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        zipped = True
    except ValueError:  # before 2020: no zip
        names, zipped = [], False
    except Exception as e:  # a damaged pickle fails in any way
        what = remedy(path, "copy or extract it again", "leave it out, or write it with torch.save", str(e))
        raise InputError(f"{path}: not a readable torch file ({first_line(e)}); {what}") from None
    if odd := [n for n in names if "\0" in n]:
        raise InputError(f"{path}: names the class {odd[0]!r}, which cannot be; copy or extract it again")
    stand_ins: list[Any] = [(_InertPath if n.startswith("pathlib.") else type(n, (_Inert,), {}), n) for n in names]
    with torch.serialization.safe_globals(stand_ins):
        return load_torch(path, "leave it out or re-extract it", mmap=zipped)


def plain(value):
    """Inert objects as dicts, tuples as lists, numpy numbers as numbers; tensors as they are; anything else as text."""
    if isinstance(value, _Inert):
        return plain(vars(value))
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic) or isinstance(value, np.ndarray) and value.dtype.kind == "U":
        return value.tolist()
    if value is None or isinstance(value, str | int | float | torch.Tensor | np.ndarray):
        return value
    return str(value)


# -- names of steps


def name_frames(path: Path, shape: tuple[int, int], frames: Sequence[str], stride: int = 0) -> list[list[str]]:
    """The frames behind W windows of T, from all frames of the episode: exactly one stride must explain W.

    >>> name_frames(Path("ep.pt"), (3, 2), ["a", "b", "c", "d"])
    [['a', 'b'], ['b', 'c'], ['c', 'd']]
    """
    w, t = shape
    if not frames:
        raise InputError(f"{path}: does not name its frames; give them with --rgb_root FRAMES")
    left = len(frames) - t  # frames after the first window
    strides = [stride] if stride > 0 else range(1, max(left, 1) + 1)
    fitting = [s for s in strides if left >= 0 and left // s + 1 == w]
    if len(fitting) != 1:
        could = f"strides {', '.join(map(str, fitting))} do: give --stride" if fitting else "no stride does"
        raise InputError(f"{path}: {w} windows of {t} should cover the {len(frames)} frames of --rgb_root; {could}")
    return [list(frames[i * fitting[0] :][:t]) for i in range(w)]


# -- values


def _one_copy(path: Path, features, names, copy: str) -> tuple[torch.Tensor, list[list[str]], list[tuple[int, int]]]:
    """The chosen copy of every frame, `[F, 1, H, W, C]`, their names and where they stood; each window is read once."""
    steps = locate(path, names, features.shape[:2])
    places = {s: choose(steps[s], copy, features.shape[1]) for s in sorted(steps, key=natural_key)}
    flat, window, read = torch.empty(0), torch.empty(0), -1
    for i, (w, t) in sorted(enumerate(places.values()), key=lambda p: p[1]):
        if w != read:
            window, read = _window(path, features, w), w
        if not len(flat):
            flat = torch.empty(len(places), 1, *window.shape[1:], dtype=window.dtype)
        flat[i, 0] = window[t]
    return flat, [[f"{s}.png"] for s in places], [*places.values()]


def _window(path: Path, features, w: int) -> torch.Tensor:
    try:
        return features[w] if isinstance(features, torch.Tensor) else torch.from_numpy(features[w])
    except (RuntimeError, ValueError, OSError) as e:
        raise InputError(f"{path}: window {w} is unreadable ({first_line(e)}); copy or extract it again") from None


def _cast(path: Path, features: torch.Tensor, dtype: str | None) -> torch.Tensor:
    """Raises InputError where a value does not fit (fp16 ends at 65504)."""
    if dtype is None and features.dtype not in DTYPES.values():
        raise InputError(f"{path}: features of type {features.dtype}; choose one with --dtype")
    if dtype is None or features.dtype == DTYPES[dtype]:
        return features
    cast = torch.empty(features.shape, dtype=DTYPES[dtype])
    for w, window in enumerate(features):
        cast[w] = window
        if not torch.equal(cast[w].isfinite(), window.isfinite()):
            raise InputError(f"{path}: values up to {window.abs().max():.3g} do not fit into {dtype}; use bf16 or fp32")
    return cast


def _check_kept(target: Path, dtype: str | None, frame_copy: str | None) -> None:
    pack = FeaturePack.open(target)
    if dtype and pack.dtype != DTYPES[dtype]:
        raise InputError(f"{target}: is there already as {pack.dtype}, not {dtype}; delete it or choose another --out")
    there = pack.meta.get("frame_copy")
    if frame_copy and there != frame_copy:
        what = f"with frame_copy {there}" if there else "with all windows"
        raise InputError(f"{target}: is there already {what}, not {frame_copy}; delete it or choose another --out")
