"""The student: one adapter per expert, fusion, pooling over places, and a projector.

Fusion and pooling are done before each adapter's last linear layer. Both are linear, so the result is exactly the
same as after it, and a matrix product per token becomes one per pooled region.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rgb2pc_lib.data.workspace import camera_of

FUSIONS = ("weighted", "moe", "uniform")
POOLINGS = ("mean", "blocks2", "blocks4", "attention")
_QUERIES = 8  # of "attention"
SIDE = 4  # cells along each side of the coarse grid of spatial tokens


@dataclass
class Fused:
    """What the student gives: embeddings `[B, E]` and the gates `[B, K, M]` that made them (0 where absent)."""

    embedding: Tensor
    gates: Tensor


class Adapter(nn.Module):
    """LayerNorm -> Linear (+ place) -> GELU, then a last Linear that is applied after pooling."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, elementwise_affine=False)  # `inner` holds scale and shift already
        self.inner = nn.Linear(channels, width)
        self.place = nn.Linear(PLACE_FEATURES, width, bias=False)
        self.outer = nn.Linear(width, width)

    def hidden(self, tokens: Tensor, place: Tensor) -> Tensor:
        """`[B, K, C]` tokens of any dtype and `[B, K, P]` place features -> `[B, K, D]`."""
        return F.gelu(self.inner(normalised(tokens, self.norm, self.inner.weight.dtype)) + self.place(place))


