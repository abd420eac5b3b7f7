"""What a compact student learns from: RGB frames beside what the fused student makes of them. No clouds.

The run's own steps have their embeddings in its folder; their spatial tokens are made from its packs once. Frames of
other episodes go through the run's experts once, an episode at a time. What is made is kept in the project's cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from rgb2pc_lib.data.files.guarded import read_npz
from rgb2pc_lib.data.files.stamps import stamp
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.listing import natural_key, step_name
from rgb2pc_lib.data.pictures import RULES
from rgb2pc_lib.data.sampling import Gatherer, embedding_lattice, ordered_plans
from rgb2pc_lib.data.workspace import CACHE, camera_of
from rgb2pc_lib.deploy.embed import Embedder
from rgb2pc_lib.encoders.extract import Frames, list_frames
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.models import SIDE
from rgb2pc_lib.learning.prepare import Data, pick_device
from rgb2pc_lib.learning.runs import Run


@dataclass(frozen=True)
class Targets:
    """Frames and what the fused student makes of them; row i of everything is the same step."""

    keys: pd.DataFrame  # task, episode, step, time
    files: list[Path]  # n RGB frames
    embeddings: np.ndarray  # [n, E] float32, the fused student's
    held_out: np.ndarray  # [n] bool
    spatial: np.ndarray | None = None  # [n, P, D] float32, its spatial tokens, zero where it saw nothing; where wanted

    def __add__(self, other: Targets) -> Targets:
        both = [some for some in (self.spatial, other.spatial) if some is not None]
        return Targets(
            pd.concat([self.keys, other.keys], ignore_index=True),
            self.files + other.files,
            np.concatenate([self.embeddings, other.embeddings]),
            np.concatenate([self.held_out, other.held_out]),
            np.concatenate(both) if len(both) == 2 else None,
        )

    def take(self, index: np.ndarray) -> Targets:
        files = [self.files[i] for i in np.arange(len(self.files))[index]]
        spatial = None if self.spatial is None else self.spatial[index]
        keys = self.keys.loc[index].reset_index(drop=True)
        return Targets(keys, files, self.embeddings[index], self.held_out[index], spatial)


def own_targets(run: Run, judged: str = "held_out", spatial: bool = False, device: str = "auto") -> Targets:
    """The run's own steps, held out as they were there (`judged` as in `Run.embeddings`).

    The embeddings are those in the run's folder. `spatial` tokens are made from its packs. Of a run of several cameras
    the frames and the spatial tokens are the first one's, the embeddings are fused from all.
    Raises InputError where a frame is missing, and where the packs are not those that it was trained on.
    """
    if run.config.sample_unit != "step":
        raise InputError(f"{run.folder}: its samples are windows, a compact student sees one frame; train it on steps")
    root = run.config.workspace.root("rgb")
    seen = list(dict.fromkeys(map(camera_of, run.config.vis_roots)))  # in the order of spatial tokens
    camera = next(iter(run.config.camera_roots), "")
    if camera not in seen:
        raise InputError(
            f"{run.folder}: a compact student sees the frames of the first camera, {camera}, but none of the run's "
            "experts does; distil a run with one"
        )
    stored, every = run.embeddings(judged), run.embeddings_of_all()
    keys = pd.DataFrame({k: stored[k] for k in ("task", "episode", "step", "time")})
    frames = {(*key, step_name(file.name)): file for key, files in list_frames(root).items() for file in files}
    wanted = list(zip(keys["task"], keys["episode"], keys["step"], strict=True))
    missing = [k for k in wanted if k not in frames]
    if missing:
        raise InputError(f"{root}: no frame of {len(missing)} of the run's steps, such as {'/'.join(missing[0])}")
    files, embeddings = [frames[k] for k in wanted], stored["student"].astype(np.float32)
    if not spatial:
        return Targets(keys, files, embeddings, stored["held_out"])
    others = every["validation" if judged == "held_out" else "held_out"]
    places = slice(seen.index(camera) * SIDE**2, (seen.index(camera) + 1) * SIDE**2)
    return Targets(keys, files, embeddings, stored["held_out"], _from_packs(run, every, device)[~others, places])


def _from_packs(run: Run, stored: dict[str, np.ndarray], device: str) -> np.ndarray:
    """The spatial tokens `[n, P, D]` of all the run's samples, of all its cameras, in the order of its embeddings."""
    samples = Data.open(run.config).samples
    packs = [pack.path for packs in samples.pairing.packs.values() for pack in packs.values()]
    store = _home(run) / f"own-{stamp(packs)}.npz"
    known = _stored(store, "spatial")
    if known is not None and len(known["spatial"]) == len(samples):
        return known["spatial"]
    on, (student, _) = pick_device(device), run.student()
    student.to(on)
    plans = ordered_plans(samples, np.arange(len(samples)), 32, embedding_lattice(samples.pairing.finest_grid))
    rows = []
    with torch.no_grad():
        for batch in Gatherer(samples, run.config.frame_copy, device=on).run(plans):
            looked = student.look(batch.tokens, batch.present, batch.positions)
            rows.append([x.float().cpu().numpy() for x in looked])
    embeddings, spatial = (np.concatenate(some) for some in zip(*rows, strict=True))
    before = stored["student"]
    if embeddings.shape != before.shape or np.abs(embeddings - before).max() > 0.05 * np.abs(before).max():
        raise InputError(
            f"{run.folder}: its packs are not those that it was trained on: they give other embeddings than it holds; "
            "train it again, or leave spatial tokens out with --no_spatial"
        )
    write_atomic(store, lambda p: np.savez(p, spatial=spatial))
    return spatial


