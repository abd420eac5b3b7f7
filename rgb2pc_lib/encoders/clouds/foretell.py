"""Training the sample's teacher: a point encoder that foretells what the robot is about to do.

A robot records where its gripper is and how far it is open, without anybody's labels. From a cloud the encoder has to
tell both, now and several steps ahead: since the gripper goes to what is to be moved, it must find that thing. A
contrastive term beside it (two disjoint subsets of one cloud are views of the same step, all other steps of the batch
are negatives) keeps steps apart that the robot's next moves do not. No pose of an object and no label is used.
Clouds and positions are in one frame (metres): the world's, in which the robot acts, or the camera's (OpenCV axes).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from rgb2pc_lib.data import system
from rgb2pc_lib.data.files.guarded import check_npz
from rgb2pc_lib.data.listing import step_name
from rgb2pc_lib.data.states import poses, read_state, rows_of, state_file
from rgb2pc_lib.encoders.clouds.extract_clouds import GREY, in_frame, list_clouds, read_cloud, turn
from rgb2pc_lib.encoders.clouds.points import PointEncoder
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.losses import info_nce
from rgb2pc_lib.learning.models import initialise

_NEAR = 4.0  # m: up to here 16 bits tell a point to a millimetre


@dataclass(frozen=True)
class ForetellConfig:
    """One training. Every random draw follows from `seed`."""

    steps: int = 3000  # optimiser steps
    batch: int = 64  # clouds
    points: int = 256  # of a cloud, drawn anew each time it is seen; with contrast two views of half as many
    ahead: tuple[int, ...] = (0, 1, 2, 4, 8, 15)  # kept steps; beyond an episode's end the robot stays where it is
    foretelling: float = 1.0  # weight of the squared error of what is foretold, in standard deviations
    contrast: float = 0.0  # weight of InfoNCE between two views
    supervised: bool = False  # tell where the object is instead, a label: the upper bound that no user has
    tau: float = 0.1  # its temperature
    lr: float = 2e-3  # peak of a cosine schedule
    warmup: int = 100  # steps
    weight_decay: float = 0.01
    jitter: float = 0.002  # m, per point and axis
    tilt: float = 12.0  # degrees: a camera whose frame clouds are in is turned by up to this about each axis
    shift: float = 0.08  # m: and moved by up to this along each axis; clouds in the world's frame stay
    colour: float = 0.3  # strength of the colour change of a cloud
    grey: float = 0.3  # chance that a cloud has no colour
    seed: int = 0

    def __post_init__(self):
        if self.steps < 1 or self.batch < 2 or self.points < 2:
            raise InputError(
                "expected at least 1 step, 2 clouds a batch and 2 points a cloud, "
                f"found {self.steps}, {self.batch} and {self.points}"
            )


@dataclass(frozen=True)
class Recorded:
    """Clouds of whole episodes, and what the robot recorded beside them."""

    points: Tensor  # [S, N, 6] float16: xyz (m, exact to a millimetre at 2 m) and rgb (0 to 1)
    episode: Tensor  # [S] int
    tcp: Tensor  # [S, 3] m, in the frame of the clouds
    opening: Tensor  # [S] m
    object: Tensor  # [S, 3] m, used by the upper bound alone


def foretell(encoder: PointEncoder, data: Recorded, config: ForetellConfig) -> Iterator[dict[str, float]]:
    """Train the encoder in place; yields the terms of each step's loss.

    "foretold" is the mean squared error in standard deviations (1 is as good as the mean), "accuracy" how often a
    cloud's other view is nearer than every other cloud of the batch.
    """
    if data.points.shape[1] < config.points:
        raise InputError(f"clouds of {data.points.shape[1]} points are fewer than the {config.points} asked for")
    system.keep_freed_memory()
    if encoder.config.frame == "world":  # places there are what is to be learned
        config = replace(config, tilt=0, shift=0)
    draw = torch.Generator().manual_seed(config.seed)
    later = _later(data.episode, (0,) if config.supervised else config.ahead)  # [S, A]
    places = torch.cat([data.tcp[later], data.object[:, None]][: 1 + config.supervised], 1)  # [S, A or 2, 3]
    scale = [spread.clamp(min=1e-6) for spread in (data.tcp.std(0).mean(), data.opening.std())]
    middle = data.tcp.mean(0), data.opening.mean()
    heads = _heads(encoder.config.embed_dim, 3 * places.shape[1] + later.shape[1], draw)
    weights = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.weight_decay)
    views = 2 if config.contrast else 1

    encoder.train()
    for step in range(config.steps):
        for group in optimiser.param_groups:
            rising, falling = (step + 1) / config.warmup, (1 + math.cos(math.pi * step / config.steps)) / 2
            group["lr"] = config.lr * min(1, rising) * falling
        rows = torch.randint(len(data.points), (config.batch,), generator=draw)
        clouds, at = moved(data.points[rows].float(), places[rows], config, views, draw)
        embedding = encoder.embed(clouds)  # [views * B, E]
        opening = (data.opening[later[rows]] - middle[1]) / scale[1]
        wanted = torch.cat([((at - middle[0]) / scale[0]).flatten(1), opening], 1)
        terms = {"foretold": F.mse_loss(heads["robot"](embedding), wanted.repeat(views, 1))}
        loss = config.foretelling * terms["foretold"]
        if config.contrast:
            first, second = heads["contrast"](embedding).chunk(2)
            terms["InfoNCE"] = info_nce(first, second, config.tau)
            loss = loss + config.contrast * terms["InfoNCE"]
            nearest = (F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T).argmax(1)
            terms["accuracy"] = (nearest == torch.arange(len(nearest))).float().mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        yield {k: v.item() for k, v in terms.items()}
    encoder.eval()


def _heads(width: int, told: int, draw: torch.Generator) -> nn.ModuleDict:
    """What only the training uses (Chen et al. 2020, SimCLR)."""

    def head(out: int) -> nn.Sequential:
        with torch.device("meta"):
            made = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, out))
        initialise(made.to_empty(device="cpu"), draw)
        return made

    return nn.ModuleDict({"robot": head(told), "contrast": head(width // 2)})


def _later(episode: Tensor, ahead: tuple[int, ...]) -> Tensor:
    """Row of the step that is so many steps ahead, `[S, A]`, the episode's last one where it ends before.

    >>> _later(torch.tensor([0, 0, 0, 1, 1]), (0, 2)).tolist()
    [[0, 2], [1, 2], [2, 2], [3, 4], [4, 4]]
    """
    row = torch.arange(len(episode))
    last = torch.zeros(int(episode.max()) + 1, dtype=torch.long).scatter_reduce(0, episode.long(), row, "amax")
    return torch.minimum(row[:, None] + torch.tensor(ahead), last[episode][:, None])


def moved(
    clouds: Tensor, tcp: Tensor, config: ForetellConfig, views: int, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Augmented clouds `[B, N, 6]` -> `[views * B, points / views, 6]`, and the positions `[B, A, 3]` moved alike.

    Every cloud is seen by a camera of its own, unless `config` lets it stand; the views of one cloud share it, and have
    no point in common.
    """
    B, N, _ = clouds.shape
    order = torch.rand(B, N, generator=draw).argsort(1)[:, : config.points // views * views, None]
    clouds = torch.cat(clouds.gather(1, order.expand(-1, -1, 6)).chunk(views, 1))
    xyz, rgb = clouds.split(3, -1)

    def uniform(*shape):  # in [-1, 1]
        return 2 * torch.rand(shape, generator=draw) - 1

    turn = rotations(uniform(B, 3) * math.radians(config.tilt))  # [B, 3, 3]
    centre, shift = xyz.mean((0, 1)), config.shift * uniform(B, 1, 3)
    xyz = (xyz - centre) @ turn.mT.repeat(views, 1, 1) + centre + shift.repeat(views, 1, 1)
    tcp = (tcp - centre) @ turn.mT + centre + shift
    xyz = xyz + config.jitter * torch.randn(xyz.shape, generator=draw)

    rgb = rgb * (1 + config.colour * uniform(len(rgb), 1, 3)) + config.colour / 2 * uniform(len(rgb), 1, 3)
    grey = torch.rand(len(rgb), 1, 1, generator=draw) < config.grey
    return torch.cat([xyz, torch.where(grey, GREY, rgb)], -1), tcp


def rotations(vectors: Tensor) -> Tensor:
    """Rotation vectors `[B, 3]` (radians) -> matrices `[B, 3, 3]` (Rodrigues)."""
    x, y, z = vectors.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3)).matrix_exp()


