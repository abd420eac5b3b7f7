"""The sample's teacher: a small point encoder and its weights. `foretell` trains it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from rgb2pc_lib.data.files.guarded import expect
from rgb2pc_lib.data.files.weights import fill, read_weights
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.encoders.clouds.extract_clouds import CloudEncoder
from rgb2pc_lib.encoders.weights import network_fingerprint
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.models import initialise

WEIGHTS = PROJECT / "data" / "teacher" / "pointnet.safetensors"
_MIDDLE = {"world": (0.0, 0.6, 0.15), "camera": (0.0, 0.0, 1.0)}  # m, of a scene on the table: taken as the origin


@dataclass(frozen=True)
class PointConfig:
    """Sizes of the encoder. The safetensors file carries them."""

    hidden: int = 128  # width of the per-point layers
    embed_dim: int = 256  # E, width of pc_feat
    octaves: int = 6  # sines and cosines of each coordinate
    wavelength: float = 2.0  # m, of the lowest octave; the highest is wavelength / 2 ** (octaves - 1)
    frame: str = "world"  # of the clouds that it sees: "world", where the robot stands, or "camera"

    def __post_init__(self):
        if self.frame not in _MIDDLE:
            raise InputError(f"frame: expected {' or '.join(_MIDDLE)}, found {self.frame!r}")


class PointEncoder(nn.Module):
    """PointNet with Fourier features of the position (Qi et al. 2017; Tancik et al. 2020) and a global context.

    Each point sees itself and the maximum over all points; the mean of `pc_feat` is the step's embedding. There is no
    normalisation of the cloud, so that positions keep their meaning in metres.

    >>> encoder = PointEncoder()
    >>> encoder(torch.rand(2, 50, 6)).shape, encoder.embed(torch.rand(2, 50, 6)).shape
    (torch.Size([2, 50, 256]), torch.Size([2, 256]))
    """

    def __init__(self, config: PointConfig = PointConfig(), seed: int | None = 0):  # noqa: B008 (frozen)
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
        if seed is not None:  # None: no weights, and no memory for them, until a state dict is assigned
            initialise(self.to_empty(device="cpu"), torch.Generator().manual_seed(seed))

    def forward(self, points: Tensor) -> Tensor:
        """`[B, N, 6]` x y z (m) and r g b (0 to 1) -> `pc_feat [B, N, E]`."""
        return self.last(self._hidden(points))

    def embed(self, points: Tensor) -> Tensor:
        """`[B, N, 6]` -> `[B, E]`, the mean of `pc_feat`, with the last (linear) layer applied after the mean."""
        return self.last(self._hidden(points).mean(-2))

    def _hidden(self, points: Tensor) -> Tensor:
        xyz, rgb = points[..., :3], points[..., 3:]
        xyz = xyz - xyz.new_tensor(_MIDDLE[self.config.frame])
        octaves = 2.0 ** torch.arange(self.config.octaves, device=xyz.device)
        angles = (xyz[..., None] * (2 * math.pi / self.config.wavelength * octaves)).flatten(-2)
        local = self.local(torch.cat([2 * xyz, angles.sin(), angles.cos(), 2 * rgb - 1], -1))  # [B, N, hidden]
        context = self.context(local.amax(-2, keepdim=True))  # [B, 1, E]
        return F.silu(self.point(F.silu(local)) + context)


# -- weights


def save_point_encoder(path: Path, encoder: PointEncoder, **facts) -> None:
    """Weights, the config and what else is worth knowing (JSON values) in one safetensors file, atomically."""
    metadata = {"about": json.dumps({"config": asdict(encoder.config), **facts})}  # one key: several have no order
    tensors = {k: v.contiguous() for k, v in encoder.state_dict().items()}
    write_atomic(path, lambda p: p.write_bytes(save(tensors, metadata)))


def load_point_encoder(path: Path | None = None) -> PointEncoder:
    """The encoder of a file written by `save_point_encoder`, by default the one that comes with the sample.

    Raises InputError naming a file that is missing or is not such a file.
    """
    path, again = Path(path or WEIGHTS), "expected a point encoder written by tools/train_teacher.py; train it again"
    about, tensors = read_weights(path, "about", {"config": dict}, again)
    for name, value in about["config"].items():
        expect(value, (int, float, str), path, name, again)

    def build() -> PointEncoder:
        return PointEncoder(PointConfig(**about["config"]), seed=None)

    return fill(build, tensors, path, "it describes", remedy=again).eval()


def load_pointnet(weights: Path | None = None, device: str = "cpu", frame: str = "camera") -> CloudEncoder:
    """The sample's teacher as the extraction takes it: it sees clouds in the frame that it was trained on."""
    network = load_point_encoder(weights)
    config, made_by = network.config, network_fingerprint(network)
    network.to(device)
    return CloudEncoder(
        "pointnet", lambda p: {"pc_feat": network(p)}, made_by, config.embed_dim, config.frame, device=device
    )
