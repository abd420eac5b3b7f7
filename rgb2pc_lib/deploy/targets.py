"""What a compact student learns from: RGB frames beside the fused student's embeddings of them. No clouds.

The run's own steps have their embeddings in its folder. Frames of other episodes are embedded through the run's
experts once, an episode at a time, and kept in the project's cache.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from rgb2pc_lib.data.files.guarded import read_npz
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.listing import natural_key, step_name
from rgb2pc_lib.data.pictures import RULES
from rgb2pc_lib.data.workspace import CACHE
from rgb2pc_lib.deploy.embed import Embedder
from rgb2pc_lib.encoders.extract import Frames, list_frames
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.runs import Run


@dataclass(frozen=True)
class Targets:
    """Frames and what the fused student makes of them; row i of everything is the same step."""

    keys: pd.DataFrame  # task, episode, step, time
    files: list[Path]  # n RGB frames
    embeddings: np.ndarray  # [n, E] float32, the fused student's
    held_out: np.ndarray  # [n] bool

    def __add__(self, other: Targets) -> Targets:
        return Targets(
            pd.concat([self.keys, other.keys], ignore_index=True),
            self.files + other.files,
            np.concatenate([self.embeddings, other.embeddings]),
            np.concatenate([self.held_out, other.held_out]),
        )

    def take(self, index: np.ndarray) -> Targets:
        files = [self.files[i] for i in np.arange(len(self.files))[index]]
        return Targets(self.keys.loc[index].reset_index(drop=True), files, self.embeddings[index], self.held_out[index])


def own_targets(run: Run, judged: str = "held_out") -> Targets:
    """The run's own steps, held out as they were there (`judged` as in `Run.embeddings`).

    Raises InputError where a frame is missing.

    The embeddings are those in the run's folder, made from its packs.
    """
    if run.config.sample_unit != "step":
        raise InputError(f"{run.folder}: its samples are windows, a compact student sees one frame; train it on steps")
    root = run.config.workspace.root("rgb")
    stored = run.embeddings(judged)
    keys = pd.DataFrame({k: stored[k] for k in ("task", "episode", "step", "time")})
    frames = {(*key, step_name(file.name)): file for key, files in list_frames(root).items() for file in files}
    wanted = list(zip(keys["task"], keys["episode"], keys["step"], strict=True))
    missing = [k for k in wanted if k not in frames]
    if missing:
        raise InputError(f"{root}: no frame of {len(missing)} of the run's steps, such as {'/'.join(missing[0])}")
    return Targets(keys, [frames[k] for k in wanted], stored["student"].astype(np.float32), stored["held_out"])


def more_targets(
    run: Run, rgb_root: Path, batch: int = 8, device: str = "auto", cache: Path | None = None, progress: bool = True
) -> Targets:
    """Frames `<rgb_root>/<task>/<episode>/<step>.jpg` that the run has not seen, all for training.

    Killed? The next call goes on with the first episode that is not embedded yet.
    """
    weights = hashlib.sha256(run.file("model.safetensors").read_bytes()).hexdigest()[:16]
    episodes = list_frames(rgb_root)
    stores = {key: (cache or CACHE) / "targets" / weights / f"{_stamp(files)}.npz" for key, files in episodes.items()}
    known = {key: _stored(store) for key, store in stores.items()}
    missing = [key for key, table in known.items() if table is None]
    missing.sort(key=lambda key: natural_key(key[1]))  # the first episodes of all tasks, then the second ones
    embedder = Embedder.from_run(run, device) if missing else None
    with tqdm(total=sum(len(episodes[k]) for k in missing), unit="frame", disable=not missing or not progress) as bar:
        bar.set_description(f"targets of {run.name}")
        for key in missing:
            assert embedder is not None  # as something is missing
            frames = Frames(episodes[key])
            step = len(frames) if embedder.together else batch
            table = np.concatenate([embedder(frames[i : i + step]) for i in range(0, len(frames), step)])
            bar.update(len(frames))
            write_atomic(stores[key], partial(np.savez, embeddings=table))
            known[key] = table
    files = [file for key in episodes for file in episodes[key]]
    steps = [(t, e, step_name(file.name), i) for (t, e), some in episodes.items() for i, file in enumerate(some)]
    keys = pd.DataFrame(steps, columns=["task", "episode", "step", "time"])
    return Targets(keys, files, np.concatenate([known[key] for key in episodes]), np.zeros(len(files), bool))


def _stored(store: Path) -> np.ndarray | None:
    """An episode's embeddings from the cache; None where they are not there, or damaged: then they are made anew."""
    try:
        return read_npz(store, {"embeddings": ("f", "nE")})["embeddings"] if store.exists() else None
    except InputError:
        return None


def _stamp(files: list[Path]) -> str:
    """Of an episode's frames, wherever their folder lies: names, sizes, times of change, and how they are decoded."""
    stats = [("/".join(file.parts[-3:]), file.stat()) for file in files]
    told = [f"decoder {RULES}", *(f"{f}|{s.st_size}|{s.st_mtime_ns}" for f, s in stats)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]
