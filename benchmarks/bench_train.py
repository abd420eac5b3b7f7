"""One training step against the matrix products it must do at the processor's peak; waiting for data; embedding.

One thread computes, another gathers: the share of waiting needs a second processor that is not busy with others.
"""

from __future__ import annotations

import time

from common import EXPERTS, TEACHER, B, Data, Row, in_turns, memory, peak_growth, planner, sampling  # isort: skip

import numpy as np
import torch

from rgb2pc_lib.data import system
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.finish import embed_samples
from rgb2pc_lib.learning.learner import Learner
from rgb2pc_lib.learning.objective import Distillation
from rgb2pc_lib.learning.runs import build_student

CHANNELS = {name: c for name, (_, _, c) in EXPERTS.items()}
PEAK = 2048  # side of the square matrices whose product tells the peak
TARGET, TWO_THREADS, WAIT = 0.65, 0.75, 0.02


def flops(config: Config) -> float:
    """Of one step's matrix products with every token: forward, and backward for the weights; of a gate network also
    for what comes in. What is done once a sample is too small to count."""
    rows = B * config.student_tokens
    total = sum(2 * 2 * rows * c * config.fuse_dim for c in CHANNELS.values())
    if config.fusion == "moe":
        total += 3 * 2 * rows * len(CHANNELS) * config.fuse_dim * config.moe_hidden
    return total


def learner_for(gatherer, tokens: int, fusion: str, amp: bool) -> Learner:
    config = Config(fusion=fusion, amp="on" if amp else "off", batch_size=B, student_tokens=tokens, steps=1000)
    mean = torch.from_numpy(gatherer.table.mean(0))
    return Learner(Distillation(config, build_student(config, CHANNELS, TEACHER), mean, gatherer.samples))


def rows(data: Data, rounds: int, small: int):
    system.keep_freed_memory()  # as every training does
    gatherer = sampling.Gatherer(data.samples("pt"))
    for tokens, fusion, amp in (
        (64, "weighted", True), (256, "weighted", True), (1024, "weighted", True),
        (64, "moe", True), (256, "moe", True), (256, "weighted", False), (256, "moe", False),
    ):  # fmt: skip
        yield from _step(gatherer, tokens, fusion, amp, rounds)
    yield from _two_threads(gatherer, rounds)
    yield from _waiting(data, small)
    yield from _embedding(data, small)


def _shares(gatherer, tokens: int, fusion: str, amp: bool, rounds: int, clock) -> tuple[dict[str, float], float, float]:
    """Seconds of a step and of a square product, the product's rate, and the step's share of it."""
    learner = learner_for(gatherer, tokens, fusion, amp)
    batch = gatherer.gather(planner(gatherer.samples, tokens)(0), {})
    dtype = torch.bfloat16 if amp else torch.float32
    a, b = torch.ones(PEAK, PEAK, dtype=dtype), torch.ones(PEAK, PEAK, dtype=dtype)
    works = {"peak": lambda _: a @ b, "step": lambda n: learner.step(n, iter([batch]))}
    for work in works.values():
        work(0)
    seconds = in_turns(works, rounds, clock)
    peak = 2 * PEAK**3 / seconds["peak"]
    return seconds, peak, flops(learner.config) / seconds["step"] / peak


def _step(gatherer, tokens: int, fusion: str, amp: bool, rounds: int):
    rounds = max(rounds * 512 // tokens, rounds)
    seconds, peak, share = _shares(gatherer, tokens, fusion, amp, rounds, time.thread_time)
    size = f"K={tokens}, {fusion}"
    kind = "bf16" if amp else "fp32"
    yield Row("train", f"{kind} matrix product, peak, GFLOP/s", size, peak / 1e9)
    yield Row("train", f"{kind} step, ms of processor time", size, seconds["step"] * 1e3)
    target = TARGET if amp and tokens <= 256 else None
    yield Row("train", f"{kind} step / peak", size, share, target, True)


def _two_threads(gatherer, rounds: int):
    """The step of a training that has two threads, by the wall clock: the second processor must not be busy."""
    torch.set_num_threads(2)
    try:
        for fusion in ("weighted", "moe"):
            _, _, share = _shares(gatherer, 256, fusion, False, rounds * 2, time.perf_counter)
            yield Row("train", "fp32 step / peak, two threads, wall", f"K=256, {fusion}", share, TWO_THREADS, True)
    finally:
        torch.set_num_threads(1)


def _waiting(data: Data, small: int, steps: int = 15):
    """Share of the wall clock in which the loop waits for its next batch."""
    for episodes in dict.fromkeys((small, data.episodes)):
        gatherer = sampling.Gatherer(data.samples("pt", episodes))
        for tokens in (64, 256, 1024):
            learner = learner_for(gatherer, tokens, "weighted", True)
            plans = planner(gatherer.samples, tokens)
            batches = gatherer.run(plans(n) for n in range(10**6))
            waited, spent = [], []
            for n in range(steps):
                start = time.perf_counter()
                batch = next(batches)
                waited.append(time.perf_counter() - start)
                learner.step(n, iter([batch]))
                spent.append(time.perf_counter() - start)
            batches.close()
            waited, spent = np.array(waited[3:]), np.array(spent[3:])  # the first ones make the ring of buffers
            size = f"K={tokens}, {episodes} ep."
            yield Row("train", "waiting for data / bf16 step, median", size, float(np.median(waited / spent)), WAIT)
            yield Row("train", "the same over all steps, other processes included", size, waited.sum() / spent.sum())


def _embedding(data: Data, small: int):
    """All samples at the 256 positions of embeddings, fp32 as in every use of a run."""
    a = torch.ones(PEAK, PEAK)
    for episodes in dict.fromkeys((small, data.episodes)):
        gatherer = sampling.Gatherer(data.samples("pt", episodes))
        student = build_student(Config(), CHANNELS, TEACHER)
        at, index = sampling.embedding_lattice((28, 37)), np.arange(len(gatherer.samples))
        embed_samples(student, gatherer, index[:B], at)
        before, times = memory("RssAnon"), []

        def work(g=gatherer, s=student, i=index, at=at, times=times):
            busy, start = time.thread_time(), time.perf_counter()
            embed_samples(s, g, i, at)
            times += [time.thread_time() - busy, time.perf_counter() - start]

        grown = peak_growth(work)
        peak = 2 * PEAK**3 / in_turns({"p": lambda _: a @ a}, 3, time.thread_time)["p"]
        done = len(index) * len(at) * sum(2 * c * 256 for c in CHANNELS.values())
        size = f"{len(index)} steps"
        yield Row("train", "embedding a data set, steps/s", size, len(index) / times[1])
        yield Row("train", "fp32 embedding / peak", size, done / times[0] / peak)
        yield Row("train", "embedding: own memory grows by, MB", size, memory("RssAnon") - before)
        yield Row("train", "embedding: with mapped file pages, MB", size, grown)
