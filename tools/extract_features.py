"""Extract expert features: one pack per episode, in the layout the training reads.

    python tools/extract_features.py --encoder xfeat simdepth --workspace data/sample.toml
    python tools/extract_features.py --workspace data/mine.toml --encoder vggt --weights vggt=VGGT-1B/model.safetensors
    python tools/extract_features.py --workspace data/mine.toml --encoder vggt --allow_download --causal --out causal
    torchrun --nproc_per_node=4 tools/extract_features.py --workspace data/mine.toml --encoder dinov3 --allow_download

With --causal no frame sees a later one, as on a robot: a window ends at each frame, and the first frames have shorter
ones. An expert that sees windows then encodes a frame up to --window times.

Packs go to the folder that the workspace names for each expert; of several cameras, an encoder sees all.
An interrupted extraction continues where it stopped.
An episode with a fault does not stop the others: all faults are listed at the end and in faults.txt beside the packs,
and the exit status is 2.
The weights of croco, da3, dinov2, dinov3 and vggt are not part of this project: without --weights it says what to get.
"""

import argparse
import sys
from pathlib import Path

from rgb2pc_lib import InputError, Workspace
from rgb2pc_lib.command_line import named
from rgb2pc_lib.data.files.faults import Faults
from rgb2pc_lib.data.workspace import SAMPLE, encoder_of
from rgb2pc_lib.encoders.extract import disk_needs, extract
from rgb2pc_lib.encoders.images import EXPERTS, describe, load_encoder, locate_weights
from rgb2pc_lib.encoders.pack_file import DTYPES
from rgb2pc_lib.learning import ranks
from rgb2pc_lib.learning.ranks import own_cores, own_device


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--encoder",
        nargs="+",
        required=True,
        choices=sorted(EXPERTS),
        metavar="NAME",
        help=f"one or several of {', '.join(sorted(EXPERTS))}",
    )
    p.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="NAME=PATH",
        help="official weights of an expert: file, folder, or with --allow_download a hub repository",
    )
    p.add_argument("--allow_download", action="store_true", help="fetch official weights that are not given")
    p.add_argument("--dry_run", action="store_true", help="only print how much disk the packs will take")
    p.add_argument("--workspace", type=Path, default=SAMPLE, help="TOML file naming the roots (default: the sample)")
    p.add_argument("--rgb_root", type=Path, help="frames <task>/<episode>/step_0000.jpg|png (default: the workspace's)")
    p.add_argument("--out", type=Path, help="write to OUT/features_NAME instead of the workspace's folder")
    p.add_argument("--exclude", nargs="+", metavar="FILE", help="exclusion list, instead of the workspace's")
    p.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="only these tasks (default: all)")
    p.add_argument("--window", type=positive, default=8, help="frames per window (default: 8)")
    p.add_argument("--stride", type=positive, default=8, help="frames between windows, at most --window (default: 8)")
    p.add_argument("--causal", action="store_true", help="a window ends at each frame, as live; --stride is then 1")
    p.add_argument("--dtype", choices=sorted(DTYPES), default="fp16", help="of the stored tokens (default: fp16)")
    p.add_argument("--batch", type=positive, default=8, help="frames at a time, fewer if they do not fit (default: 8)")
    p.add_argument("--device", default="cpu", help="cpu, cuda (the own card of each process) or cuda:N (default: cpu)")
    p.add_argument(
        "--num_threads",
        type=positive,
        default=own_cores(),
        help="episodes encoded side by side, one processor thread each (default: all cores)",
    )
    return p.parse_args(argv)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text}")
    return value


def main(argv=None) -> int:
    args = parse(argv)
    try:
        workspace = Workspace.load(args.workspace).excluding(args.exclude)
        outs = {n: args.out / f"features_{n}" for n in args.encoder} if args.out and not workspace.cameras else {}
        for name in args.encoder if not outs else ():
            for expert in workspace.of_encoder(name):  # one a camera
                outs[expert] = args.out / f"features_{expert}" if args.out else workspace.experts[expert]
        if args.rgb_root and workspace.cameras:
            raise InputError("--rgb_root: this workspace names cameras, whose frames they are; leave it out")
        if not args.rgb_root:
            workspace.require("rgb")
        roots = {e: args.rgb_root or workspace.frames_of(e) or workspace.root("rgb") for e in outs}
        weights = named(args.weights, EXPERTS)
        if not args.dry_run:  # all of them, before hours of work
            paths = {n: locate_weights(n, weights.get(n), args.allow_download) for n in args.encoder}
        layout = dict(window=args.window, stride=args.stride, causal=args.causal, dtype=args.dtype)
        layout |= dict(tasks=args.tasks, exclude=workspace.exclude)
        if args.dry_run:
            for name, out in outs.items():
                known = describe(encoder_of(name), weights.get(encoder_of(name)))
                print(disk_needs(known, roots[name], out, **layout), flush=True)
            return 0
        faults = {name: Faults() for name in outs}
        for name, out in outs.items():
            encoder = load_encoder(encoder_of(name), own_device(args.device), paths[encoder_of(name)])
            how = dict(batch=args.batch, workers=args.num_threads, faults=faults[name])
            written, kept = extract(encoder, roots[name], out, **how, **layout)
            print(f"{name}: {written} packs written, {kept} kept, in {out}", flush=True)
        return max([ranks.tell(faults[name], out / "faults.txt") for name, out in outs.items()])
    except (InputError, OSError) as e:
        print(f"extract_features: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
