"""Trainings in the background: the same numbers as in the foreground, whatever happens around them."""

import dataclasses
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train
from rgb2pc_lib.views import session as module
from rgb2pc_lib.views.session import AT_REST, THREAD, Session

SMALL = Config(validation=0.0, amp="off",
    steps=60, batch_size=32, student_tokens=16, fuse_dim=32, moe_hidden=32, lr=3e-3, eval_every=20, log_every=5,
    num_threads=1,
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [t.name for t in threading.enumerate() if t.name in (THREAD, "gather")]


def config(workspace, folder, **changes):
    return dataclasses.replace(SMALL, save_dir=str(folder), **changes).with_workspace(workspace)


def foreground(workspace, folder, **changes) -> Run:
    made = config(workspace, folder, **changes)
    list(train(made))
    return Run(made.folder)


def until(session, reached, seconds=60):
    deadline = time.time() + seconds
    while not reached(now := session.snapshot()):
        assert time.time() < deadline and not now.error, now
        time.sleep(0.002)
    return now


def same(a: Run, b: Run):
    pd.testing.assert_frame_equal(*(r.metrics().drop(columns="seconds") for r in (a, b)), check_exact=True)
    assert a.summary == b.summary


def test_the_background_gives_the_numbers_of_the_foreground(left, tmp_path):
    session = Session()
    session.start(config(left, tmp_path / "back"))
    done = session.wait()
    assert (done.state, done.step, done.error, done.note) == ("finished", 60, "", "")
    run = Run.open(tmp_path / "back")
    same(foreground(left, tmp_path / "front"), run)
    rows = pd.DataFrame(done.rows).drop(columns="seconds")  # what was seen live is what the folder holds
    pd.testing.assert_frame_equal(rows, run.metrics()[rows.columns], check_exact=True)


def test_two_at_once_do_not_disturb_each_other(left, tmp_path):
    settings = {"a": {"seed": 0, "expert_drop": 0.3}, "b": {"seed": 1, "fusion": "moe", "gate_noise": 0.1}}
    sessions = {k: Session() for k in settings}
    for name, session in sessions.items():
        session.start(config(left, tmp_path / name, **settings[name]))
    both = 0
    while any(s.snapshot().active for s in sessions.values()):
        both += all(0 < s.snapshot().step < 60 for s in sessions.values())
        time.sleep(0.001)
    assert both  # they did run at the same time
    for name, session in sessions.items():
        assert session.wait().state == "finished"
        same(foreground(left, tmp_path / f"{name}-alone", **settings[name]), Run(tmp_path / name))


def test_stopped_and_resumed_is_uninterrupted(left, tmp_path):
    made = config(left, tmp_path / "parted", fusion="moe", expert_drop=0.3, steps=150)
    session = Session()
    for least in (1, 40):
        session.start(made) if least == 1 else session.resume()
        until(session, lambda now, least=least: now.step >= least and now.state == "running")
        session.stop()
        stopped = session.snapshot()
        assert stopped.state == "stopped" and stopped.step < 150
        assert not Run(made.folder).finished and Run(made.folder).state()["step"] == stopped.step
    session.resume()
    done = session.wait()
    assert done.state == "finished" and done.note == f"continued from step {stopped.step}"
    whole = foreground(left, tmp_path / "whole", fusion="moe", expert_drop=0.3, steps=150)
    same(whole, Run(made.folder))
    assert [r["loss"] for r in done.rows] == whole.metrics()["loss"].tolist()


def test_a_new_session_continues_what_an_old_one_left(left, tmp_path):
    made = config(left, tmp_path / "left", steps=80)
    loop = train(made)
    for progress in loop:
        if progress.step == 33:
            loop.close()
    session = Session()
    session.start(made)
    done = session.wait()
    assert done.note == "continued from step 33"
    assert [r["step"] for r in done.rows] == Run(made.folder).metrics()["step"].tolist()


def test_a_run_stopped_after_its_last_step_only_needs_its_end(left, tmp_path):
    made = config(left, tmp_path / "last")
    loop = train(made)
    for progress in loop:
        if progress.step == made.steps:
            loop.close()
    assert not Run(made.folder).finished
    session = Session()
    session.start(made)
    done = session.wait()
    assert done.state == "finished" and done.step == 60 and done.rows[-1]["step"] == 60
    same(foreground(left, tmp_path / "whole"), Run(made.folder))


def test_a_finished_run_is_shown_again(left, tmp_path):
    run = foreground(left, tmp_path / "run")
    before = run.file("summary.json").stat().st_mtime_ns
    session = Session()
    session.start(config(left, tmp_path / "run"))
    done = session.wait()
    assert (done.state, done.step, done.note) == ("finished", 60, "trained before")
    assert [r["loss"] for r in done.rows] == run.metrics()["loss"].tolist()
    assert run.file("summary.json").stat().st_mtime_ns == before


def test_what_goes_wrong_is_said_in_words(left, tmp_path, monkeypatch):
    session = Session()
    session.start(config(left, tmp_path / "big", batch_size=500))
    assert "--batch_size 500 is larger than the 144 training samples" in session.wait().error
    assert session.snapshot().state == "failed"

    def breaks(*_, **__):
        yield from ()
        raise ZeroDivisionError("the middle of nowhere")

    monkeypatch.setattr(module, "train", breaks)
    session.start(config(left, tmp_path / "odd"))
    assert session.wait().error == "ZeroDivisionError: the middle of nowhere"
    assert isinstance(session.exception, ZeroDivisionError)
    monkeypatch.undo()
    session.start(config(left, tmp_path / "fine", steps=2))  # and it goes on working
    assert session.wait().state == "finished" and session.exception is None


def test_one_folder_has_one_writer(left, tmp_path):
    first, second = Session(), Session()
    made = config(left, tmp_path / "run", steps=5000)
    first.start(made)
    until(first, lambda now: now.state == "running")
    second.start(made)
    assert "being trained by another panel" in second.wait().error
    with pytest.raises(RuntimeError, match="under way"):
        first.start(made)
    first.stop()
    assert first.snapshot().state == "stopped"
    second.start(made)  # now it is free
    until(second, lambda now: now.state == "running")
    second.stop()


def test_stop_before_the_first_step_and_without_a_training(left, tmp_path):
    session = Session()
    session.stop()
    assert session.snapshot().state == "idle"
    with pytest.raises(RuntimeError, match="nothing was stopped"):
        session.resume()
    session.start(config(left, tmp_path / "run"))
    session.stop(wait=False)
    assert session.wait().state == "stopped"
    session.resume()
    assert session.wait().state == "finished"
    assert session.snapshot().state in AT_REST


def test_another_process_keeps_off_and_leaves_a_checkpoint_when_it_ends(left, tmp_path):
    made = config(left, tmp_path / "run", steps=100_000, save_every=100_000)
    (tmp_path / "config.json").write_text(made.to_json())
    code = f"""
import pathlib, time
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.views.session import Session
session = Session()
session.start(Config.from_json(pathlib.Path({str(tmp_path / "config.json")!r}).read_text()))
while session.snapshot().step < 5: time.sleep(0.01)
print("running", flush=True)
input()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "running\n"
    session = Session()
    session.start(made)
    assert "being trained by another panel, notebook or tool" in session.wait().error
    other.communicate("\n", timeout=60)
    assert other.returncode == 0
    at = Run(made.folder).state()["step"]
    assert at >= 5
    session.start(made)
    assert until(session, lambda now: now.step > at).note == f"continued from step {at}"
    session.stop()
