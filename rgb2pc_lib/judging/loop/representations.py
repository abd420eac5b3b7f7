"""Representations, each made in two ways that agree: of the demonstrations' recorded steps, and live of what is seen.

What is fitted on the way (principal components of training steps) is kept in the features' file, so that a live look
goes through the very same numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from rgb2pc_lib.data.files.guarded import read_npz
from rgb2pc_lib.data.files.stamps import stamp
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.listing import IMAGES
from rgb2pc_lib.data.listing import steps as list_steps
from rgb2pc_lib.data.packs import load_torch
from rgb2pc_lib.data.sampling import Gatherer, embedding_lattice, lattice, ordered_plans
from rgb2pc_lib.data.states import state_file
from rgb2pc_lib.data.teacher import AGAIN, pooled
from rgb2pc_lib.deploy.compact import CompactRun, open_run
from rgb2pc_lib.deploy.compress import embed_pixels
from rgb2pc_lib.deploy.embed import Embedder, live_tokens
from rgb2pc_lib.deploy.frames import frame_cache
from rgb2pc_lib.deploy.lookup import Encoder, open_encoder
from rgb2pc_lib.deploy.stream import ThroughExperts, stacked
from rgb2pc_lib.encoders.clouds.extract_clouds import cloud_points, load_cloud_encoder
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.loop.demonstrations import CHUNK, Demonstrations
from rgb2pc_lib.judging.loop.scenes import Recorder, Seen, cameras_of
from rgb2pc_lib.judging.probes import from_states
from rgb2pc_lib.judging.rivals import block_means, fit_components, pooled_blocks
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.prepare import Data, pick_device
from rgb2pc_lib.learning.runs import Run

SIDES = (1, 4)  # blocks of the image along each side, of pooled experts
STATE = {"object": 3, "goal": 3, "joint": 1}  # beside the robot's own, which every head is told
Fitted = dict[str, np.ndarray]
Live = Callable[[Sequence[Seen]], np.ndarray]  # B looks -> [B, d] float32


@dataclass(frozen=True)
class Source:
    """The demonstrations' data, opened once for all representations."""

    config: Config
    data: Data
    demonstrations: Demonstrations

    @classmethod
    def open(cls, config: Config, chunk: int = CHUNK) -> Source:
        """The demonstrations of a config's workspace: its steps, but for episodes that are for training alone.

        Raises InputError as `Data.open` and `Demonstrations.of` do, and where the workspace names no states.
        """
        data = Data.open(config).demonstrated(config.train_only)
        return cls(config, data, Demonstrations.of(data, config.workspace.root("state"), chunk))

    @cached_property
    def steps(self) -> list[tuple[str, str, str]]:
        """Task, episode and step of each, n times."""
        keys = self.demonstrations.keys
        return list(zip(keys["task"], keys["episode"], keys["step"], strict=True))

    @cached_property
    def frames(self) -> list[Path]:
        """The recorded RGB frame of each step. Raises InputError where one is missing."""
        root = self.config.workspace.root("rgb")
        found = {(*key, step): path for key, steps in list_steps(root, IMAGES).items() for step, path in steps.items()}
        if missing := [key for key in self.steps if key not in found]:
            raise InputError(f"{root}: no frame of {len(missing)} steps, such as {'/'.join(missing[0])}; record them")
        return [found[key] for key in self.steps]

    @cached_property
    def pooled(self) -> dict[int, dict[str, np.ndarray]]:
        """Blocks a side -> expert -> `[n, blocks * C]`, from one reading of the packs."""
        return pooled_blocks(self.data, SIDES)

    @cached_property
    def digest(self) -> str:
        """What tells these steps, and their split, from others."""
        found = hashlib.sha256(self.demonstrations.keys.to_csv(index=False).encode())
        found.update(self.demonstrations.training.tobytes())  # which principal components are fitted on
        return found.hexdigest()[:16]

    @cached_property
    def recorder(self) -> Recorder:
        """That of the recorded frames."""
        return Recorder.of(self.frames[0], self.config.workspace.cameras)