class Student(nn.Module):
    """RGB features of several experts in, one embedding out.

    Experts may see through several cameras (`ENCODER@CAMERA`). A place is then one of each camera's image: its gates
    weigh the experts of all of them, attention looks at each camera's places by themselves, and spatial tokens are
    given camera by camera. A camera that is missing is one whose experts are absent.

    Args:
        channels: expert name -> C. The order of names is the order of gates.
        embed_dim: width E of the embedding (the teacher's).
        fusion: "weighted", a softmax over M logits shared by all; "moe", a gate network that sees all experts' tokens
            of a place and gives that place's weights; or "uniform", equal weights that are not learned.
        width: D, of the adapters.
        moe_hidden: width of the gate network.
        top_k: with "moe", how many experts a place may use (0: all).
        gate_noise: with "moe", standard deviation of noise on the gate logits while training.
        seed: every initial weight comes from this generator, never from the global one. None: there are no weights and
            no memory for them until a state dict is assigned.
        pooling: how the places of a step become one vector: their "mean", means over 2 x 2 or 4 x 4 blocks of the image
            ("blocks2", "blocks4") or over what learned queries attend to ("attention"); several are joined by a layer.

    >>> student = Student({"a": 8, "b": 4}, embed_dim=16, fusion="moe", width=32)
    >>> tokens = {"a": torch.zeros(2, 5, 8), "b": torch.zeros(2, 5, 4)}
    >>> out = student(tokens, torch.ones(2, 5, 2, dtype=torch.bool), torch.rand(2, 5, 2))
    >>> out.embedding.shape, out.gates.shape
    (torch.Size([2, 16]), torch.Size([2, 5, 2]))
    """

    logits: Tensor  # [M], of "weighted", learned, and of "uniform"

    def __init__(
        self, channels: dict[str, int], embed_dim: int, fusion: str = "weighted", width: int = 256,
        moe_hidden: int = 128, top_k: int = 0, gate_noise: float = 0.0, seed: int | None = 0, pooling: str = "mean",
    ):  # fmt: skip
        super().__init__()
        for name, value, known in (("fusion", fusion, FUSIONS), ("pooling", pooling, POOLINGS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        self.experts, self.fusion, self.top_k, self.gate_noise = list(channels), fusion, top_k, gate_noise
        self.pooling, self.embed_dim = pooling, embed_dim
        self.cameras = list(dict.fromkeys(camera_of(name) for name in channels))
        with torch.device("meta"):  # building draws nothing from the global generator
            self.adapters = nn.ModuleDict({name: Adapter(c, width) for name, c in channels.items()})
            if fusion == "moe":
                self.gate = nn.Sequential(
                    nn.Linear(width * len(channels), moe_hidden), nn.GELU(), nn.Linear(moe_hidden, len(channels))
                )
            elif fusion == "weighted":
                self.logits = nn.Parameter(torch.zeros(len(channels)))
            self.projector = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, embed_dim)
            )
            if pooling != "mean":
                regions = {"blocks2": 4, "blocks4": 16, "attention": _QUERIES}[pooling]
                self.join = nn.Linear(regions * width, width)
            if pooling == "attention":
                self.queries = nn.Linear(width, _QUERIES, bias=False)
        if seed is not None:
            self.to_empty(device="cpu")
        if fusion == "uniform":
            self.register_buffer("logits", torch.zeros(len(channels)), persistent=False)
        if seed is not None:
            initialise(self, torch.Generator().manual_seed(seed))

    def forward(
        self, tokens: dict[str, Tensor], present: Tensor, positions: Tensor, noise: Tensor | None = None
    ) -> Fused:
        """Embed a batch.

        Args:
            tokens: expert -> `[B, K, C]`; experts that are absent everywhere may be left out.
            present: `[B, K, M]` bool, which expert covers which place of which sample.
            positions: `[B, K, 2]` (x, y) as fractions of the original image.
            noise: `[B, K, M]`, standard normal; `gate_noise` times it is added to the gate's logits (training only).
        """
        return self.fuse(self.hidden(tokens, positions), present, positions, noise)

    def hidden(self, tokens: dict[str, Tensor], positions: Tensor) -> dict[str, Tensor]:
        """What the adapters make of the tokens before fusion, expert -> `[B, K, D]`: nearly all of the work."""
        place = place_features(positions)
        given = [name for name in self.experts if name in tokens]
        return {name: self.adapter(name).hidden(tokens[name], place) for name in given}

    def adapter(self, name: str) -> Adapter:
        """That of an expert."""
        found = self.adapters[name]
        assert isinstance(found, Adapter)
        return found

    def fuse(self, hidden: dict[str, Tensor], present: Tensor, positions: Tensor, noise: Tensor | None = None) -> Fused:
        """The rest of `forward`, for any subset of the experts."""
        present = self._without_missing(hidden, present)
        gates = self._gates(hidden, present, noise)  # [B, K, M]
        fused = self._pooled(hidden, gates, self._regions(hidden, gates, present, positions))  # [B, R, D]
        joined = fused.flatten(1) if self.pooling == "mean" else self.join(fused.flatten(1))
        return Fused(self.projector(joined), gates)

    def spatial(
        self, tokens: dict[str, Tensor], present: Tensor, positions: Tensor, side: int = SIDE
    ) -> tuple[Tensor, Tensor]:
        """Spatial tokens: fused places averaged over a coarse grid of the image, for policies that need places.

        Returns `[B, side * side, D]`, row-major, and whether any place was seen in each cell `[B, side * side]`.
        Of C cameras `C * side * side`, one camera after the other. Unseen cells are zero. Arguments as in `forward`.
        """
        return self.coarse(self.hidden(tokens, positions), present, positions, side)

    def coarse(
        self, hidden: dict[str, Tensor], present: Tensor, positions: Tensor, side: int = SIDE
    ) -> tuple[Tensor, Tensor]:
        """The rest of `spatial`, as `fuse` is of `forward`."""
        present, cells, seen = self._without_missing(hidden, present), [], []
        for camera in self.cameras:
            here = present & self._through(camera, present.device)
            regions = _blocks(here, positions, side)
            own = {name: h for name, h in hidden.items() if camera_of(name) == camera}
            if own:
                cells.append(self._pooled(own, self._gates(hidden, here, None), {camera: regions}))
            else:  # it is missing
                some = next(iter(hidden.values()))
                cells.append(some.new_zeros(len(some), regions.shape[2], some.shape[2]))
            seen.append(regions.sum(1) > 0)
        return torch.cat(cells, 1), torch.cat(seen, 1)

    def _through(self, camera: str, device: torch.device) -> Tensor:
        """Which experts see through a camera, `[M]`."""
        return torch.tensor([camera_of(name) == camera for name in self.experts], device=device)

    def look(
        self, tokens: dict[str, Tensor], present: Tensor, positions: Tensor, side: int = SIDE
    ) -> tuple[Tensor, Tensor]:
        """The embeddings `[B, E]` of `forward` and the tokens `[B, side * side, D]` of `spatial`, from one pass."""
        hidden = self.hidden(tokens, positions)
        return self.fuse(hidden, present, positions).embedding, self.coarse(hidden, present, positions, side)[0]

    def _without_missing(self, hidden: dict[str, Tensor], present: Tensor) -> Tensor:
        if len(hidden) < len(self.experts):
            return present & torch.tensor([name in hidden for name in self.experts], device=present.device)
        return present

    def _regions(
        self, hidden: dict[str, Tensor], gates: Tensor, present: Tensor, positions: Tensor
    ) -> dict[str, Tensor]:
        """How much each place of a camera counts in each pooled region, camera -> `[B, K, R]`: sums to 1 over places, 0
        where none is.
        """
        if self.pooling == "attention":
            return {camera: self._attended(camera, hidden, gates, present) for camera in self.cameras}
        side = {"mean": 1, "blocks2": 2, "blocks4": 4}[self.pooling]
        return dict.fromkeys(self.cameras, _blocks(present, positions, side))

    def _attended(self, camera: str, hidden: dict[str, Tensor], gates: Tensor, present: Tensor) -> Tensor:
        """What the queries attend to among a camera's places, `[B, K, R]`."""
        at = {name: m for m, name in enumerate(self.experts) if camera_of(name) == camera}
        asked = (gates[..., at[name], None] * self.queries(h) for name, h in hidden.items() if name in at)
        scores = sum(asked, torch.zeros((), device=present.device))
        seen = present[..., list(at.values())].any(-1, keepdim=True)
        if len(self.cameras) > 1:  # the queries ask as if the camera were the only one
            scores = scores / gates[..., list(at.values())].sum(-1, keepdim=True).clamp(min=1e-6)
        scores = scores.float().masked_fill(~seen, -torch.inf).masked_fill(~seen.any(1, keepdim=True), 0.0)
        return scores.softmax(1) * seen

    def _pooled(self, hidden: dict[str, Tensor], gates: Tensor, regions: dict[str, Tensor]) -> Tensor:
        """Fused regions `[B, R, D]`: gates `[B, K, M]`, regions `[B, K, R]` of cameras, then the adapters' last layers;
        experts of other cameras are left out.
        """
        fused = torch.tensor(0)
        for m, name in enumerate(self.experts):
            if name in hidden and camera_of(name) in regions:
                share = gates[:, :, m : m + 1] * regions[camera_of(name)]  # [B, K, R]
                outer = self.adapter(name).outer
                pooled = _weighted_sum(share, hidden[name])  # [B, R, D]
                fused = fused + F.linear(pooled, outer.weight) + share.sum(1)[..., None] * outer.bias
        return fused

    def weights(self) -> dict[str, float]:
        """Global fusion weights by expert (not with "moe", whose weights depend on the place)."""
        return dict(zip(self.experts, self.logits.softmax(0).tolist(), strict=True))

    def _gates(self, hidden: dict[str, Tensor], present: Tensor, noise: Tensor | None) -> Tensor:
        if self.fusion != "moe":
            logits = self.logits.expand(present.shape)
        else:
            some = next(iter(hidden.values()))
            stacked = [
                hidden[name] * present[:, :, m : m + 1] if name in hidden else torch.zeros_like(some)
                for m, name in enumerate(self.experts)
            ]
            logits = self.gate(torch.cat(stacked, -1)).float()
            if self.training and noise is not None:
                logits = logits + self.gate_noise * noise.to(logits.device)
        logits = logits.masked_fill(~present, -torch.inf)
        if self.fusion == "moe" and 0 < self.top_k < len(self.experts):
            least = logits.topk(self.top_k, -1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        empty = ~present.any(-1, keepdim=True)
        return logits.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)


