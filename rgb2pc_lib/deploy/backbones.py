"""The compact student: one small network from pixels to the embedding, and to a coarse grid of spatial tokens.

Pixels go in as they are decoded, `[B, S, S, 3]` uint8; scaling and normalisation are part of the network, so that an
exported file needs nothing but resized pixels.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rgb2pc_lib.errors import InputError

BACKBONES = ("resnet18", "resnet34", "convnext_tiny", "vit_tiny")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which pretrained weights expect
_SQUEEZED = 64  # channels of the map that keeps its places


class Compact(nn.Module):
    """A backbone, then a head that keeps where things are.

    The last feature map is squeezed to 64 channels and flattened, not averaged: the embedding says where the gripper
    is, and an average over the map forgets that.

    Args:
        backbone: "resnet18", "resnet34", "convnext_tiny" or "vit_tiny" (Hugging Face transformers, from their
            configurations).
        size: S, height and width of the input in pixels; a multiple of 32 (16 for vit_tiny) wastes nothing.
        embed_dim: E, the fused student's.
        seed: every initial weight comes from this generator, never from the global one. None: there are no weights and
            no memory for them until a state dict is assigned.
        weights: a folder written by transformers' `save_pretrained`, to start from; its head is left out.
        places: S, the side of its grid of spatial tokens; 0: it gives none.
        width: D, of the spatial tokens, the fused student's.

    Raises InputError where transformers is missing or the folder holds another network.

    >>> Compact("resnet18", 64, 16)(torch.zeros(2, 64, 64, 3, dtype=torch.uint8)).shape  # doctest: +SKIP
    torch.Size([2, 16])
    >>> network = Compact("resnet18", 128, 16, places=4, width=24)  # doctest: +SKIP
    >>> embedding, spatial = network.look(torch.zeros(2, 128, 128, 3))  # doctest: +SKIP
    >>> spatial.shape  # doctest: +SKIP
    torch.Size([2, 16, 24])
    """

    mean: Tensor  # [1, 3, 1, 1], of pixels
    std: Tensor

    def __init__(
        self, backbone: str, size: int, embed_dim: int, seed: int | None = 0, weights: str | Path = "",
        places: int = 0, width: int = 0,
    ):  # fmt: skip
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"backbone must be one of {', '.join(BACKBONES)}, not {backbone!r}")
        self.size, self.places = size, places
        where = torch.device("cpu" if seed is not None else "meta")
        with torch.random.fork_rng(devices=[]), where:  # weights come from the global generator, to be drawn anew
            self.backbone = _build(backbone, size)
            self.squeeze = nn.Conv2d(_channels(self.backbone), _SQUEEZED, 1)
            self.norm = nn.BatchNorm2d(_SQUEEZED)
            self.head = nn.Linear(_SQUEEZED * _side(backbone, size) ** 2, embed_dim)
            self.spatial = SpatialHead(_channels(self.backbone), places, width) if places else None  # the last drawn
        self.register_buffer("mean", torch.tensor(_MEAN).mul(255).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).mul(255).view(1, 3, 1, 1), persistent=False)
        if seed is not None:
            initialise(self, torch.Generator().manual_seed(seed))
        if weights:
            load_pretrained(self.backbone, Path(weights))

    def forward(self, images: Tensor) -> Tensor:
        """`[B, S, S, 3]` in 0..255, uint8 or float -> embeddings `[B, E]`."""
        return self._embedding(self.grid(images))

    def look(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The embeddings of `forward` and the spatial tokens `[B, places * places, D]`, row by row; None without."""
        grid = self.grid(images)
        return self._embedding(grid), None if self.spatial is None else self.spatial(grid)

    def grid(self, images: Tensor) -> Tensor:
        """The backbone's last map `[B, C, s, s]`."""
        return feature_map(self.backbone, (images.permute(0, 3, 1, 2).float() - self.mean) / self.std)

    def _embedding(self, grid: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.squeeze(grid))).flatten(1))


