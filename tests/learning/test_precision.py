"""Precision is measured, kept by the run, and told."""

import dataclasses

import pytest
import torch

from rgb2pc_lib.learning import precision
from rgb2pc_lib.learning import train as module
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.precision import faster_in_bfloat16, in_bfloat16
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train

CPU = torch.device("cpu")
SMALL = Config(steps=6, batch_size=16, student_tokens=9, fuse_dim=16, eval_every=0, save_every=3)


def test_what_is_measured_decides(monkeypatch):
    assert isinstance(faster_in_bfloat16.__wrapped__(CPU), bool)
    assert in_bfloat16("on", CPU) and not in_bfloat16("off", CPU)
    for faster in (True, False):
        monkeypatch.setattr(precision, "faster_in_bfloat16", lambda device, faster=faster: faster)
        assert in_bfloat16("auto", CPU) is faster


@pytest.mark.parametrize("faster", [True, False])
def test_a_run_keeps_what_it_began_with(left, tmp_path, monkeypatch, faster):
    config = dataclasses.replace(SMALL, save_dir=str(tmp_path / "run")).with_workspace(left)
    monkeypatch.setattr(module, "in_bfloat16", lambda amp, device: faster)
    loop = train(config)
    for _ in range(3):
        next(loop)
    loop.close()
    monkeypatch.setattr(module, "in_bfloat16", lambda amp, device: not faster)  # the machine is another one now
    for _ in train(config, resume=True):
        pass
    assert Run.open(config.folder).summary["precision"] == ("bfloat16" if faster else "float32")
