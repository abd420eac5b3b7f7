"""RGB frames from images, folders or a video, one frame at a time; and a cache of many at one resolution."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from rgb2pc_lib.data.files.faults import AT_ONCE, Faults
from rgb2pc_lib.data.files.guarded import DAMAGE
from rgb2pc_lib.data.files.stamps import stamp
from rgb2pc_lib.data.files.writing import new_file
from rgb2pc_lib.data.listing import IMAGES, VIDEOS, timeline, walk
from rgb2pc_lib.data.pictures import RULES, read_image, read_video
from rgb2pc_lib.data.workspace import CACHE
from rgb2pc_lib.errors import InputError

Value = TypeVar("Value")


def read_frames(
    sources: Sequence[str | Path], every: int = 1, faults: Faults = AT_ONCE
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(sequence, name, RGB pixels `[H, W, 3]` uint8) of all images and videos named, or lying in the folders named.

    Images of a folder come in the order of time and are named by their path inside it, or by the whole path where two
    sources share that; frames of a video are named `<file>#000012`, counted from 0. A sequence is a video or the images
    of one folder. `every` n keeps each n-th frame of a video.
    An image that cannot be decoded is put into `faults`, and a video from where that happens on.
    Raises InputError for names that are no images, videos or folders of them, before anything is decoded.
    """
    if every < 1:
        raise InputError(f"--every: expected at least 1, found {every}")
    files = [file for source in map(Path, sources) for file in _files(source)]
    shared = Counter(name for name, _ in files)
    for short, path in files:
        name = short if shared[short] == 1 else path.as_posix()
        if path.suffix.lower() in VIDEOS:
            video = read_video(path, every)
            while (frame := _next(video, name, faults)) is not None:
                yield name, f"{name}#{frame[0]:06d}", frame[1]
        elif (image := _next(map(read_image, [path]), name, faults)) is not None:
            yield str(path.parent), name, image


def _next(values: Iterator[Value], name: str, faults: Faults) -> Value | None:
    """The next value, or None at the end or where `name` has a fault."""
    with faults.at(name):  # around the reading alone, not around what is done with it
        return next(values, None)
    return None


def _files(source: Path) -> list[tuple[str, Path]]:
    if source.is_dir():
        found = walk(source, *IMAGES, *VIDEOS)
        if not found:
            raise InputError(f"{source}: expected images or videos below this folder, found none")
        return [(p.relative_to(source).as_posix(), p) for p in _in_order(found)]
    if not source.is_file():
        raise InputError(f"{source}: no such file or folder")
    if source.suffix.lower() not in IMAGES + VIDEOS:
        raise InputError(f"{source}: expected an image ({', '.join(IMAGES)}) or a video ({', '.join(VIDEOS)})")
    return [(source.name, source)]


def _in_order(files: list[Path]) -> list[Path]:
    """Files, those of one folder together, in the order of time where their names tell one."""
    ordered: list[Path] = []
    for folder, some in groupby(files, key=lambda p: p.parent):
        by_name = {p.name: p for p in some}
        ordered += [folder / name for name in timeline(by_name, one_series=False)]
    return ordered


def in_batches(frames: Iterator[tuple[str, str, np.ndarray]], batch: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """Consecutive frames of one sequence and size together: (names, images `[b, H, W, 3]`), b <= batch (0: all)."""
    names: list[str] = []
    images: list[np.ndarray] = []
    at = None
    for sequence, name, image in frames:
        if images and (len(images) == batch or (sequence, image.shape) != at):
            yield names, np.stack(images)
            names, images = [], []
        at = sequence, image.shape
        names.append(name)
        images.append(image)
    if images:
        yield names, np.stack(images)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """An image `[H, W, 3]` uint8 as a whole at `[size, size, 3]`, its axes scaled independently (Pillow, bilinear).

    >>> resized(np.zeros((240, 320, 3), np.uint8), 112).shape
    (112, 112, 3)
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise InputError(f"expected an RGB image [H, W, 3] in uint8, found {list(image.shape)} in {image.dtype}")
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def frame_cache(files: Sequence[Path], size: int, cache: Path | None = None, progress: bool = True) -> np.ndarray:
    """The frames `[n, size, size, 3]` uint8 in the order given, decoded once and memory-mapped from then on.

    The cache is keyed by every file's path, size and time of change: a changed file is decoded anew.
    """
    store = (cache or CACHE) / "frames" / f"{stamp(files, f'{size} px, decoder {RULES}')}.npy"
    shape = (len(files), size, size, 3)
    if (known := _cached(store, shape)) is not None:
        return known

    with new_file(store, math.prod(shape)) as partial, partial.open("wb") as out:
        about = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, about)
        for path in tqdm(files, desc=f"frames at {size} px", disable=not progress, unit="frame"):
            out.write(resized(read_image(path), size).tobytes())
    return np.load(store, mmap_mode="r")


def _cached(store: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """What the cache has, mapped; None where it is not there or is not that: then it is made anew."""
    try:
        found = np.load(store, mmap_mode="r", allow_pickle=False)
    except DAMAGE:
        return None
    return found if isinstance(found, np.ndarray) and (found.shape, found.dtype) == (shape, np.uint8) else None
