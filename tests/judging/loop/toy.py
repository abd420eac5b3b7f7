"""A world that needs no simulator: a hand on a table, an image of it and its goal, and whether it is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from rgb2pc_lib.data.clouds import Cloud, write_ply

SIZE = 48  # px
REACH = 0.1  # so far a full action moves the hand
NEAR = 0.12
K = np.array([[SIZE, 0, SIZE / 2], [0, SIZE, SIZE / 2], [0, 0, 1.0]])


@dataclass(frozen=True)
class Glance:
    image: np.ndarray
    cloud: Cloud | None
    state: dict
    more: dict = field(default_factory=dict)


@dataclass
class Table:
    """Task "reach": the hand has to come near the goal, whose place only image, cloud or state tell."""

    task: str

    def begin(self, seed, randomise):
        draw = np.random.default_rng([seed, 1])
        self.hand, self.goal = np.zeros(2), draw.uniform(-0.8, 0.8, 2)
        self.tint = draw.integers(60, 200, 3) if randomise else np.array([200, 40, 40])
        self.pose = np.eye(4)  # the image is what it is; only what is told of its camera changes
        self.pose[:3, 3] = [*draw.uniform(-0.2, 0.2, 2), 1]
        self.closed = False

    def look(self, cloud):
        pixels = np.full((SIZE, SIZE, 3), 128, np.uint8)
        for place, tint in ((self.hand, [20, 20, 20]), (self.goal, self.tint)):
            x, y = ((place + 1) / 2 * (SIZE - 8)).astype(int)
            pixels[y : y + 8, x : x + 8] = tint
        around = np.random.default_rng(0).normal(0, 0.02, (20, 2))
        points = np.pad(np.concatenate([around + self.hand, around + self.goal]), ((0, 0), (0, 1))).astype(np.float32)
        seen = Cloud(points, np.full((40, 3), 99, np.uint8)) if cloud else None
        flat = {"tcp": np.append(self.hand, 0), "goal": np.append(self.goal, 0), "object": np.append(self.goal, 0)}
        state = {k: v.astype(np.float32) for k, v in flat.items()}
        state |= {"opening": np.float32(1), "joint": np.float32(np.nan), "K": K, "world_to_camera": self.pose}
        return Glance(pixels, seen, state)

    def act(self, action):
        self.hand = self.hand + REACH * np.clip(action[:2], -1, 1)
        return bool(np.abs(self.hand - self.goal).max() < NEAR)

    def close(self):
        self.closed = True


def expert(table):
    return np.append(np.clip((table.goal - table.hand) / REACH, -1, 1), [0, 0]).astype(np.float32)


def record(root: Path, episodes: int = 48, task: str = "reach", first_seed: int = 0, every: int = 1) -> Path:
    """Demonstrations as the recorder leaves them: frames (JPEG), clouds and state, every look a step."""
    for e in range(episodes):
        table, name = Table(task), f"episode_{e:04d}"
        table.begin(first_seed + e, bool(e % 2))
        seen, actions, done = [], [], False
        while not done:
            seen.append(table.look(True))
            actions.append(expert(table))
            done = table.act(actions[-1])
        kept = np.arange(0, len(seen), every)
        steps = [f"step_{i:04d}" for i in range(len(kept))]
        for folder in ("rgb", "clouds", "state"):
            (root / folder / task / (name if folder != "state" else "")).mkdir(parents=True, exist_ok=True)
        for step, i in zip(steps, kept, strict=True):
            Image.fromarray(seen[i].image).save(root / "rgb" / task / name / f"{step}.jpg", quality=85, optimize=True)
            write_ply(root / "clouds" / task / name / f"{step}.ply", seen[i].cloud)
        states = [seen[i].state for i in kept]
        np.savez(
            root / "state" / task / f"{name}.npz", steps=np.array(steps), time=kept.astype(np.int32),
            actions=np.stack(actions), goal=states[0]["goal"], seed=np.array(first_seed + e),
            frame=np.array("world"), randomised=np.array(bool(e % 2)),
            K=states[0]["K"], world_to_camera=states[0]["world_to_camera"],
            **{k: np.stack([s[k] for s in states]) for k in ("tcp", "object", "opening", "joint")},
        )  # fmt: skip
    return root
