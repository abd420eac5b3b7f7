"""SimDepth, a geometry expert of this project's own: one small image in, where its surfaces lie out.

In the role of Depth Anything among the stand-ins. It has a trunk of its own and has seen nothing but simulated frames
of other tasks and seeds (`simdepth_training`); the file's card, data/simdepth/README.md, says what it is worth.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from rgb2pc_lib.data.files.guarded import expect
from rgb2pc_lib.data.files.weights import fill, read_weights
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.encoders.images import Expert, ImageEncoder, square
from rgb2pc_lib.encoders.weights import network_fingerprint

WEIGHTS = PROJECT / "data" / "simdepth" / "simdepth.safetensors"


@dataclass(frozen=True)
class DepthConfig:
    """Sizes of the network. The safetensors file carries them."""

    size: int = 192  # px, the square it sees; a token covers 8 x 8 of them
    stem: int = 24  # channels at stride 4; 2, 4 and 6 times as many at strides 8, 16 and 32
    channels: int = 96  # C, of a token

    @property
    def grid(self) -> int:
        return self.size // 8


class _Block(nn.Module):
    """Two 3 x 3 convolutions beside a short cut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.first = nn.Sequential(_conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Sequential(_conv(outputs, outputs, 3), nn.BatchNorm2d(outputs))
        self.short: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.short = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.short(x) + self.second(self.first(x)))


def _conv(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)


class DepthNetwork(nn.Module):
    """A small residual trunk, its strides joined from coarse to fine, and a head that tells surfaces from tokens.

    >>> network = DepthNetwork(DepthConfig(size=64, stem=8, channels=16)).eval()
    >>> tokens = network(torch.zeros(2, 3, 64, 64))
    >>> tokens.shape, network.surfaces(tokens).shape
    (torch.Size([2, 16, 8, 8]), torch.Size([2, 4, 16, 16]))
    """

    middle: Tensor
    scale: Tensor

    def __init__(self, config: DepthConfig = DepthConfig(), seed: int | None = 0):  # noqa: B008 (frozen)
        super().__init__()
        self.config = config
        c, width = config.stem, config.channels
        with torch.device("meta"):  # building draws nothing from the global generator
            self.stem = nn.Sequential(_conv(3, c, 7, 4), nn.BatchNorm2d(c), nn.ReLU(), _Block(c, c))
            self.stride8 = nn.Sequential(_Block(c, 2 * c, 2), _Block(2 * c, 2 * c))
            self.stride16 = nn.Sequential(_Block(2 * c, 4 * c, 2), _Block(4 * c, 4 * c))
            self.stride32 = nn.Sequential(_Block(4 * c, 6 * c, 2), _Block(6 * c, 6 * c))
            self.lateral = nn.ModuleList(_conv(n * c, width, 1) for n in (2, 4, 6))
            self.smooth = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), _conv(width, width, 3), nn.BatchNorm2d(width))
            self.tell = nn.Conv2d(width, 4 * 4, 1)
            self.register_buffer("middle", torch.zeros(4))  # of what is told: depth and place, m
            self.register_buffer("scale", torch.ones(4))
        if seed is not None:  # None: no weights, and no memory for them, until a state dict is assigned
            _initialise(self.to_empty(device="cpu"), torch.Generator().manual_seed(seed))

    def forward(self, images: Tensor) -> Tensor:
        """Images `[B, 3, S, S]` in [0, 1] -> tokens `[B, C, S / 8, S / 8]`."""
        fine = self.stride8(self.stem(2 * images - 1))
        middle = self.stride16(fine)
        x = self.lateral[2](self.stride32(middle))
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear") + self.lateral[1](middle)
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear") + self.lateral[0](fine)
        return F.relu(self.smooth(x))

    def surfaces(self, tokens: Tensor) -> Tensor:
        """What tokens tell, `[B, 4, S / 4, S / 4]`: depth, and x, y, z in the robot's frame (standard deviations)."""
        return F.pixel_shuffle(self.tell(tokens), 2)


def _initialise(network: DepthNetwork, draw: torch.Generator) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=draw)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    network.middle.zero_()
    network.scale.fill_(1)


# -- weights


def save_simdepth(path: Path, network: DepthNetwork, **facts) -> None:
    """Weights, the config and what else is worth knowing (JSON values) in one safetensors file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half_written = path.with_name(f".{path.name}.tmp")
    metadata = {"about": json.dumps({"config": asdict(network.config), **facts})}  # one key: several have no order
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, half_written, metadata)
    os.replace(half_written, path)


def load_network(path: Path = WEIGHTS) -> DepthNetwork:
    """The network of a file written by `save_simdepth`. Raises InputError naming a file that is missing or is none."""
    again = "expected weights written by tools/train_simdepth.py; train them again"
    about, tensors = read_weights(path, "about", {"config": dict}, again)
    for name, value in about["config"].items():
        expect(value, int, path, name, again)
    return fill(
        lambda: DepthNetwork(DepthConfig(**about["config"]), seed=None), tensors, path, "it describes", remedy=again
    ).eval()


def describe(name: str = "simdepth", weights=None) -> Expert:
    sizes = DepthConfig()
    return Expert(name, sizes.channels, square(sizes.size, sizes.grid), sizes.size, 8, "Apache-2.0", "last tokens")


def load_simdepth(device: str = "cpu") -> ImageEncoder:
    """SimDepth with the project's weights: 96 channels at stride 8, from which depth is read by one linear layer."""
    network = load_network()
    made_by = f"simdepth {network_fingerprint(network)}"
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(x: Tensor) -> Tensor:
        return network(x.contiguous(memory_format=torch.channels_last))

    return ImageEncoder(**vars(describe()), features=features, weights=made_by, device=device)
