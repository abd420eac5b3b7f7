"""The whole proof: every representation, every task, both looks, several heads; resumable at any roll-out.

A folder holds it: `proof.json` (settings, and what each representation was made from), `features/`, `rollouts.csv`
(a line a roll-out), `heads.csv` (errors of every head on training and validation episodes) and `films/`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from rgb2pc_lib.data.files.guarded import read_object
from rgb2pc_lib.data.files.writing import claim, write_atomic
from rgb2pc_lib.data.pictures import encoded
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.loop.demonstrations import Demonstrations
from rgb2pc_lib.judging.loop.diffusion import train_diffusion_head
from rgb2pc_lib.judging.loop.heads import HeadSettings, action_error, action_spread, train_head
from rgb2pc_lib.judging.loop.representations import (
    Pooled,
    Representation,
    Source,
    State,
    features_file,
    prepare,
    read_features,
    slug,
)
from rgb2pc_lib.judging.loop.rollouts import Outcome, append, open_table, read_table, roll_outs
from rgb2pc_lib.judging.loop.scenes import LOOKS, OpenScene, Policy, Recorder, Scene, own_state
from rgb2pc_lib.judging.loop.tuned import Tuned

HEADS = {"mlp": train_head, "diffusion": train_diffusion_head}
_ERRORS = ["representation", "task", "head", "training error", "validation error"]
STRIP = 8  # images of a film strip
_THUMB = 112  # their height and width, pixels


@dataclass(frozen=True)
class ProofSettings:
    """What all roll-outs of a proof share."""

    rollouts: int = 50  # a cell: one representation, task and look
    heads: int = 3  # seeds of policy heads, which share a cell's roll-outs
    first_seed: int = 9000  # of the environments, which no demonstration may have used
    head: str = "mlp"  # or diffusion
    training: HeadSettings = HeadSettings()
    scenes: int = 8  # side by side in a process
    processes: int = 2
    looks: tuple[str, ...] = tuple(LOOKS)  # which are rolled out

    def __post_init__(self):
        if self.head not in HEADS:
            raise InputError(f"--head: expected {' or '.join(HEADS)}, found {self.head!r}")
        for name in ("rollouts", "heads", "scenes", "processes"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name}: expected at least 1, found {getattr(self, name)}")

    @property
    def fixed(self) -> dict:
        """Those that make other roll-outs when they change; more of them, or faster, may come later."""
        free = ("rollouts", "scenes", "processes", "looks")
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in free}


@dataclass(frozen=True)
class Unit:
    """What a process does at a time: one representation with one head on one task, in the scenes that are missing."""

    name: str
    features: str  # name of their file
    representation: Representation
    task: str
    head: int
    wanted: tuple[tuple[str, int], ...]  # look, environment seed


@dataclass(frozen=True)
class Stage:
    """What every unit needs, given to each process once."""

    folder: Path
    settings: ProofSettings
    demonstrations: Demonstrations
    recorder: Recorder
    open_scene: OpenScene


def plan(
    line_up: dict[str, list[Representation]], tasks: Sequence[str], done: pd.DataFrame, settings: ProofSettings
) -> list[Unit]:
    """What is still to do, one head seed after the other, so that an interrupted table is even.

    Roll-out i of a cell is environment seed `first_seed` + i, whoever acts, and belongs to head i modulo `heads`.
    """
    there = set(zip(done["representation"], done["task"], done["look"], done["seed"], strict=True))
    units = []
    for head in range(settings.heads):
        seeds = range(settings.first_seed + head, settings.first_seed + settings.rollouts, settings.heads)
        for task in tasks:
            for name, variants in line_up.items():
                every = [(look, seed) for look in settings.looks for seed in seeds]
                wanted = tuple(each for each in every if (name, task, *each) not in there)
                if wanted:
                    one, features = variants[head % len(variants)], variant_name(name, head, variants)
                    units.append(Unit(name, features, one, task, head, wanted))
    return units


def prove(
    line_up: dict[str, list[Representation]], source: Source, open_scene: OpenScene, folder: Path,
    tasks: Sequence[str], settings: ProofSettings = ProofSettings(),  # noqa: B008
) -> Iterator[tuple[int, int, str]]:  # fmt: skip
    """Prepare features and roll out whatever is missing in `folder`, yielding (roll-outs done, of how many, what now).

    Raises InputError where the folder holds a proof with other settings, or from other runs, and where the
    environments' seeds are among those of the demonstrations.
    """
    demonstrations = source.demonstrations
    refuse(demonstrations, tasks, settings)
    with claim(folder):
        table = open_table(folder / "rollouts.csv")
        digests: dict[str, dict[str, str]] = {}
        _refuse_one_file(folder, line_up)
        for name, variants in line_up.items():
            yield 0, 0, f"features of {name}"
            named = {variant_name(name, k, variants): one for k, one in enumerate(variants[: settings.heads])}
            digests[name] = {k: prepare(k, one, source, folder / "features") for k, one in named.items()}
        _refuse_mixing(folder, settings, demonstrations, digests, set(table["representation"]))
        _remember(folder, settings, demonstrations, digests, line_up)
        units = plan(line_up, tasks, table, settings)
        stage = Stage(folder, settings, demonstrations, source.recorder, open_scene)
        total, done = sum(len(u.wanted) for u in units), 0
        if not units:
            return
        for unit in _spread(units, stage, min(settings.processes, len(units))):
            done += len(unit.wanted)
            yield done, total, f"{unit.task}, {unit.name}, head {unit.head}"


def refuse(demonstrations: Demonstrations, tasks: Sequence[str], settings: ProofSettings) -> None:
    """Raise InputError for tasks that are not demonstrated, and scenes that were."""
    last = settings.first_seed + settings.rollouts
    if used := demonstrations.seeds & set(range(settings.first_seed, last)):
        raise InputError(
            f"--first_seed {settings.first_seed}: expected seeds that no demonstration used, found {len(used)} of "
            f"them, such as {min(used)}; choose a higher one"
        )
    if unknown := [task for task in tasks if task not in demonstrations.horizons]:
        known = ", ".join(demonstrations.horizons)
        raise InputError(f"--tasks: expected tasks among {known}, found {', '.join(unknown)}")


def variant_name(name: str, k: int, variants: Sequence[Representation]) -> str:
    """Of the features of a representation's variant for head k."""
    return f"{name} {k % len(variants)}" if len(variants) > 1 else name


