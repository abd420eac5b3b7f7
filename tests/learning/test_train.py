import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from rgb2pc_lib.data.sampling import lattice
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.deploy.embed import embed_packs
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.metrics import retrieval
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.learning.runs import Run, left_out_words
from rgb2pc_lib.learning.train import train

SMALL = Config(validation=0.0, amp="off",
    steps=120, batch_size=32, student_tokens=16, fuse_dim=32, moe_hidden=32, lr=3e-3, eval_every=0, save_every=30,
    log_every=5,
)  # fmt: skip


def config(workspace, folder, **changes):
    return dataclasses.replace(SMALL, save_dir=str(folder), **changes).with_workspace(workspace)


def run(workspace, folder, **changes) -> Run:
    made = config(workspace, folder, **changes)
    for _ in train(made):
        pass
    return Run.open(made.folder)


# -- known answers


def test_weighted_fusion_finds_the_carrier(left, tmp_path):
    done = run(left, tmp_path, fusion="weighted")
    assert done.student()[0].weights()["left"] > 0.75
    assert done.summary["held-out"]["R@1"] > 0.9


def test_moe_finds_the_carrier(left, tmp_path):
    done = run(left, tmp_path, fusion="moe")
    assert done.summary["gates"]["left"] > 0.75
    assert done.summary["held-out"]["R@1"] > 0.9


def test_where_the_carrier_changes_with_the_place_only_moe_finds_it(place, tmp_path):
    moe = run(place, tmp_path / "moe", fusion="moe", steps=200)
    weighted = run(place, tmp_path / "weighted", fusion="weighted", steps=200)
    assert moe.summary["held-out"]["R@1"] > 0.9
    assert weighted.summary["held-out"]["R@1"] < 0.6
    # the gate is right place by place: the carrier is "left" exactly where the two bits differ
    student, _ = moe.student()
    data = Data.open(moe.config)
    pack = {n: data.samples.pairing.packs[n]["push", "ep_0"] for n in ("left", "right")}
    tokens = {n: p.frame("step_0004").float().flatten(0, 1)[None] for n, p in pack.items()}
    true_left = (tokens["left"][0, :, 0] > 0) != (tokens["right"][0, :, 0] > 0)
    at = torch.tensor(lattice((4, 4)), dtype=torch.float32)[None]
    gates = student(tokens, torch.ones(1, 16, 2, dtype=torch.bool), at).gates[0]
    chosen_left = gates[:, student.experts.index("left")] > 0.5
    assert (chosen_left == true_left).float().mean() > 0.9


def test_shuffled_pairs_are_chance(left, tmp_path):
    control = run(left, tmp_path, shuffle_pairs=True)
    assert control.summary["held-out"]["R@1"] < 0.15
    e = control.embeddings()  # the embeddings file holds the true teachers all the same
    true = run(left, tmp_path / "true", steps=1).embeddings()
    np.testing.assert_array_equal(e["teacher"], true["teacher"])


@pytest.mark.parametrize("changes", [
    {"loss_mse": 1.0}, {"loss_relational": 1.0}, {"learn_tau": True}, {"exclude_near": 2}, {"expert_drop": 0.4},
    {"fusion": "moe", "moe_top_k": 2, "load_balance": 0.01, "gate_noise": 0.1}, {"sample_unit": "window", "window": 4},
    {"teacher_points": 3}, {"frame_copy": "random"}, {"pairing_fallback": "random"}, {"pairing_fallback": "error"},
    {"amp": "on"}, {"tau": 0.2}, {"student_tokens": 1000}, {"split_by": "task", "held_out": 0.5},
], ids=lambda c: "-".join(c))  # fmt: skip
def test_every_setting_trains_to_a_useful_student(left, tmp_path, changes):
    done = run(left, tmp_path, **changes)
    assert done.summary["held-out"]["R@1"] > 0.6  # chance is about 0.02
    logged = done.metrics()
    assert logged["loss"].iloc[-3:].mean() < 0.7 * logged["loss"].iloc[0]


def test_loss_parts_are_logged(left, tmp_path):
    done = run(left, tmp_path, loss_mse=0.5, loss_relational=0.25, steps=5, log_every=1)
    m = done.metrics()
    total = m["loss/InfoNCE"] + 0.5 * m["loss/MSE"] + 0.25 * m["loss/relational"]
    np.testing.assert_allclose(m["loss"], total, rtol=1e-5)


