"""All that are compared: ceiling and floor, teacher, students, and the experts' own features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from rgb2pc_lib.data.sampling import Gatherer
from rgb2pc_lib.data.workspace import encoder_of
from rgb2pc_lib.encoders.rays import NAME as RAYS
from rgb2pc_lib.errors import InputError
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
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run

FULL_STATE = "full state"


def experts_alone(experts: Sequence[str]) -> dict[str, Representation]:
    """Every expert, and all together, pooled over the image and in 4 x 4 blocks at the teacher's usual width.

    The rays of a camera alone see nothing of the scene, and are left out.
    """
    every: dict[str, tuple[str, ...]] = {name: (name,) for name in experts if _sees([name])}
    every |= {CONCATENATED: tuple(experts)} if len(experts) > 1 else {}
    pooled: dict[str, Representation] = {name: Pooled(of) for name, of in every.items()}
    return pooled | {f"{name} 4x4, 256 PCs": Pooled(of, 4, 256) for name, of in every.items()}


def line_up(
    rows: Sequence[tuple[str, Config]], config: Config, compacts: Sequence[Path] = ()
) -> dict[str, list[Representation]]:
    """Name -> variants of a representation: head seed k takes the k-th, and after the last the first again.

    `rows` are (name, config) of runs, as `evaluate.line_up` gives them for `config`, whose experts and teacher stand
    beside them: a student's seeds are its variants. Those that see nothing of the scene, of the rays of a camera
    alone, are left out. Raises InputError where two compact students have one name.
    """
    students: dict[str, list[Representation]] = {}
    for name, row in rows:
        if _sees(row.vis_roots):
            students.setdefault(name, []).append(Student(row.folder))
    found: dict[str, list[Representation]] = {
        **told(),
        TEACHER: [Teacher(pooling=config.teacher_pooling)],
        **students,
    }
    found |= {name: [one] for name, one in experts_alone(list(config.vis_roots)).items()}
    if "weighted" in students:
        found["weighted, spatial tokens, 256 PCs"] = [SpatialTokens(c.folder) for name, c in rows if name == "weighted"]
    small: list[dict[str, list[Representation]]]
    small = [{f"compact, {folder.name}": [CompactStudent(folder)]} for folder in compacts]
    return merged(found, *small)


def _sees(experts: Iterable[str]) -> bool:
    """Whether any of them sees the scene."""
    return any(encoder_of(name) != RAYS for name in experts)


def merged(*parts: dict[str, list[Representation]]) -> dict[str, list[Representation]]:
    """All representations of several line-ups. Raises InputError for a name that two of them have."""
    found: dict[str, list[Representation]] = {}
    for part in parts:
        if twice := found.keys() & part.keys():
            raise InputError(f"representations: expected a name once, found two of {min(twice)}; rename a folder")
        found |= part
    return found


def named_runs(runs: Sequence[Run]) -> dict[str, list[Representation]]:
    """Finished runs as representations, named after their folders without the seed: its runs are variants.

    Raises InputError where runs of one name differ in more than their seed, or not even in that.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        same = found.setdefault(run.name.removesuffix(f"-seed{run.config.seed}"), [])
        for other in same:
            differing = run.config.changes(other.config).keys()
            if differing != {"seed"}:
                found_there = f"other {', '.join(sorted(differing - {'seed'}))}" if differing else "the same"
                raise InputError(
                    f"{run.folder}: expected the settings of {other.folder} with another seed, since their folders "
                    f"have one name, found {found_there}; rename a folder"
                )
        same.append(run)
    return {name: [Student(run.folder) for run in same] for name, same in found.items()}


def recorded_features(runs: Sequence[Run], source: Source) -> dict[str, list[np.ndarray]]:
    """Name -> variants `[n, d]` of all steps, of what needs no simulator: pooled experts, teacher, runs.

    Runs are named as `named_runs` says.
    """
    found = {PROPRIOCEPTION: [State().features(source)["x"]]}
    gatherer = Gatherer(source.data.samples, teacher_pooling=source.config.teacher_pooling)
    rows = source.data.samples.teacher_rows
    found[TEACHER] = [gatherer.teacher_embeddings(rows).astype(np.float32)]
    for name, one in experts_alone(list(source.config.vis_roots)).items():
        found[name] = [one.features(source)["x"]]
    return found | {name: [one.features(source)["x"] for one in of] for name, of in named_runs(runs).items()}


def told() -> dict[str, list[Representation]]:
    """What needs no features: ceiling, floor, and the ceiling told with errors, which shows what exactness takes."""
    misplaced: dict[str, list[Representation]]
    misplaced = {f"{FULL_STATE}, object {cm} cm off": [State(tuple(STATE), cm / 100)] for cm in (1, 2)}
    return {FULL_STATE: [State(tuple(STATE))], PROPRIOCEPTION: [State()], **misplaced}
