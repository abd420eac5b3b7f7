"""The sample's teacher: a small point encoder, trained contrastively on clouds alone.

Two disjoint random subsets of one cloud are views of the same step; all other steps are negatives, the steps of the
same episode being the hard ones. No label is used, and no pose: clouds are in the camera frame (OpenCV axes, metres).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.encoders.clouds.extract_clouds import GREY, CloudEncoder, fingerprint, list_clouds, read_cloud
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.losses import info_nce
from rgb2pc_lib.learning.models import initialise

WEIGHTS = PROJECT / "data" / "teacher" / "pointnet.safetensors"


@dataclass(frozen=True)
class PointConfig:
    """Sizes of the encoder. The safetensors file carries them."""

    hidden: int = 128  # width of the per-point layers
    embed_dim: int = 256  # E, width of pc_feat
    octaves: int = 6  # sines and cosines of each coordinate
    wavelength: float = 2.0  # m, of the lowest octave; the highest is wavelength / 2 ** (octaves - 1)
    depth: float = 1.0  # m along the optical axis, taken as the origin


class PointEncoder(nn.Module):
    """PointNet with Fourier features of the position (Qi et al. 2017; Tancik et al. 2020) and a global context.

    Each point sees itself and the maximum over all points; the mean of `pc_feat` is the step's embedding. There is no
    normalisation of the cloud, so that positions keep their meaning in metres.

    >>> encoder = PointEncoder()
    >>> encoder(torch.rand(2, 50, 6)).shape, encoder.embed(torch.rand(2, 50, 6)).shape
    (torch.Size([2, 50, 256]), torch.Size([2, 256]))
    """

    def __init__(self, config: PointConfig = PointConfig(), seed: int = 0):  # noqa: B008 (frozen)
        super().__init__()
        self.config = config
        inputs, hidden, width = 3 + 6 * config.octaves + 3, config.hidden, config.embed_dim
        with torch.device("meta"):  # building draws nothing from the global generator
            self.local = nn.Sequential(
                nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
            )
            self.context = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width))
            self.point = nn.Linear(hidden, width)
            self.last = nn.Linear(width, width)
        self.to_empty(device="cpu")
        initialise(self, torch.Generator().manual_seed(seed))

    def forward(self, points: Tensor) -> Tensor:
        """`[B, N, 6]` x y z (m) and r g b (0 to 1) -> `pc_feat [B, N, E]`."""
        return self.last(self._hidden(points))

    def embed(self, points: Tensor) -> Tensor:
        """`[B, N, 6]` -> `[B, E]`, the mean of `pc_feat`, with the last (linear) layer applied after the mean."""
        return self.last(self._hidden(points).mean(-2))

    def _hidden(self, points: Tensor) -> Tensor:
        xyz, rgb = points[..., :3], points[..., 3:]
        xyz = xyz - xyz.new_tensor([0.0, 0.0, self.config.depth])
        octaves = 2.0 ** torch.arange(self.config.octaves, device=xyz.device)
        angles = (xyz[..., None] * (2 * math.pi / self.config.wavelength * octaves)).flatten(-2)
        local = self.local(torch.cat([2 * xyz, angles.sin(), angles.cos(), 2 * rgb - 1], -1))  # [B, N, hidden]
        context = self.context(local.amax(-2, keepdim=True))  # [B, 1, E]
        return F.silu(self.point(F.silu(local)) + context)


# -- weights


def save_point_encoder(path: Path, encoder: PointEncoder, **facts) -> None:
    """Weights, the config and what else is worth knowing (JSON values) in one safetensors file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half_written = path.with_name(f".{path.name}.tmp")
    metadata = {"about": json.dumps({"config": asdict(encoder.config), **facts})}  # one key: several have no order
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, half_written, metadata)
    os.replace(half_written, path)


def load_point_encoder(path: Path | None = None) -> PointEncoder:
    """The encoder of a file written by `save_point_encoder`, by default the one that comes with the sample.

    Raises InputError naming a file that is missing or is not such a file.
    """
    path = Path(path or WEIGHTS)
    try:
        with safe_open(path, "pt") as f:
            config = PointConfig(**json.loads(f.metadata()["about"])["config"])
        encoder = PointEncoder(config)
        encoder.load_state_dict(load_file(path))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise InputError(
            f"{path}: expected a point encoder written by tools/train_teacher.py, found: {e}; train it again"
        ) from None
    return encoder.eval()


def load_pointnet(weights: Path | None = None, device: str = "cpu", frame: str = "camera") -> CloudEncoder:
    """The sample's teacher as the extraction takes it. Raises InputError for clouds in the world frame."""
    if frame != "camera":
        raise InputError(f"pointnet was trained on clouds in the camera frame, not the {frame}'s; transform them first")
    network = load_point_encoder(weights)
    made_by = fingerprint(network)
    network.to(device)
    return CloudEncoder("pointnet", lambda p: {"pc_feat": network(p)}, made_by, network.config.embed_dim, device=device)


# -- training


