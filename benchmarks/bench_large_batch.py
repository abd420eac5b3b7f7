"""A batch of 16,384 samples: memory of InfoNCE by rows and of micro-batches against the plain step, and their time.

    python benchmarks/bench_large_batch.py  # 1 minute of one processor; the plain ones need 8 GB of memory

One thread, one run. Needs Linux, whose /proc tells the peak of resident memory.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

os.environ["OMP_NUM_THREADS"] = "1"  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd
import torch

from rgb2pc_lib.data.sampling import Batch, Plan
from rgb2pc_lib.learning import losses
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.learner import Learner
from rgb2pc_lib.learning.objective import Distillation
from rgb2pc_lib.learning.runs import build_student

torch.set_num_threads(1)
E, C, PLACES, MICRO = 256, 512, 16, 256  # embedding, channels of the one expert, places (4 x 4), samples at once
PLAIN = 10**9  # samples up to which B x B is made at once: always


def resident(what: str) -> int:
    """Bytes of this process, from the system: VmRSS now, VmHWM at most."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(what))


def measured(work):
    """What a work gives, by how many bytes it raises resident memory at most, and its seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, start = resident("VmRSS"), time.perf_counter()
    result = work()
    return result, resident("VmHWM") - before, time.perf_counter() - start


def loss_and_gradients(batch: int, whole: int):
    """InfoNCE of random embeddings that resemble their teachers, near steps left out, with gradients for all."""
    losses._WHOLE = whole
    g = torch.Generator().manual_seed(0)
    teacher = torch.randn(batch, E, generator=g)
    student = (teacher + torch.randn(batch, E, generator=g)).requires_grad_()
    tau = torch.tensor(0.05, requires_grad=True)
    near = losses.NearInTime(torch.arange(batch).int() // 100, torch.arange(batch).int() % 100, 2)

    def work():
        loss = losses.info_nce(student, teacher, tau, near)
        return [loss.detach(), *torch.autograd.grad(loss, [student, tau])]

    return measured(work)


def step(batch: int, micro: int, whole: int):
    """A training step from ready tokens `[B, 16, 512]`; its gradients."""
    losses._WHOLE = whole
    config = Config(batch_size=batch, micro_batch=micro, student_tokens=PLACES, steps=100, grad_clip=0.0)
    keys = pd.DataFrame({"task": "t", "episode": np.arange(batch) // 100, "time": np.arange(batch) % 100})
    samples = SimpleNamespace(keys=lambda: keys, pairing=SimpleNamespace(finest_grid=(4, 4)))
    student = build_student(config, {"expert": C}, E)
    learner = Learner(Distillation(config, student, torch.zeros(E), samples))
    g = torch.Generator().manual_seed(0)
    tokens = torch.randn(256, PLACES, C, generator=g).half()  # the samples are these, over and over
    teacher = torch.randn(batch, E, generator=g)
    whole_plan = Plan(
        np.arange(batch), np.zeros((batch, 1), int), np.zeros((batch, PLACES, 2)), np.zeros(batch),
        np.ones((batch, 1), bool), 0,
    )  # fmt: skip

    def gather(plan: Plan) -> Batch:
        shape = (len(plan.samples), PLACES)
        at = torch.from_numpy(plan.positions).float()
        seen = tokens[torch.from_numpy(plan.samples % 256)]
        return Batch({"expert": seen}, torch.ones(*shape, 1, dtype=torch.bool), at, teacher, plan.samples)

    result, peak, seconds = measured(lambda: learner.step(0, (gather(p) for p in learner.plans(whole_plan))))
    return [torch.tensor(result[0]), *(p.grad for p in student.parameters() if p.grad is not None)], peak, seconds


def difference(ours, plain) -> float:
    """The largest difference of loss or gradients, each against its own largest entry."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, plain, strict=True))


def rows(batch: int):
    """(what, figure, limit or None)."""
    square = 4 * batch**2
    tenth, small, _ = loss_and_gradients(batch // 8, 0)  # small ones first: what they leave behind is small
    ours, peak, seconds = loss_and_gradients(batch, 0)
    stepped, step_peak, step_seconds = step(batch, MICRO, losses._WHOLE)
    only_rows, rows_peak, rows_seconds = step(batch, 0, 0)
    plain, plain_peak, plain_seconds = loss_and_gradients(batch, PLAIN)
    whole, whole_peak, whole_seconds = step(batch, 0, PLAIN)
    yield "InfoNCE: one matrix B x B, MB", square / 2**20, None
    yield "InfoNCE: peak of the plain one / B x B", plain_peak / square, None
    yield "InfoNCE: peak by rows / B x B", peak / square, 0.3
    yield "InfoNCE: peak by rows / that of an eighth of the batch", peak / small, 9
    yield "InfoNCE: time by rows / plain", seconds / plain_seconds, 2
    yield "InfoNCE: difference of loss and gradients, relative", difference(ours, plain), 1e-4
    yield "step: peak of the plain one, MB", whole_peak / 2**20, None
    yield "step: peak with InfoNCE by rows / plain", rows_peak / whole_peak, None
    yield f"step: peak with micro_batch {MICRO} / plain", step_peak / whole_peak, 0.05
    yield f"step: time with micro_batch {MICRO} / plain", step_seconds / whole_seconds, 2
    yield "step: time with InfoNCE by rows / plain", rows_seconds / whole_seconds, None
    yield "step: difference of loss and gradients, relative", difference(stepped, whole), 1e-4


def available() -> int:
    """Bytes of memory that are free for a program."""
    with open("/proc/meminfo") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--batch", type=int, default=16384, help="samples (default: %(default)s)")
    batch, failed = p.parse_args(argv).batch, False
    if available() < (needed := 8 * 4 * batch**2):
        p.error(f"{needed / 1e9:.0f} GB of free memory are needed, found {available() / 1e9:.0f}; lower --batch")
    for what, figure, limit in rows(batch):
        beyond = limit is not None and figure > limit
        failed |= beyond
        print(f"{what:56} {figure:10.3g}" + ("" if limit is None else f"  limit {limit:g}{'  BEYOND' * beyond}"))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
