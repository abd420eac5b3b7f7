"""Whole batches of four experts, gathered from packs, against a plain copy of as many bytes; one thread."""

from __future__ import annotations

import time

from common import EXPERTS, TOKENS, B, Data, Row, in_turns, planner, sampling  # isort: skip (sets threads)

import numpy as np
from bench_rivals import write_zarr

from rgb2pc_lib.data import system
from rgb2pc_lib.data.mapped import Frames

TARGETS = {"packed": {64: 2.5, 256: 2.0, 1024: 1.5}, "pt": {64: 3.0, 256: 2.2, 1024: 1.6}}
NAMES = {"packed": "packed", "pt": "straight from .pt", "zarr": "from zarr"}


def rows(data: Data, rounds: int, small: int):
    """Ratios by form and K, pages in cache; the larger data show what ten times the size changes."""
    write_zarr(data, small)
    system.keep_freed_memory()  # as every training does
    for episodes in dict.fromkeys((small, data.episodes)):
        for form in ("pt", "packed"):  # one after the other, as they are used: what stays mapped has its limit
            Frames.give_back(0)
            gatherer = sampling.Gatherer(data.samples(form, episodes))
            for tokens in TOKENS:
                as_many_bytes = max(rounds * TOKENS[2] // tokens, 1)
                yield from _at(form, gatherer, tokens, as_many_bytes, episodes)
    gatherer = sampling.Gatherer(data.samples("zarr", small, warm=False))
    for tokens in TOKENS[:3]:  # seconds a batch: one is enough
        yield from _at("zarr", gatherer, tokens, 1, small)


def _at(form: str, gatherer, tokens: int, rounds: int, episodes: int):
    planned = planner(gatherer.samples, tokens)
    plans = [planned(n) for n in range(rounds)]
    source = {name: np.ones((B, tokens, c), np.float16) for name, (_, _, c) in EXPERTS.items()}
    target = {name: np.zeros_like(a) for name, a in source.items()}
    buffers: dict = {}

    def copy(_):
        for name in EXPERTS:
            np.copyto(target[name], source[name])

    works = {"copy": copy, "plan": planned, "gather": lambda n: gatherer.gather(plans[n], buffers)}
    fresh = form == "pt" and tokens == 256
    if fresh:
        works["new memory"] = lambda n: gatherer.gather(plans[n], {})
    if rounds > 1:
        works["gather"](0)
    seconds = in_turns(works, rounds, time.thread_time)
    size = f"K={'all' if tokens == TOKENS[-1] else tokens}, {episodes} ep."
    bound, name = TARGETS.get(form, {}).get(tokens), NAMES[form]
    yield Row("gather", f"gather / memcpy, {name}", size, seconds["gather"] / seconds["copy"], bound)
    if fresh:
        gigabytes = sum(a.nbytes for a in source.values()) / 1e9
        yield Row("gather", "memcpy, GB/s", size, gigabytes / seconds["copy"])
        yield Row("gather", "plan / gather", size, seconds["plan"] / seconds["gather"])
        yield Row("gather", "new memory each time / memcpy", size, seconds["new memory"] / seconds["copy"])
