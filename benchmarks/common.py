"""What the benchmarks share: synthetic data of the usual sizes, measuring in turns, and a table with limits."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: one thread each, or contention is what is measured

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from rgb2pc_lib import sampling
from rgb2pc_lib.pairing import Samples, pair, select
from rgb2pc_lib.teacher import teacher_table
from rgb2pc_lib.workspace import Workspace

torch.set_num_threads(1)

EXPERTS = {"croco": (14, 14, 1024), "vggt": (28, 37, 2048), "dinov3": (14, 14, 768), "da3": (27, 36, 2048)}  # H, W, C
TEACHER = 256  # E
B, K = 32, 256  # samples a batch, tokens a sample


def need_disk(folder: Path, gigabytes: float) -> None:
    """Stop with a message where the disk is too small."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        sys.exit(f"{folder}: {gigabytes} GB are needed for a while, {free:.1f} are free; set TMPDIR to another disk")


def write_samples(root: Path, experts: dict = EXPERTS, episodes: int = 4, frames: int = 24, window: int = 8) -> Samples:
    """Episodes of random fp16 tokens and teachers, paired: 0.86 GB for the four experts."""
    names = [f"step_{i:04d}" for i in range(frames)]
    windows = [names[s : s + window] for s in range(0, frames, window)]
    rng = np.random.default_rng(0)
    for e in range(episodes):
        folder = root / "teacher" / "task" / f"episode_{e}"
        folder.mkdir(parents=True)
        for name in names:
            feat = rng.normal(size=(4, TEACHER)).astype(np.float32)
            torch.save({"pc_feat": torch.from_numpy(feat)}, folder / f"{name}.ply.ulip_x.pt")
        for expert, (h, w, c) in experts.items():
            path = root / expert / "task" / f"episode_{e}.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            bits = torch.empty(len(windows), window, h, w, c, dtype=torch.int16).random_(0x3000, 0x3C00)  # 0.125 .. 1
            torch.save({"per_frame_features": bits.view(torch.float16), "frame_paths": windows}, path)
    sampling.teacher_table = lambda files: teacher_table(files, cache=root / "cache")  # not in the project's cache
    return select(pair(Workspace(root / "teacher", {e: root / e for e in experts})))


def in_turns(works: dict[str, Callable[[int], object]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each work, run one after the other in every round, so that all see the same machine."""
    seconds = {name: [] for name in works}
    for n in range(rounds):
        for name, work in works.items():
            start = clock()
            work(n)
            seconds[name].append(clock() - start)
    return {name: float(np.median(s)) for name, s in seconds.items()}


def report(rows: list[tuple[str, float, float | None]]) -> int:
    """Print (what, figure, limit) and say by the exit status whether every figure keeps its limit."""
    width = max(len(what) for what, _, _ in rows)
    failed = 0
    for what, figure, limit in rows:
        beyond = limit is not None and figure > limit
        failed += beyond
        bound = "" if limit is None else f"  limit {limit:g}{'  BEYOND IT' if beyond else ''}"
        print(f"{what:{width}}  {figure:10.3g}{bound}")
    return int(failed > 0)
