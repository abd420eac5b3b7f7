"""What each process of several takes and tells."""

import dataclasses
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from rgb2pc_lib.data.sampling import Gatherer, embedding_lattice
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning import ranks
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.finish import embed_samples
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train


def be(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


@pytest.mark.parametrize("n", [0, 1, 5, 6, 7])
def test_shards_are_the_items_once_each_and_even(monkeypatch, n):
    shards = []
    for rank in range(3):
        be(monkeypatch, rank, 3)
        shards.append(ranks.shard(range(n)))
    assert sorted(sum(shards, [])) == list(range(n))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert all(s == sorted(s) for s in shards)


def test_each_process_has_its_own_card_and_its_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert ranks.own_device("cuda") == "cuda" and ranks.own_cores() == 6
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [ranks.own_device(d) for d in ("cuda", "cuda:0", "cpu")] == ["cuda:3", "cuda:0", "cpu"]
    assert ranks.own_cores() == 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert ranks.own_cores() == 1


def test_alone_everything_is_ones_own(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (ranks.rank(), ranks.world(), ranks.shard(iter("abc"))) == (0, 1, ["a", "b", "c"])


# -- several real processes, as a user starts them: gloo, one thread each

FEATURES = {  # everything that looks at the whole batch or is drawn at random
    "fusion": "moe", "gate_noise": 0.1, "load_balance": 0.05, "expert_drop": 0.4, "learn_tau": True, "loss_mse": 0.5,
    "loss_relational": 0.3, "exclude_near": 2, "teacher_points": 3, "frame_copy": "random",
}  # fmt: skip


def config(workspace, folder, **changes):
    made = Config(
        validation=0.0, amp="off",
        steps=40, batch_size=32, student_tokens=9, fuse_dim=16, moe_hidden=16, lr=3e-3, eval_every=10, save_every=10,
        log_every=1, save_dir=str(folder), device="cpu",
    )  # fmt: skip
    return dataclasses.replace(made, **changes).with_workspace(workspace)


def torchrun(made, *options, **launch):
    words = [sys.executable, "-m", "torch.distributed.run", *(options or ("--standalone", "--nproc_per_node=2"))]
    words += [str(PROJECT / "tools/train_rgb2pc_distill.py"), *shlex.split(made.command())[2:]]
    return subprocess.Popen(words + launch.pop("more", []), stdout=-1, stderr=-1, text=True, **launch)


def same_numbers(one: Run, other: Run):
    """Losses within 1e-5 (relative), weights and embeddings within 1e-4 after 40 steps; retrieval exactly."""
    a, b = (r.metrics().drop(columns="seconds") for r in (one, other))
    assert a["step"].tolist() == b["step"].tolist() == list(range(1, 41))
    pd.testing.assert_frame_equal(a, b, check_exact=False, rtol=1e-5, atol=1e-6)
    a, b = one.state(), other.state()
    for name, weight in a["student"].items():
        torch.testing.assert_close(b["student"][name], weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(b["log_tau"], a["log_tau"], rtol=1e-5, atol=1e-5)
    a, b = one.embeddings(), other.embeddings()
    assert all((a[k] == b[k]).all() for k in ("task", "episode", "step", "held_out", "teacher"))
    np.testing.assert_allclose(b["student"], a["student"], atol=1e-4)
    assert {k: one.summary[k] for k in ("n_train", "n_held_out", "data_hash")} == {
        k: other.summary[k] for k in ("n_train", "n_held_out", "data_hash")
    }
    assert one.summary["held-out"]["R@1"] == other.summary["held-out"]["R@1"]


@pytest.fixture(scope="module")
def alone(left, tmp_path_factory):
    made = config(left, tmp_path_factory.mktemp("alone"), **FEATURES)
    list(train(made))
    return Run.open(made.folder)


def test_two_processes_continue_what_one_began_to_the_same_numbers(left, tmp_path, alone):
    made = config(left, tmp_path, **FEATURES)
    for progress in train(made):
        if progress.step == 13:
            break
    process = torchrun(made, more=["--resume"])
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("held-out samples") == 1  # one of them speaks
    run = Run.open(made.folder)
    same_numbers(alone, run)
    files = [p.name for p in (tmp_path / "tensorboard").iterdir()]
    assert len(files) == 2  # one writer before, one after
    student, _ = run.student()  # the embeddings of two are those of one, bit for bit
    data = Data.open(made)
    index = np.sort(np.concatenate([data.training, data.held_out]))
    gatherer = Gatherer(data.samples, made.frame_copy)
    embedding, gates = embed_samples(student, gatherer, index, embedding_lattice(data.samples.pairing.finest_grid))
    np.testing.assert_array_equal(embedding, run.embeddings()["student"])
    np.testing.assert_array_equal(gates, run.embeddings()["gates"])


def test_ctrl_c_stops_all_and_one_process_continues(left, tmp_path, alone):
    made = config(left, tmp_path, micro_batch=5, steps=40, **FEATURES)
    process = torchrun(made)
    run, deadline = Run(tmp_path), time.time() + 300
    while len(run.metrics()) < 3:
        assert process.poll() is None and time.time() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert out.count("continue with the same command and --resume") == 1, err
    assert 3 <= run.state()["step"] == run.metrics()["step"].iloc[-1] < 40
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in p.read_text()]
    for _ in train(dataclasses.replace(made, micro_batch=0), resume=True):
        pass
    same_numbers(alone, run)


def test_bad_input_on_one_machine_ends_all_with_one_message(left, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    machines = []
    good = config(left, tmp_path)
    for m, made in enumerate([good, dataclasses.replace(good, pc_root=str(tmp_path / "nowhere"))]):
        options = f"--nnodes=2 --nproc_per_node=1 --node_rank={m} --master_addr=127.0.0.1 --master_port={port}"
        machines.append(torchrun(made, *options.split()))
    told = [p.communicate(timeout=300)[1] for p in machines]
    assert all(p.returncode for p in machines)
    message = f"train_rgb2pc_distill: {tmp_path / 'nowhere'}"
    assert [t.count(message) for t in told] == [1, 0]  # told by rank 0, though it is not its own
    assert "InputError" not in "".join(told)
    assert not (tmp_path / "config.json").exists()


def test_a_batch_that_cannot_be_divided_says_so(monkeypatch):
    be(monkeypatch, 1, 3)
    assert ranks.rows(6) == slice(2, 4)
    with pytest.raises(InputError, match="--batch_size 7 .* choose 6 or 9"):
        ranks.rows(7)
    with pytest.raises(InputError, match="--batch_size 2 .* choose 3"):
        ranks.rows(2)


def test_fabric_is_imported_for_several_processes_only():
    code = "import sys, rgb2pc_lib.learning.train; sys.exit('lightning_fabric' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