def _weighted_sum(share: Tensor, hidden: Tensor) -> Tensor:
    """Shares `[B, K, R]` of hidden tokens `[B, K, D]`, summed over places: `[B, R, D]`.

    By a matrix product, which adds in fp32 and makes no `[B, K, D]` of its own.
    """
    return share.mT.to(hidden.dtype) @ hidden


def _blocks(present: Tensor, positions: Tensor, side: int) -> Tensor:
    """Means over `side` x `side` blocks of the image, as weights of places: `[B, K, side * side]`, row-major."""
    seen = present.any(-1).float()  # [B, K]
    if side == 1:
        return (seen / seen.sum(1, keepdim=True).clamp(min=1))[..., None]
    x, y = (positions * side).long().clamp(0, side - 1).unbind(-1)
    inside = F.one_hot(y * side + x, side * side) * seen[..., None]
    return inside / inside.sum(1, keepdim=True).clamp(min=1)


_CACHED = 2**19  # values that stay in a thread's cache between two passes


def normalised(tokens: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> Tensor:
    """LayerNorm in `dtype`, rounded to what the matrix product after it takes: `norm(tokens.to(dtype))`.

    On a CPU, for tokens that need no gradient, in blocks of rows that stay in the caches of its threads, and mean and
    variance one after the other: ten times as fast.
    """
    if tokens.device.type != "cpu" or tokens.requires_grad:
        whole: Tensor = norm(tokens.to(dtype))
        return whole
    rounded = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else dtype
    out, channels = torch.empty(tokens.shape, dtype=rounded), tokens.shape[-1]
    rows = max(_CACHED * torch.get_num_threads() // channels, 1)
    for block, result in zip(tokens.flatten(0, -2).split(rows), out.flatten(0, -2).split(rows), strict=True):
        block = block.to(dtype)
        centred = block - block.mean(-1, keepdim=True)
        variance = torch.linalg.vector_norm(centred, dim=-1, keepdim=True).square_().div_(channels)
        result.copy_(centred.mul_(variance.add_(norm.eps).rsqrt_()))
    return out


_OCTAVES = 4
PLACE_FEATURES = 2 + 4 * _OCTAVES


def place_features(positions: Tensor) -> Tensor:
    """Where a token lies, `[..., 2]` -> `[..., P]`: the position and its sines and cosines at four octaves.

    Mean pooling forgets where a token was; with this the adapters can tell.
    """
    angles = positions[..., None] * (math.pi * 2.0 ** torch.arange(_OCTAVES, device=positions.device))
    waves = torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)
    return torch.cat([2 * positions - 1, waves], -1)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Fill every layer from one generator: uniform 1/sqrt(inputs) for linear layers, identity norms, zero logits."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = 1 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        elif isinstance(layer, nn.LayerNorm) and layer.elementwise_affine:
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    for name, parameter in module.named_parameters(recurse=False):
        if name == "logits":
            nn.init.zeros_(parameter)
