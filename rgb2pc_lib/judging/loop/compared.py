"""All that are compared: ceiling and floor, teacher, students, and the experts' own features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rgb2pc_lib.data.sampling import Gatherer
from rgb2pc_lib.judging.loop.representations import (
    STATE,
    CompactStudent,
    Pooled,
    Representation,
    Source,
    SpatialTokens,
    State,
    Student,
    Teacher,
)
from rgb2pc_lib.judging.rivals import CONCATENATED, PROPRIOCEPTION
from rgb2pc_lib.judging.verdicts import TEACHER
from rgb2pc_lib.learning.runs import Config, Run

FULL_STATE = "full state"


def experts_alone(experts: Sequence[str]) -> dict[str, Representation]:
    """Every expert, and all together, pooled over the image and in 4 x 4 blocks at the teacher's usual width."""
    every = {name: (name,) for name in experts} | ({CONCATENATED: tuple(experts)} if len(experts) > 1 else {})
    pooled: dict[str, Representation] = {name: Pooled(of) for name, of in every.items()}
    return pooled | {f"{name} 4x4, 256 PCs": Pooled(of, 4, 256) for name, of in every.items()}


def line_up(
    rows: Sequence[tuple[str, Config]],
    compacts: Sequence[Path] = (),
    teacher: Teacher = Teacher(),  # noqa: B008
) -> dict[str, list[Representation]]:
    """Name -> variants of a representation: head seed k takes the k-th, and after the last the first again.

    `rows` are (name, config) of finished runs, as `evaluate.line_up` gives them: a student's seeds are its variants.
    """
    students: dict[str, list[Representation]] = {}
    for name, config in rows:
        students.setdefault(name, []).append(Student(config.folder))
    found: dict[str, list[Representation]] = {
        **told(),
        TEACHER: [teacher],
        **students,
    }
    found |= {name: [one] for name, one in experts_alone(list(rows[0][1].vis_roots)).items()}
    if "weighted" in students:
        found["weighted, spatial tokens, 256 PCs"] = [SpatialTokens(c.folder) for name, c in rows if name == "weighted"]
    return found | {f"compact, {folder.name}": [CompactStudent(folder)] for folder in compacts}


def named_runs(runs: Sequence[Run]) -> dict[str, list[Representation]]:
    """Finished runs as representations, named after their folders without the seed: its runs are variants."""
    found: dict[str, list[Representation]] = {}
    for run in runs:
        found.setdefault(run.name.removesuffix(f"-seed{run.config.seed}"), []).append(Student(run.folder))
    return found


def recorded_features(runs: Sequence[Run], source: Source) -> dict[str, list[np.ndarray]]:
    """Name -> variants `[n, d]` of all steps, of what needs no simulator: pooled experts, teacher, runs.

    Runs are named as `named_runs` says.
    """
    found = {PROPRIOCEPTION: [State().features(source)["x"]]}
    gatherer, rows = Gatherer(source.data.samples), source.data.samples.teacher_rows
    found[TEACHER] = [gatherer.teacher_embeddings(rows).astype(np.float32)]
    for name, one in experts_alone(list(source.config.vis_roots)).items():
        found[name] = [one.features(source)["x"]]
    return found | {name: [one.features(source)["x"] for one in of] for name, of in named_runs(runs).items()}


def told() -> dict[str, list[Representation]]:
    """What needs no features: ceiling, floor, and the ceiling told with errors, which shows what exactness takes."""
    misplaced: dict[str, list[Representation]]
    misplaced = {f"{FULL_STATE}, object {cm} cm off": [State(tuple(STATE), cm / 100)] for cm in (1, 2)}
    return {FULL_STATE: [State(tuple(STATE))], PROPRIOCEPTION: [State()], **misplaced}
