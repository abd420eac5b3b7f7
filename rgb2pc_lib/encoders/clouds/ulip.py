"""ULIP's PointBERT: a point cloud in, one feature a point and one embedding of the cloud out.

The network of ULIP (Xue et al. 2023) and of ULIP-2 (Xue et al. 2024, coloured points): points are grouped around
centres (farthest-point sampling, nearest neighbours), each group becomes a token, and a transformer sees all tokens
(Yu et al. 2022, Point-BERT). Modules and parameters carry the names of the official checkpoints.

The originals give one embedding of a cloud and nothing a point. Here a point takes the tokens of its three nearest
centres, weighted by the inverse of the squared distance (feature propagation of PointNet++, Qi et al. 2017), through
the same projection as the whole cloud: where the cloud's embedding is [CLS, largest token] @ projection, a point's
feature is [CLS, its own mix of tokens] @ projection. So both lie in ULIP's space of images and texts, E = 512 or 1280.
"""

from __future__ import annotations

import argparse
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rgb2pc_lib.data.files.guarded import first_line
from rgb2pc_lib.encoders.clouds.extract_clouds import CloudEncoder
from rgb2pc_lib.encoders.weights import network_fingerprint
from rgb2pc_lib.errors import InputError

HUB = "https://huggingface.co/datasets/SFXX/ulip"
FILES = {  # encoder -> its official checkpoint below HUB
    "ulip": "ULIP-1/pretrained_models/ckpt_zero-sho_classification/checkpoint_pointbert.pt",
    "ulip2": "ULIP-2/pretrained_models/ULIP-2-PointBERT-10k-xyzrgb-pc-vit_g-objaverse_shapenet-pretrained.pt",
}
LICENCE = (
    "ULIP's code is BSD-3-Clause; the files state no licence of their own, and were trained on ShapeNet "
    "(non-commercial terms) and, for ULIP-2, Objaverse (ODC-BY)"
)


@dataclass(frozen=True)
class UlipConfig:
    """Sizes of one network; those of the official ones are in `CONFIGS`."""

    depth: int = 12  # transformer blocks
    channels: int = 3  # of a point: x y z, or x y z r g b
    embed_dim: int = 512  # E, of ULIP's shared space
    points: int = 8192  # it was trained on clouds of this size
    groups: int = 512  # G, tokens
    neighbours: int = 32  # points a group
    width: int = 384  # of a token
    heads: int = 6


CONFIGS = {"ulip": UlipConfig(), "ulip2": UlipConfig(depth=18, channels=6, embed_dim=1280, points=10_000)}


class Ulip(nn.Module):
    """PointBERT and the projection to ULIP's space. It holds no values until `read_checkpoint` fills it.

    >>> pooled, per_point = read_checkpoint("ulip", path)(torch.rand(2, 2048, 3))  # doctest: +SKIP
    >>> pooled.shape, per_point.shape  # doctest: +SKIP
    (torch.Size([2, 512]), torch.Size([2, 2048, 512]))
    """

    def __init__(self, config: UlipConfig):
        super().__init__()
        self.config = config
        with torch.device("meta"):  # nothing is drawn for weights that come from a file
            self.point_encoder = PointBert(config)
            self.pc_projection = nn.Parameter(torch.empty(2 * config.width, config.embed_dim))
        self.to_empty(device="cpu").eval()

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Clouds in the unit sphere `[B, N, channels]` -> their embeddings `[B, E]`, their points' `[B, N, E]`."""
        cls, tokens, centres = self.point_encoder(points)
        pooled = torch.cat([cls, tokens.amax(1)], -1) @ self.pc_projection
        of_cls, of_token = self.pc_projection.chunk(2)  # each [width, E]
        # projecting is linear: G tokens are projected instead of N mixtures of them
        return pooled, (cls @ of_cls)[:, None] + propagate(tokens @ of_token, centres, points[..., :3])


