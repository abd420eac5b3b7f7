"""All benchmarks in one run, as ratios: figures/benchmarks.json and a figure. Status 1 where a target is missed.

    python benchmarks/run.py                      # 30 episodes: 14 GB of disk for a while
    python benchmarks/run.py --episodes 10 --only gather train

Each part is measured at a tenth of the episodes and at all of them. Nothing but the data's folder is written to.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from common import Data, Row, load, need_disk  # isort: skip (sets the number of threads before torch)

import bench_disk
import bench_gather
import bench_open
import bench_rivals
import bench_train
import picture

PARTS = ("open", "disk", "gather", "rivals", "train")  # memory is measured before freed memory is kept
GB_AN_EPISODE = 0.47


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--episodes", type=int, default=30, help="the larger size; the smaller is a tenth, at least 3")
    p.add_argument("--rounds", type=int, default=15, help="of each measurement in turns")
    p.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    p.add_argument("--data", type=Path, help="keep the data in this folder (default: a temporary one, removed)")
    p.add_argument("--out", type=Path, help="write benchmarks.json and the figure there (default: figures, full runs)")
    return p.parse_args(argv)


def measure(args: argparse.Namespace, folder: Path) -> list[Row]:
    small = max(args.episodes // 10, 3)
    need_disk(folder, GB_AN_EPISODE * args.episodes + 4)
    start = time.perf_counter()
    data = Data(folder, args.episodes).write()
    print(f"{args.episodes} episodes written in {time.perf_counter() - start:.0f} s; load {load()}", flush=True)
    parts = {
        "open": lambda: bench_open.rows(folder),
        "disk": lambda: bench_disk.rows(data, small),
        "gather": lambda: bench_gather.rows(data, args.rounds, small),
        "rivals": lambda: bench_rivals.rows(data, small),
        "train": lambda: bench_train.rows(data, max(args.rounds // 3, 3), small),
    }
    rows = []
    for name in [part for part in PARTS if part in args.only]:
        start = time.perf_counter()
        for row in parts[name]():
            print(row, flush=True)
            rows.append(row)
        print(f"-- {name}: {time.perf_counter() - start:.0f} s; load {load()}", flush=True)
    return rows


def main(argv=None) -> int:
    args = parse(argv)
    if args.data:
        args.data.mkdir(parents=True, exist_ok=True)
        rows = measure(args, args.data)
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(args, Path(folder))
    whole = set(args.only) == set(PARTS)
    if args.out or whole:
        print(picture.save(rows, args.out, episodes=args.episodes, load=load()))
    missed = [r for r in rows if r.kept is False]
    print(f"{sum(r.kept is True for r in rows)} targets kept, {len(missed)} missed")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
