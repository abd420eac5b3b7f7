"""Extract expert features: one pack per episode, in the layout the training reads.

    python tools/extract_features.py --encoder xfeat disk --workspace data/sample.toml

Packs go to the folder that the workspace names for each expert. An interrupted extraction continues where it stopped.
"""

import argparse
import os
import sys
from pathlib import Path

from rgb2pc_lib.encoders.extract import DTYPES, extract
from rgb2pc_lib.encoders.images import EXPERTS, load_encoder
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.workspace import SAMPLE, Workspace


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--encoder", nargs="+", required=True, choices=sorted(EXPERTS), metavar="NAME",
                   help=f"one or several of {', '.join(sorted(EXPERTS))}")
    p.add_argument("--workspace", type=Path, default=SAMPLE, help="TOML file naming the roots (default: the sample)")
    p.add_argument("--rgb_root", type=Path, help="frames <task>/<episode>/step_0000.jpg|png (default: the workspace's)")
    p.add_argument("--out", type=Path, help="write to OUT/features_NAME instead of the workspace's folder")
    p.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="only these tasks (default: all)")
    p.add_argument("--window", type=positive, default=8, help="frames per window (default: 8)")
    p.add_argument("--stride", type=positive, default=8, help="frames between windows, at most --window (default: 8)")
    p.add_argument("--dtype", choices=sorted(DTYPES), default="fp16", help="of the stored tokens (default: fp16)")
    p.add_argument("--batch", type=positive, default=8, help="frames encoded at a time (default: 8)")
    p.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    p.add_argument("--num_threads", type=positive, default=os.cpu_count(),
                   help="episodes encoded side by side, one processor thread each (default: all cores)")
    return p.parse_args(argv)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, found {text}")
    return value


def main(argv=None) -> int:
    args = parse(argv)
    try:
        workspace = Workspace.load(args.workspace)
        rgb_root = args.rgb_root or workspace.require("rgb").rgb
        for name in args.encoder:
            out = args.out / f"features_{name}" if args.out else workspace.only(name).experts[name]
            written, kept = extract(
                load_encoder(name, args.device), rgb_root, out, window=args.window, stride=args.stride,
                dtype=args.dtype, batch=args.batch, workers=args.num_threads, tasks=args.tasks,
            )  # fmt: skip
            print(f"{name}: {written} packs written, {kept} kept, in {out}", flush=True)
    except (InputError, OSError) as e:
        print(f"extract_features: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
