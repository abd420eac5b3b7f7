"""Extract the teacher: one file of per-point features a cloud, in the layout the training reads.

    python tools/extract_teacher.py --workspace data/sample.toml
    python tools/extract_teacher.py --encoder ulip2 --weights ULIP-2-PointBERT-...pt --workspace mine.toml --dry_run
    torchrun --nproc_per_node=4 tools/extract_teacher.py --encoder ulip2 --weights ... --device cuda

Files go to the workspace's teacher root, never into the clouds' folder. An interrupted extraction continues where it
stopped. A cloud with a fault does not stop the others: all faults are listed at the end and in faults.txt beside the
files, and the exit status is 2. Clouds are in metres, in the camera frame (OpenCV axes) unless the state files or
--frame say otherwise; pointnet sees them in the world's, so they are turned by the state files' world_to_camera.
Of clouds larger than an encoder was trained on (ulip 8,192 points, ulip2 10,000) a sample is taken, always the same one
of the same cloud.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from rgb2pc_lib import InputError, Workspace
from rgb2pc_lib.command_line import run_resumable
from rgb2pc_lib.data.files.faults import Faults
from rgb2pc_lib.data.files.writing import free_bytes
from rgb2pc_lib.data.workspace import SAMPLE
from rgb2pc_lib.encoders.clouds.extract_clouds import ENCODERS, extract_teacher, load_cloud_encoder, plan
from rgb2pc_lib.learning import ranks


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--encoder", choices=sorted(ENCODERS), default="pointnet",
                   help="pointnet comes with the sample, the others need --weights (default: %(default)s)")  # fmt: skip
    p.add_argument("--workspace", type=Path, default=SAMPLE, help="TOML file naming the roots (default: the sample)")
    p.add_argument("--exclude", nargs="+", metavar="FILE", help="exclusion list, instead of the workspace's")
    p.add_argument("--weights", type=Path, help="checkpoint (pointnet: data/teacher/pointnet.safetensors)")
    p.add_argument("--frame", choices=["camera", "world"],
                   help="axes of clouds without state: camera (y down, z forward) or world (z up)")  # fmt: skip
    p.add_argument("--tag", help="files end in .ulip_TAG.pt (default: the encoder's name)")
    p.add_argument("--out", type=Path, help="write here instead of the workspace's teacher root")
    p.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu; cuda: one a process)")
    p.add_argument("--batch", type=positive, help="clouds at a time, fewer if memory is short (default: 1; cuda: 16)")
    p.add_argument("--dry_run", action="store_true", help="say what would be written and the disk it needs, then stop")
    p.add_argument("--num_threads", type=positive, default=1, help="processor threads (default: %(default)s)")
    return p.parse_args(argv)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text}")
    return value


def main(argv=None) -> int:
    args = parse(argv)
    torch.set_num_threads(args.num_threads)
    workspace = Workspace.load(args.workspace).excluding(args.exclude)
    clouds = workspace.root("clouds")
    out = args.out or workspace.teacher
    if out is None:
        raise InputError(f"{args.workspace}: names no teacher root; add one or give --out")
    device = f"cuda:{os.environ['LOCAL_RANK']}" if args.device == "cuda" and "LOCAL_RANK" in os.environ else args.device
    encoder = load_cloud_encoder(args.encoder, args.weights, device, args.frame or "camera")
    frame = args.frame or encoder.frame or "camera"
    if encoder.frame and not args.frame and workspace.state is None:
        print(
            f"note: no state says in which frame the clouds are; taken to be the {frame}'s (--frame)", file=sys.stderr
        )
    tag = args.tag or encoder.name
    faults = Faults()
    if args.dry_run:
        work = plan(encoder, clouds, out, tag, faults, workspace.exclude)
        disk = f"{work.bytes(encoder, faults) / 1e9:.2f} GB ({free_bytes(out) / 1e9:.0f} GB free)"
        print(f"{tag}: {len(work.todo)} files to write, {disk}, {work.kept} kept, in {out}")
        print("\n".join(faults.lines()), end="\n" * bool(faults.found), file=sys.stderr)
        return 2 if faults.found else 0
    batch = args.batch or (1 if device == "cpu" else 16)
    written, kept = extract_teacher(
        encoder, clouds, out, tag, batch, faults=faults, exclude=workspace.exclude, state_root=workspace.state,
        clouds_in=frame,
    )  # fmt: skip
    print(f"{tag}: {written} files written, {kept} kept, in {out}")
    return ranks.tell(faults, out / "faults.txt")


if __name__ == "__main__":
    run_resumable(main)
