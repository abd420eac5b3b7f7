"""Write expert packs anew: old ones so that they can be read safely, zarr and slow disks so that they are read fast.

    python tools/pack_features.py --from features_vggt_old --out features_vggt --dtype fp16
    python tools/pack_features.py --from features_vggt_zarr --out features_vggt --frame_copy middle

Reads dataclass objects (without running any code of the file), bare tensors (their steps are named after the frames
of --rgb_root), torch files of before 2020, and zarr. Nothing is ever written below --from; an interrupted conversion
continues with the same command. A pack that cannot be converted does not stop the others: all faults are listed at the
end and in faults.txt beside the packs, and the exit status is 2.
"""

import argparse
import sys
from pathlib import Path

from rgb2pc_lib import InputError
from rgb2pc_lib.data.files.faults import Faults
from rgb2pc_lib.recordings.convert import DTYPES, convert


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--from",
        dest="source",
        type=Path,
        required=True,
        metavar="ROOT",
        help="folder of one expert's packs, <task>/<episode>.pt or .zarr",
    )
    p.add_argument("--out", type=Path, required=True, metavar="NEW_ROOT", help="write <task>/<episode>.pt there")
    p.add_argument(
        "--rgb_root",
        type=Path,
        metavar="FRAMES",
        help="frames <task>/<episode>/step_0000.png|jpg, for packs that do not name theirs",
    )
    p.add_argument("--dtype", choices=sorted(DTYPES), help="of the written tokens (default: as they are)")
    p.add_argument(
        "--stride",
        type=int,
        default=0,
        metavar="FRAMES",
        help="frames between windows, for packs that do not name theirs (default: found from the numbers)",
    )
    p.add_argument(
        "--frame_copy",
        choices=("middle", "last"),
        help="write only this copy of each frame, not one a window: up to eight times smaller, and the "
        "copy is the same for every later run; packs that name it say so in their meta",
    )
    return p.parse_args(argv)


def main(argv=None) -> int:
    args, faults = parse(argv), Faults()
    how = args.rgb_root, args.dtype, args.stride, args.frame_copy
    try:
        written, kept = convert(args.source, args.out, *how, faults=faults)
        print(f"{written} packs written, {kept} kept, {len(faults.found)} not converted, in {args.out}")
        return faults.tell(args.out / "faults.txt")
    except (InputError, OSError) as e:
        print(f"pack_features: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pack_features: stopped; the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
