"""Train the sample's label-free teacher: a point encoder, contrastively, on simulated clouds. Needs the extra `sim`.

The shipped weights, data/teacher/pointnet.safetensors, are these commands:

    TASKS="drawer-open door-open assembly hammer peg-insert-side window-open button-press-topdown bin-picking
        drawer-close door-close window-close button-press pick-place push faucet-open lever-pull shelf-place
        plate-slide handle-press coffee-button"
    OUT=data/cache/teacher_clouds
    python tools/record_sim.py --tasks $TASKS --out $OUT/random --randomise random --first_seed 1000 --episodes 24
    python tools/record_sim.py --tasks $TASKS --out $OUT/fixed --randomise fixed --first_seed 2000 --episodes 16
    python tools/train_teacher.py --out data/teacher/pointnet.safetensors

The same clouds, seed, thread count and kind of processor give the same weights.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import torch
from tqdm import trange

from rgb2pc_lib.data.workspace import CACHE
from rgb2pc_lib.encoders.clouds.extract_clouds import fingerprint
from rgb2pc_lib.encoders.clouds.points import (
    ContrastiveConfig,
    PointEncoder,
    contrastive,
    load_clouds,
    save_point_encoder,
)
from rgb2pc_lib.errors import InputError

RECORDED = CACHE / "teacher_clouds"


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--clouds",
        type=Path,
        nargs="+",
        default=[RECORDED / k / "clouds" for k in ("random", "fixed")],
        help="roots of <task>/<episode>/step_0000.ply (default: the two recorded above)",
    )
    p.add_argument(
        "--out",
        type=Path,
        default=CACHE / "teacher" / "pointnet.safetensors",
        help="the weights (default: data/cache/teacher/pointnet.safetensors)",
    )
    p.add_argument("--steps", type=int, default=ContrastiveConfig.steps, help="optimiser steps (default: %(default)s)")
    p.add_argument(
        "--seed", type=int, default=ContrastiveConfig.seed, help="of weights and augmentations (default: %(default)s)"
    )
    p.add_argument("--num_threads", type=int, default=1, help="processor threads (default: %(default)s)")
    return p.parse_args(argv)


def main(argv=None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.num_threads)
    config = ContrastiveConfig(steps=args.steps, seed=args.seed)
    points, episode = load_clouds(*args.clouds)
    encoder, start = PointEncoder(seed=args.seed), time.monotonic()
    training = contrastive(encoder, points, episode, config)
    with trange(config.steps, desc="teacher", unit="step") as bar:
        for figures in training:
            bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items()}, refresh=False)
            bar.update()
    facts = {"training": dataclasses.asdict(config), "clouds": len(points), "torch": torch.__version__}
    save_point_encoder(args.out, encoder, **facts)
    minutes = (time.monotonic() - start) / 60
    print(f"{args.out}: encoder {fingerprint(encoder)}, {len(points)} clouds, {config.steps} steps, {minutes:.1f} min")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