class PointBert(nn.Module):
    """Groups of points -> tokens -> a transformer: CLS `[B, width]`, tokens `[B, G, width]`, centres `[B, G, 3]`."""

    def __init__(self, config: UlipConfig):
        super().__init__()
        self.config, width = config, config.width
        self.encoder = GroupEncoder(config.channels)
        self.reduce_dim = nn.Linear(256, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.cls_pos = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))
        blocks = [Block(width, config.heads) for _ in range(config.depth)]
        self.blocks = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})  # as the checkpoints have it: blocks.blocks.0
        self.norm = nn.LayerNorm(width)

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        xyz, batch = points[..., :3], torch.arange(len(points), device=points.device)[:, None]
        centres = xyz[batch, farthest_points(xyz, self.config.groups)]  # [B, G, 3]
        members = nearest(centres, xyz, self.config.neighbours)  # [B, G, neighbours]
        groups = points[batch[..., None], members, : self.config.channels]  # [B, G, neighbours, channels]
        groups = torch.cat([groups[..., :3] - centres[:, :, None], groups[..., 3:]], -1)
        tokens = self.reduce_dim(self.encoder(groups))
        x = torch.cat([self.cls_token.expand(len(points), -1, -1), tokens], 1)  # [B, 1 + G, width]
        place = torch.cat([self.cls_pos.expand(len(points), -1, -1), self.pos_embed(centres)], 1)
        for block in self.blocks["blocks"].children():
            x = block(x + place)
        x = self.norm(x)
        return x[:, 0], x[:, 1:], centres


class GroupEncoder(nn.Module):
    """A small PointNet: `[B, G, neighbours, channels]` -> `[B, G, 256]`, whatever the order of the neighbours."""

    def __init__(self, channels: int):
        super().__init__()

        def layers(inputs, hidden):
            return nn.Sequential(
                nn.Conv1d(inputs, hidden, 1), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Conv1d(hidden, 256, 1)
            )

        self.first_conv, self.second_conv = layers(channels, 128), layers(512, 512)

    def forward(self, groups: Tensor) -> Tensor:
        B, G = groups.shape[:2]
        x = self.first_conv(groups.flatten(0, 1).transpose(1, 2))  # [B*G, 256, neighbours]
        x = self.second_conv(torch.cat([x.amax(2, keepdim=True).expand_as(x), x], 1))
        return x.amax(2).unflatten(0, (B, G))


class Block(nn.Module):
    """A pre-norm transformer block; queries, keys and values have no bias."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width, bias=False), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)  # [B, heads, 1 + G, width / heads]
        x = x + self.attn["proj"](mixed.transpose(1, 2).flatten(2))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


# -- geometry


def farthest_points(xyz: Tensor, number: int) -> Tensor:
    """Indices `[B, number]` of points `[B, N, 3]`, each as far as can be from all chosen before it.

    By the rules of the original's GPU code (`pointnet2_ops`): point 0 comes first; points whose squared norm is at
    most 0.001 are never chosen otherwise; of equally far points the one wins that its threads compare last, which is
    the order of the bit-reversed thread, index modulo the number of threads, and within a thread the lower index.

    >>> farthest_points(torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0.5, 0, 0], [-1, 0, 0]]]), 3)
    tensor([[0, 3, 2]])
    """
    N = xyz.shape[1]
    bits = min(9, N.bit_length() - 1)  # at most 512 threads
    index = torch.arange(N, device=xyz.device)
    order = sum(((index >> b & 1) << (bits - 1 - b) for b in range(bits)), torch.tensor(0)) if bits else index
    order = torch.argsort(order, stable=True)  # argmax takes the first of equals, so that order settles the ties
    x, y, z = xyz[:, order].unbind(-1)
    distance = torch.where(x * x + y * y + z * z > 1e-3, 1e10, -1.0)  # squared, to the nearest point chosen so far
    chosen = [torch.zeros(len(xyz), dtype=torch.long, device=xyz.device)]  # order[0] is 0
    for _ in range(number - 1):
        last = chosen[-1][:, None]
        dx, dy, dz = (axis - axis.gather(1, last) for axis in (x, y, z))
        distance = torch.minimum(distance, dx * dx + dy * dy + dz * dz)
        chosen.append(distance.argmax(1))
    return order[torch.stack(chosen, 1)]


def nearest(centres: Tensor, xyz: Tensor, number: int) -> Tensor:
    """Indices `[B, G, number]` of the points `[B, N, 3]` nearest to each centre `[B, G, 3]`, in no order."""
    squared = -2 * centres @ xyz.transpose(1, 2) + centres.square().sum(-1)[..., None] + xyz.square().sum(-1)[:, None]
    return squared.topk(number, largest=False, sorted=False).indices


def propagate(features: Tensor, centres: Tensor, xyz: Tensor, number: int = 3) -> Tensor:
    """Features `[B, G, E]` of centres `[B, G, 3]` -> those of points `[B, N, 3]`: `[B, N, E]`.

    A point takes its three nearest centres, weighted by the inverse of the squared distance; a centre keeps its own.
    """
    near, index = torch.cdist(xyz, centres, compute_mode="donot_use_mm_for_euclid_dist").topk(
        min(number, centres.shape[1]), largest=False
    )  # [B, N, number]
    weights = 1 / (near.square() + 1e-8)
    weights = weights / weights.sum(-1, keepdim=True)
    batch = torch.arange(len(xyz), device=xyz.device)[:, None]
    mixed = (weights[..., i, None] * features[batch, index[..., i]] for i in range(index.shape[-1]))
    return sum(mixed, torch.tensor(0))


def unit_sphere(points: Tensor, frame: str = "camera") -> Tensor:
    """Clouds `[B, N, 6]` as ULIP was trained on them: y up, the mean at the origin, the farthest point at 1.

    frame "camera": y is down and z forward (OpenCV), so both change their sign; "world": z is up, y becomes z.

    >>> unit_sphere(torch.tensor([[[0.0, 0, 1, 1, 1, 1], [0, 0, 3, 1, 1, 1]]]))[0, 0]
    tensor([0., -0., 1., 1., 1., 1.])
    """
    x, y, z = points[..., :3].unbind(-1)
    xyz = torch.stack([x, -y, -z] if frame == "camera" else [x, z, -y], -1)
    xyz = xyz - xyz.mean(1, keepdim=True)
    radius = xyz.norm(dim=-1).amax(1)[:, None, None]
    return torch.cat([xyz / radius.clamp_min(1e-12), points[..., 3:]], -1)


# -- weights


def load_ulip(weights: Path | None, device: str = "cpu", frame: str = "camera") -> CloudEncoder:
    """ULIP's PointBERT with the weights of an official checkpoint. Raises InputError saying what is missing."""
    return _load("ulip", weights, device, frame)


