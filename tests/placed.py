"""A workspace whose tokens say where they lie and of which step they are, so that every look-up has a known answer."""

import functools

import numpy as np
import pytest
import tiny
import torch

from rgb2pc_lib.data import sampling
from rgb2pc_lib.data.sampling import Planner, lattice
from rgb2pc_lib.data.teacher import teacher_table
from rgb2pc_lib.data.workspace import Workspace

STEPS, EPISODES, TASKS = 10, 3, ("push", "pull")
GRIDS = {"square": (4, 4), "wide": (3, 5)}
TEACHER = 8


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "teacher_table", functools.partial(teacher_table, cache=tmp_path / "cache"))


def identity(task, episode, step):
    """A number for each step, exact in fp16."""
    return TASKS.index(task) * 100 + episode * 20 + step


def make(root, grids=GRIDS, dtype=torch.float16, stride=1):
    """Packs whose tokens say (x of their cell's centre, y, which step, window, frame); a teacher that says the step."""
    names = [f"step_{i:04d}" for i in range(STEPS)]
    rng = np.random.default_rng(0)
    for task in TASKS:
        for e in range(EPISODES):
            ids = np.array([identity(task, e, s) for s in range(STEPS)], float)
            tiny.write_teacher(root / "teacher", task, f"ep_{e}", names, np.tile(ids[:, None], TEACHER), rng, points=40)
            for expert, (h, w) in grids.items():
                centres = np.broadcast_to(lattice((h, w)).reshape(h, w, 2), (STEPS, h, w, 2))
                tokens = np.concatenate([centres, np.broadcast_to(ids[:, None, None, None], (STEPS, h, w, 1))], -1)
                path = tiny.write_pack(root / expert, task, f"ep_{e}", names, tokens, 4, stride, torch.float32)
                raw = torch.load(path)
                features = raw["per_frame_features"]
                place = torch.stack(torch.meshgrid(*map(torch.arange, features.shape[:4]), indexing="ij"), -1)
                marked = torch.cat([features, place[..., :2]], -1)
                torch.save({**raw, "per_frame_features": marked.to(dtype)}, path)
    return Workspace(root / "teacher", {n: root / n for n in grids}, name="placed")


def planner(samples, batch=8, tokens=6, seed=0, **more):
    return Planner(samples, np.arange(len(samples)), batch, tokens, seed, **more)
