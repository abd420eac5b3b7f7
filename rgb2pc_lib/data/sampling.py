"""Plan, then gather: what a batch holds is a pure function of (seed, batch number); threads only fetch it.

A plan draws its positions in the unit square once per sample, and every expert looks up its own grid there, so
token k is the same place of the image for all of them.
"""

from __future__ import annotations

import functools
import math
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from rgb2pc_lib.data.geometry import Layout
from rgb2pc_lib.data.mapped import Frames
from rgb2pc_lib.data.packs import FeaturePack, Unmapped
from rgb2pc_lib.data.pairing import Samples
from rgb2pc_lib.data.resident import Resident, fits
from rgb2pc_lib.data.teacher import subsampled, teacher_table
from rgb2pc_lib.data.workspace import camera_of
from rgb2pc_lib.errors import InputError


@dataclass(frozen=True)
class Plan:
    """Everything that is decided about a batch before anything is read."""

    samples: np.ndarray  # [B] sample numbers, all different
    teacher: np.ndarray  # [B, S] rows of the pairing table, -1 = none
    positions: np.ndarray  # [B, K, 2] (x, y) fractions of the original image
    draws: np.ndarray  # [B] in [0, 1): which copy of a frame, for frame_copy = "random"
    keep: np.ndarray  # [B, M] False where an expert is dropped on purpose
    seed: int  # for what is drawn while gathering (teacher points)
    points: np.ndarray | None = None  # [B, P, F] what is known of the points at the last P positions, for alignment


class Place(NamedTuple):
    """Where a step's frame of one expert is read."""

    pack: FeaturePack
    layout: Layout  # of the pack; these two stand here so that gathering asks each pack once
    frames: Frames | Unmapped
    number: int  # among the frames


Located = dict[str, list[list[Place]]]  # expert -> for each sample of a plan the places of its members' frames


@dataclass
class Batch:
    """Paired token batch. Tensors are valid until the next batch is asked for."""

    tokens: dict[str, torch.Tensor]  # expert -> [B, K, C]
    present: torch.Tensor  # [B, K, M] False outside an expert's box or where it is dropped
    positions: torch.Tensor  # [B, K, 2]
    teacher: torch.Tensor  # [B, E]
    samples: np.ndarray  # [B]
    points: torch.Tensor | None = None  # [B, P, F] of the plan


def refuse_not_finite(batch: Batch, samples: Samples, made: torch.Tensor) -> None:
    """Look at what was `made` of a batch, and where it is not finite for a token that is to blame.

    Raises InputError naming expert, episode and step of the first that is NaN or infinite. Where everything is finite
    this costs a look at `made` alone.
    """
    if made.isfinite().all():
        return
    for name, tokens in batch.tokens.items():
        bad = ~tokens.isfinite().all(-1).all(-1)  # [B]
        if bad.any():
            number = batch.samples[int(bad.nonzero()[0, 0])]
            task, episode, step = samples.take(np.array([number])).keys().iloc[0][["task", "episode", "step"]]
            raise InputError(
                f"expert '{name}': NaN or infinite tokens in {task}/{episode}/{step} of "
                f"{samples.pairing.packs[name][task, episode].path}; extract this episode again, or exclude it "
                "(tools/doctor.py --deep --exclude-out lists them all)"
            )


def lattice(grid: tuple[int, int]) -> np.ndarray:
    """Centres of a grid's cells as positions, `[H*W, 2]`, row-major.

    >>> lattice((1, 2)).tolist()
    [[0.25, 0.5], [0.75, 0.5]]
    """
    h, w = grid
    y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    return np.stack([x, y], -1).reshape(-1, 2)


def embedding_lattice(finest: tuple[int, int]) -> np.ndarray:
    """The positions at which steps are embedded: the finest grid's cells, or 16 x 16 places where it has more.

    The embedding is a mean over places, so a regular sample of them stands for all.
    """
    return lattice((min(finest[0], 16), min(finest[1], 16)))


