"""The teacher: point-cloud features on disk -> one embedding per step.

A step's embedding is made from its per-point features: their mean, or their mean beside their largest values. It is
computed once and kept in a table in the project's cache, keyed by each file's size and time of change; the user's
folders are only read.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from rgb2pc_lib.data.files.guarded import DAMAGE, first_line, read_json_beside, read_npz
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.listing import entries, episodes, step_name
from rgb2pc_lib.data.packs import load_torch, whole_zarr, zarr_array
from rgb2pc_lib.data.workspace import CACHE
from rgb2pc_lib.errors import InputError, remedy

if TYPE_CHECKING:  # zarr is imported where an array is opened
    import zarr

AGAIN = "extract this step again"
POOLINGS = ("mean", "mean+max")  # of a step's points
_STEP_FILE = re.compile(r"^(?P<step>.+?)\.ply\.ulip_(?P<tag>.+)\.(pt|zarr)$")


@dataclass(frozen=True)
class TeacherFile:
    """Where one step's features lie: a file per step, or one row of an episode's pooled array."""

    path: Path
    row: int | None = None


@dataclass(frozen=True)
class PointFeatures:
    """One step's points. `uv` are pixels of the source image (u = column, v = row)."""

    pc_feat: np.ndarray  # [N, E] float32
    pc: np.ndarray | None  # [N, 3 or 6] float32 (float64 where 32 bits cannot tell), xyz in metres (, rgb)
    uv: np.ndarray | None  # [N, 2]


def list_teacher(
    root: Path, tag: str | None = None, faults: dict[tuple[str, str], str] | None = None
) -> dict[tuple[str, str], dict[str, TeacherFile]]:
    """(task, episode) -> step -> where its features lie; nothing is opened but pooled arrays' frame lists.

    Raises InputError when the root holds several tags and none is chosen, or one that is not there is, and when a
    step stands there twice or has no name: with `faults`, these are put there by episode, which is left out, instead.
    Two tags are two teachers: their embeddings are never mixed.
    """
    found: dict[tuple[str, str], dict[str, TeacherFile]] = {}
    tags: dict[str, Path] = {}  # every tag, and one file that has it
    for task, path in episodes(root):
        if path.suffix != ".zarr" and not path.is_dir():
            continue
        key = task, path.name.removesuffix(".zarr")
        try:
            steps = _steps(path, tag, tags)
            for step, file in steps.items():
                _add(found.setdefault(key, {}), step, file)
            if path.suffix == ".zarr" and not steps and faults is not None:
                faults[key] = f"{path}: no frame_paths.json, so its steps cannot be paired by name; write them there"
        except InputError as e:
            if faults is None:
                raise
            faults[key] = str(e)
    for key in faults or ():
        found.pop(key, None)
    choose = "choose one with teacher_tag in the workspace or --teacher_tag"
    if tag is None and len(tags) > 1:
        listed = ", ".join(f"{t} ({path.relative_to(root)})" for t, path in sorted(tags.items()))
        raise InputError(f"{root}: features of several teachers, {listed}; {choose}")
    if tag is not None and tags and tag not in tags:
        raise InputError(f"{root}: no features with the tag {tag}, found {', '.join(sorted(tags))}; {choose}")
    return found


def _steps(episode: Path, tag: str | None, tags: dict[str, Path]) -> dict[str, TeacherFile]:
    """Of one episode's folder or pooled array; every tag that is met, and a file that has it, is added to `tags`."""
    if episode.suffix == ".zarr":
        return _pooled_steps(episode)
    steps: dict[str, TeacherFile] = {}
    for path in entries(episode, ".pt", ".zarr"):
        if match := _STEP_FILE.match(path.name):
            tags.setdefault(match["tag"], path)
            if match["tag"] == (tag or next(iter(tags))):
                _add(steps, match["step"], TeacherFile(path))
    return steps


def _pooled_steps(episode: Path) -> dict[str, TeacherFile]:
    names = read_json_beside(episode, "frame_paths.json")
    if names is None:  # without names its steps cannot be paired; the pairing table says so
        return {}
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise InputError(f"{episode / 'frame_paths.json'}: expected a flat list of the steps' names; write it so")
    rows = _zarr(TeacherFile(episode, 0)).shape[0]
    if rows != len(names):
        raise InputError(
            f"{episode}: {rows} embeddings and {len(names)} names in frame_paths.json, so it is not known which belong "
            "together; write one name for each embedding"
        )
    steps: dict[str, TeacherFile] = {}
    for i, name in enumerate(names):
        if other := steps.get(step_name(name)):
            raise InputError(
                f"{episode}: two rows, {names[other.row or 0]} and {name}, would both be the step {step_name(name)!r}; "
                "give each a name of its own in frame_paths.json"
            )
        steps[step_name(name)] = TeacherFile(episode, i)
    return steps


