"""Judgement: is the student as useful as the teacher?

Always the same table, always on held-out samples: agreement with the teacher, retrieval, and probes fitted on training
episodes, for the teacher, the students, every fair rival (`rivals`), and the shuffled control.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rgb2pc_lib.data.listing import tasks as list_tasks
from rgb2pc_lib.data.sampling import embedding_lattice
from rgb2pc_lib.data.workspace import FAST, Workspace, portable
from rgb2pc_lib.deploy.compact import CompactRun
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.probes import LOOKS, load_answers, probe_samples, scores
from rgb2pc_lib.judging.rivals import PROPRIOCEPTION, UNTRAINED, pooled_rivals, untrained
from rgb2pc_lib.judging.verdicts import AHEAD, SHUFFLED, TEACHER, WIDTH
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.metrics import agreement, knn_overlap, linear_cka, retrieval
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.learning.runs import Run, most_ahead
from rgb2pc_lib.learning.train import Progress, train

STEPS = 20 if FAST else 400  # of a judged run, where none are asked for
_LONG = ["model", "seed", "measure", "value"]


@dataclass(frozen=True)
class Judgement:
    """The table, long: one line per (model, seed, measure, value); features and the teacher have seed -1.

    `episodes` holds what intervals are made from: per model, seed, held-out episode and probe the sums of squared
    errors and of squared distances from the task's mean.
    """

    long: pd.DataFrame  # model, seed, measure, value
    episodes: pd.DataFrame  # model, seed, probe, episode, look, error, around


@dataclass(frozen=True)
class Questions:
    """What representations are asked: probe targets of all samples, and which samples are scored."""

    keys: pd.DataFrame
    held_out: np.ndarray  # [n] bool; the others are for fitting
    targets: dict[str, np.ndarray]  # none without states
    looks: np.ndarray | None = None  # [n] bool, whether an episode's look is randomised
    own: np.ndarray | None = None  # [n, 4] proprioception

    @classmethod
    def of(cls, run: Run, state_root: Path | None, judged: str = "held_out") -> Questions:
        """The questions that a finished run's samples answer, positions in the frame in which its teacher sees."""
        e = run.embeddings(judged)
        return cls.about(_keys(e), e["held_out"], state_root, run.summary["teacher_frame"])

    @classmethod
    def about(
        cls, keys: pd.DataFrame, held_out: np.ndarray, state_root: Path | None, frame: str | None = None
    ) -> Questions:
        """The questions that steps answer: `held_out` `[n]` tells which are scored, `frame` where positions are."""
        if state_root is None:
            return cls(keys, held_out, {})
        targets, own, looks = load_answers(state_root, keys, frame)
        return cls(keys, held_out, targets, looks, own)

    def ask(self, features: np.ndarray) -> tuple[dict[str, float], pd.DataFrame]:
        """Measures of features `[n, d]`, with those of each look where episodes differ in it; and sums by episode."""
        if not self.targets:
            return {}, pd.DataFrame()
        samples = probe_samples(features, self.targets, self.keys, self.held_out)
        found = scores(samples)
        samples["look"] = ""
        if self.looks is not None and len(set(self.looks[self.held_out])) > 1:
            for look, randomised in LOOKS.items():
                rows = self.looks[self.held_out] == randomised
                samples.loc[rows, "look"] = look
                found |= {f"{k}, {look}": v for k, v in scores(samples[rows]).items()}
        sums = samples.groupby(["episode", "look"]).sum(numeric_only=True)
        parts = [
            pd.DataFrame({"probe": name, "error": sums[f"{name} error"], "around": sums[f"{name} around"]})
            for name in self.targets
        ]
        return found, pd.concat(parts).reset_index()


# -- one representation


def judge_features(
    features: np.ndarray, teacher: np.ndarray, questions: Questions
) -> tuple[dict[str, float], pd.DataFrame]:
    """A representation that lives in its own space: probes, and agreement that needs no common space."""
    h = questions.held_out
    row = {"CKA": linear_cka(features[h], teacher[h]), "kNN overlap": knn_overlap(features[h], teacher[h])}
    found, episodes = questions.ask(features)
    return row | found | {WIDTH: features.shape[1]}, episodes


