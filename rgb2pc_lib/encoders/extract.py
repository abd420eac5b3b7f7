"""From RGB frames to packs: one expert over all episodes, one file per episode, resumable.

Layout of a pack: `data/README.md`. A pack appears under its name only once it is complete.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from rgb2pc_lib.encoders.images import ImageEncoder
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.workspace import natural_key

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
IMAGES = (".png", ".jpg", ".jpeg")
# two packs with the same values here came from the same frames in the same way
_IDENTITY = ("model_name", "weights", "img_size", "num_frames", "window_size", "stride", "num_windows", "save_dtype")


def extract(
    encoder: ImageEncoder,
    rgb_root: Path,
    out: Path,
    *,
    window: int = 8,
    stride: int = 8,
    dtype: str = "fp16",
    batch: int = 8,
    workers: int = 1,
    tasks: Iterable[str] = (),
    progress: bool = True,
) -> tuple[int, int]:
    """Write `out/<task>/<episode>.pt` for every episode under `rgb_root`; the numbers of packs (written, kept).

    A pack that is there already is kept if it was made from as many frames in the same way. Each frame is encoded
    once, `batch` frames of an episode at a time; `workers` episodes proceed side by side, each on one processor
    thread, which is faster than several threads on one small network and far less disturbed by other programs.
    Raises InputError for a missing root or task, an unreadable or odd-sized frame, and a pack made with other settings.
    """
    episodes = list_frames(rgb_root, tasks)
    todo = []
    for (task, episode), files in episodes.items():
        path = out / task / f"{episode}.pt"
        meta = {**encoder.meta(), "episode_dir": f"{task}/{episode}", "task_name": task, "episode_name": episode}
        if path.exists():
            _check_kept(path, meta | _layout(len(files), window, stride) | {"save_dtype": dtype})
        else:
            todo.append((path, files, meta))

    frames = sum(len(files) for _, files, _ in todo)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # else threads begun later keep the workers' 1
        bar = stack.enter_context(tqdm(total=frames, desc=encoder.name, unit="frame", disable=not progress))
        pool = stack.enter_context(ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)))

        def one(episode):
            path, files, meta = episode
            tokens = []  # batches of [b, Hf, Wf, C]
            for start in range(0, len(files), batch):
                images = _read_same_size(files[start : start + batch], meta)
                tokens.append(encoder(torch.from_numpy(images)).to(DTYPES[dtype]).cpu())
                with bar.get_lock():
                    bar.update(len(images))
            paths = [file.relative_to(rgb_root).as_posix() for file in files]
            write_pack(path, torch.cat(tokens), paths, meta, window, stride)

        for _ in pool.map(one, todo):
            pass  # an error in one episode is raised here and calls off those not begun
    return len(todo), len(episodes) - len(todo)


def write_pack(
    path: Path, frames: torch.Tensor, frame_paths: Sequence[str], meta: dict, window: int = 8, stride: int = 8
) -> None:
    """Write one episode's tokens `[F, Hf, Wf, C]`, in the dtype they have, cut into windows of frames.

    The pack says what `meta` says, and its own layout. It is written under a hidden temporary name first.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "task" / "episode_0000.pt"
    >>> write_pack(path, torch.zeros(10, 2, 2, 4), [f"step_{i:04d}.png" for i in range(10)], {})
    >>> torch.load(path, weights_only=True)["per_frame_features"].shape
    torch.Size([2, 8, 2, 2, 4])
    """
    if frames.ndim != 4 or len(frames) != len(frame_paths) or not len(frames):
        raise InputError(f"{path}: expected a grid per frame path, found {list(frames.shape)} for {len(frame_paths)}")
    index = windows(len(frames), window, stride)  # W lists of T
    save_dtype = {v: k for k, v in DTYPES.items()}.get(frames.dtype, str(frames.dtype).removeprefix("torch."))
    shape = {"grid": list(frames.shape[1:3]), "enc_embed_dim": frames.shape[3], "save_dtype": save_dtype}
    pack = {
        "per_frame_features": frames[torch.tensor(index)],  # [W, T, Hf, Wf, C]
        "frame_paths": [[frame_paths[i] for i in rows] for rows in index],
        "meta": meta | _layout(len(frames), window, stride) | shape,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")  # the next attempt overwrites it
    with open(unfinished, "wb") as f:
        torch.save(pack, f)
        f.flush()
        os.fsync(f.fileno())  # the bytes reach the disk before the name does
    os.replace(unfinished, path)


def windows(frames: int, window: int, stride: int) -> list[list[int]]:
    """Frame indices of each window: all full, the last one shifted back to end on the last frame.

    An episode shorter than a window is one window of its own length.

    >>> windows(5, window=3, stride=3), windows(2, window=3, stride=3)
    ([[0, 1, 2], [2, 3, 4]], [[0, 1]])
    """
    if not 1 <= stride <= window:
        raise InputError(f"expected 1 <= stride <= window (else frames are lost), found {stride} and {window}")
    length = min(window, frames)
    starts = list(range(0, frames - length + 1, stride))
    if starts[-1] + length < frames:
        starts.append(frames - length)
    return [list(range(s, s + length)) for s in starts]


def list_frames(rgb_root: Path, tasks: Iterable[str] = ()) -> dict[tuple[str, str], list[Path]]:
    """(task, episode) -> its frames `<rgb_root>/<task>/<episode>/<step>.png|jpg` in the order of their numbers.

    Raises InputError for a missing root, a task without frames, and a step that stands there twice.
    """
    if not rgb_root.is_dir():
        raise InputError(f"{rgb_root}: expected a folder of RGB frames <task>/<episode>/step_0000.jpg, found none")
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(rgb_root.glob("*/*/*"), key=lambda p: natural_key(p.as_posix())):
        if path.suffix.lower() in IMAGES:
            files = found.setdefault((path.parts[-3], path.parts[-2]), [])
            if files and files[-1].stem == path.stem:
                raise InputError(f"{path}: this step is also there as {files[-1].name}; keep one of the two")
            files.append(path)
    wanted = set(tasks)
    missing = wanted - {task for task, _ in found}
    if missing or not found:
        there = ", ".join(sorted({task for task, _ in found})) or "no frames at all"
        asked = f"frames of {', '.join(sorted(missing))}" if missing else "<task>/<episode>/step_0000.png or .jpg"
        raise InputError(f"{rgb_root}: expected {asked}, found {there}; check --rgb_root and --tasks")
    return {key: files for key, files in found.items() if not wanted or key[0] in wanted}


def read_image(path: Path) -> np.ndarray:
    """RGB pixels `[H, W, 3]` uint8 of a PNG or JPEG. Raises InputError naming a file that cannot be decoded."""
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as e:
        raise InputError(f"{path}: expected a readable PNG or JPEG, found: {e}; record this frame again") from None


def _read_same_size(files, meta):  # [b, H, W, 3]; the episode's first frame sets meta["raw_size"]
    images = [read_image(file) for file in files]
    height, width = meta.setdefault("raw_size", list(images[0].shape[:2]))
    for file, image in zip(files, images, strict=True):
        if image.shape[:2] != (height, width):
            raise InputError(
                f"{file}: expected {width} x {height} pixels like the first frame of its episode, "
                f"found {image.shape[1]} x {image.shape[0]}; record the episode again in one size"
            )
    return np.stack(images)


def _layout(frames: int, window: int, stride: int) -> dict:
    index = windows(frames, window, stride)
    return {"num_frames": frames, "window_size": len(index[0]), "stride": stride, "num_windows": len(index)}


def _check_kept(path: Path, expected: dict) -> None:
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["meta"]
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise InputError(f"{path}: expected an extracted pack, found: {reason}; delete the file") from None
    differ = [f"{k} {found.get(k)} instead of {expected[k]}" for k in _IDENTITY if found.get(k) != expected[k]]
    if differ:
        raise InputError(
            f"{path}: this pack was made with {', '.join(differ)}; "
            "delete the folder of packs to make them again, or write elsewhere with --out"
        )
