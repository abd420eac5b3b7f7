"""Training: one plain loop that yields its progress. Command line, notebooks and widgets all drive this loop."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.losses import info_nce, load_balance, near_in_time, normalised_mse, relational
from rgb2pc_lib.metrics import agreement, retrieval
from rgb2pc_lib.models import Student
from rgb2pc_lib.pairing import Samples, pair, select, split
from rgb2pc_lib.runs import Config, Run, build_student, claim, read_metrics, write_atomic
from rgb2pc_lib.sampling import Batch, Gatherer, Planner, embedding_lattice, lattice, ordered_plans

_DROPPING = 0.7  # share of the steps in which experts are dropped; the rest trains them together, as they will be used
_EVAL_SAMPLES = 512  # held-out samples behind the curve; the final figures use all of them


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
            pairing, config.strict_pairing, config.pairing_fallback, config.sample_unit, config.window, config.seed
        )
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
    with claim(config.folder):
        yield from _train(config, resume)


def _train(config: Config, resume: bool) -> Iterator[Progress]:
    device = pick_device(config.device)
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    run = Run(config.folder)
    state = _resume_state(run, config) if resume else None
    if not resume and run.file("config.json").exists():
        raise InputError(f"{run.folder}: holds a run already; continue it with --resume or choose another --save_dir")
    data = Data.open(config)
    samples = data.shuffled(config.seed) if config.shuffle_pairs else data.samples
    planner = Planner(
        samples, data.training, config.batch_size, config.student_tokens, config.seed, config.expert_drop,
        _DROPPING * config.steps,
        config.strict_pairing,
    )  # fmt: skip
    gatherer = Gatherer(samples, config.frame_copy, config.teacher_points, device)
    mean = torch.from_numpy(gatherer.teacher_embeddings(samples.teacher_rows[data.training]).mean(0)).float()
    channels = samples.pairing.channels
    student = build_student(config, channels, len(mean)).to(device)
    learner = _Learner(config, student, mean.to(device), samples, device)
    first = 0
    if state:
        learner.load(state)
        first = state["step"]
    run.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(run.file("config.json"), lambda p: p.write_text(config.to_json(), encoding="utf-8"))
    _drop_lines_after(run, first)
    done, written = first, first
    batches = gatherer.run(planner(n) for n in range(first, config.steps))
    with SummaryWriter(str(run.file("tensorboard")), purge_step=first + 1) as board:
        try:
            for n in range(first, config.steps):
                start = time.perf_counter()
                loss, parts, gates = learner.step(n, next(batches))
                done = n + 1
                held_out = {}
                if done == config.steps or (config.eval_every and done % config.eval_every == 0):
                    held_out = _curve_point(student, gatherer, data, mean, config)
                progress = Progress(done, config.steps, loss, parts, gates, held_out, time.perf_counter() - start)
                if progress.logged(config.log_every):
                    _log(run, board, progress, learner.rate(n))
                if done % config.save_every == 0 or done == config.steps:
                    _save_state(run, config, learner, done)
                    written = done
                yield progress
        finally:
            batches.close()
            if done > written:  # stopped, not killed: nothing is lost
                _save_state(run, config, learner, done)
    _finish(run, config, student.eval(), gatherer, data, mean)


def pick_device(name: str) -> torch.device:
    """The torch device of a setting; "auto" takes a GPU where there is one."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise InputError(f"--device: expected auto, cpu, cuda or cuda:N, found {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this torch sees no GPU; use --device cpu")
    return device


@torch.no_grad()
def embed_samples(
    student: Student, gatherer: Gatherer, index: np.ndarray, positions: np.ndarray, batch: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings `[n, E]` and mean gates `[n, M]` of samples at fixed positions `[K, 2]`.

    This is the forward path of the curves, the final figures and every later use of a run.
    """
    was_training = student.training
    student.eval()
    embeddings, gates = [], []
    for b in gatherer.run(ordered_plans(gatherer.samples, index, batch, positions)):
        out = student(b.tokens, b.present, b.positions)
        embeddings.append(out.embedding.float().cpu().numpy())
        gates.append(out.gates.mean(1).float().cpu().numpy())
    student.train(was_training)
    return np.concatenate(embeddings), np.concatenate(gates)


class _Learner:
    """Student, optimiser and the loss of one step."""

    def __init__(self, config: Config, student: Student, mean: Tensor, samples: Samples, device):
        self.config, self.student, self.mean, self.device = config, student.train(), mean, device
        keys = samples.keys()
        self.episode = torch.tensor(keys.groupby(["task", "episode"]).ngroup().to_numpy(), device=device)
        self.time = torch.tensor(keys["time"].to_numpy(), device=device)
        self.log_tau = torch.nn.Parameter(torch.tensor(math.log(config.tau), device=device))
        named = dict(student.named_parameters())
        few = [named.pop("logits")] if "logits" in named else []  # M numbers that must travel far: ten times the rate
        few += [self.log_tau] * config.learn_tau
        groups = [
            {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": config.weight_decay, "factor": 1.0},
            {"params": [p for p in named.values() if p.ndim <= 1], "weight_decay": 0.0, "factor": 1.0},
            {"params": few, "weight_decay": 0.0, "factor": 10.0},
        ]
        self.optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr)

    def rate(self, n: int) -> float:
        """Learning rate of step n (from 0): linear warm-up over 5 %, then cosine to zero."""
        warm = max(round(0.05 * self.config.steps), 1)
        if n < warm:
            return self.config.lr * (n + 1) / warm
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * (n - warm) / max(self.config.steps - warm, 1)))

    def step(self, n: int, batch: Batch) -> tuple[float, dict[str, float], dict[str, float]]:
        config = self.config
        for group in self.optimiser.param_groups:
            group["lr"] = group["factor"] * self.rate(n)
        noise = torch.Generator().manual_seed(config.seed * 1_000_003 + n)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.amp):
            out = self.student(batch.tokens, batch.present, batch.positions, noise)
        embedding, gates = out.embedding.float(), out.gates.float()
        teacher = batch.teacher - self.mean
        ignore = near_in_time(self.episode[batch.samples], self.time[batch.samples], config.exclude_near)
        parts = {"InfoNCE": info_nce(embedding, teacher, self.log_tau.exp(), ignore)}
        loss = parts["InfoNCE"]
        for name, weight, term in (
            ("MSE", config.loss_mse, lambda: normalised_mse(embedding, teacher)),
            ("relational", config.loss_relational, lambda: relational(embedding, teacher)),
            ("load balance", config.load_balance, lambda: load_balance(gates, batch.present)),
        ):
            if weight:
                parts[name] = term()
                loss = loss + weight * parts[name]
        if not torch.isfinite(loss):
            raise InputError(f"the loss is {loss.item()} at step {n + 1}; lower --lr or raise --tau")
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), config.grad_clip)
        self.optimiser.step()
        mean_gates = gates.detach().mean((0, 1)).tolist()
        return (
            loss.item(),
            {k: v.item() for k, v in parts.items()},
            dict(zip(self.student.experts, mean_gates, strict=True)),
        )

    def state(self) -> dict:
        return {
            "student": self.student.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "log_tau": self.log_tau.detach(),
        }

    def load(self, state: dict) -> None:
        self.student.load_state_dict(state["student"])
        self.optimiser.load_state_dict(state["optimiser"])
        with torch.no_grad():
            self.log_tau.copy_(state["log_tau"])


# -- a run's folder


def _resume_state(run: Run, config: Config) -> dict | None:
    """The checkpoint to go on from, or None for a run that was killed before its first one (it starts over)."""
    if changed := Run.open(run.folder).config.changes(config):
        listed = ", ".join(f"{k} was {was!r}, now {now!r}" for k, (was, now) in changed.items())
        raise InputError(f"{run.folder}: cannot resume with other settings ({listed})")
    return run.state() if run.file("state.pt").exists() else None


def _save_state(run: Run, config: Config, learner: _Learner, done: int) -> None:
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


def _curve_point(student, gatherer, data, mean, config) -> dict[str, float]:
    """Retrieval on at most 512 held-out samples, at a lattice about as fine as the training's positions."""
    index = data.held_out[:: math.ceil(len(data.held_out) / _EVAL_SAMPLES)]
    side = max(round(math.sqrt(min(config.student_tokens, math.prod(gatherer.samples.pairing.finest_grid)))), 1)
    embedding, _ = embed_samples(student, gatherer, index, lattice((side, side)))
    teacher = gatherer.teacher_embeddings(data.samples.teacher_rows[index]) - mean.numpy()
    return retrieval(embedding, teacher)


def _finish(run: Run, config: Config, student: Student, gatherer: Gatherer, data: Data, mean: Tensor) -> None:
    """Weights, embeddings of every sample, and the final figures on all held-out ones."""
    run.save_student(student, gatherer.samples.pairing.channels, mean)
    index = np.sort(np.concatenate([data.training, data.held_out]))
    embedding, gates = embed_samples(student, gatherer, index, embedding_lattice(gatherer.samples.pairing.finest_grid))
    teacher = gatherer.teacher_embeddings(data.samples.teacher_rows[index]).astype(np.float32)
    keys = data.samples.keys().loc[index]
    held_out = np.isin(index, data.held_out)
    arrays = {k: keys[k].to_numpy(str) for k in ("task", "episode", "step")}
    arrays |= {"time": keys["time"].to_numpy(), "held_out": held_out, "gates": gates}
    arrays |= {"student": embedding, "teacher": teacher, "experts": np.array(student.experts)}
    write_atomic(run.file("embeddings.npz"), lambda p: np.savez(p, **arrays))
    centred = teacher - mean.numpy()
    summary = {
        "n_train": int((~held_out).sum()),
        "n_held_out": int(held_out.sum()),
        "held-out": {
            **retrieval(embedding[held_out], centred[held_out]),
            **agreement(embedding[held_out], centred[held_out]),
        },
        "gates": dict(zip(student.experts, gates[held_out].mean(0).tolist(), strict=True)),
        "data_hash": _data_hash(keys, teacher, student),
    }
    write_atomic(run.file("summary.json"), lambda p: p.write_text(json.dumps(summary, indent=2), encoding="utf-8"))


def _data_hash(keys, teacher: np.ndarray, student: Student) -> str:
    """What was trained on: the steps, the teacher's values and the experts' names."""
    text = keys.to_csv(index=False) + ",".join(student.experts)
    return hashlib.sha256(text.encode() + np.ascontiguousarray(teacher).tobytes()).hexdigest()[:16]


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the TensorBoard writer needs no TensorFlow and no notices of it
