"""Batches whose frames are not in the system's cache: bytes read from the disk against bytes of the frames needed."""

from __future__ import annotations

import time

from common import EXPERTS, Data, Row, bytes_from_disk, drop_from_cache, planner, sampling  # isort: skip

import numpy as np
import torch

from rgb2pc_lib.data.mapped import Frames

BATCH, BATCHES = 8, 3  # frames are large: a few batches are some hundred MB


def rows(data: Data, small: int):
    """Cold ratios by K and form; then what the same batches cost without asking for frames ahead, as plain mapping."""
    frame = sum(h * w * c * 2 for h, w, c in EXPERTS.values())
    for form in ("pt", "packed"):
        samples = data.samples(form, small, warm=False)
        gatherer = sampling.Gatherer(samples)
        for tokens in (64, 256, 1024):
            plans = [planner(samples, tokens, BATCH)(n) for n in range(BATCHES)]  # no sample twice
            _drop(data)
            start = time.perf_counter()
            read = bytes_from_disk(lambda g=gatherer, p=plans: [None for _ in g.run(p)])
            cold = time.perf_counter() - start
            start = time.perf_counter()
            for _ in gatherer.run(plans):
                pass
            hot = time.perf_counter() - start
            name, size = {"pt": "straight from .pt", "packed": "packed"}[form], f"K={tokens}, {small} ep."
            yield Row(
                "disk", f"cold: bytes read / bytes of the frames, {name}", size, read / (frame * BATCH * BATCHES), 1.1
            )
            yield Row("disk", f"cold / hot, seconds, {name}", size, cold / hot)
            yield Row("disk", f"cold samples/s, {name}", size, BATCH * BATCHES / cold)
    _drop(data)
    read = bytes_from_disk(lambda: _plain_map(data, small))
    yield Row("disk", "the same with torch.load(mmap=True) alone", f"K=256, {small} ep.", read / (frame * BATCH))


def _drop(data: Data) -> None:
    Frames.give_back(0)  # mapped pages cannot be dropped
    for form in ("pt", "packed"):
        drop_from_cache(data.root / form)


def _plain_map(data: Data, small: int) -> None:
    for b in range(BATCH):
        for expert, (h, w, c) in EXPERTS.items():
            raw = torch.load(data.path("pt", expert, b % small), weights_only=True, mmap=True)
            cells = np.sort(np.random.default_rng(b).integers(0, h * w, 256))
            raw["per_frame_features"][b % 5, 3].view(-1, c)[torch.from_numpy(cells)]
