"""How long a frame takes live, what of it takes how long, and the memory: through torch and ONNX, where they can run.

Each way is measured in a fresh process that does nothing else, one frame of one camera at a time.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from rgb2pc_lib.data.workspace import camera_of
from rgb2pc_lib.deploy.compact import CompactRun, open_run
from rgb2pc_lib.deploy.embed import Embedder
from rgb2pc_lib.deploy.export import MODEL, ThroughOnnx, onnx_devices
from rgb2pc_lib.deploy.lookup import Images
from rgb2pc_lib.deploy.stream import Live, Stream
from rgb2pc_lib.encoders.rays import SOMEWHERE
from rgb2pc_lib.learning.prepare import pick_device
from rgb2pc_lib.learning.runs import Run

WHOLE = "whole frame"
SIZE = 240, 320  # of the frames that stand in for a camera's
_WARM = 5  # frames before those that count, beside the windows that are to be filled


def profile(
    run: Run | CompactRun | str | Path, device: str = "auto", weights: Mapping[str, str | Path] | None = None,
    frames: Sequence[np.ndarray] = (), repeats: int = 50, threads: int = 1,
) -> pd.DataFrame:  # fmt: skip
    """What a frame costs, one line a way ("torch, cpu", "ONNX, cpu", ...) and part of the work.

    Columns: way, part ("whole frame", then the experts and the student, or a compact student's resizing and network),
    "ms, median", "ms, 95 %" (by the clock), "CPU ms" (of the processor, which other programs disturb little; NaN on a
    GPU), share (of the whole), and of the whole "frames/s" and "memory, MB": the growth of a fresh process over the
    libraries alone, or what was allocated on the GPU.

    Args:
        device: "cpu", "cuda" or "auto": all that there are.
        weights: expert -> its official file or folder, for experts that do not bring their own.
        frames: what the camera sees, again and again, `[H, W, 3]` uint8; none: noise of 240 x 320 pixels.
        threads: of the processor.

    Raises InputError as `Embedder.from_run` does. A run that was trained with a view of the future is measured as it
    would run live.

    >>> table = profile(compact, "cpu", repeats=3)  # doctest: +SKIP
    >>> table["way"].unique().tolist(), table["part"].tolist()[:3]  # doctest: +SKIP
    (['torch, cpu'], ['whole frame', 'resizing', 'network'])
    """
    run = open_run(run)
    given = list(frames) or list(np.random.default_rng(0).integers(0, 256, (8, *SIZE, 3), np.uint8))
    wanted = [str(pick_device(device))] if device != "auto" else ["cpu"] + ["cuda"] * torch.cuda.is_available()
    ways = [("torch", on) for on in wanted]
    if run.file(MODEL).exists():
        ways += [("ONNX", on) for on in onnx_devices() if on in {name.split(":")[0] for name in wanted}]
    tables = []
    for engine, on in ways:
        found = alone(run.folder, engine, on, weights, given, repeats, threads)
        tables.append(_table(f"{engine}, {on}", found.frames, found.memory))
    return pd.concat(tables, ignore_index=True)


class Measured(NamedTuple):
    """What a way from frames to embeddings takes."""

    frames: list[dict[str, tuple[float, float]]]  # of each, part -> seconds by the clock and of the processor
    memory: float  # MB
    parameters: int  # learned or loaded, of torch


def alone(
    folder: Path, engine: str, device: str, weights: Mapping[str, str | Path] | None, frames: list[np.ndarray],
    repeats: int, threads: int,
) -> Measured:  # fmt: skip
    """A run's way through an engine, "torch" or "ONNX", in a fresh process that does nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(_measure, str(folder), engine, device, weights, frames, repeats, threads).result()


def as_seen(live: Live | None, image: np.ndarray) -> Images:
    """An image, or images, as seen by every camera of what is live: by name, where they have names."""
    cameras = dict.fromkeys(camera_of(name) for name in getattr(live, "encoders", ()))
    return dict.fromkeys(cameras, image) if any(cameras) else image


def _measure(
    folder: str, engine: str, device: str, weights: Mapping[str, str | Path] | None, frames: list[np.ndarray],
    repeats: int, threads: int,
) -> Measured:  # fmt: skip
    torch.set_num_threads(threads)
    gpu, before = device.startswith("cuda"), peak_memory()
    live: Live | None
    if engine == "ONNX":
        live = ThroughOnnx(Path(folder) / MODEL, threads, device.split(":")[0])
    else:
        live = Embedder.from_run(folder, device, weights).live
    assert live is not None  # every embedder of a run has one
    parts: dict[str, tuple[float, float]] = {}
    last = 0.0, 0.0

    def now() -> tuple[float, float]:
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def done(part: str) -> None:
        nonlocal last
        clock, processor = now()
        parts[part] = clock - last[0], processor - last[1]
        last = clock, processor

    moments = [as_seen(live, frame) for frame in frames]
    stream, rows = Stream(live, done=done), []
    for n in range(_WARM + live.keeps + repeats):
        parts.clear()
        start = last = now()
        stream(moments[n % len(frames)], SOMEWHERE)
        end = now()
        rows.append({WHOLE: (end[0] - start[0], end[1] - start[1]), **parts})
    memory = torch.cuda.max_memory_allocated() / 2**20 if gpu and engine == "torch" else peak_memory() - before
    everything = gc.get_objects()
    parameters = {id(p): p.numel() for p in everything if issubclass(type(p), torch.nn.Parameter)}  # wakes no proxy
    return Measured(rows[-repeats:], memory, sum(parameters.values()))


def _table(way: str, rows: list[dict[str, tuple[float, float]]], memory: float) -> pd.DataFrame:
    lines = []
    total = sum(row[WHOLE][0] for row in rows)
    for part in rows[0]:
        clock, processor = 1000 * np.array([row[part] for row in rows]).T
        whole = {"frames/s": 1000 / np.median(clock), "memory, MB": memory} if part == WHOLE else {}
        lines.append(
            {"way": way, "part": part, "ms, median": np.median(clock), "ms, 95 %": np.percentile(clock, 95),
             "CPU ms": np.nan if "cuda" in way else np.median(processor), "share": clock.sum() / 1000 / total, **whole}
        )  # fmt: skip
    return pd.DataFrame(lines)


def peak_memory() -> float:
    """Peak resident memory of this process in MB; NaN where the system does not tell (it is Linux that does)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        return float("nan")
