"""Training: one plain loop that yields its progress. Command line, notebooks and widgets all drive this loop."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from rgb2pc_lib.data import system
from rgb2pc_lib.data.pairing import Samples, pair, select, split
from rgb2pc_lib.data.sampling import Batch, Gatherer, Planner, embedding_lattice, lattice, ordered_plans
from rgb2pc_lib.data.step_points import PointReader
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning import ranks
from rgb2pc_lib.learning.alignment import Alignment, PointPlanner, centre
from rgb2pc_lib.learning.learner import Learner
from rgb2pc_lib.learning.metrics import agreement, retrieval
from rgb2pc_lib.learning.models import Student
from rgb2pc_lib.learning.objective import Distillation
from rgb2pc_lib.learning.places import point_to_patch
from rgb2pc_lib.learning.runs import Config, Run, Settings, build_student, claim, read_metrics, write_atomic

_DROPPING = 0.7  # share of the steps in which experts are dropped; the rest trains them together, as they will be used
_EVAL_SAMPLES = 512  # held-out samples behind the curve; the final figures use all of them
_EVAL_IMAGES = 48  # of those, where places are searched for points


@dataclass(frozen=True)
class Progress:
    """Where a training stands after a step."""

    step: int  # steps done, 1 .. steps
    steps: int
    loss: float
    parts: dict[str, float]  # each term of the loss, unweighted
    gates: dict[str, float]  # mean gate of each expert over the batch
    held_out: dict[str, float] = field(default_factory=dict)  # retrieval, when it was measured at this step
    seconds: float = 0.0  # of this step

    def row(self) -> dict[str, float]:
        """As it stands in metrics.jsonl: step, loss, seconds, loss/<term>, gate/<expert>, held-out/<measure>."""
        row = {"step": self.step, "loss": self.loss, "seconds": self.seconds}
        for prefix, values in (("loss", self.parts), ("gate", self.gates), ("held-out", self.held_out)):
            row |= {f"{prefix}/{k}": v for k, v in values.items()}
        return row

    def logged(self, every: int) -> bool:
        """Whether this step has a line in metrics.jsonl."""
        return bool(self.held_out) or self.step % every == 0 or self.step == 1


@dataclass
class Data:
    """A config's data, opened and split."""

    samples: Samples
    training: np.ndarray  # sample numbers
    held_out: np.ndarray

    @classmethod
    def open(cls, config: Config) -> Data:
        """Pair, select and split. Raises InputError for anything that is wrong with the input."""
        pairing = pair(config.workspace, list(config.tasks) or None)
        samples = select(
            pairing, config.strict_pairing, config.pairing_fallback,
            "step" if config.route == "geometric" else config.sample_unit,  # of a window, one frame is used
            config.window, config.seed,
        )  # fmt: skip
        training, held_out = split(samples.keys(), config.split_by, config.held_out, config.split_seed)
        return cls(samples, training, held_out)

    def shuffled(self, seed: int) -> Samples:
        """The control: teachers of the training samples are exchanged; held-out samples stay as they are."""
        rows = self.samples.teacher_rows.copy()
        rows[self.training] = self.samples.take(self.training).shuffled(seed).teacher_rows
        return replace(self.samples, teacher_rows=rows)


def train(config: Config, resume: bool = False) -> Iterator[Progress]:
    """Train a student and leave a finished run in `config.folder`; yields after every step.

    Closing the iterator early writes a checkpoint, so that the run can be resumed; a run killed at any moment resumes
    from its last checkpoint. Either way the numbers are those of an uninterrupted run.

    Raises InputError for bad input, when the folder already holds a run (unless it is to be resumed), and while another
    training writes there.

    >>> for progress in train(Config(steps=10).with_workspace(Workspace.load(SAMPLE))):  # doctest: +SKIP
    ...     print(progress.step, progress.loss)
    """
    with ExitStack() as held:
        with ranks.agreed():
            if ranks.rank() == 0:
                held.enter_context(claim(config.folder))
        yield from _train(config, resume)


def _train(config: Config, resume: bool) -> Iterator[Progress]:
    run = Run(config.folder)
    with ranks.agreed():
        device = pick_device(config.device)
        if device.type == "cpu":
            system.keep_freed_memory()
        state = begin(run, config, resume)
    data, planner, gatherer, reader, mean, learner = ranks.first_then_rest(lambda: _prepare(config, device))
    student = learner.student

    def batches(first: int) -> Iterator[Batch]:
        return gatherer.run(plan for n in range(first, config.steps) for plan in learner.plans(planner(n)))

    def curve() -> dict[str, float]:
        return _curve_point(student, gatherer, reader, data, mean, config)

    yield from follow(run, learner, batches, curve, state)
    _finish(run, student.eval(), gatherer, reader, data, mean)
    ranks.wait()  # a run is finished on all ranks at once


