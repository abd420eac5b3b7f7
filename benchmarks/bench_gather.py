"""Whole batches of four experts, gathered from mapped packs, against a plain copy of as many bytes.

    python benchmarks/bench_gather.py

Pages are in the system's cache. Processor time of one thread is compared, in turns with the copy.
"""

import sys
import tempfile
import time
from pathlib import Path

from common import EXPERTS, B, K, in_turns, need_disk, report, sampling, write_samples  # isort: skip (sets threads)

import numpy as np

ROUNDS = 40


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        need_disk(Path(folder), 2)
        samples = write_samples(Path(folder))
        planner = sampling.Planner(samples, np.arange(len(samples)), B, K, seed=0)
        gatherer = sampling.Gatherer(samples)
        plans = [planner(n) for n in range(ROUNDS)]
        buffers: dict = {}
        source = {name: np.ones((B, K, c), np.float16) for name, (_, _, c) in EXPERTS.items()}
        target = {name: np.zeros_like(a) for name, a in source.items()}

        def copy(_):
            for name in EXPERTS:
                np.copyto(target[name], source[name])

        for plan in plans[: 3 * len(samples) // B]:  # every page is in the cache, every buffer is there
            gatherer.gather(plan, buffers)
        seconds = in_turns(
            {
                "copy": copy,
                "plan": lambda n: planner(n),
                "gather": lambda n: gatherer.gather(plans[n], buffers),
                "gather into new memory": lambda n: gatherer.gather(plans[n], {}),
            },
            ROUNDS,
            time.thread_time,
        )
        batches = gatherer.run(plans)
        for _ in range(4):  # makes its ring of buffers
            next(batches)
        start, rest = time.perf_counter(), sum(1 for _ in batches)
        wall = time.perf_counter() - start
        megabytes = sum(a.nbytes for a in source.values()) / 2**20
        return report(
            [
                (f"a batch of {B} x {K} tokens, MB", megabytes, None),
                ("copy of as many bytes, ms", seconds["copy"] * 1e3, None),
                ("gather, ms", seconds["gather"] * 1e3, None),
                ("gather / copy", seconds["gather"] / seconds["copy"], 2.5),
                ("gather into new memory / copy", seconds["gather into new memory"] / seconds["copy"], None),
                ("plan / gather", seconds["plan"] / seconds["gather"], 0.1),
                ("samples a second, wall clock", B * rest / wall, None),
            ]
        )


if __name__ == "__main__":
    sys.exit(main())
