"""What the benchmarks share: synthetic data of the usual sizes, measuring in turns, and rows with their targets."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: one thread each, or contention is what is measured
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from rgb2pc_lib.data import pack_index, sampling
from rgb2pc_lib.data.pairing import Samples, pair, select
from rgb2pc_lib.data.teacher import teacher_table
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.recordings.convert import as_pack, write_pack

torch.set_num_threads(1)

EXPERTS = {"croco": (14, 14, 1024), "vggt": (28, 37, 2048), "dinov3": (14, 14, 768), "da3": (27, 36, 2048)}  # H, W, C
TEACHER = 256  # E
B = 32  # samples a batch
WINDOW = 8  # frames, stride 1
TOKENS = (64, 256, 1024, 1036)  # K; the last is all of the finest grid


@dataclass
class Row:
    """One figure. `kept` tells whether it is within its target, or nothing where it has none."""

    section: str
    what: str
    size: str  # of what: K, episodes, ...
    figure: float
    target: float | None = None
    at_least: bool = False  # the target is a lower bound

    @property
    def kept(self) -> bool | None:
        if self.target is None:
            return None
        return self.figure >= self.target if self.at_least else self.figure <= self.target

    def __str__(self) -> str:
        bound = ""
        if self.target is not None:
            sign = ">=" if self.at_least else "<="
            bound = f"  target {sign} {self.target:g}  {'kept' if self.kept else 'MISSED'}"
        return f"{self.section:8} {self.what:58} {self.size:16} {self.figure:10.4g}{bound}"

    def plain(self) -> dict:
        return asdict(self) | {"kept": self.kept}


class Data:
    """Episodes of random fp16 tokens and teachers: `.pt` with every window, and packed with one copy a frame.

    Each episode is 12 frames in 5 windows: 361 MB as `.pt`, 108 MB packed.
    """

    def __init__(self, root: Path, episodes: int, frames: int = 12):
        self.root, self.episodes, self.frames = root, episodes, frames
        sampling.teacher_table = lambda files, **how: teacher_table(files, **how, cache=root / "cache", progress=False)
        pack_index.CACHE = root / "cache"  # nothing of this goes into the project's cache

    @property
    def names(self) -> list[str]:
        return [f"step_{i:04d}" for i in range(self.frames)]

    def write(self) -> Data:
        """Write what is not there yet."""
        windows = [self.names[s : s + WINDOW] for s in range(self.frames - WINDOW + 1)]
        for e in range(self.episodes):
            rng = np.random.default_rng(e)
            write_teacher(self.root / "teacher", f"episode_{e:04d}", self.names, rng)
            for number, (expert, (h, w, c)) in enumerate(EXPERTS.items()):
                path = self.path("pt", expert, e)
                packed = self.path("packed", expert, e)
                if path.exists() and packed.exists():
                    continue
                draws = torch.Generator().manual_seed(len(EXPERTS) * e + number)
                bits = torch.empty(self.frames, h, w, c, dtype=torch.int16)
                frames = bits.random_(0x3000, 0x3C00, generator=draws).view(torch.float16)  # 0.125 .. 1
                features = torch.stack([frames[s : s + WINDOW] for s in range(len(windows))])
                pack = {"per_frame_features": features, "frame_paths": windows, "meta": {"window_size": WINDOW}}
                write_pack(path, pack, path)
                write_pack(packed, as_pack(path, frame_copy="middle"), path)
        return self

    def path(self, form: str, expert: str, episode: int) -> Path:
        return self.root / form / expert / "task" / f"episode_{episode:04d}.{'zarr' if form == 'zarr' else 'pt'}"

    def samples(self, form: str, episodes: int | None = None, warm: bool = True) -> Samples:
        """The paired samples of the first episodes, every frame that they ask for in the system's cache."""
        pairing = pair(Workspace(self.root / "teacher", {e: self.root / form / e for e in EXPERTS}))
        samples = select(pairing)
        if episodes:
            keys = samples.keys()["episode"].str[8:].astype(int)
            samples = samples.take(np.flatnonzero(keys < episodes))
        if warm:
            keys = samples.keys()
            for packs in pairing.packs.values():
                for task, episode, step in keys[["task", "episode", "step"]].itertuples(index=False):
                    packs[task, episode].frame(step)
        return samples


def write_teacher(root: Path, episode: str, names: list[str], rng) -> None:
    folder = root / "task" / episode
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / f"{name}.ply.ulip_x.pt"
        if not path.exists():
            torch.save({"pc_feat": torch.from_numpy(rng.normal(size=(4, TEACHER)).astype(np.float32))}, path)


def planner(samples: Samples, tokens: int, batch: int = B) -> sampling.Planner:
    return sampling.Planner(samples, np.arange(len(samples)), batch, tokens, seed=0)


def need_disk(folder: Path, gigabytes: float) -> None:
    """Stop with a message where the disk is too small."""
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        sys.exit(f"{folder}: {gigabytes:.0f} GB are needed for a while, {free:.0f} are free; set TMPDIR or --episodes")


def in_turns(works: dict[str, Callable[[int], object]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Lower quartile of each work's seconds, all run one after the other in every round, so that they see the same
    machine. Not the median: what others do with the machine's memory comes in bursts and only ever adds."""
    seconds = {name: [] for name in works}
    for n in range(rounds):
        for name, work in works.items():
            start = clock()
            work(n)
            seconds[name].append(clock() - start)
    return {name: float(np.quantile(s, 0.25)) for name, s in seconds.items()}


# -- what the system tells, on Linux


def memory(what: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most; pages of mapped files count."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith(what))


def peak_growth(work: Callable[[], object]) -> float:
    """By how many MB a work raises the resident memory at most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    work()
    return memory("VmHWM") - before


def bytes_from_disk(work: Callable[[], object]) -> int:
    """Bytes that this process had the disk read during a work."""

    def now():
        with open("/proc/self/io") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("read_bytes"))

    before = now()
    work()
    return now() - before


def drop_from_cache(folder: Path) -> None:
    """Take the pages of all files below out of the system's cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as f:
                os.fsync(f.fileno())
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load() -> str:
    return f"{os.getloadavg()[0]:.1f} over {os.cpu_count()} processors"
