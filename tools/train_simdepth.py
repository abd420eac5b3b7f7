"""Train the sample's geometry expert: a small network that tells from one image where surfaces are.

The shipped weights, data/simdepth/simdepth.safetensors, are `make simdepth`: frames of twenty tasks from seeds of their
own, none of which the sample or the proof uses. The same frames, seed, thread count and kind of processor give the same
weights.
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
from rgb2pc_lib.encoders.simdepth import DepthNetwork, load_network, save_simdepth
from rgb2pc_lib.encoders.simdepth_training import DepthTraining, errors, learn, load_surfaces
from rgb2pc_lib.encoders.weights import network_fingerprint

RECORDED = CACHE / "other_seeds"


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--recorded", type=Path, nargs="+", default=[RECORDED],
                   help="folders of tools/record_sim.py (default: data/cache/other_seeds)")  # fmt: skip
    p.add_argument("--out", type=Path, default=CACHE / "simdepth" / "simdepth.safetensors",
                   help="the weights (default: data/cache/simdepth/simdepth.safetensors)")  # fmt: skip
    p.add_argument("--steps", type=int, default=DepthTraining.steps,
                   help="optimiser steps (default: %(default)s)")  # fmt: skip
    p.add_argument("--seed", type=int, default=DepthTraining.seed,
                   help="of weights, batches and colours (default: %(default)s)")  # fmt: skip
    p.add_argument("--judge", type=Path, metavar="FOLDER",
                   help="train nothing: tell how far off the shipped weights are on these recordings")  # fmt: skip
    p.add_argument("--num_threads", type=int, default=2, help="processor threads (default: %(default)s)")
    return p.parse_args(argv)


def judge(folder: Path) -> None:
    """Errors of the shipped network on every seventh episode of a recording, by look."""
    network = load_network()
    data = load_surfaces(folder, size=network.config.size, every=7)
    found = errors(network, data)
    for look, rows in (("fixed look", ~data.randomised), ("random look", data.randomised)):
        depth, place = found[rows].mean(0).tolist()
        print(f"{look}: {rows.sum()} frames, depth off by {100 * depth:.1f} %, place by {100 * place:.1f} cm")


def main(argv=None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.num_threads)
    if args.judge:
        return judge(args.judge)
    config = DepthTraining(steps=args.steps, seed=args.seed)
    network, start = DepthNetwork(seed=args.seed), time.monotonic()
    data = load_surfaces(*args.recorded, size=network.config.size)
    with trange(config.steps, desc="simdepth", unit="step") as bar:
        for figures in learn(network, data, config):
            bar.set_postfix({k: f"{v:.1f} cm" for k, v in figures.items()}, refresh=False)
            bar.update()
    facts = {"training": dataclasses.asdict(config), "frames": len(data.images), "torch": torch.__version__}
    save_simdepth(args.out, network, **facts)
    minutes = (time.monotonic() - start) / 60
    frames = len(data.images)
    print(
        f"{args.out}: network {network_fingerprint(network)}, {frames} frames, {config.steps} steps, {minutes:.1f} min"
    )


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