def judge_run(
    run: Run | CompactRun, questions: Questions, judged: str = "held_out"
) -> tuple[dict[str, float], pd.DataFrame]:
    """A student, from its run's folder: agreement, retrieval (exact, and one step of tolerance) and probes.

    One whose experts saw the future says how far ("frames ahead"; NaN where that was not recorded).
    """
    row, episodes = _judge_run(run, questions, judged)
    ahead = most_ahead(run.summary) if isinstance(run, Run) else 0  # a compact student sees one frame
    return row | ({AHEAD: ahead} if ahead else {}), episodes


def _judge_run(run: Run | CompactRun, questions: Questions, judged: str) -> tuple[dict[str, float], pd.DataFrame]:
    e = run.embeddings(judged)
    if run.config.route == "geometric":  # its space is its own: nothing can be compared with the teacher's vectors
        return judge_features(e["student"], e["teacher"], questions)
    return judge_embeddings(e["student"], run.centred(e), questions)


def judge_embeddings(
    student: np.ndarray, teacher: np.ndarray, questions: Questions
) -> tuple[dict[str, float], pd.DataFrame]:
    """Embeddings `[n, E]` that live in the teacher's space, the teacher's being centred as theirs are."""
    keys, h = questions.keys, questions.held_out
    episode, time = keys.groupby(["task", "episode"]).ngroup().to_numpy(), keys["time"].to_numpy()
    row = {**retrieval(student[h], teacher[h]), **agreement(student[h], teacher[h])}
    row["R@1 within 1 step"] = retrieval(student[h], teacher[h], episode[h], time[h], 1)["R@1"]
    found, episodes = questions.ask(student)
    return row | found | {WIDTH: student.shape[1]}, episodes


# -- the whole table


def judged_config(workspace: Workspace, steps: int | None = None) -> Config:
    """The settings of the judged runs: small enough for two CPU cores, and tiny with RGB2PC_FAST=1.

    Raises InputError, in the tiny case, when the workspace names no teacher.

    >>> config = judged_config(workspace, steps=30)
    >>> config.steps, config.student_tokens, list(config.vis_roots)
    (30, 32, ['dinov3', 'vggt'])
    """
    steps = steps or STEPS
    chosen: dict[str, Any] = {"student_tokens": 32, "pooling": "blocks2", "loss_mse": 1.0}  # on validation episodes
    config = Config(steps=steps, eval_every=0, save_every=steps, **chosen).with_workspace(workspace)
    if FAST:
        tasks = tuple(list_tasks(workspace.root("teacher"))[:2])
        config = dataclasses.replace(config, tasks=tasks, batch_size=32, student_tokens=32)
    return config


def line_up(config: Config, seeds: int, out: Path, ablations: bool = False) -> list[tuple[str, Config]]:
    """(row name, config) of every training behind the table: both fusions, each expert alone, the control.

    With `ablations` also "uniform" (equal weights), and of three experts or more "moe without <expert>".
    Nothing is trained: that is for `train` (or `train_line_up`, which skips what is finished).

    >>> [name for name, _ in line_up(config, seeds=1, out=folder)]
    ['weighted', 'moe', 'dinov3 only', 'vggt only', 'shuffled control']
    """
    students: dict[str, dict[str, Any]] = {"weighted": {"fusion": "weighted"}, "moe": {"fusion": "moe"}}
    students |= singles(config)
    students[SHUFFLED] = {"fusion": "moe", "shuffle_pairs": True}
    if ablations and len(config.vis_roots) > 1:
        students["uniform"] = {"fusion": "uniform"}
        students |= {f"moe {k}": {"fusion": "moe", **v} for k, v in without_each(config).items()}
    return over_seeds(dataclasses.replace(config, shuffle_pairs=False), students, seeds, out)


def singles(config: Config) -> dict[str, dict[str, Any]]:
    """What makes a student of each expert alone of a config, by row name."""
    return {f"{k} only": {"fusion": "weighted", "vis_roots": {k: root}} for k, root in config.vis_roots.items()}


def without_each(config: Config) -> dict[str, dict[str, Any]]:
    """What makes a student without each of a config's experts, by row name; of two, that would be the other alone."""
    roots = config.vis_roots
    rest = {k: {other: root for other, root in roots.items() if other != k} for k in roots}
    return {f"without {k}": {"vis_roots": others} for k, others in rest.items() if len(others) > 1}