def _add(steps: dict[str, TeacherFile], step: str, file: TeacherFile) -> None:
    if step in steps and steps[step].path != file.path:
        raise InputError(f"{file.path}: this step also exists in {steps[step].path.name}; keep one of the two")
    steps[step] = file


def read_points(file: TeacherFile) -> PointFeatures:
    """Per-point features of one step. A pooled array gives one "point".

    Raises InputError naming the file when it is unreadable or has no `pc_feat [N, E]`.
    """
    path = file.path
    raw = load_torch(path, AGAIN, again=AGAIN) if path.suffix == ".pt" else {"pc_feat": _read_zarr(file)}
    feat = raw.get("pc_feat") if isinstance(raw, dict) else None
    if feat is None or getattr(feat, "ndim", 0) != 2 or 0 in feat.shape:
        found = sorted(map(str, raw)) if isinstance(raw, dict) else type(raw).__name__
        shape = "" if feat is None else f" with pc_feat of shape {list(getattr(feat, 'shape', []))}"
        raise InputError(
            f"{path}: expected a dict with 'pc_feat' [N, E], found {found}{shape}, which is no teacher's file; "
            "write one row of features for each point (data/README.md)"
        )
    uv = raw["uvs"] if raw.get("uv") is None and "uvs" in raw else raw.get("uv")
    pc = raw.get("pc")
    known = None if pc is None else _positions(pc, path), None if uv is None else as_array(uv, path)
    return PointFeatures(as_array(feat, path), *known)


def frame_of(file: TeacherFile) -> str | None:
    """The frame in which the teacher saw a step's cloud, "world" or "camera"; None where its file does not say."""
    raw = load_torch(file.path, AGAIN, again=AGAIN) if file.path.suffix == ".pt" else None
    frame = raw.get("frame") if isinstance(raw, dict) else None
    if frame not in (None, "world", "camera"):
        raise InputError(f"{file.path}: frame: expected world or camera, found {frame!r}; {AGAIN}")
    return frame


def _positions(pc: Any, path: Path) -> np.ndarray:
    """As float32 where that changes nothing; else whoever uses them is told (`numbers.as_positions`)."""
    exact = as_array(pc, path, np.float64)
    single = exact.astype(np.float32)
    return single if np.allclose(single, exact, rtol=0, atol=1e-5, equal_nan=True) else exact


def pooled(points: np.ndarray, pooling: str) -> np.ndarray:
    """Point features `[N, C]` as one vector: `[C]`, or with "mean+max" `[2 C]`.

    >>> pooled(np.array([[0.0, 1.0], [2.0, 1.0]]), "mean+max").tolist()
    [1.0, 1.0, 2.0, 1.0]
    """
    mean: np.ndarray = points.mean(0)
    return mean if pooling == "mean" else np.concatenate([mean, points.max(0)])


def teacher_table(
    files: list[TeacherFile], cache: Path = CACHE, progress: bool = True, pooling: str = "mean",
    faults: dict[TeacherFile, str] | None = None,
) -> np.ndarray:  # fmt: skip
    """Pooled point features of each file: `[steps, E]` float32, read from the cache where the files are unchanged.

    Raises InputError for an unreadable file, non-finite features, or files of different widths: with `faults`, what is
    wrong with a file is put there instead, and its row is NaN. Of several widths the one of most files is right then.
    """
    if not files:
        return np.zeros((0, 0), np.float32)
    root = os.path.commonpath([f.path.parent for f in files])
    named = root if pooling == "mean" else f"{root} {pooling}"
    store = cache / "teacher_tables" / f"{hashlib.sha256(named.encode()).hexdigest()[:16]}.npz"
    known = _known(store)
    states = {path: _state(path) for path in {f.path for f in files}}
    stamps = [f"{f.path}|{f.row}|{states[f.path]}" for f in files]
    missing = [i for i, s in enumerate(stamps) if s not in known]
    for i in tqdm(missing, desc="teacher embeddings", unit="step", disable=not progress or len(missing) < 500):
        try:
            known[stamps[i]] = _embedding(files[i], pooling)
        except InputError as e:
            if faults is None:
                raise
            faults[files[i]] = str(e)
    width = _one_width({f: len(known[s]) for s, f in zip(stamps, files, strict=True) if s in known}, faults)
    lost, faulty = np.full(width, np.nan, np.float32), faults or {}
    table = np.stack([lost if f in faulty else known[s] for s, f in zip(stamps, files, strict=True)])
    if missing:
        keep = [s for s, row in known.items() if len(row) == table.shape[1]]
        rows = np.stack([known[s] for s in keep])
        write_atomic(store, lambda p: np.savez(p, stamps=np.array(keep), table=rows))
    return table


