"""A training in the background: a worker thread drives the training loop, everybody else reads a snapshot."""

from __future__ import annotations

import atexit
import threading
import weakref
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run, read_metrics
from rgb2pc_lib.learning.train import Progress, train

ACTIVE = ("starting", "running", "stopping", "finishing")
AT_REST = ("idle", "stopped", "finished", "failed")
THREAD = "rgb2pc-training"


@dataclass(frozen=True)
class Snapshot:
    """Where a session stands. It never changes after it was handed out."""

    state: str = "idle"  # one of ACTIVE or AT_REST
    config: Config | None = None
    step: int = 0  # steps done, also those of an earlier part of the run
    rows: tuple[dict[str, float], ...] = ()  # as in the run's metrics.jsonl
    seconds: float = 0.0  # of the last step
    note: str = ""  # "continued from step 120", "trained before"
    error: str = ""  # in words, when failed

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def settings(self) -> Config:
        """Its config, which is there in every state but "idle"."""
        assert self.config is not None
        return self.config


class Session:
    """One training at a time, in a worker thread; its numbers are those of `train` with the same config.

    >>> session = Session()
    >>> session.start(Config(steps=3, batch_size=8, save_dir=str(folder / "run")).with_workspace(workspace))
    >>> session.wait().state, session.snapshot().step  # `stop` ends it early, with a checkpoint
    ('finished', 3)
    """

    def __init__(self) -> None:
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._now = Snapshot()
        self._rows: list[dict[str, float]] = []
        self.exception: Exception | None = None  # what failed, for a traceback
        _sessions.add(self)

    def start(self, config: Config) -> None:
        """Train in the background. A finished run with these settings is shown again, an unfinished one continued.

        What goes wrong is in the snapshot's `error`. Raises RuntimeError while a training is under way.
        """
        if self._thread and self._thread.is_alive():
            raise RuntimeError("a training is under way; stop it first")
        self._stop.clear()
        self.exception = None
        with self._lock:
            self._rows, self._now = [], Snapshot("starting", config)
        self._thread = threading.Thread(target=self._work, args=(config,), daemon=True, name=THREAD)
        self._thread.start()

    def resume(self) -> None:
        """Continue the training that was stopped."""
        if self._now.state != "stopped":
            raise RuntimeError("nothing was stopped, so nothing can be resumed")
        self.start(self._now.settings)

    def stop(self, wait: bool = True) -> None:
        """End after the step at hand and write a checkpoint; with `wait`, return when the thread is gone."""
        self._stop.set()
        with self._lock:
            if self._now.state in ("starting", "running"):
                self._now = replace(self._now, state="stopping")
        if wait:
            self.wait()

    def wait(self) -> Snapshot:
        """Block until nothing runs any more. Not for the thread that serves widgets."""
        if self._thread:
            self._thread.join()
        return self.snapshot()

    def snapshot(self) -> Snapshot:
        with self._lock:
            return replace(self._now, rows=tuple(self._rows))

    def _set(self, **changes: Any) -> None:
        with self._lock:
            self._now = replace(self._now, **changes)

    def _work(self, config: Config) -> None:
        try:
            self._train(config)
        except Exception as e:  # nobody waits for this thread: what went wrong is shown where people look
            self.exception = e
            self._set(state="failed", error=str(e) if isinstance(e, InputError) else f"{type(e).__name__}: {e}")

    def _train(self, config: Config) -> None:
        run = Run(config.folder)
        there = run.file("config.json").exists()
        before = read_metrics(run.file("metrics.jsonl")) if there else []
        if Run(config.folder).holds(config):
            with self._lock:
                self._rows = before
            self._set(state="finished", step=config.steps, note="trained before")
            return
        begun = stopped = False
        with closing(train(config, resume=there)) as loop:
            for progress in loop:
                if not begun:  # the first step of this part: what was logged after the checkpoint is void
                    self._continue([r for r in before if r["step"] < progress.step], progress.step - 1)
                    begun = True
                self._add(progress)
                if stopped := self._stop.is_set():
                    break
        if not begun:  # all steps were done already, only the end was missing
            self._continue(before, config.steps)
        self._set(state="stopped" if stopped else "finished")

    def _continue(self, rows: list[dict[str, float]], step: int) -> None:
        with self._lock:
            self._rows = rows
            self._now = replace(self._now, step=step, note=f"continued from step {step}" if step else "")

    def _add(self, progress: Progress) -> None:
        with self._lock:
            if progress.logged(self._now.settings.log_every):
                self._rows.append(progress.row())
            state = "finishing" if progress.step == progress.steps else "running"
            state = "stopping" if self._now.state == "stopping" else state
            self._now = replace(self._now, state=state, step=progress.step, seconds=progress.seconds)


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """A kernel that shuts down leaves checkpoints behind, not half-dead threads."""
    sessions = list(_sessions)
    for session in sessions:
        session.stop(wait=False)
    for session in sessions:
        session.wait()
