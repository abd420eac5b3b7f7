"""Training: one plain loop that yields its progress. Command line, notebooks and widgets all drive this loop.

`prepare` opens the data and builds what the loop drives; the loop follows; `finish` leaves a finished run.
"""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from rgb2pc_lib.data import system
from rgb2pc_lib.data.files.guarded import first_line
from rgb2pc_lib.data.files.writing import claim, told, write_atomic
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning import ranks
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.finish import curve, finish
from rgb2pc_lib.learning.learner import Learner
from rgb2pc_lib.learning.precision import in_bfloat16
from rgb2pc_lib.learning.prepare import pick_device, prepare
from rgb2pc_lib.learning.runs import OVER, Run, RunFolder, read_metrics
from rgb2pc_lib.learning.settings import Settings

_LISTED = 200  # characters of changed settings in a message


@dataclass(frozen=True)
class Progress:
    """Where a training stands after a step."""

    step: int  # steps done, 1 .. steps
    steps: int
    loss: float
    parts: dict[str, float]  # each term of the loss, unweighted
    gates: dict[str, float]  # mean gate of each expert over the batch
    curve: dict[str, float] = field(default_factory=dict)  # "validation/R@1" ..., when it was measured at this step
    seconds: float = 0.0  # of this step

    def row(self) -> dict[str, float]:
        """As it stands in metrics.jsonl: step, loss, seconds, loss/<term>, gate/<expert>, validation/<measure>."""
        row = {"step": self.step, "loss": self.loss, "seconds": self.seconds}
        for prefix, values in (("loss", self.parts), ("gate", self.gates)):
            row |= {f"{prefix}/{k}": v for k, v in values.items()}
        return row | self.curve

    def logged(self, every: int) -> bool:
        """Whether this step has a line in metrics.jsonl."""
        return bool(self.curve) or self.step % every == 0 or self.step == 1


def train(config: Config, resume: bool = False) -> Generator[Progress]:
    """Train a student and leave a finished run in `config.folder`; yields after every step.

    Closing the iterator early writes a checkpoint, so that the run can be resumed; a run killed at any moment resumes
    from its last checkpoint. Either way the numbers are those of an uninterrupted run.

    Raises InputError for bad input, when the folder already holds a run (unless it is to be resumed), and while another
    training writes there.

    >>> config = Config(steps=2, batch_size=8, save_dir=str(folder / "run")).with_workspace(workspace)
    >>> for progress in train(config):
    ...     print(progress.step, progress.loss > 0, list(progress.gates))
    1 True ['dinov3', 'vggt']
    2 True ['dinov3', 'vggt']
    >>> Run(config.folder).finished
    True
    """
    with ExitStack() as held:
        with ranks.agreed():
            if ranks.rank() == 0:
                held.enter_context(claim(config.folder))
        yield from _train(config, resume)


def _train(config: Config, resume: bool) -> Generator[Progress]:
    run = Run(config.folder)
    with ranks.agreed():
        device = pick_device(config.device)
        if device.type == "cpu":
            system.keep_freed_memory()
        state = begin(run, config, resume)
    prepared = ranks.first_then_rest(lambda: prepare(config, device))
    prepared.learner.objective.amp = ranks.from_first(in_bfloat16(config.amp, device))
    yield from follow(run, prepared.learner, prepared.batches, lambda: curve(prepared), state)
    finish(run, prepared)
    ranks.wait()  # a run is finished on all ranks at once


def begin(run: RunFolder, config: Settings, resume: bool) -> dict[str, Any] | None:
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
    run: RunFolder,
    learner: Learner[Any],
    batches: Callable[[int], Generator[Any]],
    curve: Callable[[], dict[str, float]],
    state: dict[str, Any] | None,
) -> Generator[Progress]:
    """The loop of every training: steps, log, curve and checkpoints, from rank 0's checkpoint on.

    Args:
        batches: what `learner.step` reads, from a step on; closed at the end.
        curve: figures by name, asked for every `eval_every` steps and at the last one.
    """
    config, writes, first = learner.config, ranks.rank() == 0, 0
    if state := ranks.from_first(state):
        first = _load(run, learner, state)
    if writes:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(run.file("config.json"), lambda p: p.write_text(config.to_json(), encoding="utf-8"))
        _drop_lines_after(run, first)
    done, written = first, first
    coming = batches(first)
    board_of = partial(SummaryWriter, str(run.file("tensorboard")), purge_step=first + 1)
    with told(run.file("tensorboard")), board_of() if writes else nullcontext() as board:
        try:
            for n in range(first, config.steps):
                start = time.perf_counter()
                loss, parts, gates = learner.step(n, coming)
                done = n + 1
                measured: dict[str, float] = {}
                if done == config.steps or (config.eval_every and done % config.eval_every == 0):
                    measured = curve()
                progress = Progress(done, config.steps, loss, parts, gates, measured, time.perf_counter() - start)
                if board is not None and progress.logged(config.log_every):
                    _log(run, board, progress, learner.rate(n))
                if writes and (done % config.save_every == 0 or done == config.steps):
                    _save_state(run, learner, done)
                    written = done
                yield progress
        finally:
            coming.close()
            if writes and done > written:  # stopped, not killed: nothing is lost
                _save_state(run, learner, done)


# -- a run's folder


def _resume_state(run: RunFolder, config: Settings) -> dict[str, Any] | None:
    """The checkpoint to go on from, or None for a run that was killed before its first one (it starts over)."""
    if changed := type(run).open(run.folder).config.changes(config):
        listed = ", ".join(f"{k} was {was!r}, now {now!r}" for k, (was, now) in changed.items())
        shown = textwrap.shorten(listed, _LISTED, placeholder=" ...")
        todo = "train into another folder, or move this one away"
        raise InputError(f"{run.folder}: cannot resume with other settings ({shown}); {todo}")
    return run.state() if run.file("state.pt").exists() else None


def _load(run: RunFolder, learner: Learner[Any], state: dict[str, Any]) -> int:
    """Put the learner where a checkpoint stands: the step. Raises InputError where it is another training's."""
    try:
        learner.load(state)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as e:
        said = first_line(str(e).partition("\n")[2] or e)
        raise InputError(f"{run.file('state.pt')}: the checkpoint of another training ({said}); {OVER}") from None
    step: int = state["step"]
    if not 0 <= step <= learner.config.steps:
        raise InputError(f"{run.file('state.pt')}: stands at step {step} of {learner.config.steps}; {OVER}")
    return step


def _save_state(run: RunFolder, learner: Learner[Any], done: int) -> None:
    state = {"step": done, **learner.state()}
    write_atomic(run.file("state.pt"), lambda p: torch.save(state, p))


def _drop_lines_after(run: RunFolder, step: int) -> None:
    """Take out what a killed run logged after its last checkpoint; it will be logged again."""
    path = run.file("metrics.jsonl")
    kept = "".join(json.dumps(r) + "\n" for r in read_metrics(path) if r["step"] <= step)
    write_atomic(path, lambda p: p.write_text(kept, encoding="utf-8"))


def _log(run: RunFolder, board: SummaryWriter, progress: Progress, rate: float) -> None:
    row = progress.row() | {"lr": rate}
    with told(run.file("metrics.jsonl")), open(run.file("metrics.jsonl"), "a", encoding="utf-8") as f:
        f.write(json.dumps(row) + "\n")
    for name, value in row.items():
        if name != "step":
            board.add_scalar(name.replace(" ", "_"), value, progress.step)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the TensorBoard writer needs no TensorFlow and no notices of it
