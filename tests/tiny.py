"""Tiny workspaces with a known answer: a latent of each step, told to the teacher and to some experts' tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rgb2pc_lib.data.clouds import Cloud, write_ply
from rgb2pc_lib.data.workspace import Workspace

LATENT, TEACHER_WIDTH, CHANNELS, GRID = 6, 16, {"left": 12, "right": 10}, (4, 4)


def make(
    root: Path, carriers: str = "left", tasks=("push", "pull"), episodes: int = 4, steps: int = 12, window: int = 4,
    stride: int = 1, dtype=torch.float16, seed: int = 0,
) -> Workspace:  # fmt: skip
    """Write teacher files and packs of two experts, "left" and "right", under `root`.

    carriers "left": expert "left" carries the latent everywhere, "right" carries that of a wrong step.
    carriers "place": which one carries it changes with the place. Each token holds one bit besides; "left" is right
        where the two bits differ, "right" where they are equal, so no expert can tell alone.
    """
    rng = np.random.default_rng(seed)
    to_teacher = rng.normal(size=(LATENT, TEACHER_WIDTH))
    to_tokens = {name: rng.normal(size=(LATENT, c)) for name, c in CHANNELS.items()}
    h, w = GRID
    for task in tasks:
        for e in range(episodes):
            latent = rng.normal(size=(steps, LATENT))
            names = [f"step_{i:04d}" for i in range(steps)]
            write_teacher(root / "teacher", task, f"ep_{e}", names, latent @ to_teacher, rng)
            bits = {name: rng.integers(2, size=(steps, h, w, 1)) for name in CHANNELS}
            for name, c in CHANNELS.items():
                true = np.broadcast_to(latent[:, None, None], (steps, h, w, LATENT)).copy()
                wrong = rng.normal(size=(steps, 1, 1, LATENT))
                if carriers == "place":
                    carries = (bits["left"] != bits["right"]) == (name == "left")
                    true = np.where(carries, true, wrong)
                elif name == "right":
                    true[:] = wrong
                tokens = true @ to_tokens[name] + 0.05 * rng.normal(size=(steps, h, w, c))
                if carriers == "place":
                    tokens[..., :1] = 8.0 * bits[name] - 4.0
                write_pack(root / f"features_{name}", task, f"ep_{e}", names, tokens, window, stride, dtype)
    experts = {name: root / f"features_{name}" for name in CHANNELS}
    return Workspace(teacher=root / "teacher", experts=experts, name="tiny")


def write_teacher(root, task, episode, names, means, rng, points=5, tag="tiny"):
    """One file per step; the points' features average exactly to the given mean."""
    folder = root / task / episode
    folder.mkdir(parents=True, exist_ok=True)
    for name, mean in zip(names, means, strict=True):
        spread = rng.normal(size=(points, len(mean)))
        feat = torch.tensor(mean + spread - spread.mean(0), dtype=torch.float32)
        torch.save({"pc_feat": feat, "pc": torch.zeros(points, 3)}, folder / f"{name}.ply.ulip_{tag}.pt")


def write_pack(root, task, episode, names, tokens, window=4, stride=1, dtype=torch.float16, **meta):
    """tokens [F, H, W, C] -> overlapping windows, in the documented layout."""
    starts = range(0, len(names) - window + 1, stride)
    features = torch.tensor(np.stack([tokens[s : s + window] for s in starts])).to(dtype)
    paths = [[f"C:\\elsewhere\\{episode}\\{n}.png" for n in names[s : s + window]] for s in starts]
    path = root / task / f"{episode}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = {"window_size": window, "look_ahead": 0} | meta  # copies of a frame are the same, whatever its window
    torch.save({"per_frame_features": features, "frame_paths": paths, "meta": meta}, path)
    return path