def over_seeds(config: Config, students: dict[str, dict[str, Any]], seeds: int, out: Path) -> list[tuple[str, Config]]:
    """(row name, config) of every student, the changes of a config, with every seed; each in a folder of its own."""
    return [
        (name, dataclasses.replace(config, **{"seed": seed, **changes, "save_dir": portable(folder)}))
        for seed in range(seeds)
        for name, changes in students.items()
        for folder in [out / f"{name.replace(' ', '-')}-seed{seed}"]
    ]


def train_line_up(rows: list[tuple[str, Config]]) -> Iterator[tuple[int, Progress]]:
    """Train what is not finished yet, yielding (number of the row, progress). Unfinished runs are resumed.

    Raises InputError where a folder holds a run with other settings.
    """
    for i, (_, config) in enumerate(rows):
        run = Run(config.folder)
        if not run.holds(config):
            for progress in train(config, resume=run.file("config.json").exists()):
                yield i, progress


def judge(config: Config, rows: list[tuple[str, Config]], judged: str = "held_out") -> Judgement:
    """Teacher, rivals and students on the held-out samples, or with `judged="validation"` on those for choices.

    Probes (columns "R2 ..." without a unit, "... cm", "task accuracy") are there where the config names a state root.
    Raises InputError for a run that is not finished and for data that changed.

    >>> long = judge(config, rows).long
    >>> long["model"].unique().tolist()[:4]
    ['teacher', 'dinov3', 'vggt', 'experts concatenated']
    >>> long[(long["model"] == "moe") & (long["measure"] == "R@1")][["seed", "value"]].shape
    (1, 2)
    """
    data, run = Data.open(config), Run.open(rows[0][1].folder)
    e, every = run.embeddings(judged), run.embeddings_of_all()
    if len(every["task"]) != len(data.samples):
        differ = f"embeds {len(every['task'])} samples, the data have {len(data.samples)}"
        raise InputError(f"{run.folder}: {differ}; train it again")
    questions = Questions.of(run, config.workspace.state, judged)
    kept = np.isin(
        np.arange(len(data.samples)), data.validation if judged == "held_out" else data.held_out, invert=True
    )
    fit = np.isin(np.arange(len(data.samples)), data.training)
    width = e["teacher"].shape[1]
    features = {TEACHER: e["teacher"]}
    if questions.own is not None:
        features[PROPRIOCEPTION] = questions.own
    features |= {name: x[kept] for name, x in pooled_rivals(data, width, fit).items()}
    found = [(name, -1, *judge_features(x, e["teacher"], questions)) for name, x in features.items()]
    at = embedding_lattice(data.samples.pairing.finest_grid)
    for seed in sorted({c.seed for _, c in rows}):
        x = untrained(dataclasses.replace(config, seed=seed, fusion="weighted"), data, width, at)[kept]
        found.append((UNTRAINED, seed, *judge_features(x, e["teacher"], questions)))
    students = judge_students(rows, config.workspace.state, judged)
    made = _table(found)
    return Judgement(
        pd.concat([made.long, students.long], ignore_index=True),
        pd.concat([made.episodes, students.episodes], ignore_index=True),
    )


def judge_students(
    rows: list[tuple[str, Config]], state_root: Path | None = None, judged: str = "held_out"
) -> Judgement:
    """The students' part of the table, from their runs' folders; without `state_root` no probes, which takes seconds.

    Raises InputError for a run that is not finished.
    """
    found, questions = [], None
    for name, config in rows:
        run = Run.open(config.folder)
        if questions is None or not questions.keys.equals(_keys(run.embeddings(judged))):
            questions = Questions.of(run, state_root, judged)
        found.append((name, config.seed, *judge_run(run, questions, judged)))
    return _table(found)


def _table(found: list) -> Judgement:
    lines = [(name, seed, k, v) for name, seed, row, _ in found for k, v in row.items()]
    parts = [episodes.assign(model=name, seed=seed) for name, seed, _, episodes in found if len(episodes)]
    return Judgement(
        pd.DataFrame(lines, columns=_LONG), pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    )


def _keys(embeddings: dict) -> pd.DataFrame:
    return pd.DataFrame({k: embeddings[k] for k in ("task", "episode", "step", "time")})