def test_loose_pairing_trains_but_cannot_tell_steps_apart(left, tmp_path):
    done = run(left, tmp_path, strict_pairing=False)
    assert done.summary["held-out"]["R@1"] < 0.3 < run(left, tmp_path / "strict").summary["held-out"]["R@1"]


def test_expert_drop_makes_any_subset_serve(left, tmp_path):
    """Trained with dropping, the student still works when an expert is missing at inference."""
    done = run(left, tmp_path, expert_drop=0.4, steps=200)
    student, mean = done.student()
    data = Data.open(done.config)
    packs = data.samples.pairing.packs["left"]
    keys = data.samples.keys().loc[data.held_out]
    rows = [packs[k.task, k.episode].frame(k.step).float().flatten(0, 1) for k in keys.itertuples()]
    n = len(rows)
    at = torch.rand(n, 16, 2, generator=torch.Generator().manual_seed(0))
    out = student({"left": torch.stack(rows)}, torch.ones(n, 16, 2, dtype=torch.bool), at).embedding
    e = done.embeddings()
    assert retrieval(out.detach().numpy(), e["teacher"][e["held_out"]] - mean.numpy())["R@1"] > 0.8


# -- reproducibility, stopping, resuming


def same(a: Run, b: Run):
    pd.testing.assert_frame_equal(*(x.metrics().drop(columns="seconds") for x in (a, b)), check_exact=True)
    assert a.summary == b.summary
    for k, v in a.embeddings().items():
        np.testing.assert_array_equal(v, b.embeddings()[k])


def test_same_seed_same_numbers_other_seed_others(left, tmp_path):
    torch.manual_seed(0)
    first = run(left, tmp_path / "a", steps=20)
    torch.manual_seed(1)  # the global generator plays no part
    same(first, run(left, tmp_path / "b", steps=20))
    other = run(left, tmp_path / "c", steps=20, seed=1)
    assert first.metrics()["loss"].tolist() != other.metrics()["loss"].tolist()


def test_stopped_and_resumed_is_uninterrupted(left, tmp_path):
    whole = run(left, tmp_path / "whole", fusion="moe", expert_drop=0.3, gate_noise=0.1)
    parted = config(left, tmp_path / "parted", fusion="moe", expert_drop=0.3, gate_noise=0.1)
    loop = train(parted)
    for progress in loop:
        if progress.step == 47:  # not a multiple of save_every
            loop.close()
    assert not Run(parted.folder).finished
    assert [t for t in threading.enumerate() if t.name == "gather"] == []
    for _ in train(parted, resume=True):
        pass
    same(whole, Run.open(parted.folder))


def test_killed_process_resumes_to_the_same_numbers(left, tmp_path):
    made = config(left, tmp_path / "killed", steps=400, fusion="moe", loss_mse=0.3, learn_tau=True)
    flags = made.command().split()[2:]
    command = [sys.executable, str(PROJECT / "tools/train_rgb2pc_distill.py"), *flags]
    killed = Run(made.folder)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (killed.file("state.pt").exists() and len(killed.metrics()) > 10):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not killed.finished
    assert 0 < killed.state()["step"] < 400
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    whole = dataclasses.replace(made, save_dir=str(tmp_path / "whole"))
    for _ in train(whole):
        pass
    same(Run.open(whole.folder), killed)


def test_resume_refuses_other_settings(left, tmp_path):
    made = config(left, tmp_path, steps=30)
    list(train(made))
    with pytest.raises(InputError, match="lr was 0.003, now 0.1"):
        next(train(dataclasses.replace(made, lr=0.1), resume=True))
    with pytest.raises(InputError, match="--resume"):
        next(train(made))


