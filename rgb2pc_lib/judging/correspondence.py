"""What correspondence is good for, measured on a run that aligned places with points.

Given a point find its patch, spread a few labels between image and cloud, name every point by its neighbours in feature
space, and find a point again in another step. Nothing is drawn here; see `correspondence_view`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from rgb2pc_lib.checks.sources import rgb_file
from rgb2pc_lib.data.geometry import Placement, same_points
from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.data.sampling import Gatherer, lattice
from rgb2pc_lib.data.states import rows_of, state_file, state_once
from rgb2pc_lib.data.step_points import PointReader
from rgb2pc_lib.data.workspace import portable
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.verdicts import interval
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.metrics import unit
from rgb2pc_lib.learning.places import embed_places, embed_points
from rgb2pc_lib.learning.point_models import PlaceStudent
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.learning.runs import Run

ALIGNED, BOTH = "geometric", "moe + geometric"  # models: alone, and beside distillation
FUSED, POINTS, COLOUR = "aligned places", "aligned points", "colour"
TO_CLOUD, TO_IMAGE, PIXELS = "image to cloud", "cloud to image", "through known pixels"
SAME, LATER, ELSEWHERE = "same step", "later step", "another episode"


@dataclass(frozen=True)
class Step:
    """All that is known of the points of one step, row for row. Features are unit vectors."""

    sample: int
    uv: np.ndarray  # [N, 2] pixel indices
    xyz: np.ndarray  # [N, 3] m, in the frame that the episode's steps share
    labels: np.ndarray | None  # [N] what the simulator says, for judging
    features: dict[str, np.ndarray] = field(repr=False)  # name -> [N, C]: FUSED, POINTS, COLOUR, and every expert
    state: Path | None = None  # the file that the labels are from

    @property
    def truth(self) -> np.ndarray:
        """The labels, where something is judged by them. Raises InputError where there are none."""
        if self.labels is None:
            there = "no state root is named" if self.state is None else f"{self.state}: no labels of the points"
            raise InputError(f"{there}; give states that hold 'labels' (data/README.md) with --state_root")
        return self.labels


class Matcher:
    """A finished run of the geometric route (or with `loss_geometric`), with its data opened.

    >>> matcher = Matcher.open(Run.open("runs/geometric/geometric-seed0"))  # doctest: +SKIP
    >>> matcher.image_map(matcher.held_out[0], point=17).shape  # similarity over the image  # doctest: +SKIP
    (28, 28)
    """

    def __init__(self, run: Run):
        student, _ = run.student()
        if not isinstance(student, PlaceStudent):
            raise InputError(
                f"{run.folder}: this run knows no places; train one with --route geometric or --loss_geometric 0.5"
            )
        self.run, self.student = run, student
        self.data = Data.open(run.config)
        self.gatherer = Gatherer(self.data.samples, run.config.frame_copy)
        self.reader = PointReader(self.data.samples, run.config.workspace, run.config.point_target)
        self.keys, self.held_out = self.data.samples.keys(), self.data.held_out
        self.grid = self.data.samples.pairing.finest_grid
        self.experts = self.student.experts
        some = self.data.training[:: -(-len(self.data.training) // 24)]
        self._means = {e: np.mean([self._tokens(e, s).mean(0) for s in some.tolist()], 0) for e in self.experts}

    @classmethod
    def open(cls, run: Run) -> Matcher:
        """Opened once for a finished run. Raises InputError for a run without places, and where its data are gone."""
        weights = run.file("model.safetensors")
        return _opened(run, weights.stat().st_mtime_ns if weights.exists() else 0)

    # -- one step

    def number(self, task: str, episode: str, step: str) -> int:
        """The sample number of a step."""
        found = np.flatnonzero((self.keys[["task", "episode", "step"]] == (task, episode, step)).all(axis=1))
        if not len(found):
            raise InputError(f"{self.run.folder}: its data hold no step {task}/{episode}/{step} that can be embedded")
        return int(found[0])

    @functools.lru_cache(maxsize=512)  # noqa: B019, a matcher lives as long as its data; 3 MB each
    def grid_features(self, sample: int) -> np.ndarray:
        """Place embeddings over the image at the finest grid, `[H * W, E]`, row-major; zero where no expert sees."""
        return embed_places(self.student, self.gatherer, np.array([sample]), lattice(self.grid))[0][0]

    @functools.lru_cache(maxsize=512)  # noqa: B019
    def step(self, sample: int) -> Step:
        """Everything at the points of a step."""
        at = self.reader.fractions(sample)
        places = embed_places(self.student, self.gatherer, np.array([sample]), at)[0][0]
        points = embed_points(self.student, self.reader, sample, np.arange(len(at)))
        features = {FUSED: places, POINTS: points}
        if (image := self.image(sample)) is not None:
            column, row = np.floor(self.reader.uv(sample)).astype(int).T
            features[COLOUR] = image[row.clip(0, len(image) - 1), column.clip(0, image.shape[1] - 1)] / 255
        features |= {e: unit(self._tokens(e, sample) - self._means[e]) for e in self.experts}
        uv, world = self.reader.uv(sample), self.reader.world(sample)
        return Step(sample, uv, world, self.labels(sample), features, self._state_file(sample))

    def image(self, sample: int) -> np.ndarray | None:
        """The RGB frame, uint8 `[H, W, 3]`, where there is one."""
        file = rgb_file(self.run.config.workspace, *self.keys.loc[sample, ["task", "episode", "step"]])
        return read_image(file) if file else None

    def frame(self, sample: int) -> np.ndarray:
        """The RGB frame, where it is needed. Raises InputError where there is none."""
        image = self.image(sample)
        if image is None:
            where = " / ".join(self.keys.loc[sample, ["task", "episode", "step"]])
            raise InputError(f"{where}: no RGB frame, which is shown here; name the folder of frames (--rgb_root)")
        return image

    def labels(self, sample: int) -> np.ndarray | None:
        """Index into `label_names` of every point, from the state file; None where it holds no labels."""
        state = self.state(sample)
        if "labels" not in state:
            return None
        found = state["labels"][self.state_row(sample)]
        if len(found) != len(self.reader.uv(sample)):
            raise InputError(
                f"{self.reader.file(sample).path}: {len(self.reader.uv(sample))} points, but the state has labels of "
                f"{len(found)}; extract the teacher from the clouds that were labelled"
            )
        return found

    @property
    def label_names(self) -> list[str]:
        return [str(n) for n in self.state(int(self.held_out[0])).get("label_names", [])]

    def state(self, sample: int) -> dict:
        path = self._state_file(sample)
        return state_once(path) if path else {}

    def state_row(self, sample: int) -> int:
        """Where a step stands in its episode's state."""
        path = self._state_file(sample)
        assert path is not None  # a state was read
        return int(rows_of(self.state(sample), [self.keys["step"][sample]], path)[0])

    def _state_file(self, sample: int) -> Path | None:
        root, (task, episode) = self.run.config.workspace.state, self.keys.loc[sample, ["task", "episode"]]
        return state_file(root, task, episode) if root else None

    def _tokens(self, expert: str, sample: int) -> np.ndarray:
        task, episode, step = self.keys.loc[sample, ["task", "episode", "step"]]
        pack = self.data.samples.pairing.packs[expert][task, episode]
        tokens, seen = pack.tokens(step, self.reader.fractions(sample), self._copy)
        return tokens.float().numpy() * seen.numpy()[:, None]

    @property
    def _copy(self) -> str:
        return "middle" if self.run.config.frame_copy == "random" else self.run.config.frame_copy

    # -- a point in the image, a pixel in the cloud

    def image_map(self, sample: int, point: int) -> np.ndarray:
        """Cosine of one point with every place of its image, `[H, W]`."""
        known = embed_points(self.student, self.reader, sample, np.array([point]))
        return (self.grid_features(sample) @ known[0]).reshape(self.grid)

    def cloud_map(self, sample: int, uv: Sequence[float]) -> np.ndarray:
        """Cosine of the place at pixel (u, v) with every point of the cloud, `[N]`."""
        cell = Placement(self.reader.size(sample), self.grid).cells(np.array([uv], float))[0]
        return self.step(sample).features[POINTS] @ self.grid_features(sample)[cell]

    def found_patch(self, sample: int, point: int) -> np.ndarray:
        """Pixel (u, v) of the place that a point finds."""
        return Placement(self.reader.size(sample), self.grid).centres()[self.image_map(sample, point).argmax()]

    # -- which steps are compared

    def episodes(self, index: np.ndarray) -> list[np.ndarray]:
        """Sample numbers of each episode, in time."""
        keys = self.keys.loc[index].sort_values("time", kind="stable")
        return [g.index.to_numpy() for _, g in keys.groupby(["task", "episode"], sort=True)]