def _settings(settings: ProofSettings, demonstrations: Demonstrations) -> dict:
    """Those that a folder's roll-outs share, as JSON has them."""
    digest = hashlib.sha256()
    for array in (demonstrations.own, demonstrations.actions, demonstrations.training):
        digest.update(np.ascontiguousarray(array).tobytes())
    return json.loads(json.dumps(settings.fixed | {"demonstrations": digest.hexdigest()[:16]}))


def _known(folder: Path) -> dict:
    """What the folder remembers of earlier calls, if any."""
    path = folder / "proof.json"
    return read_object(path, "delete the folder") if path.exists() else {}


def _refuse_mixing(folder, settings, demonstrations, digests: dict[str, dict[str, str]], begun: set[str]) -> None:
    path, wanted = folder / "proof.json", _settings(settings, demonstrations)
    known = _known(folder) if begun else {}
    if known and (differing := [k for k, v in wanted.items() if known.get("settings", {}).get(k) != v]):
        said = ", ".join(f"{k} = {wanted[k]}" for k in differing)
        raise InputError(f"{path}: expected {said}, found roll-outs made with others; choose another --out")
    told = known.get("features", {})
    if changed := [name for name in digests if name in begun and told.get(name, digests[name]) != digests[name]]:
        raise InputError(
            f"{path}: expected the features of the first roll-outs, found others of {', '.join(changed)} (trained or "
            "extracted again?); choose another --out, or delete their lines from rollouts.csv"
        )


def _refuse_one_file(folder: Path, line_up: dict[str, list[Representation]]) -> None:
    named: dict[str, str] = {}
    for name in dict.fromkeys([*_known(folder).get("features", {}), *line_up]):
        if (other := named.setdefault(slug(name), name)) != name:
            raise InputError(
                f"{folder}: expected names that differ in letters or digits, found {other!r} and {name!r}; rename a "
                "run's folder, or choose another --out"
            )


