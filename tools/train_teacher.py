"""Train the sample's teacher: a point encoder that foretells, from clouds, what the robot is about to do.

The shipped weights, data/teacher/pointnet.safetensors, are `make teacher`: clouds of twenty tasks from seeds of their
own, none of which the sample or the proof uses. The same clouds, seed, thread count and kind of processor give the same
weights. Its rivals, on the same clouds:

    python tools/train_teacher.py --foretelling 0 --contrast 1 --out ...   # plain contrastive
    python tools/train_teacher.py --supervised --out ...                   # told where the object is: the upper bound
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import torch
from tqdm import trange

from rgb2pc_lib import InputError
from rgb2pc_lib.data.workspace import CACHE
from rgb2pc_lib.encoders.clouds.foretell import ForetellConfig, foretell, load_recorded
from rgb2pc_lib.encoders.clouds.points import PointConfig, PointEncoder, save_point_encoder
from rgb2pc_lib.encoders.weights import network_fingerprint

RECORDED = CACHE / "other_seeds"


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--recorded", type=Path, nargs="+", default=[RECORDED],
                   help="folders of tools/record_sim.py (default: data/cache/other_seeds)")  # fmt: skip
    p.add_argument("--out", type=Path, default=CACHE / "teacher" / "pointnet.safetensors",
                   help="the weights (default: data/cache/teacher/pointnet.safetensors)")  # fmt: skip
    p.add_argument("--steps", type=int, default=ForetellConfig.steps,
                   help="optimiser steps (default: %(default)s)")  # fmt: skip
    p.add_argument("--foretelling", type=float, default=ForetellConfig.foretelling,
                   help="weight of what is foretold (default: %(default)s)")  # fmt: skip
    p.add_argument("--contrast", type=float, default=ForetellConfig.contrast,
                   help="weight of InfoNCE between two views of a cloud (default: %(default)s)")  # fmt: skip
    p.add_argument(
        "--supervised", action="store_true", help="tell where the object is instead: a label, an upper bound"
    )
    p.add_argument("--frame", choices=["world", "camera"], default=PointConfig.frame,
                   help="of the clouds: the robot's world or the camera's (default: %(default)s)")  # fmt: skip
    p.add_argument("--seed", type=int, default=ForetellConfig.seed,
                   help="of weights and augmentations (default: %(default)s)")  # fmt: skip
    p.add_argument("--num_threads", type=int, default=1, help="processor threads (default: %(default)s)")
    return p.parse_args(argv)


def main(argv=None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.num_threads)
    names = ("steps", "foretelling", "contrast", "supervised", "seed")
    config = ForetellConfig(**{name: getattr(args, name) for name in names})
    data = load_recorded(*args.recorded, frame=args.frame)
    encoder, start = PointEncoder(PointConfig(frame=args.frame), seed=args.seed), time.monotonic()
    training = foretell(encoder, data, config)
    with trange(config.steps, desc="teacher", unit="step") as bar:
        for figures in training:
            bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items()}, refresh=False)
            bar.update()
    facts = {"training": dataclasses.asdict(config), "clouds": len(data.points), "torch": torch.__version__}
    save_point_encoder(args.out, encoder, **facts)
    minutes = (time.monotonic() - start) / 60
    clouds = len(data.points)
    print(
        f"{args.out}: encoder {network_fingerprint(encoder)}, {clouds} clouds, {config.steps} steps, {minutes:.1f} min"
    )


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