@functools.lru_cache(maxsize=4)
def _opened(run: Run, _stamp: int) -> Matcher:
    return Matcher(run)


# -- labels from a few clicks


def clicks(step: Step, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` points of every label that has at least twice as many."""
    labels, counts = np.unique(step.truth, return_counts=True)
    some = [rng.choice(np.flatnonzero(step.truth == n), count, replace=False) for n in labels[counts >= 2 * count]]
    return np.concatenate(some)


def spread(source: np.ndarray, labels: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Every target `[N, C]` gets the label of the nearest source `[n, C]`."""
    return labels[
        (np.square(target[:, None] - source).sum(-1) if target.shape[1] < 4 else -(target @ source.T)).argmin(1)
    ]


def mean_iou(predicted: np.ndarray, true: np.ndarray, classes: np.ndarray) -> float:
    """Intersection over union, averaged over the classes that occur in either.

    >>> mean_iou(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0, 1, 2]))
    0.5
    """
    found = [
        ((predicted == c) & (true == c)).sum() / n for c in classes if (n := ((predicted == c) | (true == c)).sum())
    ]
    return float(np.mean(found))


def spreading(matcher: Matcher, count: int = 5, seed: int = 0) -> pd.DataFrame:
    """Mean IoU when `count` clicks a label in the first step of a held-out episode are spread to other points.

    One row a (direction, method, target) and episode: columns direction, method, target, iou. Directions: "image to
    cloud", clicked pixels name points through what is known of the points alone; "cloud to image", clicked points name
    pixels (those with a point, as only there the truth is known); "through known pixels", the features at the points'
    pixels on both sides, with colour, every expert and (in the step of the clicks) nearest pixel as baselines. Targets:
    the same step (without the clicks), the episode's last step, and the last step of the task's next held-out episode.
    """
    episodes, lines = matcher.episodes(matcher.held_out), []
    tasks = [matcher.keys["task"][e[0]] for e in episodes]
    for k, episode in enumerate(episodes):
        rng = np.random.default_rng([seed, k])
        first = matcher.step(int(episode[0]))
        chosen = clicks(first, count, rng)
        named, classes = first.truth[chosen], np.unique(first.truth[chosen])
        mates = [e for e, t in zip(episodes, tasks, strict=True) if t == tasks[k]]
        other = mates[(next(i for i, e in enumerate(mates) if e is episode) + 1) % len(mates)]
        targets = {SAME: first, LATER: matcher.step(int(episode[-1]))}
        targets |= {ELSEWHERE: matcher.step(int(other[-1]))} if len(mates) > 1 else {}
        for target, step in targets.items():
            rest = np.setdiff1d(np.arange(len(step.uv)), chosen) if step is first else np.arange(len(step.uv))
            for (direction, method), (a, b) in _ways(first).items():
                said = spread(first.features[a][chosen], named, step.features[b][rest])
                lines.append((direction, method, target, mean_iou(said, step.truth[rest], classes)))
            if step is first:
                said = spread(first.uv[chosen], named, step.uv[rest])
                lines.append((PIXELS, "nearest pixel", target, mean_iou(said, step.truth[rest], classes)))
    return pd.DataFrame(lines, columns=["direction", "method", "target", "iou"])


def _ways(step: Step) -> dict[tuple[str, str], tuple[str, str]]:
    """(direction, method) -> features of the clicks and of what they are compared with."""
    across = {(TO_CLOUD, "aligned"): (FUSED, POINTS), (TO_IMAGE, "aligned"): (POINTS, FUSED)}
    return across | {(PIXELS, name): (name, name) for name in step.features if name != POINTS}


# -- names of points by their neighbours


def examples(matcher: Matcher, index: np.ndarray, points: int = 48, steps: int = 4) -> list[tuple[Step, np.ndarray]]:
    """Some steps of every episode, each with some of its points, evenly drawn."""
    parts = []
    for episode in matcher.episodes(index):
        for sample in episode[np.linspace(0, len(episode) - 1, steps).round().astype(int)]:
            step = matcher.step(int(sample))
            parts.append((step, np.linspace(0, len(step.uv) - 1, points).astype(int)))
    return parts


def namer(train: list[tuple[Step, np.ndarray]], features: str, k: int = 15) -> KNeighborsClassifier:
    """k nearest neighbours among labelled points of training steps, by one kind of features."""
    x = np.concatenate([step.features[features][which] for step, which in train])
    return KNeighborsClassifier(k, algorithm="brute").fit(x, np.concatenate([s.truth[which] for s, which in train]))


def segmentation(matcher: Matcher, steps: int = 4) -> pd.DataFrame:
    """kNN on frozen features: labelled points of training episodes name the points of held-out ones.

    One row a (features, episode): columns features, iou (mean), and "<label>" (IoU of each). Features: the aligned
    ones, every expert's tokens at the points, and colour.
    """
    train, test = (
        examples(matcher, matcher.data.training, steps=steps),
        examples(matcher, matcher.held_out, steps=steps),
    )
    lines = []
    for name in train[0][0].features:
        known = namer(train, name)
        for i in range(0, len(test), steps):
            said = np.concatenate([known.predict(s.features[name][w]) for s, w in test[i : i + steps]])
            true = np.concatenate([s.truth[w] for s, w in test[i : i + steps]])
            each = {matcher.label_names[c]: mean_iou(said, true, np.array([c])) for c in np.unique(true)}
            lines.append({"features": name, "iou": mean_iou(said, true, known.classes_), **each})
    return pd.DataFrame(lines)


def painter(train: list[tuple[Step, np.ndarray]], features: str = FUSED) -> Callable[[np.ndarray], np.ndarray]:
    """Features `[N, C]` -> colours `[N, 3]` (0 to 1): three principal components of training points.

    The same feature has the same colour in every step; 96 % of the training points fit the range.
    """
    x = np.concatenate([step.features[features][which] for step, which in train])
    parts = PCA(3, svd_solver="full").fit(x)
    low, high = np.quantile(parts.transform(x), [0.02, 0.98], axis=0)
    return lambda found: ((parts.transform(found) - low) / (high - low)).clip(0, 1)


# -- the same point in another step


def carried(matcher: Matcher, a: Step, b: Step, near: float = 0.08, within: float = 0.01):
    """Points of the gripper, found again where it went: pairs (i, j), by the simulator's fingertips and labels.

    Meta-World's gripper moves without turning: what is near the fingertips moves as they do.
    """
    state, robot = matcher.state(a.sample), matcher.label_names.index("robot")
    here, there = (state["tcp"][matcher.state_row(s.sample)] for s in (a, b))
    i = np.flatnonzero((a.truth == robot) & (np.linalg.norm(a.xyz - here, axis=1) < near))
    j = np.flatnonzero((b.truth == robot) & (np.linalg.norm(b.xyz - there, axis=1) < near))
    if not len(i) or not len(j):
        return i[:0], j[:0]
    m, n = same_points(a.xyz[i] + there - here, b.xyz[j], within)
    return i[m], j[n]


def found_again(matcher: Matcher, apart: int = 5, within: float = 0.03) -> pd.DataFrame:
    """Is the point with the most similar feature in another step the same point? Over held-out episodes.

    Pairs of points of steps `apart` steps from each other: "still", the same place in space in both (at most 1 cm);
    "gripper", what the gripper carried along. A find is a hit when it lies at most `within` metres from the true place.
    One row a (features, points, episode): columns features, points, found, chance, "still there" (the share that is
    found when one answers with the old place), pairs.
    """
    lines = []
    for episode in matcher.episodes(matcher.held_out):
        steps = [matcher.step(int(s)) for s in episode[::apart]]
        for what in ("still", "gripper"):
            hits: dict[str, list] = {}
            chance, stay = [], []
            for a, b in zip(steps[:-1], steps[1:], strict=True):
                i, j = same_points(a.xyz, b.xyz) if what == "still" else carried(matcher, a, b)
                if what == "still":
                    calm = a.truth[i] != matcher.label_names.index("robot")
                    i, j = i[calm], j[calm]
                if not len(i):
                    continue
                distance = np.linalg.norm(b.xyz[j][:, None] - b.xyz, axis=-1)  # [pairs, N]
                chance.append((distance <= within).mean(1))
                stay.append(np.linalg.norm(a.xyz[i] - b.xyz[j], axis=1) <= within)
                for name in a.features:
                    ours, theirs = a.features[name][i], b.features[name]
                    order = -(ours @ theirs.T) if name != COLOUR else np.square(ours[:, None] - theirs).sum(-1)
                    hits.setdefault(name, []).append(distance[np.arange(len(i)), order.argmin(1)] <= within)
            for name, parts in hits.items():
                found = np.concatenate(parts)
                lines.append((name, what, found.mean(), np.concatenate(chance).mean(), np.concatenate(stay).mean(),
                              len(found)))  # fmt: skip
    return pd.DataFrame(lines, columns=["features", "points", "found", "chance", "still there", "pairs"])


def line_up(config: Config, out: Path, seeds: int = 1) -> list[tuple[str, Config]]:
    """(name, config) of the route's runs: all experts aligned, and each expert alone."""
    rows = []
    for seed in range(seeds):
        students: dict[str, dict[str, Any]] = {ALIGNED: {"fusion": "moe"}}
        for name, root in config.vis_roots.items():
            students[f"{name} only"] = {"fusion": "weighted", "vis_roots": {name: root}}
        for name, changes in students.items():
            folder = portable(out / f"{name.replace(' ', '-')}-seed{seed}")
            rows.append((name, dataclasses.replace(config, route="geometric", seed=seed, save_dir=folder, **changes)))
    return rows


def beside(config: Config, out: Path, seeds: int, weight: float = 0.5) -> list[tuple[str, Config]]:
    """(name, config) of distillation with the geometric term added to its loss."""
    config = dataclasses.replace(config, fusion="moe", loss_geometric=weight)
    return [(BOTH, dataclasses.replace(config, seed=s, save_dir=portable(out / f"both-seed{s}"))) for s in range(seeds)]


def meetings(rows: list[tuple[str, Config]]) -> pd.DataFrame:
    """Held-out figures of finished runs, one row a run: columns model, seed, and those of its summary."""
    lines = [{"model": n, "seed": c.seed, **Run.open(c.folder).summary["held-out"]} for n, c in rows]
    return pd.DataFrame(lines)


def summary(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Mean over episodes with a 95 % t-interval, one row a group, in the order they came: mean, low, high, episodes."""
    rows = [(*key, g.mean(), *interval(g.to_numpy()), len(g)) for key, g in table.groupby(by, sort=False)[value]]
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "episodes"]).set_index(by)
