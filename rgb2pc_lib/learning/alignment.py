"""The geometric route: a point of the cloud and the place of the image where it is seen get the same embedding.

No step is pooled: the shared positions of a batch are the pixels of its points, and point-to-patch InfoNCE compares
every point with every place of the batch. A pair is no negative when it cannot or need not be told apart: two places of
one frame closer than a token, and any two frames of one episode, where most of the scene stands still.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rgb2pc_lib.data.geometry import same_points
from rgb2pc_lib.data.pairing import Samples
from rgb2pc_lib.data.sampling import Batch, Gatherer, Plan, Planner, refuse_not_finite
from rgb2pc_lib.data.step_points import PointReader
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.losses import info_nce, load_balance
from rgb2pc_lib.learning.objective import Distillation
from rgb2pc_lib.learning.places import point_to_patch
from rgb2pc_lib.learning.point_models import PlaceStudent


def anchors(samples: Samples, index: np.ndarray, window: int) -> list[np.ndarray]:
    """Sample numbers in windows of up to `window` steps in a row, of one episode each, every sample in one of them."""
    keys = samples.keys().loc[index]
    episodes = [index[rows] for rows in keys.groupby(["task", "episode"], sort=False).indices.values()]
    return [e[start : start + window] for e in episodes for start in range(0, len(e), window)]


def anchor_of(window: np.ndarray, which: str, draw: float) -> int:
    """The frame of a window that is used; `draw` in [0, 1) decides for "random".

    >>> [anchor_of(np.arange(4, 9), which, 0.99) for which in ("first", "middle", "last", "random")]
    [4, 6, 8, 8]
    """
    last = len(window) - 1
    return int(window[{"first": 0, "middle": last // 2, "last": last, "random": int(draw * len(window))}[which]])


def points_drawn(config: Config) -> int:
    """Points a sample: as many as positions where alignment is all there is; beside distillation half as many."""
    return config.student_tokens if config.route == "geometric" else -(-config.student_tokens // 2)


class PointPlanner:
    """Batches at the pixels of points: `planner(n)` is batch n, whatever was asked before.

    A `Planner` chooses the samples. With alignment alone its positions are replaced by those of random points of each
    sample; beside distillation they are appended to it. Each plan carries what is known of its points.

    With `partners`, the second half of a batch are other steps of the first half's episodes, and the first half of the
    points of both are pairs: the same places in space, seen in two steps.
    """

    def __init__(self, planner: Planner, reader: PointReader, config: Config):
        self.planner, self.reader, self.config = planner, reader, config
        self.points, self.alone = points_drawn(config), config.route == "geometric"
        self.windows: dict[int, np.ndarray] = {}
        if self.alone and config.sample_unit == "window":
            self.windows = {w[0]: w for w in anchors(reader.samples, planner.index, config.window)}
            planner.index = np.array(list(self.windows))
            if config.batch_size > len(planner.index):
                raise InputError(
                    f"--batch_size {config.batch_size} is larger than the {len(planner.index)} windows of training "
                    "samples; lower it, or --window"
                )
        keys = reader.samples.keys()
        self.episode = keys.groupby(["task", "episode"]).ngroup().to_numpy()
        self.index = planner.index

    def __call__(self, n: int) -> Plan:
        plan = self.planner(n)
        rng = np.random.default_rng([self.config.seed, 4, n])
        chosen = plan.samples
        if self.windows:
            chosen = np.array([anchor_of(self.windows[s], self.config.anchor, rng.random()) for s in chosen])
        if self.config.loss_consistency:
            chosen, which = self._with_partners(chosen, rng)
        else:
            which = [self._draw(s, self.points, rng) for s in chosen.tolist()]
        pairs = list(zip(chosen.tolist(), which, strict=True))
        at = np.stack([self.reader.fractions(s)[w] for s, w in pairs])  # [B, P, 2]
        known = np.stack([self.reader.known(s, w) for s, w in pairs])  # [B, P, F]
        if not self.alone:
            return dataclasses.replace(plan, positions=np.concatenate([plan.positions, at], 1), points=known)
        teacher = self.planner.all_samples.teacher_rows[chosen]
        return dataclasses.replace(plan, samples=chosen, teacher=teacher, positions=at, points=known)

    def _draw(self, sample: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """Different points of a sample, in random order; where there are fewer, some come several times."""
        n = len(self.reader.uv(sample))
        return np.resize(rng.permutation(n), count) if n < count else rng.choice(n, count, replace=False)

    def _with_partners(self, chosen: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
        half, paired = len(chosen) // 2, self.points // 2
        first, second, mine, theirs = chosen[:half].tolist(), [], [], []
        for s in first:
            mates = self.index[(self.episode[self.index] == self.episode[s]) & (self.index != s)]
            other = int(rng.choice(mates)) if len(mates) else s
            i, j = same_points(self.reader.world(s), self.reader.world(other))
            drawn = rng.integers(len(i), size=paired) if len(i) else None
            rest = self.points - paired
            pair = (i[drawn], j[drawn]) if drawn is not None else (self._draw(s, paired, rng),) * 2
            second.append(other if drawn is not None else s)
            mine.append(np.concatenate([pair[0], self._draw(s, rest, rng)]))
            theirs.append(np.concatenate([pair[1], self._draw(second[-1], rest, rng)]))
        alone = chosen[2 * half :].tolist()  # the last one of an odd batch
        which = [*mine, *theirs, *(self._draw(s, self.points, rng) for s in alone)]
        return np.array([*first, *second, *alone]), which


@dataclass(frozen=True)
class Alike:
    """Which places of a batch are no negatives of each other: a `[N, N]` bool of which rows are made when asked for.

    True for places of one frame nearer than `cell` (a fraction of the image, in both directions), and for places of
    different frames of one episode.
    """

    frame: Tensor  # [N]
    episode: Tensor  # [N]
    at: Tensor  # [N, 2] fractions of the image
    cell: Tensor  # [2]

    def __getitem__(self, rows: slice) -> Tensor:
        alike = self.episode[rows, None] == self.episode
        i, j = (self.frame[rows, None] == self.frame).nonzero(as_tuple=True)
        alike[i, j] = ((self.at[rows][i] - self.at[j]).abs() < self.cell).all(-1)
        return alike


def consistency(places: Tensor) -> Tensor:
    """1 - cosine of places that are paired: row i of the first half of a batch `[B, K, E]` with row i of the second.

    >>> consistency(torch.eye(4).expand(2, 4, 4)).item()
    0.0
    """
    half = len(places) // 2
    return 1 - F.cosine_similarity(places[:half], places[half : 2 * half], dim=-1).mean()


def centre(student: PlaceStudent, reader: PointReader, index: np.ndarray, samples: int = 256, points: int = 64) -> None:
    """Tell the student's head the mean of what is known of the training points, from evenly drawn ones."""
    some = index[:: -(-len(index) // samples)].tolist()
    known = [reader.known(s, np.arange(0, n, -(-n // points))) for s in some for n in [len(reader.uv(s))]]
    student.head.mean.copy_(torch.from_numpy(np.concatenate(known).mean(0)))


class Alignment(Distillation):
    """Point-to-patch InfoNCE, alone (route "geometric") or added to distillation (`loss_geometric`).

    Batches are those of a `PointPlanner`. See `Distillation` for what is expected of an objective.
    """

    student: PlaceStudent

    def __init__(self, config: Config, student: PlaceStudent, mean: Tensor, samples: Samples, reader: PointReader):
        super().__init__(config, student, mean, samples)
        self.reader, self.alone = reader, config.route == "geometric"
        self.distils = not self.alone
        h, w = samples.pairing.finest_grid
        self.cell = torch.tensor([1 / w, 1 / h], device=self.device)
        self.pooled = 0 if self.alone else self.places  # positions that are distilled
        self.places = self.pooled + points_drawn(config)

    def outputs(self, batch: Batch, noise: Tensor | None) -> dict[str, Tensor]:
        first, last = _cut(batch, noise, 0, self.pooled), _cut(batch, noise, self.pooled, None)
        outputs = {} if self.alone else super().outputs(*first)
        part, noise = last
        assert batch.points is not None  # a `PointPlanner` tells them
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            out = self.student.places(part.tokens, part.present, noise)
            points = self.student.points(batch.points)
        refuse_not_finite(part, self.samples, out.embedding)
        aligned = {
            "places": out.embedding.float(),  # [b, P, E]
            "points": points.float(),  # [b, P, E]
            "at": part.positions,  # [b, P, 2]
            "seen": part.present.any(-1),  # [b, P]
        }
        if self.alone:
            outputs["samples"] = torch.from_numpy(batch.samples).to(self.device)
            outputs["gates"] = out.gates.float()
            outputs |= {"present": part.present} if self.config.load_balance else {}
        return outputs | aligned

    def loss(self, outputs: dict[str, Tensor], teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        config, samples, seen = self.config, outputs["samples"], outputs["seen"]
        loss, terms = (0.0, {}) if self.alone else super().loss(outputs, teacher)
        frame = torch.arange(len(seen), device=seen.device)[:, None].expand_as(seen)
        alike = Alike(frame[seen], self.episode[samples][:, None].expand_as(seen)[seen], outputs["at"][seen], self.cell)
        terms["point-to-patch"] = info_nce(outputs["places"][seen], outputs["points"][seen], self.log_tau.exp(), alike)
        loss = loss + (1.0 if self.alone else config.loss_geometric) * terms["point-to-patch"]
        if self.alone and config.load_balance:
            terms["load balance"] = load_balance(outputs["gates"], outputs["present"])
            loss = loss + config.load_balance * terms["load balance"]
        if config.loss_consistency:
            terms["consistency"] = consistency(outputs["places"][:, : points_drawn(config) // 2])
            loss = loss + config.loss_consistency * terms["consistency"]
        return loss, terms

    def figures(self, gatherer: Gatherer, index: np.ndarray, most: int = 256) -> dict[str, float]:
        """How well points find their places, over at most `most` of these samples."""
        return point_to_patch(self.student, gatherer, self.reader, index, most=most)


def begin(
    config: Config, student: PlaceStudent, mean: Tensor, samples: Samples, planner: Planner
) -> tuple[Alignment, PointPlanner]:
    """The objective of a training that aligns places with points, and its plans."""
    reader = PointReader(samples, config.workspace, config.point_target)
    centre(student, reader, planner.index)
    return Alignment(config, student, mean, samples, reader), PointPlanner(planner, reader, config)


def _cut(batch: Batch, noise: Tensor | None, start: int, stop: int | None) -> tuple[Batch, Tensor | None]:
    """A batch at some of its positions."""
    at = slice(start, stop)
    tokens = {k: v[:, at] for k, v in batch.tokens.items()}
    part = dataclasses.replace(batch, tokens=tokens, present=batch.present[:, at], positions=batch.positions[:, at])
    return part, None if noise is None else noise[:, at]
