"""Training the geometry expert: from simulated RGB-D a small network learns to tell where an image's surfaces are.

A frame's cloud holds the depth of some of its pixels, and the recorder knows where the camera stood: so each such pixel
has a depth and a place in the robot's frame (metres). Both are learned at once, from frames of other tasks and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from rgb2pc_lib.data import system
from rgb2pc_lib.data.clouds import read_ply, transform
from rgb2pc_lib.data.listing import step_name, steps
from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.data.states import poses, read_state, rows_of, state_file
from rgb2pc_lib.encoders.simdepth import DepthNetwork
from rgb2pc_lib.errors import InputError


@dataclass(frozen=True)
class DepthTraining:
    """One training. Every random draw follows from `seed`."""

    steps: int = 2000  # optimiser steps
    batch: int = 32  # frames
    lr: float = 2e-3  # peak of a cosine schedule
    warmup: int = 100  # steps
    weight_decay: float = 0.05
    colour: float = 0.4  # strength of the changes of brightness, contrast and tint
    seed: int = 0

    def __post_init__(self):
        if self.steps < 1 or self.batch < 2:
            raise InputError(f"expected at least 1 step and 2 frames a batch, found {self.steps} and {self.batch}")


@dataclass(frozen=True)
class Surfaces:
    """Frames, and what is known of some of their pixels."""

    images: Tensor  # [S, 3, size, size] uint8
    uv: Tensor  # [S, N, 2] float16, fractions of the image from -1 to 1
    depth: Tensor  # [S, N] float32, m
    place: Tensor  # [S, N, 3] float32, m, in the robot's frame
    randomised: Tensor  # [S] bool, whether the episode's look is


def load_surfaces(*roots: Path, size: int, every: int = 1, progress: bool = True) -> Surfaces:
    """Frames, clouds and camera poses under `<root>/rgb`, `clouds` and `state`, of `every` so many-th episode.

    Raises InputError naming a file for clouds in the world frame, of different sizes, or without pixels.
    """
    listed = [(root, steps(root / "clouds", (".ply",))) for root in roots]
    episodes = [(root, key, list(files.values())) for root, of in listed for key, files in of.items()][::every]
    with ThreadPoolExecutor() as pool:
        read = pool.map(lambda e: _surfaces(e[0], e[1], e[2], size), episodes)
        parts = list(tqdm(read, "frames", len(episodes), disable=not progress))
    if len(sizes := {part[1].shape[1] for part in parts}) != 1:
        found = f"{min(sizes)} to {max(sizes)} points" if sizes else "none"
        raise InputError(f"{', '.join(map(str, roots))}: expected clouds of one size, found {found}; record them alike")
    return Surfaces(*(torch.from_numpy(np.concatenate(some)) for some in zip(*parts, strict=True)))


def _surfaces(root: Path, key: tuple[str, str], paths: list[Path], size: int) -> tuple[np.ndarray, ...]:
    path = state_file(root / "state", *key)
    state = read_state(path)
    names = [step_name(p.name) for p in paths]
    pose = poses(state, rows_of(state, names, path), path)
    if pose is None or "world_to_camera" not in state:
        raise InputError(f"{path}: expected clouds in a camera's frame and world_to_camera [4, 4]; record it again")
    images, uvs, depths, places = [], [], [], []
    for cloud_path, step, of in zip(paths, names, pose, strict=True):
        cloud = read_ply(cloud_path)
        frame = read_image(root / "rgb" / key[0] / key[1] / f"{step}.jpg")
        if cloud.uv is None:
            raise InputError(f"{cloud_path}: expected the pixel (u, v) of every point, found none; record it again")
        extent = np.array(frame.shape[1::-1])
        small = Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR)
        images.append(np.asarray(small).transpose(2, 0, 1))
        uvs.append((2 * (cloud.uv + 0.5) / extent - 1).astype(np.float16))
        depths.append(cloud.xyz[:, 2])
        places.append(transform(cloud.xyz, np.linalg.inv(of)).astype(np.float32))
    look = np.full(len(paths), bool(state.get("randomised", False)))
    return np.stack(images), np.stack(uvs), np.stack(depths), np.stack(places), look


def learn(network: DepthNetwork, data: Surfaces, config: DepthTraining) -> Iterator[dict[str, float]]:
    """Train the network in place; yields each step's mean errors: "depth" and "place", in centimetres.

    What is learned is in standard deviations, so that the four numbers of a pixel weigh alike.
    """
    system.keep_freed_memory()
    draw = torch.Generator().manual_seed(config.seed)
    told = torch.cat([data.depth[..., None], data.place], -1)  # [S, N, 4]
    middle, scale = told.mean((0, 1)), told.std((0, 1)).clamp(min=1e-6)
    network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    for step in range(config.steps):
        for group in optimiser.param_groups:
            rising, falling = (step + 1) / config.warmup, (1 + math.cos(math.pi * step / config.steps)) / 2
            group["lr"] = config.lr * min(1, rising) * falling
        rows = torch.randint(len(data.images), (config.batch,), generator=draw)
        images = recoloured(data.images[rows].float() / 255, config.colour, draw)
        found = network.surfaces(network(images.contiguous(memory_format=torch.channels_last)))
        error = _at(found, data.uv[rows]) - (told[rows] - middle) / scale  # [B, N, 4]
        loss = F.smooth_l1_loss(error, torch.zeros_like(error), beta=0.1)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        off = 100 * (error.detach() * scale)
        yield {"depth": off[..., 0].abs().mean().item(), "place": off[..., 1:].norm(dim=-1).mean().item()}
    network.eval()
    network.middle.copy_(middle)
    network.scale.copy_(scale)


def _at(maps: Tensor, uv: Tensor) -> Tensor:
    """Maps `[B, C, h, w]` at pixels `[B, N, 2]` (-1 to 1): `[B, N, C]`."""
    at = F.grid_sample(maps, uv[:, :, None].float(), align_corners=False, padding_mode="border")
    return at[..., 0].mT


@torch.inference_mode()
def errors(network: DepthNetwork, data: Surfaces, batch: int = 32) -> Tensor:
    """How far off a network is, `[S, 2]`: each frame's mean error of depth, a share of it, and of the place (m)."""
    found = []
    for rows in torch.arange(len(data.images)).split(batch):
        maps = network.surfaces(network(data.images[rows].float() / 255))
        told = _at(maps, data.uv[rows]) * network.scale + network.middle
        depth = ((told[..., 0] - data.depth[rows]).abs() / data.depth[rows]).mean(1)
        found.append(torch.stack([depth, (told[..., 1:] - data.place[rows]).norm(dim=-1).mean(1)], 1))
    return torch.cat(found)


def recoloured(images: Tensor, amount: float, draw: torch.Generator) -> Tensor:
    """Images `[B, 3, H, W]` in [0, 1] with another brightness, contrast and tint each."""

    def uniform(*shape):
        return 1 + amount * (2 * torch.rand(shape, generator=draw) - 1)

    B = len(images)
    mean = images.mean((1, 2, 3), keepdim=True)
    changed = (images - mean) * uniform(B, 1, 1, 1) + mean * uniform(B, 1, 1, 1) * uniform(B, 3, 1, 1)
    return changed.clamp(0, 1)