class Representation(Hashable, Protocol):
    """One way to turn a step, recorded or live, into a vector."""

    cloud: bool  # whether a live look needs a cloud

    def made_from(self, source: Source) -> str:
        """What tells its features from others': of the same text, the same features."""

    def features(self, source: Source) -> Fitted:
        """`x` `[n, d]` float32 of all demonstrations' steps, and what a live look needs besides."""

    def live(self, fitted: Fitted, recorder: Recorder) -> Live:
        """How the same is made of what is seen now; its networks are loaded here."""


# -- what needs no network


@dataclass(frozen=True)
class State:
    """Arrays of the state files: with none this is what the robot knows of itself, which every head is told anyway.

    Told with an error (`off`, m, standard deviation along each axis of the object's place), it shows how exactly a
    task must be seen. The error follows from the place, so an object that rests is misplaced by the same at each look.
    """

    names: tuple[str, ...] = ()
    off: float = 0.0
    cloud = False

    def made_from(self, source: Source) -> str:
        keys, root = source.demonstrations.keys, source.config.workspace.root("state")
        episodes = keys[["task", "episode"]].drop_duplicates().itertuples(index=False)
        changed = stamp(state_file(root, *episode) for episode in episodes)
        return f"state {' '.join(self.names)} {changed} {source.digest}" + (f" off {self.off}" if self.off else "")

    def features(self, source: Source) -> Fitted:
        keys, root = source.demonstrations.keys, source.config.workspace.root("state")
        found = from_states(root, keys, lambda state, rows, _: {k: _per_step(k, state, rows) for k in self._of(state)})
        missing = [k for k in self.names if k not in found]
        if missing:
            raise InputError(f"{root}: expected {', '.join(missing)} in every episode's file; leave it out")
        return {"x": self._joined([self._misplaced(k, found[k]) for k in self.names], len(keys))}

    def _of(self, state):
        return [k for k in self.names if k in state]

    def _misplaced(self, name: str, values: np.ndarray) -> np.ndarray:
        if not self.off or name != "object":
            return values
        places = np.round(values * 1e3).astype(np.int64)  # mm: a place at rest trembles by less
        draws = [np.random.default_rng(np.abs(p).tolist()).normal(0, self.off, len(p)) for p in places]
        return values + np.stack(draws)

    def _joined(self, parts, n):
        return np.nan_to_num(np.concatenate([*parts, np.zeros((n, 0))], 1)).astype(np.float32)

    def live(self, fitted: Fitted, recorder: Recorder) -> Live:
        def through(seen: Sequence[Seen]) -> np.ndarray:
            told = {k: np.stack([np.reshape(s.state[k], -1) for s in seen]) for k in self.names}
            return self._joined([self._misplaced(k, values) for k, values in told.items()], len(seen))

        return through