def _remember(folder, settings, demonstrations, digests, line_up) -> None:
    known = _known(folder)
    baselines = [name for name, variants in line_up.items() if isinstance(variants[0], Pooled)]
    about = {
        "settings": _settings(settings, demonstrations),
        "features": known.get("features", {}) | digests,
        "baselines": sorted({*known.get("baselines", []), *baselines}),
        "horizons": demonstrations.horizons,
    }
    write_atomic(folder / "proof.json", lambda p: p.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8"))


def read_proof(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """A proof's roll-outs, and which of its representations are experts' own features, the RGB baselines.

    Raises InputError where the folder holds none.
    """
    if not (folder / "proof.json").exists():
        raise InputError(f"{folder}: expected the closed loop's roll-outs, found none; run: make proof")
    return read_table(folder / "rollouts.csv"), read_object(folder / "proof.json")["baselines"]


def _spread(units: list[Unit], stage: Stage, processes: int) -> Iterator[Unit]:
    """The units as they are finished, in this process or shared by several."""
    if processes == 1:
        try:
            for unit in units:
                roll_out_unit(unit, stage)
                yield unit
        finally:
            _scenes.cache_clear()
            _live.cache_clear()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _settle, (stage,)) as pool:
        coming, running = iter(units), {}
        try:
            for unit in coming:
                running[pool.submit(_settled_unit, unit)] = unit
                if len(running) > processes:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _finished(running: dict) -> Iterator[Unit]:
    ended, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in ended:
        unit = running.pop(future)
        future.result()
        yield unit


_stage: Stage  # of this process


def _settle(stage: Stage) -> None:
    global _stage
    torch.set_num_threads(1)
    _stage = stage


def _settled_unit(unit: Unit) -> None:
    roll_out_unit(unit, _stage)


# -- one unit


def roll_out_unit(unit: Unit, stage: Stage) -> None:
    """Train the unit's head and roll it out; a line for every roll-out, and film strips where there are none yet."""
    settings, demonstrations = stage.settings, stage.demonstrations
    policy = _policy(unit, stage)
    scenes = _scenes(stage.open_scene, unit.task, settings.scenes)
    cloud, horizon = unit.representation.cloud, demonstrations.horizons[unit.task]
    for look, seed, success, length, film in roll_outs(policy, scenes, unit.wanted, horizon, cloud):
        _keep_film(stage.folder, unit, look, success, film)
        append(stage.folder / "rollouts.csv", Outcome(unit.name, unit.task, look, seed, unit.head, success, length))


@functools.lru_cache(maxsize=1)  # of one task; each holds an OpenGL context
def _scenes(open_scene: OpenScene, task: str, number: int) -> list[Scene]:
    return [open_scene(task) for _ in range(number)]


@functools.lru_cache(maxsize=4)
def _live(representation: Representation, path: Path, recorder: Recorder):
    fitted = read_features(path)
    return fitted["x"], representation.live(fitted, recorder)


def _policy(unit: Unit, stage: Stage) -> Policy:
    """The policy of a unit, trained; its errors are a line of `heads.csv`."""
    demonstrations, one = stage.demonstrations, unit.representation
    of_task = demonstrations.of_task(unit.task)
    fit, check = of_task & demonstrations.training, of_task & demonstrations.validation
    path = features_file(stage.folder / "features", unit.features)
    if isinstance(one, Tuned):
        return one.policy(demonstrations, read_features(path), fit, unit.head, stage.recorder)
    x, live = _live(one, path, stage.recorder)
    known = np.concatenate([x, demonstrations.own], 1)
    told = known.shape[1] if isinstance(one, State) else demonstrations.own.shape[1]
    actions = demonstrations.actions
    head = HEADS[stage.settings.head](known[fit], actions[fit], unit.head, stage.settings.training, told)
    spread = action_spread(actions[fit])
    errors = [action_error(head(known[rows]), actions[rows], spread).mean() if rows.any() else np.nan
              for rows in (fit, check)]  # fmt: skip
    _note_errors(stage.folder / "heads.csv", [unit.name, unit.task, unit.head, *errors])
    return lambda seen: head(np.concatenate([live(seen), own_state(seen)], 1))


def _note_errors(path: Path, line: list) -> None:
    """Once a head: who goes on where a proof stopped trains one that is noted already anew, to the same errors."""
    cells = [f'"{v}"' if isinstance(v, str) else f"{v:.6g}" for v in line]
    head = ",".join(cells[:3]) + ","
    with path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        noted = file.readlines() or [",".join(_ERRORS) + "\n"]
        if not file.tell():
            file.write(noted[0])
        if not any(known.startswith(head) for known in noted):
            file.write(",".join(cells) + "\n")


# -- films


def film_file(folder: Path, name: str, task: str, look: str, success: bool) -> Path:
    """Where the first success or failure of a cell is kept as a strip of images."""
    return folder / "films" / task / f"{slug(name)}_{look}_{'success' if success else 'failure'}.jpg"


def _keep_film(folder: Path, unit: Unit, look: str, success: bool, film: list[np.ndarray]) -> None:
    path = film_file(folder, unit.name, unit.task, look, success)
    if path.exists():
        return
    kept = np.linspace(0, len(film) - 1, STRIP).round().astype(int)
    thumbs = [np.asarray(Image.fromarray(film[i]).resize((_THUMB, _THUMB))) for i in kept]
    write_atomic(path, lambda p: p.write_bytes(encoded(np.concatenate(thumbs, 1), "JPEG", quality=85)))