class SpatialHead(nn.Module):
    """A backbone's last map to the fused student's spatial tokens: every place by the same two layers.

    The fused student's tokens hold much that is particular to a place and the same in all frames. That is not learned
    but known (`expect`); what is learned is how far a frame's tokens are from it.

    >>> SpatialHead(8, 4, 24)(torch.zeros(2, 8, 7, 7)).shape
    torch.Size([2, 16, 24])
    """

    usual: Tensor  # [places * places, D], the mean token of each place
    spread: Tensor  # [], root of the mean squared distance of a token's numbers from it

    def __init__(self, channels: int, places: int, width: int):
        super().__init__()
        self.places = places
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 1)
        )
        self.register_buffer("usual", torch.zeros(places * places, width))
        self.register_buffer("spread", torch.ones(()))

    def expect(self, usual: Tensor, spread: float) -> None:
        """What targets are like: their mean `[places * places, D]`, and their spread around it."""
        self.usual.copy_(usual)
        self.spread.fill_(spread)

    def forward(self, grid: Tensor) -> Tensor:
        """`[B, C, s, s]` -> `[B, places * places, D]`."""
        side = grid.shape[-1]
        if side != self.places:  # each place the mean over its part of the map, by the areas of cells in it
            share = torch.tensor(_areas(side, self.places), dtype=grid.dtype, device=grid.device)  # [places, s]
            grid = share @ grid @ share.T
        found = self.layers(grid).flatten(2).mT  # [B, places * places, D]
        return self.usual + self.spread * found


def _areas(cells: int, places: int) -> list[list[float]]:
    """How much each of `cells` along a side counts in each of `places`: by their overlap, 1 in all.

    >>> _areas(3, 2)[0] == [2 / 3, 1 / 3, 0]
    True
    """
    ends = [[min((j + 1) * places, (i + 1) * cells) - max(j * places, i * cells) for j in range(cells)]
            for i in range(places)]  # fmt: skip
    return [[max(overlap, 0) / cells for overlap in row] for row in ends]


def feature_map(backbone: nn.Module, x: Tensor) -> Tensor:
    """The last map of a backbone, `[B, C, s, s]`; a ViT's patch tokens in their places, without its class token."""
    last = backbone(pixel_values=x).last_hidden_state
    if last.ndim == 4:
        return last
    tokens = last[:, 1:]  # [B, s*s, C]
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Fill every layer from one generator.

    Convolutions by He et al. 2015 (fan out), linear layers and ViT's class token and positions from a normal of 0.02,
    identity norms; ConvNeXt's layer scales stay at their small constant.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02, generator=generator)
        elif isinstance(layer, (nn.BatchNorm2d, nn.LayerNorm)) and layer.weight is not None:
            nn.init.ones_(layer.weight)
        bias = getattr(layer, "bias", None)
        if isinstance(bias, nn.Parameter):
            nn.init.zeros_(bias)
        for name, parameter in layer.named_parameters(recurse=False):
            if name in ("cls_token", "position_embeddings"):
                nn.init.normal_(parameter, std=0.02, generator=generator)


def load_pretrained(backbone: nn.Module, folder: Path) -> None:
    """Fill a backbone from `<folder>/model.safetensors` as transformers' `save_pretrained` writes it.

    Raises InputError naming the folder when the file is missing or made for another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as e:
        raise InputError(f"{folder}: expected model.safetensors as save_pretrained writes it, found: {e}") from None
    ours = backbone.state_dict()
    found = {k: v for name, v in state.items() if (k := name.split(".", 1)[-1] if name not in ours else name) in ours}
    wrong = [k for k in ours if k not in found or found[k].shape != ours[k].shape]
    if wrong:
        raise InputError(
            f"{folder}: not the weights of this backbone: {len(wrong)} of {len(ours)} tensors are missing or of "
            f"another shape, such as {wrong[0]}; choose the --backbone and --size that they were made for"
        )
    backbone.load_state_dict(found)


def _build(backbone: str, size: int) -> nn.Module:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        import transformers as t
    except ImportError:
        raise InputError("a compact student needs transformers; run: pip install 'rgb2pc[backbones]'") from None
    if backbone.startswith("resnet"):
        depths = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}[backbone]
        return t.ResNetModel(
            t.ResNetConfig(embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=depths, layer_type="basic")
        )
    if backbone == "convnext_tiny":
        return t.ConvNextModel(t.ConvNextConfig(depths=[3, 3, 9, 3], hidden_sizes=[96, 192, 384, 768]))
    config = t.ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, image_size=size
    )
    return t.ViTModel(config, add_pooling_layer=False)


def _channels(backbone: nn.Module) -> int:
    config: Any = backbone.config
    return config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size


def _side(backbone: str, size: int) -> int:
    """Cells along one side of the last map."""
    if backbone == "vit_tiny":
        return size // 16
    if backbone == "convnext_tiny":
        return size // 32  # patches without padding
    return math.ceil(size / 32)