def begin(run: Run, config: Settings, resume: bool) -> dict | None:
    """Whether a training may write to a run's folder: rank 0's checkpoint to go on from, or None to start anew.

    Raises InputError when the folder holds a run that is not to be resumed, or one with other settings.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    if ranks.rank() != 0:
        return None
    if resume:
        return _resume_state(run, config)
    if run.file("config.json").exists():
        raise InputError(f"{run.folder}: holds a run; continue it with --resume or choose another --save_dir")
    return None


def follow(
    run: Run, learner: Learner, batches: Callable[[int], Iterator], curve: Callable[[], dict], state: dict | None
) -> Iterator[Progress]:
    """The loop of every training: steps, log, curve and checkpoints, from rank 0's checkpoint on.

    Args:
        batches: what `learner.step` reads, from a step on; closed at the end.
        curve: held-out figures, asked for every `eval_every` steps and at the last one.
    """
    config, writes, first = learner.config, ranks.rank() == 0, 0
    if state := ranks.from_first(state):
        learner.load(state)
        first = state["step"]
    if writes:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(run.file("config.json"), lambda p: p.write_text(config.to_json(), encoding="utf-8"))
        _drop_lines_after(run, first)
    done, written = first, first
    coming = batches(first)
    with SummaryWriter(str(run.file("tensorboard")), purge_step=first + 1) if writes else nullcontext() as board:
        try:
            for n in range(first, config.steps):
                start = time.perf_counter()
                loss, parts, gates = learner.step(n, coming)
                done = n + 1
                held_out = {}
                if done == config.steps or (config.eval_every and done % config.eval_every == 0):
                    held_out = curve()
                progress = Progress(done, config.steps, loss, parts, gates, held_out, time.perf_counter() - start)
                if writes and progress.logged(config.log_every):
                    _log(run, board, progress, learner.rate(n))
                if writes and (done % config.save_every == 0 or done == config.steps):
                    _save_state(run, learner, done)
                    written = done
                yield progress
        finally:
            coming.close()
            if writes and done > written:  # stopped, not killed: nothing is lost
                _save_state(run, learner, done)


def _prepare(config: Config, device: torch.device) -> tuple:
    """Data, planner, gatherer, reader of points (or None), the teacher's mean, and the learner."""
    data = Data.open(config)
    samples = data.shuffled(config.seed) if config.shuffle_pairs else data.samples
    planner = Planner(
        samples, data.training, config.batch_size, config.student_tokens, config.seed, config.expert_drop,
        _DROPPING * config.steps,
        config.strict_pairing,
    )  # fmt: skip
    gatherer = Gatherer(samples, config.frame_copy, config.teacher_points, device)
    mean = torch.from_numpy(gatherer.teacher_embeddings(samples.teacher_rows[data.training]).mean(0)).float()
    student = build_student(config, samples.pairing.channels, len(mean)).to(device)
    reader, objective = None, Distillation
    if config.aligns:
        reader, objective = PointReader(samples, config.workspace, config.point_target), Alignment
        planner = PointPlanner(planner, reader, config)
        centre(student, reader, data.training)
    learner = Learner(objective(config, student, mean.to(device), samples))
    return data, planner, gatherer, reader, mean, learner


def pick_device(name: str) -> torch.device:
    """The torch device of a setting; "auto" takes a GPU where there is one."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise InputError(f"--device: expected auto, cpu, cuda or cuda:N, found {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this torch sees no GPU; use --device cpu")
    if device.type == "cuda" and ranks.world() > 1:
        if device.index is not None:
            raise InputError(f"--device {name}: of several processes each has its own GPU; write cuda or leave it out")
        device = ranks.device()
        if device.type != "cuda":
            raise InputError("there are more processes than GPUs; lower --nproc_per_node or use --device cpu")
    return device


@torch.no_grad()
def embed_samples(
    student: Student, gatherer: Gatherer, index: np.ndarray, positions: np.ndarray, batch: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings `[n, E]` and mean gates `[n, M]` of samples at fixed positions `[K, 2]`.

    This is the forward path of the curves, the final figures and every later use of a run. Ranks share the batches
    of `batch` samples among them, and all have the result.
    """
    was_training = student.training
    student.eval()
    embeddings = torch.zeros(len(index), student.projector[-1].out_features)
    gates = torch.zeros(len(index), len(student.experts))
    starts = ranks.shard(range(0, len(index), batch))
    plans = ranks.shard(ordered_plans(gatherer.samples, index, batch, positions))
    with ranks.agreed():
        for start, b in zip(starts, gatherer.run(plans), strict=True):
            out = student(b.tokens, b.present, b.positions)
            embeddings[start : start + batch] = out.embedding.float()
            gates[start : start + batch] = out.gates.mean(1).float()
    ranks.add_up([embeddings, gates])  # each row stands on one rank and is zero on the others
    student.train(was_training)
    return embeddings.numpy(), gates.numpy()


