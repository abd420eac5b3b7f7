"""What a student has to beat: the experts' own features, pooled with the same care, and what needs no features."""

from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA
from torch import Tensor

from rgb2pc_lib.data.sampling import Gatherer, lattice, ordered_plans
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.finish import embed_samples
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.learning.runs import build_student

CONCATENATED, PROPRIOCEPTION, UNTRAINED = "experts concatenated", "proprioception", "untrained student"
BLOCKS = (1, 2, 4)  # blocks of the image along each side
WIDEST = 1024  # columns of what is called full width: wider features keep so many principal components
KNOWN = {PROPRIOCEPTION: ("R2 tcp", "tcp cm", "R2 opening")}  # what a rival was told, and is no rival in


def pooled_features(data: Data, blocks: int = 1) -> dict[str, np.ndarray]:
    """Mean token of each expert in every block of the image, `[n, blocks * blocks * C]`, for all samples."""
    return pooled_blocks(data, (blocks,))[blocks]


def pooled_blocks(data: Data, sides: tuple[int, ...]) -> dict[int, dict[str, np.ndarray]]:
    """`pooled_features` for several numbers of blocks, from one reading of the packs."""
    samples = data.samples
    gatherer, positions = Gatherer(samples), lattice(samples.pairing.finest_grid)
    plans = ordered_plans(samples, np.arange(len(samples)), 16, positions)
    parts: dict[int, dict[str, list]] = {side: {name: [] for name in samples.expert_rows} for side in sides}
    for batch in gatherer.run(plans):
        for m, (name, tokens) in enumerate(batch.tokens.items()):
            for side, of in parts.items():
                of[name].append(block_means(tokens, batch.present[:, :, m : m + 1], positions, side))
    return {side: {name: np.concatenate(rows) for name, rows in of.items()} for side, of in parts.items()}


def block_means(tokens: Tensor, there: Tensor, positions: np.ndarray, side: int) -> np.ndarray:
    """Means `[B, blocks * C]` of tokens `[B, K, C]` at places `[K, 2]`, over those of each block.

    A token counts where it is `there` `[B, K, 1]`. Blocks are those of `side` x `side` that hold places, row-major; one
    without a token that is there gives zeros.
    """
    seen = tokens.float() * there
    places = _places_of_blocks(positions, side)
    return np.concatenate([(seen[:, of].sum(1) / there[:, of].sum(1).clamp(min=1)).cpu().numpy() for of in places], 1)


def _places_of_blocks(positions: np.ndarray, side: int) -> list[np.ndarray]:
    """Numbers of the positions `[K, 2]` in each block of the image that has any, row-major."""
    x, y = np.minimum((positions * side).astype(int), side - 1).T
    return [of for b in range(side * side) if len(of := np.flatnonzero(y * side + x == b))]


def pooled_rivals(data: Data, width: int, fit: np.ndarray) -> dict[str, np.ndarray]:
    """Every expert and all together, as means over the image and over its blocks: at full width and at the student's.

    Principal components are those of the samples `fit` (bool). A name says them: "dinov3 4x4, 256 PCs".
    """
    found: dict[str, np.ndarray] = {}
    for blocks, pooled in pooled_blocks(data, BLOCKS).items():
        if len(pooled) > 1:
            pooled[CONCATENATED] = np.concatenate(list(pooled.values()), 1)
        for name, x in pooled.items():
            said = name if blocks == 1 else f"{name} {blocks}x{blocks}"
            full = x if x.shape[1] <= WIDEST else components(x, WIDEST, fit)
            found[said if full is x else f"{said}, {full.shape[1]} PCs"] = full
            if x.shape[1] > width:
                found[f"{said}, {width} PCs"] = full[:, :width] if full is not x else components(x, width, fit)
    return found


def components(x: np.ndarray, width: int, fit: np.ndarray) -> np.ndarray:
    """The first principal components of features `[n, C]`, as far as the samples `fit` have so many: `[n, width]`."""
    return fit_components(x, width, fit).transform(x.astype(np.float32))


def fit_components(x: np.ndarray, width: int, fit: np.ndarray) -> PCA:
    """The principal components behind `components`: its `mean_` `[C]` and `components_` `[width, C]`."""
    pca = PCA(min(width, int(fit.sum()), x.shape[1]), svd_solver="randomized", random_state=0)
    return pca.fit(x[fit].astype(np.float32))


def untrained(config: Config, data: Data, width: int, positions: np.ndarray) -> np.ndarray:
    """Embeddings `[n, E]` of all samples by the config's student as it is before its first step."""
    student = build_student(config, data.samples.pairing.channels, width)
    return embed_samples(student, Gatherer(data.samples), np.arange(len(data.samples)), positions)[0]