@dataclass(frozen=True)
class ContrastiveConfig:
    """One training. Every random draw follows from `seed`."""

    steps: int = 4000  # optimiser steps
    episodes: int = 8  # whole episodes a batch
    points: int = 64  # per view; few, so that a view cannot be recognised by its very points
    lr: float = 2e-3  # peak of a cosine schedule
    warmup: int = 30  # steps
    weight_decay: float = 0.01
    tau: float = 0.05  # temperature
    head: int = 128  # width of the projection head, which only the training uses (Chen et al. 2020, SimCLR)
    jitter: float = 0.004  # m, per point and axis
    tilt: float = 10.0  # degrees: the camera of a whole batch is turned by up to this about each axis
    shift: float = 0.05  # m: and moved by up to this along each axis
    colour: float = 0.3  # strength of the colour change of a view
    grey: float = 0.3  # chance that a view has no colour
    seed: int = 0


def contrastive(
    encoder: PointEncoder,
    points: Tensor,
    episode: Tensor,
    config: ContrastiveConfig = ContrastiveConfig(),  # noqa: B008
) -> Iterator[dict[str, float]]:
    """Train the encoder in place on clouds `[S, N, 6]` of episodes `[S]`; yields loss and accuracy of each step.

    The accuracy says how often the other view is nearer than every other step of the batch.
    """
    if config.steps < 1:
        raise InputError(f"steps: expected at least 1, found {config.steps}")
    if points.shape[1] < 2 * config.points:
        raise InputError(f"clouds of {points.shape[1]} points cannot give two views of {config.points}; use fewer")
    draw = torch.Generator().manual_seed(config.seed)
    width = encoder.config.embed_dim
    with torch.device("meta"):
        head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, config.head))
    initialise(head.to_empty(device="cpu"), draw)
    weights = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.weight_decay)
    rows = [torch.nonzero(episode == e).flatten() for e in episode.unique()]

    encoder.train()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            rising, falling = (step + 1) / config.warmup, (1 + math.cos(math.pi * step / config.steps)) / 2
            group["lr"] = config.lr * min(1, rising) * falling
        chosen = torch.randperm(len(rows), generator=draw)[: config.episodes].tolist()
        batch = torch.cat([rows[i] for i in chosen])
        views = two_views(points[batch].float(), config, draw)  # [2B, points, 6]
        with torch.autocast("cpu", torch.bfloat16):
            first, second = head(encoder.embed(views)).float().chunk(2)
        loss = info_nce(first, second, config.tau)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        nearest = (F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T).argmax(1)
        yield {"loss": loss.item(), "accuracy": (nearest == torch.arange(len(nearest))).float().mean().item()}
    encoder.eval()


def two_views(clouds: Tensor, config: ContrastiveConfig, draw: torch.Generator) -> Tensor:
    """Two augmented views of each cloud: `[B, N, 6]` -> `[2B, points, 6]`, first views, then second ones.

    The camera moves once for the whole batch, so that positions keep their metric meaning and the camera tells no
    two steps apart.
    """
    B, N, _ = clouds.shape
    order = torch.rand(B, N, generator=draw).argsort(1)[:, : 2 * config.points, None]
    clouds = clouds.gather(1, order.expand(-1, -1, 6))
    xyz, rgb = (torch.cat(part.chunk(2, 1)) for part in clouds.split(3, -1))  # [2B, points, 3], disjoint subsets

    def uniform(*shape):  # in [-1, 1]
        return 2 * torch.rand(shape, generator=draw) - 1

    turn = rotation(uniform(3) * math.radians(config.tilt))
    centre = xyz.mean((0, 1))
    xyz = (xyz - centre) @ turn.T + centre + config.shift * uniform(3)
    xyz = xyz + config.jitter * torch.randn(xyz.shape, generator=draw)

    rgb = rgb * (1 + config.colour * uniform(2 * B, 1, 3)) + config.colour / 2 * uniform(2 * B, 1, 3)
    grey = torch.rand(2 * B, 1, 1, generator=draw) < config.grey
    return torch.cat([xyz, torch.where(grey, GREY, rgb)], -1)


def rotation(vector: Tensor) -> Tensor:
    """Rotation vector `[3]` (radians) -> matrix `[3, 3]` (Rodrigues)."""
    x, y, z = vector.tolist()
    return torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]]).matrix_exp()


def load_clouds(*roots: Path, progress: bool = True) -> tuple[Tensor, Tensor]:
    """All clouds under some roots: points `[S, N, 6]` and episodes `[S]`.

    Points are float16, which tells millimetres up to 4 m; float32 where some are farther away.
    """
    episodes = [paths for root in roots for paths in list_clouds(root).values()]
    bar = tqdm([path for paths in episodes for path in paths], unit="cloud", disable=not progress)
    points = [torch.from_numpy(read_cloud(path)[0]) for path in bar]
    if all(some[:, :3].abs().max() <= 4 for some in points):
        points = [some.half() for some in points]
    sizes = {len(p) for p in points}
    if len(sizes) > 1:
        found = f"{min(sizes)} to {max(sizes)} points"
        raise InputError(f"{', '.join(map(str, roots))}: expected clouds of one size, found {found}; record them alike")
    return torch.stack(points), torch.arange(len(episodes)).repeat_interleave(torch.tensor([len(e) for e in episodes]))