def more_targets(
    run: Run, rgb_root: Path, batch: int = 8, device: str = "auto", progress: bool = True, spatial: bool = False,
    weights: Mapping[str, str | Path] | None = None,
) -> Targets:  # fmt: skip
    """Frames `<rgb_root>/<task>/<episode>/<step>.jpg` that the run has not seen, all for training.

    Killed? The next call goes on with the first episode that is not embedded yet. `weights`: expert -> its official
    file or folder, for experts that do not bring their own.
    """
    wanted = ["embeddings"] + ["spatial"] * spatial
    episodes = list_frames(rgb_root)
    through = f"decoder {RULES}", *(_told(expert, where) for expert, where in sorted((weights or {}).items()))
    stores = {key: _home(run) / f"{stamp(files, *through)}.npz" for key, files in episodes.items()}
    known = {key: _stored(store, *wanted) for key, store in stores.items()}
    missing = [key for key, tables in known.items() if tables is None]
    missing.sort(key=lambda key: natural_key(key[1]))  # the first episodes of all tasks, then the second ones
    embedder = Embedder.from_run(run, device, weights) if missing else None
    with tqdm(total=sum(len(episodes[k]) for k in missing), unit="frame", disable=not missing or not progress) as bar:
        bar.set_description(f"targets of {run.name}")
        for key in missing:
            assert embedder is not None  # as something is missing
            frames = Frames(episodes[key])
            step = len(frames) if embedder.together else batch
            looks = [embedder.look(frames[i : i + step]) for i in range(0, len(frames), step)]
            made = zip(("embeddings", "spatial"), zip(*looks, strict=True), strict=True)
            known[key] = tables = {name: np.concatenate(parts) for name, parts in made}
            bar.update(len(frames))
            write_atomic(stores[key], partial(_save, tables))
    files = [file for key in episodes for file in episodes[key]]
    steps = [(t, e, step_name(file.name), i) for (t, e), some in episodes.items() for i, file in enumerate(some)]
    keys = pd.DataFrame(steps, columns=["task", "episode", "step", "time"])
    found = {name: np.concatenate([(known[key] or {})[name] for key in episodes]) for name in wanted}
    return Targets(keys, files, found["embeddings"], np.zeros(len(files), bool), found.get("spatial"))


def _home(run: Run) -> Path:
    """Where the cache keeps what this student makes."""
    weights = hashlib.sha256(run.file("model.safetensors").read_bytes()).hexdigest()[:16]
    return CACHE / "targets" / weights


def _told(expert: str, weights: str | Path) -> str:
    """Which weights an expert's are: a file, a folder, or a name on a hub."""
    path = Path(weights)
    return f"{expert} {stamp([path]) if path.exists() else weights}"


def _save(tables: dict[str, np.ndarray], store: Path) -> None:
    arrays: dict[str, Any] = {**tables}
    np.savez(store, **arrays)


def _stored(store: Path, *wanted: str) -> dict[str, np.ndarray] | None:
    """Arrays from the cache; None where one is not there, or damaged: then they are made anew."""
    axes = {"embeddings": ("f", "nE"), "spatial": ("f", "nPD")}
    try:
        return read_npz(store, {name: axes[name] for name in wanted}) if store.exists() else None
    except InputError:
        return None