def _embedding(file: TeacherFile, pooling: str) -> np.ndarray:
    feat = read_points(file).pc_feat
    one = pooled(feat, pooling)
    if not np.isfinite(one).all():
        bad = int((~np.isfinite(feat)).any(1).sum())
        raise InputError(
            f"{file.path}: pc_feat holds non-finite values, NaN or infinite, in {bad} of {len(feat)} points; "
            "re-extract this step from a cloud without points of no position, or remove the file"
        )
    return one


def _one_width(widths: dict[TeacherFile, int], faults: dict[TeacherFile, str] | None) -> int:
    """The width of all files, or of most of them: then the others are `faults`."""
    example = {width: file.path for file, width in widths.items()}
    if len(example) > 1 and faults is None:
        listed = "; ".join(f"{w} in {p}" for w, p in example.items())
        raise InputError(f"teacher features of different widths: {listed}; keep one teacher per root")
    width = max(example, key=list(widths.values()).count, default=0)
    for file, other in widths.items():
        if other != width and faults is not None:
            faults[file] = (
                f"{file.path}: teacher features of width {other}, {width} in the others, such as {example[width]}; "
                "keep one teacher per root"
            )
    return width


def _known(store: Path) -> dict[str, np.ndarray]:
    """Stamp -> embedding, from the cache; where that is damaged it is made anew."""
    try:
        found = read_npz(store, {"stamps": ("U", "n"), "table": ("f", "nE")}) if store.exists() else None
    except InputError:
        found = None
    return dict(zip(found["stamps"].tolist(), found["table"], strict=True)) if found else {}


@functools.lru_cache(maxsize=512)  # about 1 MB each
def _points_open(path: Path) -> np.ndarray:
    return read_points(TeacherFile(path)).pc_feat


def subsampled(file: TeacherFile, points: int, rng: np.random.Generator, pooling: str = "mean") -> np.ndarray:
    """A random subset of a step's points, pooled, `[E]`: an augmentation of the teacher."""
    if file.row is not None:
        raise InputError(f"{file.path}: one pooled embedding a step: nothing for --teacher_points to subsample")
    feat = _points_open(file.path)
    return pooled(feat[rng.choice(len(feat), min(points, len(feat)), replace=False)], pooling)


def _state(path: Path) -> str:
    """Size and time of the last change; of a zarr folder, over all that it holds."""
    stats = [os.stat(p) for p in (path, *path.rglob("*"))] if path.is_dir() else [os.stat(path)]
    return f"{sum(s.st_size for s in stats)}|{max(s.st_mtime_ns for s in stats)}"


def as_array(value: Any, path: Path, kind: type[np.floating[Any]] = np.float32) -> np.ndarray:
    """A tensor or an array as float32, or another `kind`. Raises InputError naming the file for no plain numbers."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        value = value.double().numpy() if value.layout == torch.strided and not value.is_complex() else object()
    array: np.ndarray = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{path}: expected plain tensors or arrays of numbers, found {array.dtype}; write them so")
    return array.astype(kind, copy=False)


def _zarr(file: TeacherFile) -> zarr.Array[Any]:
    """The array of a step's points, or of an episode's embeddings. Raises InputError where it lacks chunks."""
    import zarr

    try:
        if file.row is None:
            array = zarr.open_array(str(file.path), mode="r")
        else:
            array = zarr_array(file.path)
        whole_zarr(file.path, array)
    except (*DAMAGE, zarr.errors.BaseZarrError) as e:
        raise _no_zarr(file, e) from None
    return array


def _read_zarr(file: TeacherFile) -> np.ndarray:
    array = _zarr(file)
    try:
        return np.asarray(array[:] if file.row is None else array[file.row : file.row + 1])
    except DAMAGE as e:
        raise _no_zarr(file, e) from None


def _no_zarr(file: TeacherFile, e: Exception) -> InputError:
    if isinstance(e, InputError):
        return e
    what = remedy(file.path, AGAIN, "data/README.md tells the layout", str(e))
    return InputError(f"{file.path}: not a readable zarr array ({first_line(e)}); {what}")