def load_recorded(*roots: Path, frame: str = "world", progress: bool = True) -> Recorded:
    """All clouds and the robot's record under `<root>/clouds` and `<root>/state`, as the recorder writes them.

    All are turned into one frame, "world" or "camera".
    Raises InputError for clouds of different sizes, and where tcp, opening or a camera's place are not recorded.
    """
    episodes = [
        (paths, state_file(root / "state", task, episode))
        for root in roots
        for (task, episode), paths in list_clouds(root / "clouds").items()
    ]
    points, told = [], []
    for paths, path in tqdm(episodes, unit="episode", disable=not progress):
        if not path.exists():
            raise InputError(f"{path}: expected tcp, opening, object of {len(paths)} steps, found no such file; add it")
        state = read_state(path)
        check_npz(path, state, {"tcp": ("f", "S3"), "opening": ("iuf", "S"), "object": ("f", "S3")})
        kept = rows_of(state, [step_name(p.name) for p in paths], path)
        for p in paths:
            points.append(torch.from_numpy(in_frame(read_cloud(p)[0], turn(p, frame, path.parents[1]))))
        pose = poses(state, kept, path, frame)
        if pose is None:
            raise InputError(f"{path}: no array world_to_camera [4, 4] tells where the camera stands; add it")
        tcp, thing = ((pose[:, :3, :3] @ state[k][kept][..., None])[..., 0] + pose[:, :3, 3] for k in ("tcp", "object"))
        told.append((tcp, state["opening"][kept], thing))
    if all(some[:, :3].abs().max() <= _NEAR for some in points):
        points = [some.half() for some in points]
    if len(sizes := {len(p) for p in points}) > 1:
        found = f"{min(sizes)} to {max(sizes)} points"
        raise InputError(f"{', '.join(map(str, roots))}: expected clouds of one size, found {found}; record them alike")
    numbers = torch.arange(len(episodes)).repeat_interleave(torch.tensor([len(paths) for paths, _ in episodes]))
    return Recorded(
        torch.stack(points), numbers, *(torch.from_numpy(np.concatenate(x)).float() for x in zip(*told, strict=True))
    )
