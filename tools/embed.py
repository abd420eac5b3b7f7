"""RGB in, embeddings out: images, folders of images or a video, through a run's experts or a compact student.

    python tools/embed.py runs/compact-resnet18-seed0 frames/ --out embeddings.npz
    python tools/embed.py runs/judge/weighted-seed0 episode.mp4 --every 5 --out embeddings.parquet

An .npz holds the arrays `names` and `embeddings` [n, E]; a .parquet the columns `name` and `embedding`. A frame of a
video is named FILE#000012, counted from 0. A frame with a fault does not stop the others: all faults are listed at the
end and in OUT.faults.txt, and the exit status is 2.

    python tools/embed.py runs/compact-resnet18-seed0 --profile

says what a frame costs live: milliseconds, frames a second, memory, and the share of each expert.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

from rgb2pc_lib import Embedder, InputError
from rgb2pc_lib.command_line import named
from rgb2pc_lib.data.files.faults import Faults
from rgb2pc_lib.deploy.embed import embed_frames, refuse_unwritable, save_embeddings
from rgb2pc_lib.deploy.frames import read_frames
from rgb2pc_lib.deploy.profile import profile
from rgb2pc_lib.encoders.images import EXPERTS


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="folder of a finished run or of a compact student")
    p.add_argument("frames", type=Path, nargs="*", help="images, folders of images, or videos")
    p.add_argument("--out", type=Path, help="file to write, .npz or .parquet")
    p.add_argument("--profile", action="store_true", help="print what a frame costs, of noise or of the frames given")
    p.add_argument("--every", type=int, default=1, metavar="N", help="of a video every N-th frame (default: 1)")
    p.add_argument("--batch", type=int, default=8, help="frames embedded at a time (default: 8)")
    p.add_argument("--weights", nargs="+", default=[], metavar="NAME=PATH",
                   help="official weights of experts that do not bring their own")  # fmt: skip
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    a, faults = p.parse_args(argv), Faults()
    try:
        weights = named(a.weights, EXPERTS)
        if a.profile:
            frames = [image for _, _, image in islice(read_frames(a.frames), 32)] if a.frames else []
            table = profile(a.run, a.device, weights, frames)
            print(table.to_string(index=False, float_format=lambda v: f"{v:.2f}", na_rep=""))
            return 0
        if not a.frames or not a.out:
            raise InputError("expected frames to embed and --out FILE to write, or --profile; name them")
        refuse_unwritable(a.out)
        embedder = Embedder.from_run(a.run, a.device, weights)
        if embedder.look_ahead:
            print(f"embed: {embedder.name}: {embedder.look_ahead}", file=sys.stderr)
        names, embeddings = embed_frames(embedder, a.frames, a.every, a.batch, faults=faults)
        save_embeddings(a.out, names, embeddings)
    except (InputError, OSError) as e:
        print(f"embed: {e}", file=sys.stderr)
        return 2
    print(f"{a.out}: {len(names)} embeddings of width {embeddings.shape[1]}")
    return faults.tell(a.out.with_name(f"{a.out.name}.faults.txt"))


if __name__ == "__main__":
    sys.exit(main())
