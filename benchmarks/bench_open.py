"""Opening: a workspace of many episodes, for the first and the second time; one 5 GB pack; and what memory they take.

The packs are hollow: their tokens are a hole in the file, which takes no disk and reads as zeros.
"""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from common import EXPERTS, Row, memory, need_disk, peak_growth, sampling, write_teacher  # isort: skip

import numpy as np
import torch

from rgb2pc_lib.data import mapped, pack_index
from rgb2pc_lib.data.packs import FeaturePack
from rgb2pc_lib.data.pairing import pair, select
from rgb2pc_lib.data.teacher import teacher_table
from rgb2pc_lib.data.workspace import Workspace

H, W, C, T, K = 37, 37, 2048, 8, 256
EPISODES, FRAMES = (100, 1000), 24
WINDOWS = (11, 112)  # 0.5 and 5 GB
SAMPLES = 16  # a batch of the one expert
FULL_SHARE = 10  # the pack that is loaded in full is this many times smaller


def write(path: Path, frames: int, grid: tuple[int, int, int], hollow: bool = True) -> Path:
    """A pack of stride-1 windows over so many frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"step_{i:04d}" for i in range(frames)]
    windows = frames - T + 1
    pack = {
        "per_frame_features": torch.empty(windows, T, *grid, dtype=torch.float16),
        "frame_paths": [[f"/data/{path.stem}/{n}.png" for n in names[w : w + T]] for w in range(windows)],
        "meta": {"model_name": path.parents[1].name, "episode_name": path.stem, "window_size": T, "stride": 1},
    }
    if hollow:
        with torch.serialization.skip_data():
            torch.save(pack, path)
    else:
        pack["per_frame_features"].zero_()
        torch.save(pack, path)
    return path


def rows(folder: Path):
    need_disk(folder, 2)
    yield from _workspaces(folder / "many")
    yield from _packs(folder / "one")


def _workspaces(root: Path):
    above = root
    for episodes in EPISODES:
        root = above / str(episodes)
        sampling.teacher_table = lambda files, c=root / "cache", **how: teacher_table(
            files, **how, cache=c, progress=False
        )
        for e in range(episodes):
            if not (root / "teacher" / "task" / f"episode_{e:04d}").exists():
                write_teacher(root / "teacher", f"episode_{e:04d}", [f"step_{i:04d}" for i in range(FRAMES)], np.random)
                for expert, grid in EXPERTS.items():
                    write(root / expert / "task" / f"episode_{e:04d}.pt", FRAMES, grid)
        time.sleep(2.5)  # files that could still change are not remembered
        workspace = Workspace(root / "teacher", {e: root / e for e in EXPERTS})
        pack_index.CACHE = root / f"cache_{episodes}_{time.time_ns()}"
        size = f"{episodes} episodes"
        seconds = {}
        for turn in ("first", "second", "third", "fourth"):
            start, busy = time.perf_counter(), time.thread_time()
            pairing = pair(workspace)
            seconds[turn] = time.perf_counter() - start, time.thread_time() - busy
            del pairing
        yield Row("open", "opening a workspace the first time, s", size, seconds["first"][0])
        wall = float(np.median([s for turn, (s, _) in seconds.items() if turn != "first"]))
        busy = float(np.median([s for turn, (_, s) in seconds.items() if turn != "first"]))
        yield Row("open", "opening it the second time, s", size, wall, 2.0 if episodes == 1000 else None)
        yield Row("open", "opening it the second time, s of processor time", size, busy)
        start = time.thread_time()
        samples = select(pair(workspace))
        sampling.Gatherer(samples)  # the teacher's table is made
        start = time.thread_time()
        sampling.Gatherer(select(pair(workspace)))
        yield Row("open", "the same up to the first batch, s of processor time", size, time.thread_time() - start)


def _packs(root: Path):
    own, seconds = [], {}
    for windows in WINDOWS:
        folder = root / str(windows)
        path = write(folder / "expert" / "task" / "episode.pt", windows + T - 1, (H, W, C))
        write_teacher(folder / "teacher", "episode", [f"step_{i:04d}" for i in range(windows + T - 1)], np.random)
        times = []
        for _ in range(9):
            start = time.thread_time()
            pack = FeaturePack.open(path)
            times.append(time.thread_time() - start)
        seconds[windows] = float(np.median(times))
        size = f"{pack.nbytes / 1e9:.1f} GB pack"
        yield Row("open", "opening a pack, ms of processor time", size, seconds[windows] * 1e3, 50)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:  # whose memory holds nothing else
            batch, grown, resident = fresh.submit(_batches, folder).result()
        own.append(grown)
        yield Row("open", "own memory of 8 batches / a batch", size, grown / batch, 1.5)
        limit = mapped.KEPT / 2**20 + 1.5 * batch
        yield Row("open", "the same with mapped file pages / their limit", size, resident / limit, 1.0)
    yield Row("open", "own memory, ten times the pack / the pack", "5.0 / 0.5 GB", own[1] / own[0], 1.1)
    small = write(root / "full.pt", WINDOWS[1] // FULL_SHARE + T - 1, (H, W, C), hollow=False)
    start = time.thread_time()
    full = torch.load(small, weights_only=True)
    share = seconds[WINDOWS[1]] / (time.thread_time() - start)
    yield Row("open", f"opening 5 GB / loading 1/{FULL_SHARE} in full, time", "5.0 GB pack", share, 0.5)
    share = full["per_frame_features"].nbytes / 2**20 / batch
    yield Row("open", f"loading 1/{FULL_SHARE} in full / a batch, memory", "5.0 GB pack", share)


def _batches(folder: Path) -> tuple[float, float, float]:
    """MB: of a batch, by how much 8 of them raise this process's own memory, and its resident memory at most."""
    sampling.teacher_table = lambda files, **how: teacher_table(files, **how, cache=folder / "cache", progress=False)
    pack_index.CACHE = folder / "cache"
    samples = select(pair(Workspace(folder / "teacher", {"expert": folder / "expert"})))
    gatherer, buffers = sampling.Gatherer(samples), {}
    plans = sampling.Planner(samples, np.arange(len(samples)), SAMPLES, K, seed=0)
    before = memory("RssAnon")
    resident = peak_growth(lambda: [gatherer.gather(plans(n), buffers) for n in range(8)])
    return SAMPLES * K * C * 2 / 2**20, memory("RssAnon") - before, resident
