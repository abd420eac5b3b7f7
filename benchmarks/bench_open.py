"""A 5 GB pack opens at once, and a batch from it costs the memory of the batch. The contrast: loading in full.

    python benchmarks/bench_open.py
"""

import sys
import tempfile
import time
from pathlib import Path

from common import B, K, TEACHER, need_disk, report, sampling  # isort: skip (sets the number of threads before torch)

import numpy as np
import torch

from rgb2pc_lib.packs import FeaturePack
from rgb2pc_lib.pairing import pair, select
from rgb2pc_lib.workspace import Workspace

H, W, C, T = 37, 37, 2048, 8
FULL_SHARE = 10  # the pack that is loaded in full is this many times smaller


def write(root: Path, windows: int, hollow: bool) -> Path:
    """A pack of stride-1 windows; hollow: the tokens are a hole in the file, which takes no disk."""
    path = root / "expert" / "task" / "episode.pt"
    path.parent.mkdir(parents=True)
    names = [f"step_{i:04d}" for i in range(windows + T - 1)]
    pack = {
        "per_frame_features": torch.empty(windows, T, H, W, C, dtype=torch.float16),
        "frame_paths": [[f"/data/episode/{n}.png" for n in names[w : w + T]] for w in range(windows)],
        "meta": {"model_name": "vggt", "window_size": T, "stride": 1},
    }
    if hollow:
        with torch.serialization.skip_data():
            torch.save(pack, path)
    else:
        pack["per_frame_features"].zero_()
        torch.save(pack, path)
    return path


def memory(what: str) -> float:
    """MB of this process, from the system: VmRSS now, VmHWM at most; pages of mapped files count."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith(what))


def peak_growth(work) -> float:
    """By how many MB a work raises the resident memory at most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    work()
    return memory("VmHWM") - before


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        need_disk(root, 2)
        path = write(root, windows=112, hollow=True)
        steps = root / "teacher" / "task" / "episode"
        steps.mkdir(parents=True)
        for i in range(112 + T - 1):
            torch.save({"pc_feat": torch.zeros(4, TEACHER)}, steps / f"step_{i:04d}.ply.ulip_x.pt")
        seconds = []
        for _ in range(9):
            start = time.perf_counter()
            pack = FeaturePack.open(path)
            seconds.append(time.perf_counter() - start)

        sampling.teacher_table = lambda files: np.zeros((len(files), TEACHER), np.float32)
        samples = select(pair(Workspace(root / "teacher", {"expert": root / "expert"})))
        gatherer = sampling.Gatherer(samples)
        planner = sampling.Planner(samples, np.arange(len(samples)), B, K, seed=0)
        batch = B * K * C * 2 / 2**20
        grown = peak_growth(lambda: gatherer.gather(planner(0), {}))
        buffers: dict = {}
        gatherer.gather(planner(1), buffers)
        later = peak_growth(lambda: [gatherer.gather(planner(n), buffers) for n in range(2, 6)])

        small = write(root / "small", windows=112 // FULL_SHARE, hollow=False)
        start = time.perf_counter()
        full = torch.load(small, weights_only=True)
        full_seconds = time.perf_counter() - start
        full_mb = full["per_frame_features"].nbytes / 2**20
        return report(
            [
                ("pack, GB", pack.nbytes / 1e9, None),
                ("opening it, ms (median of 9)", np.median(seconds) * 1e3, 50),
                (f"loading 1/{FULL_SHARE} of it in full, ms", full_seconds * 1e3, None),
                (f"opening it / loading 1/{FULL_SHARE} in full", float(np.median(seconds)) / full_seconds, 0.5),
                (f"a batch of {B} x {K} tokens, MB", batch, None),
                (f"loading 1/{FULL_SHARE} in full / batch, memory", full_mb / batch, None),
                ("first batch: growth of resident memory / batch", grown / batch, 1.5),
                ("four more batches: growth / batch", later / batch, 0.5),
            ]
        )


if __name__ == "__main__":
    sys.exit(main())
