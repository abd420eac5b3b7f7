"""The teacher: point-cloud features on disk -> one embedding per step.

A step's embedding is the mean of its per-point features. The means are computed once and kept as a table
in the project's cache, keyed by each file's size and time of change; the user's folders are only read.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.packs import KEY, first_line, load_torch, read_json, step_name
from rgb2pc_lib.workspace import CACHE

_STEP_FILE = re.compile(r"^(?P<step>[^.]+)\.ply\.ulip_(?P<tag>.+)\.(pt|zarr)$")

@dataclass(frozen=True)
class TeacherFile:
    """Where one step's features lie: a file per step, or one row of an episode's pooled array."""

    path: Path
    row: int | None = None


@dataclass(frozen=True)
class PointFeatures:
    """One step's points. `uv` are pixels of the source image (u = column, v = row)."""

    pc_feat: np.ndarray  # [N, E] float32
    pc: np.ndarray | None  # [N, 3 or 6] xyz in metres (, rgb)
    uv: np.ndarray | None  # [N, 2]


def list_teacher(root: Path, tag: str | None = None) -> dict[tuple[str, str], dict[str, TeacherFile]]:
    """(task, episode) -> step -> where its features lie; nothing is opened but pooled arrays' frame lists.

    Raises InputError when a step has several tags and none is chosen.
    """
    found: dict[tuple[str, str], dict[str, TeacherFile]] = {}
    for episode in sorted(root.glob("*/*")):
        if episode.suffix == ".zarr":
            names = read_json(episode / "frame_paths.json")
            if names is not None:  # without names its steps cannot be paired; the pairing table says so
                steps = {step_name(n): TeacherFile(episode, i) for i, n in enumerate(names)}
                found.setdefault((episode.parent.name, episode.stem), {}).update(steps)
            continue
        if not episode.is_dir():
            continue
        steps, tags = {}, {}
        for entry in os.scandir(episode):
            match = _STEP_FILE.match(entry.name)
            if match and tag in (None, match["tag"]):
                tags.setdefault(match["step"], []).append(match["tag"])
                steps[match["step"]] = TeacherFile(Path(entry.path))
        several = sorted({t for names in tags.values() if len(names) > 1 for t in names})
        if several:
            raise InputError(
                f"{episode}: steps have several teachers, {', '.join(several)}; choose one with "
                f"teacher_tag in the workspace or --teacher_tag"
            )
        if steps:
            found.setdefault((episode.parent.name, episode.name), {}).update(steps)
    return found


def read_points(file: TeacherFile) -> PointFeatures:
    """Per-point features of one step. A pooled array gives one "point".

    Raises InputError naming the file when it is unreadable or has no `pc_feat [N, E]`.
    """
    path = file.path
    raw = load_torch(path, "extract this step again") if path.suffix == ".pt" else {"pc_feat": _read_zarr(file)}
    feat = raw.get("pc_feat") if isinstance(raw, dict) else None
    if feat is None or getattr(feat, "ndim", 0) != 2 or 0 in feat.shape:
        found = sorted(map(str, raw)) if isinstance(raw, dict) else type(raw).__name__
        shape = "" if feat is None else f" with pc_feat of shape {list(getattr(feat, 'shape', []))}"
        raise InputError(f"{path}: expected a dict with 'pc_feat' [N, E], found {found}{shape}; re-extract this step")
    uv = raw.get("uv", raw.get("uvs"))
    return PointFeatures(_array(feat), _array(raw.get("pc")), _array(uv))


def teacher_table(files: list[TeacherFile], cache: Path = CACHE, progress: bool = True) -> np.ndarray:
    """Mean point feature of each file: `[steps, E]` float32, read from the cache where the files are unchanged.

    Raises InputError for an unreadable file, non-finite features, or files of different widths.
    """
    if not files:
        return np.zeros((0, 0), np.float32)
    root = os.path.commonpath([f.path.parent for f in files])
    store = cache / "teacher_tables" / f"{hashlib.sha256(root.encode()).hexdigest()[:16]}.npz"
    known = {}
    if store.exists():
        with np.load(store, allow_pickle=False) as z:
            known = dict(zip(z["stamps"].tolist(), z["table"], strict=True))
    stamps = [_stamp(f) for f in files]
    missing = [i for i, s in enumerate(stamps) if s not in known]
    for i in tqdm(missing, desc="teacher embeddings", unit="step", disable=not progress or len(missing) < 500):
        mean = read_points(files[i]).pc_feat.mean(0)
        if not np.isfinite(mean).all():
            raise InputError(f"{files[i].path}: pc_feat holds non-finite values; re-extract this step")
        known[stamps[i]] = mean
    widths = {len(known[s]): f.path for s, f in zip(stamps, files, strict=True)}
    if len(widths) > 1:
        listed = "; ".join(f"{w} in {p}" for w, p in widths.items())
        raise InputError(f"teacher features of different widths: {listed}; keep one teacher per root")
    table = np.stack([known[s] for s in stamps])
    if missing:
        keep = [s for s, row in known.items() if len(row) == table.shape[1]]
        store.parent.mkdir(parents=True, exist_ok=True)
        partial = store.with_name(f"{store.stem}.{os.getpid()}.npz")
        np.savez(partial, stamps=np.array(keep), table=np.stack([known[s] for s in keep]))
        os.replace(partial, store)
    return table


@functools.lru_cache(maxsize=512)  # about 1 MB each
def _points_open(path: Path) -> np.ndarray:
    return read_points(TeacherFile(path)).pc_feat


def subsampled_mean(file: TeacherFile, points: int, rng: np.random.Generator) -> np.ndarray:
    """Mean over a random subset of a step's points, `[E]`: an augmentation of the teacher."""
    if file.row is not None:
        raise InputError(f"{file.path}: one pooled embedding a step: nothing for --teacher_points to subsample")
    feat = _points_open(file.path)
    return feat[rng.choice(len(feat), min(points, len(feat)), replace=False)].mean(0)


def _stamp(file: TeacherFile) -> str:
    stat = os.stat(file.path)
    return f"{file.path}|{file.row}|{stat.st_size}|{stat.st_mtime_ns}"


def _array(value) -> np.ndarray | None:
    if value is None:
        return None
    return np.asarray(value.detach().float() if isinstance(value, torch.Tensor) else value, np.float32)


def _read_zarr(file: TeacherFile) -> np.ndarray:
    import zarr

    try:
        if file.row is not None:
            return zarr.open_group(str(file.path), mode="r")[KEY][file.row][None]
        return zarr.open_array(str(file.path), mode="r")[:]
    except (KeyError, ValueError, IndexError, OSError, zarr.errors.BaseZarrError) as e:
        raise InputError(f"{file.path}: not a readable zarr array ({first_line(e)}); re-extract it") from None