class Planner:
    """Batches of the training samples, without end: `planner(n)` is batch n, whatever was asked before.

    Epochs are permutations without replacement, so no step repeats inside a batch. Experts, and of several cameras each
    as a whole, are dropped from samples with chance `drop` in the first `drop_batches` batches.
    """

    def __init__(
        self, samples: Samples, index: np.ndarray, batch: int, tokens: int, seed: int, drop: float = 0.0,
        drop_batches: float = math.inf, strict: bool = True,
    ):  # fmt: skip
        if batch > len(index):
            raise InputError(f"--batch_size {batch} is larger than the {len(index)} training samples; lower it")
        self.all_samples, self.index, self.batch, self.tokens = samples, index, batch, tokens
        self.seed, self.drop, self.drop_batches, self.strict = seed, drop, drop_batches, strict
        self.grid = samples.pairing.finest_grid
        through = [camera_of(name) for name in samples.expert_rows]
        self.cameras = list(dict.fromkeys(through))
        self.seen_through = [self.cameras.index(name) for name in through]  # [M]
        self._last = -1, index  # epoch and its order; before the first, none
        if not strict:
            table = samples.pairing.table
            has = table["teacher"] == "ok"
            groups = table[has].groupby(["task", "episode"]).indices
            rows = table.index[has].to_numpy()
            self.choices = {key: rows[i] for key, i in groups.items()}
            self.episode_of = list(zip(table["task"], table["episode"], strict=True))

    def __call__(self, n: int) -> Plan:
        per_epoch = len(self.index) // self.batch
        chosen = self._order(n // per_epoch)[n % per_epoch * self.batch :][: self.batch]
        rng = np.random.default_rng([self.seed, 2, n])
        if self.tokens >= self.grid[0] * self.grid[1]:
            positions = np.broadcast_to(lattice(self.grid), (self.batch, self.grid[0] * self.grid[1], 2))
        else:
            positions = rng.random((self.batch, self.tokens, 2))
            order = np.argsort(np.floor(positions[..., 1] * self.grid[0]) + positions[..., 0], axis=1)
            positions = np.take_along_axis(positions, order[..., None], 1)  # in reading order, as they lie in the files
        experts, drop = len(self.all_samples.expert_rows), self.drop * (n < self.drop_batches)
        keep = rng.random((self.batch, experts)) >= drop
        if len(self.cameras) > 1:  # whole cameras too, as one may be missing
            keep &= (rng.random((self.batch, len(self.cameras))) >= drop)[:, self.seen_through]
        keep[np.arange(self.batch), rng.integers(experts, size=self.batch)] |= ~keep.any(1)
        teacher = self.all_samples.teacher_rows[chosen]
        if not self.strict:  # any step of the episode that the sample's teacher is from: its own, unless shuffled
            teacher = np.array([[rng.choice(self.choices[self.episode_of[r]])] for r in teacher.max(1)])
        return Plan(chosen, teacher, positions, rng.random(self.batch), keep, int(rng.integers(2**31)))

    def _order(self, epoch: int) -> np.ndarray:  # of all samples; the last one is kept, as it takes long where many
        known, order = self._last
        if known != epoch:
            order = np.random.default_rng([self.seed, 1, epoch]).permutation(self.index)
            self._last = epoch, order
        return order


def ordered_plans(samples: Samples, index: np.ndarray, batch: int, positions: np.ndarray) -> Iterator[Plan]:
    """The given samples once, in order, at the same positions `[K, 2]` each: for embedding and evaluation."""
    for start in range(0, len(index), batch):
        chosen = index[start : start + batch]
        yield Plan(
            chosen,
            samples.teacher_rows[chosen],
            np.broadcast_to(positions, (len(chosen), *positions.shape)),
            np.zeros(len(chosen)),
            np.ones((len(chosen), len(samples.expert_rows)), bool),
            0,
        )


class Gatherer:
    """Turns plans into batches on threads that run ahead into a ring of reused buffers.

    `frame_copy` chooses among the copies of a frame ("middle", "last", "random").
    `teacher_points` > 0 averages that many random points per step instead of using the table of all.
    `teacher_pooling` makes one vector of a step's points ("mean", "mean+max").
    `resident` keeps all frames in the device's memory and gathers there (none: on a GPU, where they fit).
    Raises InputError where a pack holds another copy of the frames only.

    >>> for batch in Gatherer(samples).run(plans):  # doctest: +SKIP
    ...     student(batch.tokens, batch.present, batch.positions)
    """

    def __init__(
        self, samples: Samples, frame_copy: str = "middle", teacher_points: int = 0,
        device: str | torch.device = "cpu", ahead: int = 2, resident: bool | None = None,
        teacher_pooling: str = "mean",
    ):  # fmt: skip
        self.samples, self.frame_copy, self.teacher_points = samples, frame_copy, teacher_points
        self.teacher_pooling = teacher_pooling
        self.device, self.ahead = torch.device(device), ahead
        self.resident = fits(samples, frame_copy, self.device) if resident is None else resident
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # of copies to the GPU
        pairing = samples.pairing
        table = pairing.table
        self.keys = list(zip(table["task"], table["episode"], strict=True))
        self.steps = table["step"].tolist()
        self.packs, self.experts = pairing.packs, list(samples.expert_rows)
        for pack in (p for name in self.experts for p in self.packs[name].values()):
            only = pack.meta.get("frame_copy", frame_copy)
            if only != frame_copy:
                raise InputError(
                    f"{pack.path}: was packed with one copy of each frame, {only!r}, and {frame_copy!r} is asked for; "
                    f"give --frame_copy {only}, or the pack with all windows"
                )
        episodes = {self.keys[r] for r in np.unique(samples.teacher_rows[samples.teacher_rows >= 0])}
        rows = [r for r in np.flatnonzero(table["teacher"] == "ok").tolist() if self.keys[r] in episodes]
        self.files = {r: pairing.teacher[self.keys[r]][self.steps[r]] for r in rows}  # loose pairing may draw any
        self.teacher_row = np.full(len(table), -1)
        self.teacher_row[rows] = np.arange(len(rows))
        self.table = teacher_table(list(self.files.values()), pooling=teacher_pooling)  # [rows, E]
        self.places: dict[str, dict[int, Place]] = {name: {} for name in self.experts}  # of rows read before

    @functools.cached_property
    def store(self) -> Resident | None:  # filled when the first batch is gathered
        return Resident(self.samples, self.frame_copy, self.device) if self.resident else None

    def teacher_embeddings(self, teacher_rows: np.ndarray) -> np.ndarray:
        """Mean teacher embedding of each sample's member steps, `[n, S]` rows -> `[n, E]` (E = 0 without teacher)."""
        if not self.files:
            return np.zeros((len(teacher_rows), 0))
        there = teacher_rows >= 0
        rows = self.table[self.teacher_row[teacher_rows]]
        means: np.ndarray = (rows * there[..., None]).sum(1) / np.maximum(there.sum(1), 1)[:, None]
        return means

    def run(self, plans: Iterable[Plan]) -> Generator[Batch]:
        """Batches in the order of the plans. Closing the iterator stops the thread."""
        free: queue.SimpleQueue[dict[str, np.ndarray]] = queue.SimpleQueue()
        ready: queue.SimpleQueue[tuple[Batch, torch.cuda.Event | None, dict[str, np.ndarray]] | BaseException | None]
        ready = queue.SimpleQueue()
        stop = threading.Event()
        for _ in range(self.ahead + 1):
            free.put({})

        def work() -> None:
            try:
                coming = self._one_ahead(plans)
                while not stop.is_set():
                    buffers = free.get()
                    if stop.is_set() or (item := next(coming, None)) is None:
                        break
                    ready.put((*self._send(self.gather(item[0], buffers, item[1])), buffers))
                ready.put(None)
            except BaseException as e:  # handed to the consumer, which raises it
                ready.put(e)

        thread = threading.Thread(target=work, daemon=True, name="gather")
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                batch, sent, buffers = item
                if sent:  # what is computed from now on waits for the copy; this thread does not
                    stream = torch.cuda.current_stream(self.device)
                    stream.wait_event(sent)
                    for tensor in (*batch.tokens.values(), batch.present, batch.positions, batch.teacher):
                        tensor.record_stream(stream)
                yield batch
                if sent:
                    sent.synchronize()
                free.put(buffers)
        finally:
            stop.set()
            free.put({})
            thread.join()

    def _one_ahead(self, plans: Iterable[Plan]) -> Iterator[tuple[Plan, Located]]:
        """The plans with their places; the next one's frames are asked for before each is handed out."""
        held: tuple[Plan, Located] | None = None
        error: Exception | None = None
        try:
            for plan in plans:
                coming = plan, self._locate(plan)
                if held:
                    yield held
                held = coming
        except Exception as e:  # what was planned before it is still gathered
            error = e
        if held:
            yield held
        if error:
            raise error

    def _locate(self, plan: Plan) -> Located:
        """Where the plan's frames are, which the system is told to fetch."""
        located = {}
        for name in self.experts:
            rows = self.samples.expert_rows[name][plan.samples].tolist()  # [B, S]
            located[name] = [
                [self.places[name].get(r) or self._place(name, r, draw) for r in sample if r >= 0]
                for sample, draw in zip(rows, plan.draws.tolist(), strict=True)
            ]
            for sample in located[name] if self.store is None else ():
                for place in sample:
                    place.frames.will_need(place.number)
        return located

    def _place(self, name: str, row: int, draw: float) -> Place:
        pack = self.packs[name][self.keys[row]]
        found = Place(pack, pack.layout, pack.frames, pack.number(pack.where(self.steps[row], self.frame_copy, draw)))
        if self.frame_copy != "random":
            self.places[name][row] = found
        return found

    def gather(self, plan: Plan, buffers: dict[str, np.ndarray], located: Located | None = None) -> Batch:
        """Read one batch into `buffers` (expert -> array, made on first use)."""
        located = located or self._locate(plan)
        present = np.repeat(plan.keep[:, None, :], plan.positions.shape[1], 1)  # [B, K, M]
        tokens: dict[str, torch.Tensor] = {}
        cells: dict[Layout, np.ndarray] = {}
        for m, name in enumerate(self.experts):
            at = _cells([sample[0].layout for sample in located[name]], plan.positions, cells)  # [B, K]
            present[:, :, m] &= at >= 0
            if self.store is None:
                tokens[name] = self._gather_expert(name, located[name], at, buffers)
            else:
                rows = self.samples.expert_rows[name][plan.samples]
                tokens[name] = self.store.tokens(name, rows, plan.draws, at)
        teacher = self.teacher_embeddings(plan.teacher)
        if self.teacher_points:
            drawn = self.teacher_points, np.random.default_rng(plan.seed), self.teacher_pooling
            teacher = np.stack(
                [
                    np.mean([subsampled(self.files[r], *drawn) for r in rows if r >= 0], 0)
                    for rows in plan.teacher.tolist()
                ]
            )
        return Batch(
            tokens,
            torch.from_numpy(present),
            torch.from_numpy(np.ascontiguousarray(plan.positions, np.float32)),
            torch.from_numpy(np.ascontiguousarray(teacher, np.float32)),
            plan.samples,
            None if plan.points is None else torch.from_numpy(plan.points),
        )

    def _gather_expert(
        self, name: str, located: list[list[Place]], cells: np.ndarray, buffers: dict[str, np.ndarray]
    ) -> torch.Tensor:
        first = located[0][0].pack
        out = _buffer(buffers, name, (*cells.shape, first.channels), first.dtype, self.device)
        for row, at, sample in zip(out, cells, located, strict=True):
            sample[0].frames.read(sample[0].number, at, row)
            if len(sample) > 1:  # a window: the mean over its frames
                scratch = np.empty_like(row)
                total = _floats(row, first.dtype)
                for place in sample[1:]:
                    place.frames.read(place.number, at, scratch)
                    total += _floats(scratch, first.dtype)
                torch.from_numpy(row).view(first.dtype).copy_(total / len(sample))
        return torch.from_numpy(out).view(first.dtype)

    def _send(self, batch: Batch) -> tuple[Batch, torch.cuda.Event | None]:
        """Copy a batch to the GPU on a stream of its own, beside what is computed; the event tells when it is there."""
        if self.stream is None:
            return batch, None

        def send(small: torch.Tensor) -> torch.Tensor:
            return small.pin_memory().to(self.device, non_blocking=True)

        with torch.cuda.stream(self.stream):
            moved = Batch(
                {k: v.to(self.device, non_blocking=True) for k, v in batch.tokens.items()},
                send(batch.present),
                send(batch.positions),
                send(batch.teacher),
                batch.samples,
                None if batch.points is None else send(batch.points),
            )
            sent = torch.cuda.Event()
            sent.record(self.stream)
        return moved, sent


def _cells(layouts: list[Layout], positions: np.ndarray, known: dict[Layout, np.ndarray]) -> np.ndarray:
    """Cells `[B, K]` of each sample's pack under its positions; experts with the same layout share them."""
    first = layouts[0]
    if layouts.count(first) == len(layouts):
        if first not in known:
            known[first] = first.cells(positions)
        return known[first]
    cells = np.empty(positions.shape[:2], np.int64)
    for layout in set(layouts):
        alike = [b for b, other in enumerate(layouts) if other == layout]
        cells[alike] = layout.cells(positions[alike])
    return cells


def _buffer(
    buffers: dict[str, np.ndarray], name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> np.ndarray:
    held = buffers.get(name)
    if held is None or held.shape != shape:
        stored = torch.int16 if dtype == torch.bfloat16 else dtype
        buffers[name] = held = torch.empty(shape, dtype=stored, pin_memory=device.type == "cuda").numpy()
    return held


def _floats(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(array).view(dtype).float()