def load_ulip2(weights: Path | None, device: str = "cpu", frame: str = "camera") -> CloudEncoder:
    """ULIP-2's PointBERT for coloured points, likewise."""
    return _load("ulip2", weights, device, frame)


def _load(name, weights, device, frame):
    network = read_checkpoint(name, weights)
    made_by = network_fingerprint(network, f"{frame} frame")
    network.to(device)

    def features(points: Tensor) -> dict[str, Tensor]:
        pooled, per_point = network(unit_sphere(points, frame))
        return {"pc_feat": per_point, "pooled": pooled}

    config = network.config
    return CloudEncoder(
        name, features, made_by, config.embed_dim, fewest=config.neighbours, most=config.points, grey=0.4, device=device
    )


def read_checkpoint(name: str, path: Path | None, config: UlipConfig | None = None) -> Ulip:
    """The network "ulip" or "ulip2" filled from an official checkpoint (`state_dict`, keys `module.point_encoder...`).

    What the file holds besides (towers for images and texts, an optimiser) is not touched.
    Raises InputError naming a file that is missing, unreadable or of another network.
    """
    where = f"{HUB}/blob/main/{FILES[name]} ({LICENCE})"
    if path is None or not Path(path).is_file():
        found = f"{path}: no such file" if path else "no weights are given"
        raise InputError(f"encoder '{name}': {found}; download {where} and give it with --weights")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # settings; numpy's numbers `data.packs` allows
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as e:
        reason = first_line(e)
        raise InputError(f"{path}: expected a checkpoint of {name}, found: {reason}; download {where} again") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    state = {str(k).removeprefix("module."): v for k, v in state.items()}
    network = Ulip(config or CONFIGS[name])
    wrong = {
        key: f"{list(state[key].shape)} instead of {list(value.shape)}" if key in state else "none"
        for key, value in network.state_dict().items()
        if not isinstance(state.get(key), Tensor) or state[key].shape != value.shape
    }
    blocks = {key.split(".")[3] for key in state if key.startswith("point_encoder.blocks.blocks.")}
    if wrong or len(blocks) != network.config.depth:
        key, found = next(iter(wrong.items()), ("blocks", str(len(blocks))))
        raise InputError(
            f"{path}: expected the weights of {name} ({network.config.depth} blocks), found {len(blocks)} blocks, "
            f"and for {key}: {found}; the other network is --encoder {'ulip' if name == 'ulip2' else 'ulip2'}, "
            f"the file of this one {where}"
        )
    network.load_state_dict({key: state[key].float() for key in network.state_dict()})
    return network


def _is_zip(path):  # only such files can be mapped; those of torch before 1.6 are read whole
    with open(path, "rb") as file:
        return file.read(2) == b"PK"
