"""What the sources of a workspace hold, step by step, and what it weighs. Nothing is drawn here; see `pairing_view`."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rgb2pc_lib.data.clouds import Cloud, read_ply
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.listing import IMAGES, entries, episodes, step_name, timeline
from rgb2pc_lib.data.numbers import as_bytes, as_positions
from rgb2pc_lib.data.pairing import OK, Pairing, Samples
from rgb2pc_lib.data.teacher import TeacherFile, list_teacher, read_points
from rgb2pc_lib.data.workspace import CACHE, Workspace
from rgb2pc_lib.errors import InputError

DEMONSTRATIONS = CACHE / "demonstrations"  # where faults are made on purpose, away from anyone's data


def usable(pairing: Pairing) -> Samples:
    """The steps that every expert and the teacher have; unreadable packs are left out rather than refused.

    Raises InputError when there is none.
    """
    has = (pairing.table[[*pairing.experts, "teacher"]] == OK).all(axis=1).to_numpy()
    if not has.any():
        raise InputError(f"no step is in the teacher and in all of {', '.join(pairing.experts)}; see pairing.reasons()")
    rows = np.flatnonzero(has)[:, None]
    return Samples(pairing, rows, dict.fromkeys(pairing.experts, rows), rows)


_COUNTS = ("episodes", "steps", "channels")  # the total row has none


def pack_sizes(pairing: Pairing, copy: str = "middle") -> pd.DataFrame:
    """What the packs hold and weigh, one row per expert and "total", from their headers alone (GB = 1e9 bytes).

    Columns: episodes, steps, copies (of a step, on average), grid, channels, dtype, "frames ahead" (how many later
    frames a frame's tokens have seen, in the copies of that policy), "MB a step", "file GB" (all copies) and "memory
    GB" (one copy of every step: what a token store in memory needs).
    """
    rows: dict[str, dict[str, Any]] = {}
    ahead = pairing.look_ahead(copy)
    for name, packs in pairing.packs.items():
        if not packs:
            continue
        first = next(iter(packs.values()))
        steps = sum(len(p.copies) for p in packs.values())
        frame = {key: p.nbytes / np.prod(p.features.shape[:2]) for key, p in packs.items()}
        rows[name] = {
            "episodes": len(packs),
            "steps": steps,
            "copies": round(sum(len(c) for p in packs.values() for c in p.copies.values()) / steps, 1),
            "grid": " or ".join(sorted({f"{p.grid[0]} x {p.grid[1]}" for p in packs.values()})),
            "channels": first.channels,
            "dtype": str(first.dtype).removeprefix("torch."),
            "frames ahead": f"{ahead[name].mean:.1f}, at most {ahead[name].most}" if ahead[name].most else "none",
            "MB a step": sum(frame.values()) / len(frame) / 1e6,
            "file GB": sum(_bytes_on_disk(p.path) for p in packs.values()) / 1e9,
            "memory GB": sum(frame[key] * len(p.copies) for key, p in packs.items()) / 1e9,
        }
    sums = {c: sum(r[c] for r in rows.values()) for c in ("MB a step", "file GB", "memory GB")}
    return pd.DataFrame([*rows.values(), sums], index=[*rows, "total"]).astype(dict.fromkeys(_COUNTS, "Int64"))


def memory() -> dict[str, float]:
    """Memory of this machine in GB: "RAM", and "GPU" where there is one."""
    found = {}
    if hasattr(os, "sysconf"):
        found["RAM"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_properties(0).total_memory / 1e9
    return found


def _bytes_on_disk(path: Path) -> int:
    return sum(p.stat().st_size for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file())


# -- one step


def rgb_file(workspace: Workspace, task: str, episode: str, step: str) -> Path | None:
    """The RGB frame of a step, or None."""
    if workspace.rgb is None:
        return None
    folder = workspace.rgb / task / episode
    usual = next((path for ending in IMAGES if (path := folder / f"{step}{ending}").is_file()), None)
    return usual or next((path for path in entries(folder, *IMAGES) if step_name(path.name) == step), None)


def step_cloud(workspace: Workspace, pairing: Pairing, task: str, episode: str, step: str) -> tuple[Cloud, Path] | None:
    """Points of a step with the file they come from: the teacher's own where its files hold any, else the cloud's."""
    file = pairing.teacher.get((task, episode), {}).get(step)
    points = read_points(file) if file else None
    if file is not None and points is not None and points.pc is not None:
        colours = as_bytes(points.pc[:, 3:6], f"{file.path}: pc") if points.pc.shape[1] >= 6 else None
        return Cloud(as_positions(points.pc[:, :3], f"{file.path}: pc"), colours, points.uv), file.path
    path = workspace.clouds and workspace.clouds / task / episode / f"{step}.ply"
    return (read_ply(path), path) if path and path.is_file() else None


def pixels_under(cloud: Cloud, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours `[n, 3]` of the pixels the points were seen at, and which points `[N]` lie inside the image."""
    assert cloud.uv is not None
    column, row = np.floor(cloud.uv).astype(int).T
    inside = (column >= 0) & (column < image.shape[1]) & (row >= 0) & (row < image.shape[0])
    return image[row[inside], column[inside]], inside


# -- a fault to be found


def shifted_copy(workspace: Workspace, task: str, episode: str, by: int, folder: Path = DEMONSTRATIONS) -> Workspace:
    """`shifted_copies` of one episode."""
    return shifted_copies(workspace, {f"{task}/{episode}": by}, folder)


def shifted_copies(workspace: Workspace, faults: dict[str, int], folder: Path = DEMONSTRATIONS) -> Workspace:
    """A workspace under `folder` in which the teacher of some episodes is filed late, under perfectly good names.

    `faults`: "task/episode" -> by how many steps. For demonstrations. Other episodes are links to the originals (copies
    where links are not allowed); the user's files are only read. The first or the last steps repeat, so no step is
    missing. Raises InputError for an unknown episode.
    """
    teacher = workspace.root("teacher")
    files = list_teacher(teacher, workspace.teacher_tag)
    if unknown := [name for name in faults if not files.get(_parted(name))]:
        raise InputError(f"{teacher}: no episode {unknown[0]} to shift")
    told = "|".join(f"{name}|{by}" for name, by in sorted(faults.items()))
    key = f"{teacher.resolve()}|{workspace.teacher_tag}|{told}"
    root = Path(folder) / hashlib.sha256(key.encode()).hexdigest()[:12] / "teacher"
    for of, path in episodes(teacher):
        new = root / of / path.name
        new.parent.mkdir(parents=True, exist_ok=True)
        if f"{of}/{path.name.removesuffix('.zarr')}" not in faults and not new.exists():
            _link(path, new)
    for name, by in faults.items():
        _shift_files(files[_parted(name)], root / name, by, workspace.teacher_tag)
    count = "one episode" if len(faults) == 1 else f"{len(faults)} episodes"
    return replace(workspace, teacher=root, name=f"{workspace.name}, {count} shifted")


def _parted(name: str) -> tuple[str, str]:
    task, _, episode = name.partition("/")
    return task, episode


def _shift_files(steps: dict[str, TeacherFile], folder: Path, by: int, tag: str | None) -> None:
    names = list(timeline(steps))
    for i, name in enumerate(names):
        source = steps[names[min(max(i - by, 0), len(names) - 1)]]
        new = folder / f"{name}.ply.ulip_{tag or _tag(steps[name].path)}.pt"
        if not new.exists() or new.stat().st_mtime < source.path.stat().st_mtime:
            points = {k: torch.from_numpy(v) for k, v in vars(read_points(source)).items() if v is not None}
            write_atomic(new, partial(torch.save, points))


def _tag(path: Path) -> str:
    return path.stem.split(".ulip_")[-1] if ".ulip_" in path.name else "pooled"


def _link(path: Path, new: Path) -> None:
    try:
        new.symlink_to(path.resolve(), target_is_directory=path.is_dir())
    except FileExistsError:  # another notebook was faster
        pass
    except OSError:
        shutil.copytree(path, new, dirs_exist_ok=True) if path.is_dir() else shutil.copy2(path, new)