def make_points(root: Path, episodes: int = 4, steps: int = 12, seed: int = 0, tasks=("push", "pull")) -> Workspace:
    """Write a workspace of images of 160 x 200 pixels in which expert "left" tells which point is seen where.

    Every cell of the 4 x 4 grid shows one point, up to 10 pixels from its centre, with a latent code of its own that
    the teacher's feature of the point and the cell's token both tell. Expert "right" knows nothing. Points move between
    steps but for the first four, which keep pixel, place in space and code through an episode.
    """
    rng = np.random.default_rng(seed)
    to_teacher, to_tokens = rng.normal(size=(LATENT, TEACHER_WIDTH)), rng.normal(size=(LATENT, CHANNELS["left"]))
    middle = np.stack(np.meshgrid(np.arange(4) * 50 + 25, np.arange(4) * 40 + 20), -1).reshape(16, 2)  # u, v of cells
    for task in tasks:
        for e in range(episodes):
            codes, places = rng.normal(size=(steps, 16, LATENT)), rng.normal(size=(steps, 16, 3))
            uv = middle + rng.integers(-10, 11, (steps, 16, 2))
            for still in (codes, places, uv):
                still[:, :4] = still[0, :4]
            tokens = {"left": codes @ to_tokens, "right": rng.normal(size=(steps, 16, CHANNELS["right"]))}
            names = [f"step_{i:04d}" for i in range(steps)]
            for name, t in tokens.items():
                write_pack(root / f"features_{name}", task, f"ep_{e}", names, t.reshape(steps, *GRID, -1),
                           raw_size=[160, 200])  # fmt: skip
            folder = root / "teacher" / task / f"ep_{e}"
            folder.mkdir(parents=True)
            for i, name in enumerate(names):
                order = rng.permutation(16)  # the number of a point tells nothing
                known = {"pc_feat": codes[i] @ to_teacher, "pc": places[i], "uv": uv[i]}
                known = {k: torch.tensor(v[order], dtype=torch.float32) for k, v in known.items()}
                torch.save(known, folder / f"{name}.ply.ulip_tiny.pt")
    experts = {name: root / f"features_{name}" for name in CHANNELS}
    return Workspace(teacher=root / "teacher", experts=experts, name="points")


def write_zarr(root, task, episode, names, tokens, window=4, stride=1, dtype="f4", version=2):
    """The same pack as a zarr group of format 2 or 3, one chunk a window, its names in frame_paths.json."""
    import zarr

    starts = range(0, len(names) - window + 1, stride)
    features = np.stack([tokens[s : s + window] for s in starts]).astype(dtype)
    path = root / task / f"{episode}.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    array = group.create_array(
        "per_frame_features", shape=features.shape, chunks=(1, *features.shape[1:]), dtype=features.dtype
    )
    array[:] = features
    paths = [[f"/elsewhere/{episode}/{n}.png" for n in names[s : s + window]] for s in starts]
    (path / "frame_paths.json").write_text(json.dumps(paths))
    (path / "meta.json").write_text(json.dumps({"window_size": window}))
    return path


def write_clouds(root, n=3, colour=True, points=20):
    """Random clouds of one episode; with `colour` they have colours and pixels. The root."""
    rng = np.random.default_rng(0)
    for step in range(n):
        path = root / "task" / "episode_0000" / f"step_{step:04d}.ply"
        path.parent.mkdir(parents=True, exist_ok=True)
        rgb = rng.integers(0, 256, (points, 3), dtype=np.uint8) if colour else None
        uv = rng.integers(0, 64, (points, 2)).astype(np.float32) if colour else None
        write_ply(path, Cloud(rng.uniform(0, 1, (points, 3)).astype(np.float32), rgb, uv))
    return root


def contents(folder: Path) -> dict:
    """Every file and folder below, with size, time of change and bytes: equal before and after means untouched."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else None)
        for p in sorted(folder.rglob("*"))
    }


def write_frames(root: Path, workspace: Workspace, size: int = 40) -> Path:
    """Frames that tell a step's teacher: a square whose place and colour are the teacher's first five numbers."""
    for task in sorted(p.name for p in workspace.teacher.iterdir()):
        for episode in sorted(p.name for p in (workspace.teacher / task).iterdir()):
            (root / task / episode).mkdir(parents=True)
            for file in sorted((workspace.teacher / task / episode).iterdir()):
                a = torch.load(file, weights_only=True)["pc_feat"].mean(0)[:5].div(3).tanh().numpy()  # -1 .. 1
                image = np.full((size, size, 3), 128, np.uint8)
                x, y = (size / 2 + a[:2] * size / 4).astype(int)
                image[y - 6 : y + 6, x - 6 : x + 6] = 128 + 120 * a[2:]
                Image.fromarray(image).save(root / task / episode / f"{file.name.split('.')[0]}.png")
    return root
