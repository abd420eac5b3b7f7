"""Work that is killed: small inputs, and each tool's work on them as one call. Nothing here computes before a fork."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from away import BASE, CACHE  # isort: skip (before the library)

import h5py
import numpy as np
import tiny
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from rgb2pc_lib.data.clouds import Cloud, write_ply
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.deploy import backbones
from rgb2pc_lib.deploy.compact import CompactConfig
from rgb2pc_lib.deploy.compress import train_compact
from rgb2pc_lib.encoders.clouds.extract_clouds import extract_teacher, load_cloud_encoder
from rgb2pc_lib.encoders.extract import extract
from rgb2pc_lib.encoders.images import ImageEncoder, square
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.train import train
from rgb2pc_lib.recordings.convert import convert
from rgb2pc_lib.recordings.importers import import_recordings, write_workspace
from rgb2pc_lib.recordings.robotwin import list_robotwin

torch.set_num_threads(1)
Image.init()  # what is imported late costs each process anew
for name in ("ResNetConfig", "ResNetModel"):
    getattr(transformers, name)
__all__ = ["BASE", "CACHE", "VICTIMS", "Victim", "without_simulator", "write_sources"]


@dataclass(frozen=True)
class Victim:
    """One tool's work: called again, it goes on. It reads below `source` and writes below its folder alone."""

    name: str
    work: Callable[[Path, Path], object]  # source, folder
    alone: bool = False  # a second process at the same time is refused


def write_sources(root: Path) -> None:
    """Everything that the victims read."""
    workspace = tiny.make(root, episodes=3, steps=8)
    tiny.write_frames(root / "rgb", workspace)
    rng = np.random.default_rng(0)
    for e in range(4):
        for i in range(4):
            path = root / "clouds" / "push" / f"ep_{e}" / f"step_{i:04d}.ply"
            path.parent.mkdir(parents=True, exist_ok=True)
            xyz, uv = rng.uniform(0, 1, (60, 3)).astype(np.float32), rng.integers(0, 32, (60, 2)).astype(np.float32)
            write_ply(path, Cloud(xyz, rng.integers(0, 256, (60, 3), dtype=np.uint8), uv))
        path = root / "robotwin" / "push" / "demo" / "data" / f"episode{e}.hdf5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as f:
            f["observation/head/rgb"] = rng.integers(0, 256, (6, 24, 32, 3), dtype=np.uint8)
            f["pointcloud"] = rng.uniform(0.1, 1, (6, 50, 6))
            f["joint_action/vector"] = rng.normal(size=(6, 14))
    fused = _distillation(root, root / "fused", steps=4)
    list(train(fused))
    _compact(root, root / "compact")


def _distillation(source: Path, folder: Path, steps: int) -> Config:
    experts = {name: source / f"features_{name}" for name in tiny.CHANNELS}
    workspace = Workspace(teacher=source / "teacher", experts=experts, rgb=source / "rgb", name="tiny")
    config = Config(
        fusion="moe", steps=steps, batch_size=8, fuse_dim=8, student_tokens=4, amp="off", device="cpu", save_every=4,
        log_every=1, eval_every=10, validation=0.0, save_dir=str(folder), num_threads=1,
    )  # fmt: skip
    return config.with_workspace(workspace)


def _train(source: Path, folder: Path) -> None:
    config = _distillation(source, folder / "run", steps=30)
    list(train(config, resume=(config.folder / "config.json").exists()))


def _small(*_: object) -> torch.nn.Module:
    """A hundredth of ResNet-18, so that its checkpoints are written in no time."""
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return transformers.ResNetModel(config)


def _compact(source: Path, folder: Path) -> None:
    backbones._build = _small
    backbones._side = lambda *_: 4
    config = CompactConfig(
        run=str(source / "fused"), save_dir=str(folder / "run"), size=32, steps=8, batch_size=8, amp="off",
        device="cpu", save_every=2, log_every=1, eval_every=4, num_threads=1,
    )  # fmt: skip
    list(train_compact(config, resume=(config.folder / "config.json").exists()))


def _extract(source: Path, folder: Path) -> None:
    toy = ImageEncoder("toy", 3, square(32, 4), 32, 8, features=lambda x: F.adaptive_avg_pool2d(x, 4), weights="none")
    extract(toy, source / "rgb", folder / "features", window=4, stride=2, progress=False)


def _teacher(source: Path, folder: Path) -> None:
    extract_teacher(load_cloud_encoder("pointnet"), source / "clouds", folder / "teacher", progress=False)


def _pack(source: Path, folder: Path) -> None:
    convert(source / "features_left", folder / "packed", frame_copy="middle", progress=False)


def _import(source: Path, folder: Path) -> None:
    recordings = list_robotwin(source / "robotwin")
    import_recordings(recordings, source / "robotwin", folder / "out", image="png", progress=False)
    write_workspace(folder / "out", "robotwin")


def _record(source: Path, folder: Path) -> None:
    from rgb2pc_lib.recordings import sim

    config = sim.RecordConfig(size=64, steps=3, points=100)
    for _ in sim.record_task(folder / "out", "button-press-topdown", 3, 3, "half", config):
        pass


VICTIMS = {
    v.name: v
    for v in (
        Victim("training", _train, alone=True), Victim("compact training", _compact, alone=True),
        Victim("extraction", _extract), Victim("teacher's extraction", _teacher), Victim("packing", _pack),
        Victim("importing", _import), Victim("recording", _record),
    )
}  # fmt: skip


def without_simulator() -> bool:
    try:
        from rgb2pc_lib.recordings import sim  # noqa: F401
    except InputError:
        return True
    return False