def test_a_half_written_checkpoint_is_never_seen(left, tmp_path, monkeypatch):
    made = config(left, tmp_path, steps=60)
    loop = train(made)
    for progress in loop:
        if progress.step == 31:
            break
    before = Run(made.folder).state()["step"]
    monkeypatch.setattr(torch, "save", lambda state, path: (path.write_bytes(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        loop.close()
    monkeypatch.undo()
    assert before == 30 == Run(made.folder).state()["step"]
    assert not list(made.folder.glob(".*partial*"))


# -- errors


def test_bad_input_is_named(left, tmp_path):
    with pytest.raises(InputError, match="--batch_size 500 is larger than the 144"):
        next(train(config(left, tmp_path, batch_size=500)))
    with pytest.raises(InputError, match="not a folder"):
        next(train(dataclasses.replace(config(left, tmp_path), pc_root=str(tmp_path / "nowhere"))))
    for device in ("gpu", "mps", "meta"):
        with pytest.raises(InputError, match="--device"):
            next(train(config(left, tmp_path, device=device)))
    with pytest.raises(InputError, match="--exclude_near 99: leaves 0 negatives"):  # one episode a task is trained on
        next(train(config(left, tmp_path, tasks=("push",), held_out=0.99, exclude_near=99, batch_size=8)))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: is a file"):
        next(train(config(left, tmp_path / "file")))
    assert not (tmp_path / "config.json").exists()


def test_a_diverging_run_says_so(left, tmp_path):
    with pytest.raises(InputError, match="lower --lr"):
        list(train(config(left, tmp_path, lr=1e30, grad_clip=0.0, weight_decay=0.0)))


def test_config_round_trip(left, tmp_path):
    made = config(left, tmp_path, tasks=("push",), loss_mse=0.25)
    assert Config.from_json(made.to_json()) == made
    assert json.loads(made.to_json())["vis_roots"].keys() == {"left", "right"}
    for bad in ({"fusion": "sum"}, {"batch_size": 1}, {"held_out": 1.5}, {"tau": 0.0}):
        with pytest.raises(InputError, match=f"--{next(iter(bad))}"):
            Config(**bad)


# -- what is compared in the ablations


def test_fewer_training_episodes_are_among_more(left, tmp_path):
    every = Data.open(config(left, tmp_path))
    assert set(every.episodes().values()) == {6}
    some = [Data.open(config(left, tmp_path, train_episodes=n)) for n in (2, 3, 99)]
    assert [set(data.episodes().values()) for data in some] == [{2}, {3}, {6}]
    assert set(some[0].training) < set(some[1].training) < set(some[2].training) == set(every.training)
    for data in some:
        np.testing.assert_array_equal(data.held_out, every.held_out)


def test_a_teacher_that_is_not_centred_keeps_its_mean(left, tmp_path):
    with_mean = run(left, tmp_path / "a", centre=False, steps=4)
    assert not with_mean.student()[1].any()
    e = with_mean.embeddings()
    np.testing.assert_array_equal(with_mean.centred(e), e["teacher"])
    other = run(left, tmp_path / "b", steps=4)
    e = other.embeddings()
    np.testing.assert_allclose(other.centred(e), e["teacher"] - other.student()[1].numpy(), atol=1e-5)


def test_a_students_teacher_is_pooled_as_the_run_says(left, tmp_path):
    done = run(left, tmp_path, teacher_pooling="mean+max", steps=4)
    e = done.embeddings()
    assert e["teacher"].shape[1] == e["student"].shape[1] == 2 * 16
    with pytest.raises(InputError, match="--teacher_pooling mean[+]max: points are aligned by features of their own"):
        config(left, tmp_path, teacher_pooling="mean+max", route="geometric")


def test_curves_say_which_samples_they_are_of(left, tmp_path):
    with_some = run(left, tmp_path / "a", validation=0.2, steps=4)
    without = run(left, tmp_path / "b", steps=4)
    for done, side in ((with_some, "validation"), (without, "held-out")):
        assert {c.partition("/")[0] for c in done.metrics() if c.endswith("/R@1")} == {side}


def test_a_run_records_what_was_excluded_and_resumes_with_nothing_else(left, tmp_path):
    workspace = left.excluding(["push/ep_1 # the camera was moved", "pull/ep_0/step_0003"])
    made = dataclasses.replace(SMALL, steps=6, save_every=3, save_dir=str(tmp_path)).with_workspace(workspace)
    loop = train(made)
    next(loop)
    loop.close()
    assert Run(tmp_path).config.exclude == ("push/ep_1 # the camera was moved", "pull/ep_0/step_0003")
    assert Run(tmp_path).config.workspace.exclude == workspace.exclude
    for other in ((), ("push/ep_1",), ("push/ep_1", "pull/ep_0/step_0003", "push/ep_2 shift +1")):
        with pytest.raises(InputError, match=r"cannot resume with other settings \(exclude was"):
            next(train(dataclasses.replace(made, exclude=other), resume=True))
    again = dataclasses.replace(made, exclude=("pull/ep_0/step_0003", "push/ep_1 # blurred"))  # the same is left out
    list(train(again, resume=True))
    run = Run(tmp_path)
    assert run.summary["excluded"] == {"push/ep_1": "blurred", "pull/ep_0/step_0003": ""}
    e = run.embeddings_of_all()
    keys = set(zip(e["task"].tolist(), e["episode"].tolist(), strict=True))
    assert ("push", "ep_1") not in keys and len(keys) == 15 and len(e["task"]) == 15 * 12 - 1
    assert left_out_words(run.summary) == "Left out: 1 episode and 1 step by the exclusion list."
    with pytest.raises(InputError, match="--exclude bad.toml: a run records the entries"):
        Config(exclude=("bad.toml",))


def test_an_unreadable_pack_is_refused_or_left_out_and_told(tmp_path, capsys):
    workspace = tiny.make(tmp_path / "data", episodes=4)
    (workspace.experts["left"] / "push" / "ep_1.pt").write_text("no pack")
    refusing = dataclasses.replace(SMALL, steps=6, save_every=3, save_dir=str(tmp_path / "run")).with_workspace(
        workspace
    )
    with pytest.raises(InputError, match="ep_1.pt: not a readable torch file"):
        next(train(refusing))
    list(train(dataclasses.replace(refusing, unreadable="leave_out")))
    assert "note: 1 unreadable episode(s) are left out, such as push/ep_1 (" in capsys.readouterr().err
    summary = Run(tmp_path / "run").summary
    assert list(summary["unreadable"]) == ["push/ep_1"] and "not a readable" in summary["unreadable"]["push/ep_1"]
    assert summary["n_train"] + summary["n_held_out"] + summary["n_validation"] == 7 * 12
    assert left_out_words(summary) == "Left out: 1 episode that cannot be read."


def poisoned(folder, expert, value, episode="ep_1", step=5):
    """A workspace in whose pack one value of one step is no number, in every copy of the frame."""
    workspace = tiny.make(folder, episodes=4)
    path = workspace.experts[expert] / "push" / f"{episode}.pt"
    raw = torch.load(path, weights_only=True)
    for w, names in enumerate(raw["frame_paths"]):
        for t, name in enumerate(names):
            if f"step_{step:04d}" in name:
                raw["per_frame_features"][w, t, 1, 2, 3] = value
    torch.save(raw, path)
    return workspace


@pytest.mark.parametrize("fusion", ["weighted", "moe", "uniform"])
@pytest.mark.parametrize("expert, value", [("left", np.nan), ("right", np.inf)])
def test_a_token_that_is_no_number_is_named_by_the_batch_that_meets_it(tmp_path, fusion, expert, value):
    for episode in ("ep_0", "ep_1", "ep_2", "ep_3"):  # in training, and held out: then the final figures meet it
        workspace = poisoned(tmp_path / episode, expert, value, episode)
        few = dataclasses.replace(SMALL, steps=4, fusion=fusion, fuse_dim=8, expert_drop=0.5, student_tokens=16)
        config = dataclasses.replace(few, save_dir=str(tmp_path / f"run_{episode}")).with_workspace(workspace)
        with pytest.raises(InputError) as e:
            list(train(config))
        said = str(e.value)
        assert f"expert '{expert}': NaN or infinite tokens in push/{episode}/step_0005 of " in said
        assert f"push/{episode}.pt" in said and "exclude it" in said
        assert not Run(tmp_path / f"run_{episode}").finished


def test_packs_that_are_embedded_are_looked_at_too(left, tmp_path):
    list(train(config(left, tmp_path / "run", steps=2)))
    other = poisoned(tmp_path / "other", "right", np.nan)
    with pytest.raises(InputError, match="expert 'right': NaN or infinite tokens in push/ep_1/step_0005"):
        embed_packs(Run(tmp_path / "run"), other)
