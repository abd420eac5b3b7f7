"""A student that also speaks of single places, and of points: what the geometric route trains.

A place of the image gets an embedding from the same adapters, fusion and projector as a step does, without pooling; a
point of the cloud gets one from a small head. Both live in one space, where a point is near the place it is seen at.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rgb2pc_lib.learning.models import SIDE, Fused, Student, initialise, place_features


class PointHead(nn.Module):
    """What is known of a point -> an embedding `[..., E]`: LayerNorm -> Linear -> GELU -> Linear.

    Known is either the teacher's feature of the point, or where it is: xyz (m), as sines and cosines.

    >>> PointHead("xyz", 3, 16)(torch.rand(2, 5, 3)).shape
    torch.Size([2, 5, 16])
    """

    mean: Tensor  # [inputs], of what is known of the training points

    def __init__(self, kind: str, inputs: int, embed_dim: int, width: int = 256):
        super().__init__()
        self.kind = kind
        self.register_buffer("mean", torch.zeros(inputs))
        inputs = place_features(self.mean).shape[-1] if kind == "xyz" else inputs
        self.layers = nn.Sequential(
            nn.LayerNorm(inputs, elementwise_affine=False), nn.Linear(inputs, width), nn.GELU(),
            nn.Linear(width, embed_dim),
        )  # fmt: skip

    def forward(self, known: Tensor) -> Tensor:
        known = known - self.mean
        embedding: Tensor = self.layers(place_features(known) if self.kind == "xyz" else known)
        return embedding


class PlaceStudent(Student):
    """A student with `places` and `points`; the other arguments are those of `Student`.

    `places` never tells the adapters where a token lies. A point's xyz gives its pixel away (it is a projection), so a
    token that knew its place could be matched without being looked at. `knows_place` says whether the pooled embedding
    is made with places (when it is distilled too) or without (when alignment is all there is).

    >>> student = PlaceStudent({"a": 8}, 16, head=PointHead("xyz", 3, 16), knows_place=False)
    >>> student.places({"a": torch.zeros(2, 5, 8)}, torch.ones(2, 5, 1, dtype=torch.bool)).embedding.shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        channels: dict[str, int],
        embed_dim: int,
        *,
        head: PointHead,
        knows_place: bool,
        seed: int | None = 0,
        **other: Any,
    ):
        super().__init__(channels, embed_dim, seed=seed, **other)
        self.head, self.knows_place = head, knows_place
        if seed is not None:
            initialise(self.head, torch.Generator().manual_seed(seed))

    def forward(
        self, tokens: dict[str, Tensor], present: Tensor, positions: Tensor, noise: Tensor | None = None
    ) -> Fused:
        """One embedding per sample, as every student gives."""
        return super().forward(tokens, present, positions if self.knows_place else nowhere(present), noise)

    def look(
        self, tokens: dict[str, Tensor], present: Tensor, positions: Tensor, side: int = SIDE
    ) -> tuple[Tensor, Tensor]:
        """As every student's; where tokens lie decides the cell they count in, whether or not the adapters know it."""
        told = positions if self.knows_place else nowhere(present)
        hidden = self.hidden(tokens, told)
        return self.fuse(hidden, present, told).embedding, self.coarse(hidden, present, positions, side)[0]

    def places(self, tokens: dict[str, Tensor], present: Tensor, noise: Tensor | None = None) -> Fused:
        """One embedding per place, `[B, K, E]`, and the gates; arguments as in `forward`. Absent places give zeros."""
        hidden = self.hidden(tokens, nowhere(present))  # expert -> [B, K, D]
        if len(hidden) < len(self.experts):
            present = present & torch.tensor([name in hidden for name in self.experts], device=present.device)
        gates = self._gates(hidden, present, noise)  # [B, K, M]
        at = {name: m for m, name in enumerate(self.experts)}
        fused = (gates[..., at[name], None] * self.adapter(name).outer(h) for name, h in hidden.items())
        return Fused(self.projector(sum(fused, torch.tensor(0))) * present.any(-1, keepdim=True), gates)

    def points(self, known: Tensor) -> Tensor:
        """One embedding per point, `[..., E]`, of what is known of it."""
        embedding: Tensor = self.head(known)
        return embedding


def nowhere(present: Tensor) -> Tensor:
    """Positions `[B, K, 2]` that tell nothing: the middle of the image for all."""
    return torch.full((*present.shape[:2], 2), 0.5, device=present.device)


def similarity(places: Tensor, points: Tensor) -> Tensor:
    """Cosine of every point `[..., P, E]` with every place `[..., K, E]`: `[..., P, K]`."""
    return F.normalize(points, dim=-1) @ F.normalize(places, dim=-1).mT