# -- a run's folder


def _resume_state(run: Run, config: Settings) -> dict | None:
    """The checkpoint to go on from, or None for a run that was killed before its first one (it starts over)."""
    if changed := type(run).open(run.folder).config.changes(config):
        listed = ", ".join(f"{k} was {was!r}, now {now!r}" for k, (was, now) in changed.items())
        raise InputError(f"{run.folder}: cannot resume with other settings ({listed})")
    return run.state() if run.file("state.pt").exists() else None


def _save_state(run: Run, learner: Learner, done: int) -> None:
    state = {"step": done, **learner.state()}
    write_atomic(run.file("state.pt"), lambda p: torch.save(state, p))


def _drop_lines_after(run: Run, step: int) -> None:
    """Take out what a killed run logged after its last checkpoint; it will be logged again."""
    path = run.file("metrics.jsonl")
    kept = "".join(json.dumps(r) + "\n" for r in read_metrics(path) if r["step"] <= step)
    write_atomic(path, lambda p: p.write_text(kept, encoding="utf-8"))


def _log(run: Run, board: SummaryWriter, progress: Progress, rate: float) -> None:
    row = progress.row() | {"lr": rate}
    with open(run.file("metrics.jsonl"), "a", encoding="utf-8") as f:
        f.write(json.dumps(row) + "\n")
    for name, value in row.items():
        if name != "step":
            board.add_scalar(name.replace(" ", "_"), value, progress.step)


def _curve_point(student, gatherer, reader, data, mean, config) -> dict[str, float]:
    """Figures on some held-out samples: retrieval at a lattice about as fine as the training's, points to patches."""
    index = data.held_out[:: math.ceil(len(data.held_out) / _EVAL_SAMPLES)]
    with ranks.agreed():
        figures = point_to_patch(student, gatherer, reader, index, most=_EVAL_IMAGES) if reader else {}
    if config.route == "geometric":  # its embeddings are in a space of their own
        return figures
    side = max(round(math.sqrt(min(config.student_tokens, math.prod(gatherer.samples.pairing.finest_grid)))), 1)
    embedding, _ = embed_samples(student, gatherer, index, lattice((side, side)))
    teacher = gatherer.teacher_embeddings(data.samples.teacher_rows[index]) - mean.numpy()
    return retrieval(embedding, teacher) | figures


def _finish(run: Run, student: Student, gatherer: Gatherer, reader, data: Data, mean: Tensor) -> None:
    """Weights, embeddings of every sample, and the final figures on all held-out ones."""
    index = np.sort(np.concatenate([data.training, data.held_out]))
    embedding, gates = embed_samples(student, gatherer, index, embedding_lattice(gatherer.samples.pairing.finest_grid))
    if ranks.rank() > 0:
        return
    run.save_student(student, gatherer.samples.pairing.channels, mean)
    teacher = gatherer.teacher_embeddings(data.samples.teacher_rows[index]).astype(np.float32)
    keys = data.samples.keys().loc[index]
    held_out = np.isin(index, data.held_out)
    arrays = {k: keys[k].to_numpy(str) for k in ("task", "episode", "step")}
    arrays |= {"time": keys["time"].to_numpy(), "held_out": held_out, "gates": gates}
    arrays |= {"student": embedding, "teacher": teacher, "experts": np.array(student.experts)}
    write_atomic(run.file("embeddings.npz"), lambda p: np.savez(p, **arrays))
    ours, theirs = embedding[held_out], (teacher - mean.numpy())[held_out]
    figures = point_to_patch(student, gatherer, reader, data.held_out) if reader else {}
    if run.config.route == "distill":
        figures = retrieval(ours, theirs) | agreement(ours, theirs) | figures
    summary = {
        "n_train": int((~held_out).sum()),
        "n_held_out": int(held_out.sum()),
        "held-out": figures,
        "gates": dict(zip(student.experts, gates[held_out].mean(0).tolist(), strict=True)),
        "data_hash": _data_hash(keys, teacher, student),
    }
    write_atomic(run.file("summary.json"), lambda p: p.write_text(json.dumps(summary, indent=2), encoding="utf-8"))


def _data_hash(keys, teacher: np.ndarray, student: Student) -> str:
    """What was trained on: the steps, the teacher's values and the experts' names."""
    text = keys.to_csv(index=False) + ",".join(student.experts)
    return hashlib.sha256(text.encode() + np.ascontiguousarray(teacher).tobytes()).hexdigest()[:16]


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the TensorBoard writer needs no TensorFlow and no notices of it