def _per_step(name: str, state: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Of an episode's array, one value a step or one for all, those of some steps: `[s, d]`."""
    array = state[name]
    if array.ndim == 1 and STATE[name] > 1:  # a place that stays
        return np.broadcast_to(array, (len(rows), len(array)))
    return array[rows].reshape(len(rows), -1)


# -- through the project's own networks


@dataclass(frozen=True)
class Student:
    """The embedding of a finished run."""

    folder: Path
    cloud = False

    def made_from(self, source: Source) -> str:
        return f"{weights_digest(self.folder)} {source.digest}"

    def features(self, source: Source) -> Fitted:
        found = Run.open(self.folder).embeddings_of_all()
        row = {key: i for i, key in enumerate(zip(found["task"], found["episode"], found["step"], strict=True))}
        lacking = [key for key in source.steps if key not in row]
        if lacking:
            raise InputError(
                f"{self.folder}: expected embeddings of {len(source.steps)} steps, found none of {len(lacking)}, such "
                f"as {'/'.join(lacking[0])}; train it on this workspace"
            )
        rows = [row[key] for key in source.steps]
        for side in ("held_out", "validation"):
            if not np.array_equal(found[side][rows], getattr(source.demonstrations, side)):
                raise InputError(
                    f"{self.folder}: expected the split of the demonstrations, found other {side.replace('_', '-')} "
                    "steps, so it has learned from some that judge it; train it with the same split"
                )
        return {"x": found["student"][rows].astype(np.float32)}

    def live(self, fitted: Fitted, recorder: Recorder) -> Live:
        embedder = Embedder.from_run(self.folder)
        if embedder.together or embedder.live is None:
            raise InputError(
                f"{self.folder}: has an expert that sees several frames at once, and the loop's policies look too "
                "seldom for that; leave it out"
            )
        live = embedder.live
        experts = list(live.encoders) if isinstance(live, ThroughExperts) else []

        def through(seen: Sequence[Seen]) -> np.ndarray:
            found, _ = live([[recorder.moment(s, experts)] for s in seen], cameras=cameras_of(seen))
            return found.float().cpu().numpy()

        return through


@dataclass(frozen=True)
class CompactStudent(Student):
    """The embedding of a compact student, which is made from the recorded frames anew."""

    def made_from(self, source: Source) -> str:
        return f"compact {weights_digest(self.folder)} {stamp(source.frames)} {source.digest}"

    def features(self, source: Source) -> Fitted:
        network = CompactRun.open(self.folder).compact()
        pixels = frame_cache(source.frames, network.size)
        return {"x": embed_pixels(network, pixels, np.arange(len(pixels)))}


@dataclass(frozen=True)
class SpatialTokens:
    """A run's spatial tokens, flattened, as so many principal components of the training steps."""

    folder: Path
    side: int = 4
    width: int = 256
    cloud = False

    def made_from(self, source: Source) -> str:
        packs = _packs_stamp(source, Run.open(self.folder).config.vis_roots)
        return f"spatial {self.side} {self.width} {weights_digest(self.folder)} {packs} {source.digest}"

    def features(self, source: Source) -> Fitted:
        run, samples = Run.open(self.folder), source.data.samples
        student, _ = run.student()
        at = embedding_lattice(samples.pairing.finest_grid)
        plans = ordered_plans(samples, np.arange(len(samples)), 32, at)
        rows = []
        with torch.no_grad():
            for b in Gatherer(samples, run.config.frame_copy).run(plans):
                tokens = {name: b.tokens[name] for name in student.experts}
                order = [list(samples.expert_rows).index(name) for name in student.experts]
                found, _ = student.spatial(tokens, b.present[:, :, order], b.positions, self.side)
                rows.append(found.flatten(1).numpy())
        return _reduced(np.concatenate(rows), self.width, source) | {"at": at}

    def live(self, fitted: Fitted, recorder: Recorder) -> Live:
        run, on = Run.open(self.folder), pick_device("auto")
        student = run.student()[0].to(on)
        encoders = {name: _single(open_encoder(name, str(on))) for name in student.experts}

        live = ThroughExperts(student, encoders, {}, self.side, fitted["at"])

        def through(seen: Sequence[Seen]) -> np.ndarray:
            _, found = live([[recorder.moment(s, encoders)] for s in seen], cameras=cameras_of(seen))
            assert found is not None  # only a compact student has none
            return _reduce(found.flatten(1).cpu().numpy(), fitted)

        return through


@dataclass(frozen=True)
class Pooled:
    """Experts' own tokens, averaged over the image or its blocks; with a width as so many principal components."""

    experts: tuple[str, ...]
    side: int = 1
    width: int | None = None
    cloud = False

    def made_from(self, source: Source) -> str:
        said = f"{' '.join(self.experts)} {self.side} {self.width} {source.data.samples.pairing.finest_grid}"
        return f"pooled {said} {_packs_stamp(source, self.experts)} {source.digest}"

    def features(self, source: Source) -> Fitted:
        found = source.pooled[self.side]
        x = np.concatenate([found[name] for name in self.experts], 1)
        at = lattice(source.data.samples.pairing.finest_grid)
        return ({"x": x.astype(np.float32)} if self.width is None else _reduced(x, self.width, source)) | {"at": at}

    def live(self, fitted: Fitted, recorder: Recorder) -> Live:
        on = pick_device("auto")
        encoders = {name: _single(open_encoder(name, str(on))) for name in self.experts}
        at = fitted["at"]

        def through(seen: Sequence[Seen]) -> np.ndarray:
            frames = stacked([recorder.moment(s, encoders) for s in seen])
            tokens, present, _ = live_tokens(encoders, frames, at, cameras=cameras_of(seen))
            means = [
                block_means(tokens[name], present[:, :, m : m + 1], at, self.side)
                for m, name in enumerate(self.experts)
            ]
            return _reduce(np.concatenate(means, 1), fitted)

        return through


@dataclass(frozen=True)
class Teacher:
    """The point encoder on the cloud, its points' features pooled as the students' teacher was."""

    encoder: str = "pointnet"
    weights: Path | None = None
    pooling: str = "mean"
    cloud = True

    @property
    def frame(self) -> str | None:
        """That of the clouds which the encoder sees."""
        return load_cloud_encoder(self.encoder, self.weights).frame

    def made_from(self, source: Source) -> str:
        files = source.data.samples.pairing.teacher
        changed = stamp(f.path for steps in files.values() for f in steps.values())
        return f"teacher {self.encoder} {self.pooling} {changed} {source.digest}"

    def features(self, source: Source) -> Fitted:
        samples = source.data.samples
        file = next(iter(next(iter(samples.pairing.teacher.values())).values()))
        made_by = load_torch(file.path, AGAIN, again=AGAIN).get("encoder") if file.row is None else None
        expected = load_cloud_encoder(self.encoder, self.weights).made_by
        if made_by != expected:
            raise InputError(
                f"{file.path}: expected features of {self.encoder} ({expected}), which is here to look at live clouds, "
                f"found those of {made_by or 'an encoder without a name'}; extract them with tools/extract_teacher.py"
            )
        gatherer = Gatherer(samples, teacher_pooling=self.pooling)
        return {"x": gatherer.teacher_embeddings(samples.teacher_rows).astype(np.float32)}

    def live(self, fitted: Fitted, recorder: Recorder) -> Live:
        encoder = load_cloud_encoder(self.encoder, self.weights, str(pick_device("auto")))

        @torch.inference_mode()
        def through(seen: Sequence[Seen]) -> np.ndarray:
            points = torch.from_numpy(np.stack([cloud_points(s.cloud, encoder.grey) for s in seen if s.cloud]))
            found = encoder.features(points.to(encoder.device))["pc_feat"]
            stored = found.half().float().cpu().numpy()  # as the teacher's files hold them
            return np.stack([pooled(one, self.pooling) for one in stored])

        return through


def _single(encoder: Encoder) -> Encoder:
    if encoder.together:
        raise InputError(
            f"expert '{encoder.name}': sees several frames at once, and the loop's policies look too seldom for that; "
            "leave it out"
        )
    return encoder


def _reduced(x: np.ndarray, width: int, source: Source) -> Fitted:
    pca = fit_components(x, width, source.demonstrations.training)
    fitted = {"mean": pca.mean_.astype(np.float32), "components": pca.components_.astype(np.float32)}
    return {"x": _reduce(x, fitted)} | fitted


def _reduce(x: np.ndarray, fitted: Fitted) -> np.ndarray:
    """Features `[B, C]` as the principal components that were fitted, if any."""
    x = x.astype(np.float32)
    return (x - fitted["mean"]) @ fitted["components"].T if "components" in fitted else x


def _packs_stamp(source: Source, experts: Iterable[str]) -> str:
    packs = source.data.samples.pairing.packs
    return stamp(pack.path for name in experts for pack in packs[name].values())


def weights_digest(folder: Path) -> str:
    run = open_run(folder)
    if not run.finished:
        raise InputError(f"{folder}: the run is unfinished; continue it with --resume")
    return hashlib.sha256(run.file("model.safetensors").read_bytes()).hexdigest()[:16]


# -- features on disk


def prepare(name: str, one: Representation, source: Source, folder: Path) -> str:
    """Leave its features in `folder`, unless they are there; a digest of them."""
    made_from, path = one.made_from(source), features_file(folder, name)
    if not path.exists() or str(read_features(path)["made_from"]) != made_from:
        found: dict[str, Any] = {**one.features(source), "made_from": np.array(made_from)}
        write_atomic(path, lambda p: np.savez(p, **found))
    digest = hashlib.sha256()
    for key, array in sorted(read_features(path).items()):
        if key != "made_from":
            digest.update(key.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def features_file(folder: Path, name: str) -> Path:
    return folder / f"{slug(name)}.npz"


def slug(name: str) -> str:
    """A representation's name as files have it; `prove` refuses two that have one."""
    return "".join(c if c.isalnum() else "-" for c in name)


def read_features(path: Path) -> Fitted:
    """What `prepare` left. Raises InputError naming a damaged file."""
    return read_npz(path, {"x": ("f", "nd"), "made_from": ("U", "")}, "delete it, and it is made again")
