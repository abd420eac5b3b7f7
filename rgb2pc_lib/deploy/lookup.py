"""What a batch gathered from packs would hold, from grids of tokens that were made just now."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from rgb2pc_lib.data.geometry import Layout
from rgb2pc_lib.data.sampling import embedding_lattice
from rgb2pc_lib.encoders.images import Expert


def at_places(
    experts: Mapping[str, Expert], grids: dict[str, Tensor], size: tuple[int, int], at: np.ndarray | None = None
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The experts' grids `[B, Hf, Wf, C]` of images of `size` (height, width), at the places `at` `[K, 2]`.

    Returns tokens (expert -> `[B, K, C]`), present `[B, K, M]` and positions `[B, K, 2]`; without places at those where
    steps are embedded (`embedding_lattice` of the finest of these experts' grids).
    """
    views = {name: expert.view(*size) for name, expert in experts.items()}
    if at is None:
        at = embedding_lattice(max((view.grid for view in views.values()), key=math.prod))
    some = next(iter(grids.values()))
    tokens, present = {}, torch.ones(len(some), len(at), len(grids), dtype=torch.bool, device=some.device)
    for m, (name, grid) in enumerate(grids.items()):
        view = views[name]
        cells = torch.from_numpy(Layout(view.grid, view.box).cells(at)).to(some.device)  # [K]
        tokens[name] = grid.flatten(1, 2)[:, cells.clamp(min=0)]  # [B, K, C]
        present[:, :, m] &= cells >= 0
    return tokens, present, torch.tensor(at, dtype=torch.float32, device=some.device).expand(len(some), -1, -1)
