"""Before the loop: a config's data opened and split, and everything the loop drives made from it."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from rgb2pc_lib.data.pairing import Pairing, Samples, matching, pair, readable, select, split
from rgb2pc_lib.data.sampling import Batch, Gatherer, Planner
from rgb2pc_lib.errors import InputError, tell
from rgb2pc_lib.learning import alignment, objective, ranks
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.learner import Learner
from rgb2pc_lib.learning.losses import negatives
from rgb2pc_lib.learning.models import Student
from rgb2pc_lib.learning.objective import Distillation, Plans
from rgb2pc_lib.learning.point_models import PlaceStudent
from rgb2pc_lib.learning.runs import build_student, look_ahead_words
from rgb2pc_lib.learning.settings import Settings

_DROPPING = 0.7  # share of the steps in which experts are dropped; the rest trains them together, as they will be used


@dataclass
class Data:
    """A config's data, opened and split."""

    samples: Samples
    training: np.ndarray  # sample numbers
    validation: np.ndarray  # for the curve and for choices; may be empty
    held_out: np.ndarray  # for the tables

    @classmethod
    def open(cls, config: Config) -> Data:
        """Pair, select and split. Raises InputError for anything that is wrong with the input."""
        pairing = pair(config.workspace, list(config.tasks) or None)
        if config.unreadable == "leave_out":
            pairing = readable(pairing)
            some = ranks.rank() == 0 and next(iter(pairing.unreadable.items()), None)
            if some:
                left = f"{len(pairing.unreadable)} unreadable episode(s) are left out, such as {some[0]} ({some[1]})"
                tqdm.write(f"note: {left}", file=sys.stderr)
        for note in pairing.notes if ranks.rank() == 0 else ():
            tqdm.write(f"note: {note}", file=sys.stderr)
        if ranks.rank() == 0:
            tell_look_ahead(pairing, config.frame_copy)
        samples = select(
            pairing, config.strict_pairing, config.pairing_fallback, config.pooled_unit, config.window, config.seed
        )
        keys = samples.keys()
        found = split(keys, config.split_by, config.held_out, config.split_seed, config.validation, config.train_only)
        return cls(samples, _some_episodes(found[0], keys, config.train_episodes, config.split_seed), *found[1:])

    def demonstrated(self, train_only: Sequence[str]) -> Data:
        """The same without episodes that are for training alone: they need neither labels nor actions.

        >>> len(data.demonstrated(["*/more_*"]).samples), len(data.samples)  # doctest: +SKIP
        (48, 96)
        """
        kept = ~matching(self.samples.keys(), train_only)
        number = np.cumsum(kept) - 1
        sides = (number[side[kept[side]]] for side in (self.training, self.validation, self.held_out))
        return Data(self.samples.take(np.flatnonzero(kept)), *sides)

    @property
    def curve(self) -> np.ndarray:
        """Samples behind the curve: those for validation, or the held-out ones where there are none."""
        return self.validation if len(self.validation) else self.held_out

    def on_curve(self, figures: dict[str, float]) -> dict[str, float]:
        """Figures of the curve, each named after the samples that it is of."""
        side = "validation" if len(self.validation) else "held-out"
        return {f"{side}/{k}": v for k, v in figures.items()}

    def episodes(self) -> dict[str, int]:
        """Task -> number of training episodes."""
        found: dict[str, int] = self.samples.keys().loc[self.training].groupby("task")["episode"].nunique().to_dict()
        return found

    def shuffled(self, seed: int) -> Samples:
        """The control: teachers of the training samples are exchanged; held-out samples stay as they are."""
        rows = self.samples.teacher_rows.copy()
        rows[self.training] = self.samples.take(self.training).shuffled(seed).teacher_rows
        return replace(self.samples, teacher_rows=rows)


