"""Spatial tokens as something to be learned: what they usually are, what is missed of them, and how much is told.

Tokens that are zero are of places that no expert saw; they count nowhere.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor


def missed(spatial: Tensor, wanted: Tensor, spread: Tensor | float) -> Tensor:
    """Mean squared distance of spatial tokens `[B, P, D]` from those that are wanted, in units of their `spread`.

    >>> missed(torch.zeros(2, 16, 3), torch.full((2, 16, 3), 4.0), spread=2.0)
    tensor(4.)
    """
    seen = (wanted != 0).any(-1, keepdim=True)  # [B, P, 1]
    squares = ((spatial - wanted) / spread).square() * seen
    return squares.sum() / (seen.sum() * wanted.shape[-1]).clamp(min=1)


def usual(spatial: np.ndarray) -> tuple[np.ndarray, float]:
    """Of tokens `[n, P, D]` each place's mean `[P, D]`, and the root of their mean squared distance from it.

    >>> mean, spread = usual(np.stack([np.full((16, 3), 1.0), np.full((16, 3), 3.0)]))
    >>> mean[0].tolist(), spread
    ([2.0, 2.0, 2.0], 1.0)
    """
    seen = _seen(spatial)
    mean = spatial.sum(0) / seen.sum(0).clip(1)
    squares = (np.square(spatial - mean) * seen).sum() / max(seen.sum() * spatial.shape[-1], 1)
    return mean, max(float(np.sqrt(squares)), 1e-6)


def told_of_places(
    spatial: np.ndarray | None, wanted: np.ndarray | None, usually: np.ndarray | None
) -> dict[str, float]:
    """How much of the tokens' variance is told, "spatial R2": 1 for all, 0 for `usually` `[P, D]` in every frame.

    Nothing where there are no tokens.

    >>> wanted = np.stack([np.full((16, 3), 1.0), np.full((16, 3), 3.0)])
    >>> told_of_places(wanted, wanted, wanted.mean(0))
    {'spatial R2': 1.0}
    """
    if spatial is None or wanted is None or usually is None:
        return {}
    seen = _seen(wanted)
    off, around = ((np.square(x - wanted) * seen).sum() for x in (spatial, usually))
    return {"spatial R2": float(1 - off / around)}


def _seen(spatial: np.ndarray) -> np.ndarray:
    seen: np.ndarray = (spatial != 0).any(-1, keepdims=True)  # [n, P, 1]
    return seen
