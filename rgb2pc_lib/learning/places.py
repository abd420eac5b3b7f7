"""A student that speaks of places, at work: embeddings of places and points of any sample, and how often they meet."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import torch

from rgb2pc_lib.data.geometry import fractions_to_uv
from rgb2pc_lib.data.sampling import Gatherer, lattice, ordered_plans
from rgb2pc_lib.data.step_points import PointReader
from rgb2pc_lib.learning.metrics import unit
from rgb2pc_lib.learning.point_models import PlaceStudent

TOLERANCE = 16.0  # pixels of the original image


@torch.no_grad()
def embed_places(
    student: PlaceStudent, gatherer: Gatherer, index: np.ndarray, positions: np.ndarray, batch: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings `[n, K, E]` of places, and whether any expert sees them `[n, K]`.

    Positions are fractions of the image, `[K, 2]` for all samples or `[n, K, 2]`.
    """
    was_training = student.training
    student.eval()
    at = np.broadcast_to(positions, (len(index), *positions.shape[-2:]))
    plans = (
        dataclasses.replace(plan, positions=at[i * batch :][: len(plan.samples)])
        for i, plan in enumerate(ordered_plans(gatherer.samples, index, batch, at[0]))
    )
    found, seen = [], []
    for b in gatherer.run(plans):
        found.append(student.places(b.tokens, b.present).embedding.float().cpu().numpy())
        seen.append(b.present.any(-1).cpu().numpy())
    student.train(was_training)
    return unit(np.concatenate(found)), np.concatenate(seen)


@torch.no_grad()
def embed_points(student: PlaceStudent, reader: PointReader, sample: int, which: np.ndarray) -> np.ndarray:
    """Unit embeddings `[P, E]` of some points of a sample."""
    device = student.head.mean.device
    known = torch.from_numpy(reader.known(sample, which)).to(device)
    return unit(student.points(known).float().cpu().numpy())


def point_to_patch(
    student: PlaceStudent, gatherer: Gatherer, reader: PointReader, index: np.ndarray,
    tolerance: float = TOLERANCE, points: int = 256, most: int = 256,
) -> dict[str, float]:  # fmt: skip
    """How well points find the places they are seen at, and the reverse, over at most `most` samples.

    Candidates are the cells of the finest grid, and `points` points of the step, evenly drawn. A find is a hit when it
    lies at most `tolerance` pixels from the true place.

    Returns shares of the points "point to patch" and of the cells that hold a point "patch to point", each with its
    chance, the median error of points in pixels, and a control: the share found "in another image", of another episode
    (of the same task where there is one), which could be found without looking at this one.
    """
    index = index[:: -(-len(index) // most)]
    at = lattice(gatherer.samples.pairing.finest_grid)
    grids, seen = embed_places(student, gatherer, index, at)  # [n, K, E]
    other = elsewhere(gatherer.samples.keys().loc[index])
    rows = []
    for i, sample in enumerate(index.tolist()):
        n = len(reader.uv(sample))
        which = np.unique(np.linspace(0, n - 1, min(points, n)).round().astype(int))
        uv, cells = reader.uv(sample)[which], fractions_to_uv(at, reader.size(sample))
        embedded = embed_points(student, reader, sample, which)
        apart = np.linalg.norm(uv[:, None] - cells, axis=-1)  # [P, K] px
        found = np.where(seen[i], embedded @ grids[i].T, -np.inf)
        wrong = np.where(seen[other[i]], embedded @ grids[other[i]].T, -np.inf)
        holds = seen[i] & (apart.min(0) <= np.linalg.norm(cells[1] - cells[0]) / 2) if len(cells) > 1 else seen[i]
        error = np.take_along_axis(apart, found.argmax(1)[:, None], 1)
        back = apart.T[holds]  # [cells with a point, P]
        rows.append({
            "point to patch": (error <= tolerance).mean(),
            "chance": (apart[:, seen[i]] <= tolerance).mean(),
            "in another image": (np.take_along_axis(apart, wrong.argmax(1)[:, None], 1) <= tolerance).mean(),
            "median px": np.median(error),
            "patch to point": (np.take_along_axis(back, found.T[holds].argmax(1)[:, None], 1) <= tolerance).mean(),
            "chance of a point": (back <= tolerance).mean(),
        })  # fmt: skip
    return {k: float(v) for k, v in pd.DataFrame(rows).mean().items()}


def elsewhere(keys: pd.DataFrame) -> np.ndarray:
    """For each sample another one, of another episode: of the same task and nearest in time where there is one.

    >>> elsewhere(pd.DataFrame({"task": ["a", "a", "a", "b"], "episode": ["0", "0", "1", "0"], "time": [0, 5, 4, 0]}))
    array([2, 2, 1, 0])
    """
    task, episode = keys["task"].to_numpy(), (keys["task"] + "/" + keys["episode"]).to_numpy()
    time = keys["time"].to_numpy().astype(float)
    cost = np.abs(time[:, None] - time) + 1e6 * (task[:, None] != task) + 1e12 * (episode[:, None] == episode)
    nearest: np.ndarray = cost.argmin(1)
    return nearest