@dataclass
class Prepared:
    """What the loop drives, and what the end of a training is told from."""

    config: Config
    data: Data
    planner: Plans
    gatherer: Gatherer
    learner: Learner[Distillation]
    mean: Tensor  # [E], the teacher's mean over the training samples, or zero where it is not taken away

    @property
    def student(self) -> Student:
        return self.learner.objective.student

    def batches(self, first: int) -> Generator[Batch]:
        """What this process reads from step `first` on, gathered in the background."""
        steps = range(first, self.config.steps)
        return self.gatherer.run(plan for n in steps for plan in self.learner.plans(self.planner(n)))


def tell_look_ahead(pairing: Pairing, frame_copy: str) -> None:
    """Say on stderr, once, where features saw frames later than their own."""
    told = {name: sight._asdict() for name, sight in pairing.look_ahead(frame_copy).items()}
    if words := look_ahead_words({"look_ahead": told}):
        tell(f"{words} For one that a robot can run extract with --causal.")


def _some_episodes(training: np.ndarray, keys: pd.DataFrame, most: int, seed: int) -> np.ndarray:
    """The training samples of so many episodes a task, drawn at random (0: all); fewer are among more."""
    if not most:
        return training
    rng = np.random.default_rng(seed)
    kept = []
    for _, rows in keys.loc[training].groupby("task"):
        order = rng.permutation(sorted(set(rows["episode"])))
        kept.append(rows.index[rows["episode"].isin(order[:most])])
    return np.sort(np.concatenate(kept))


def prepare(config: Config, device: torch.device) -> Prepared:
    """Open and split the data, and build planner, gatherer, student and objective.

    Raises InputError for anything that is wrong with the input.
    """
    data = Data.open(config)
    if config.route == "distill":
        refuse_few_negatives(config, data.samples.keys().loc[data.training])
    samples = data.shuffled(config.seed) if config.shuffle_pairs else data.samples
    planner = Planner(
        samples, data.training, config.batch_size, config.student_tokens, config.seed, config.expert_drop,
        _DROPPING * config.steps, config.strict_pairing,
    )  # fmt: skip
    gatherer = Gatherer(
        samples, config.frame_copy, config.teacher_points, device, teacher_pooling=config.teacher_pooling
    )
    mean = torch.from_numpy(gatherer.teacher_embeddings(samples.teacher_rows[data.training]).mean(0)).float()
    if not config.centre:
        mean = torch.zeros_like(mean)
    student = build_student(config, samples.pairing.channels, len(mean)).to(device)
    aim: Distillation
    plans: Plans
    if isinstance(student, PlaceStudent):
        aim, plans = alignment.begin(config, student, mean.to(device), samples, planner)
    else:
        aim, plans = objective.begin(config, student, mean.to(device), samples, planner)
    return Prepared(config, data, plans, gatherer, Learner(aim), mean)


def refuse_few_negatives(config: Settings, keys: pd.DataFrame) -> None:
    """Raises InputError where a training sample, of those in `keys`, would meet less than one negative in a batch."""
    episode, time = keys.groupby(["task", "episode"]).ngroup().to_numpy(), keys["time"].to_numpy()
    found = negatives(episode, time, config.exclude_near, config.batch_size)
    if found < 1:
        raise InputError(
            f"--exclude_near {config.exclude_near}: leaves {found:.2g} negatives for a sample in a batch of "
            f"{config.batch_size}; lower it, or train on more episodes"
        )


def pick_device(name: str) -> torch.device:
    """The torch device of a setting; "auto" takes a GPU where there is one."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"--device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this torch sees no GPU; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this torch sees {torch.cuda.device_count()} GPU(s), counted from 0")
    if device.type == "cuda" and ranks.world() > 1:
        if device.index is not None:
            raise InputError(f"--device {name}: of several processes each has its own GPU; write cuda or leave it out")
        device = ranks.device()
        if device.type != "cuda":
            raise InputError("there are more processes than GPUs; lower --nproc_per_node or use --device cpu")
    return device
