"""From RGB frames to packs: one expert over all episodes, one file per episode, resumable.

Layout of a pack: `data/README.md`. A pack appears under its name only once it is complete.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from rgb2pc_lib.data import system
from rgb2pc_lib.data.files.exclusions import NOTHING, Exclusions
from rgb2pc_lib.data.files.faults import AT_ONCE, Faults
from rgb2pc_lib.data.files.writing import free_bytes, gigabytes
from rgb2pc_lib.data.listing import IMAGES, step_name, steps
from rgb2pc_lib.data.pictures import image_size, read_image
from rgb2pc_lib.encoders.encode import BatchSize, encode_frames, frames_encoded, kept
from rgb2pc_lib.encoders.images import Expert, ImageEncoder
from rgb2pc_lib.encoders.pack_file import DTYPES, layout, new_pack, seen_ahead
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.ranks import rank, shard, world

# two packs with the same values here came from the same frames in the same way
_IDENTITY = (
    "model_name", "weights", "img_size", "num_frames", "window_size", "stride", "num_windows", "causal", "save_dtype",
)  # fmt: skip


def extract(
    encoder: ImageEncoder,
    rgb_root: Path,
    out: Path,
    *,
    window: int = 8,
    stride: int = 8,
    causal: bool = False,
    dtype: str = "fp16",
    batch: int = 8,
    workers: int = 1,
    tasks: Iterable[str] = (),
    faults: Faults = AT_ONCE,
    exclude: Exclusions = NOTHING,
    progress: bool = True,
) -> tuple[int, int]:
    """Write `out/<task>/<episode>.pt` for every episode under `rgb_root`; the numbers of packs (written, kept).

    Of several processes (torchrun), each takes its share of the episodes, and counts only those. A pack that is there
    already is kept if it was made from as many frames in the same way. With `causal` a window of at most `window`
    frames ends at each, so that no frame sees a later one, as live. `batch` frames of an episode are encoded at a
    time, fewer where they do not fit into memory; `workers` episodes proceed side by side, each on one processor
    thread, which is faster than several threads on one small network and far less disturbed by other programs.
    An expert that sees several frames together is large: it takes one episode at a time, with as many threads.
    Raises InputError for a missing root or task, and for packs made with other settings. An episode with an unreadable
    or odd-sized frame, or whose pack is of other frames, is put into `faults` and has no new pack.
    """
    todo, kept = [], 0
    for (task, episode), files in shard(list_frames(rgb_root, tasks, faults, exclude).items()):
        path, pack = out / task / f"{episode}.pt", None
        with faults.at(f"{task}/{episode}"):
            meta = encoder.meta(*image_size(files[0]))
            meta |= {"look_ahead": seen_ahead(encoder, len(files), window, causal)}
            meta |= {"episode_dir": f"{task}/{episode}", "task_name": task, "episode_name": episode}
            if path.exists():
                pack = read_kept(path, files, exclude, (task, episode))
                kept += 1
            else:
                todo.append((path, Frames(files), meta))
        if pack:  # other settings are no fault of this one episode: nothing goes on
            cut = layout(pack["num_frames"], window, stride, causal)
            check_kept(path, pack, meta | cut | {"save_dtype": dtype})

    system.keep_freed_memory()  # every batch of frames asks for the same memory anew
    size = BatchSize(batch)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # else threads begun later keep the workers' 1
        total = sum(frames_encoded(encoder, len(frames), window, stride, causal) for _, frames, _ in todo)
        name = encoder.name if world() == 1 else f"{encoder.name} [{rank()}]"
        bar = stack.enter_context(tqdm(total=total, desc=name, unit="frame", position=rank(), disable=not progress))
        abreast = 1 if encoder.together else workers
        pool = ThreadPoolExecutor(abreast, initializer=torch.set_num_threads, initargs=(workers // abreast,))
        stack.enter_context(pool)

        def seen(frames):
            with bar.get_lock():
                bar.update(frames)

        def one(episode):
            path, frames, meta = episode
            paths = [f.relative_to(rgb_root).as_posix() for f in frames.files]
            with faults.at(meta["episode_dir"]):
                with new_pack(path, paths, meta["grid"], meta, window, stride, dtype, causal) as put:
                    for place, tokens in encode_frames(encoder, frames, window, stride, size, causal, seen):
                        put(place, tokens)
                return True
            return False

        written = sum(pool.map(one, todo))  # what is no fault of an episode is raised here; those not begun are not
    return written, kept


class Frames:
    """An episode's frames on disk, read when they are asked for: `Frames(files)[0:8]` is uint8 `[8, H, W, 3]`.

    Raises InputError for a frame that cannot be decoded or has another size than the first.
    """

    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, part: slice) -> np.ndarray:
        height, width = image_size(self.files[0])
        images = [(file, read_image(file)) for file in self.files[part]]
        for file, image in images:
            if image.shape[:2] != (height, width):
                raise InputError(
                    f"{file}: expected {width} x {height} pixels like the first frame of its episode, "
                    f"found {image.shape[1]} x {image.shape[0]}; bring the frames of an episode to one size"
                )
        return np.stack([image for _, image in images])


def disk_needs(
    expert: Expert, rgb_root: Path, out: Path, *, window=8, stride=8, causal=False, dtype="fp16",
    tasks: Iterable[str] = (), exclude: Exclusions = NOTHING,
) -> str:  # fmt: skip
    """What the packs of `extract` will take, one line an episode and the total, in words; nothing is read or written.

    An episode with a fault has a line that says so. Raises InputError as `extract` does, for missing frames.
    """
    lines, total, missing, faults = [], 0, 0, Faults()
    for (task, episode), files in list_frames(rgb_root, tasks, faults, exclude).items():
        index = kept(len(files), window, stride, causal)
        try:
            grid = expert.view(*image_size(files[0])).grid
        except InputError as e:
            faults.add(f"{task}/{episode}", str(e))
            continue
        shape = len(index), len(index[0]), *grid, expert.channels
        size = math.prod(shape) * DTYPES[dtype].itemsize
        there = (out / task / f"{episode}.pt").exists()
        total, missing = total + size, missing + size * (not there)
        lines.append(f"  {task}/{episode}: {list(shape)} {gigabytes(size)}{' (there already)' if there else ''}")
    free = gigabytes(free_bytes(out))
    packs = len(lines)
    lines += [f"  {episode}: {said}" for episode, said in faults.found.items()]
    lines.append(f"{expert.name}: {gigabytes(total)} in {packs} packs, {gigabytes(missing)} to write; {free} free")
    return "\n".join(lines)


def list_frames(
    rgb_root: Path, tasks: Iterable[str] = (), faults: Faults = AT_ONCE, exclude: Exclusions = NOTHING
) -> dict[tuple[str, str], list[Path]]:
    """(task, episode) -> its frames `<rgb_root>/<task>/<episode>/<step>.png|jpg` in the order of time, but for those
    that are excluded.

    Raises InputError for a missing root and a task without frames. An episode with a step that stands there twice, or
    with frames of two series, is put into `faults`.
    """
    if not rgb_root.is_dir():
        raise InputError(f"{rgb_root}: expected a folder of RGB frames <task>/<episode>/step_0000.jpg, found none")
    broken: dict[tuple[str, str], str] = {}
    every = exclude.episodes(steps(rgb_root, IMAGES, broken))
    found = {key: [*kept.values()] for key, files in every.items() if (kept := exclude.steps(key, files))}
    wanted, broken = set(tasks), exclude.episodes(broken)
    faults.add_episodes({key: said for key, said in broken.items() if not wanted or key[0] in wanted})
    missing = wanted - {task for task, _ in (*found, *broken)}
    if missing or not (found or broken):
        there = ", ".join(sorted({task for task, _ in found})) or "no frames at all"
        asked = f"frames of {', '.join(sorted(missing))}" if missing else "<task>/<episode>/step_0000.png or .jpg"
        raise InputError(f"{rgb_root}: expected {asked}, found {there}; check --rgb_root and --tasks")
    return {key: files for key, files in found.items() if not wanted or key[0] in wanted}


def read_kept(path: Path, files: Sequence[Path], exclude: Exclusions, key: tuple[str, str]) -> dict:
    """What a pack that is there says of itself. Raises InputError when it cannot be read, or is of other frames."""
    try:
        pack = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        found, names = pack["meta"], {step_name(name) for window in pack["frame_paths"] for name in window}
        number = found["num_frames"]
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise InputError(f"{path}: expected an extracted pack, found: {reason}; delete the file") from None
    other = exclude.steps(key, dict.fromkeys(names)).keys() ^ {step_name(file.name) for file in files}
    if number != len(names) or other:
        what = f"num_frames {number} instead of {len(files)}" if number != len(files) else "other frames"
        example = f", such as {min(other)}" if other else ""
        raise InputError(f"{path}: this pack was made with {what}{example}; delete it to make it again")
    return found


def check_kept(path: Path, found: dict, expected: dict, identity: Sequence[str] = _IDENTITY) -> None:
    """Raises InputError where what a pack says of itself is not what would be written now."""
    found, expected = ({"causal": False} | told for told in (found, expected))
    if differ := [f"{k} {found.get(k)} instead of {expected[k]}" for k in identity if found.get(k) != expected[k]]:
        raise InputError(
            f"{path}: this pack was made with {', '.join(differ)}; "
            "delete the folder of packs to make them again, or write elsewhere with --out"
        )
