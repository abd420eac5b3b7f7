"""Extract the teacher: one file of per-point features a cloud, in the layout the training reads.

    python tools/extract_teacher.py --workspace data/sample.toml

Files go to the workspace's teacher root, never into the clouds' folder. An interrupted extraction continues where it
stopped. Clouds must be in the camera frame (OpenCV axes), in metres.
"""

import argparse
import sys
from pathlib import Path

import torch

from rgb2pc_lib.encoders.points import extract_teacher, load_point_encoder
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.workspace import SAMPLE, Workspace


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workspace", type=Path, default=SAMPLE, help="TOML file naming the roots (default: the sample)")
    p.add_argument("--weights", type=Path, help="point encoder (default: data/teacher/pointnet.safetensors)")
    p.add_argument("--tag", default="pointnet", help="files end in .ulip_TAG.pt (default: %(default)s)")
    p.add_argument("--out", type=Path, help="write here instead of the workspace's teacher root")
    p.add_argument("--num_threads", type=int, default=1, help="processor threads (default: %(default)s)")
    return p.parse_args(argv)


def main(argv=None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.num_threads)
    workspace = Workspace.load(args.workspace).require("clouds")
    out = args.out or workspace.teacher
    if out is None:
        raise InputError(f"{args.workspace}: names no teacher root; add one or give --out")
    written, kept = extract_teacher(load_point_encoder(args.weights), workspace.clouds, out, args.tag)
    print(f"{args.tag}: {written} files written, {kept} kept, in {out}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
