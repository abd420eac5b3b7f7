"""Import RoboTwin episodes (HDF5): frames, point clouds and state, as a workspace.

    python tools/import_robotwin.py --source data/beat_block_hammer/demo_clean --camera head_camera --out ../robotwin

The source is only read. An interrupted import continues where it stopped; `OUT/NAME.toml` is the workspace to go on
with. Where the file tells the camera, clouds are moved into its frame (OpenCV axes) and get their pixels; points
outside the image are left out. Needs: pip install -e '.[import]'.
"""

import argparse
from pathlib import Path

from rgb2pc_lib.command_line import run_resumable
from rgb2pc_lib.data.files.faults import Faults
from rgb2pc_lib.learning import ranks
from rgb2pc_lib.recordings.importers import SAVE, import_workspace
from rgb2pc_lib.recordings.robotwin import RobotwinOptions, list_robotwin


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--source", type=Path, required=True, help="a folder with .hdf5 files in it or below, or one file")
    p.add_argument("--out", type=Path, required=True, help="folder for rgb/, clouds/, state/ and the workspace file")
    p.add_argument("--camera", nargs="+", default=[], metavar="NAME",
                   help="for instance head_camera; needed where there are several. Of more than one, the first is the "
                        "one that clouds are moved to")  # fmt: skip
    p.add_argument("--name", default="robotwin", help="of the workspace (default: %(default)s)")
    p.add_argument("--every", type=int, default=1, metavar="N", help="take each Nth frame (default: all)")
    p.add_argument("--image", choices=sorted(SAVE), default="jpg",
                   help="png keeps every pixel, jpg (quality 95) is smaller (default: %(default)s)")  # fmt: skip
    p.add_argument("--channels", choices=["bgr", "rgb"], default="bgr",
                   help="of encoded images: bgr as RoboTwin writes them, or rgb (default: %(default)s)")  # fmt: skip
    p.add_argument("--cloud_frame", choices=["world", "camera"], default="world",
                   help="of stored clouds: world as RoboTwin writes them, or camera (default: world)")  # fmt: skip
    return p.parse_args(argv)


def main(argv=None) -> int:
    args = parse(argv)
    faults = Faults()
    first, *more = args.camera or [None]
    options = RobotwinOptions(first, args.channels, args.cloud_frame, tuple(more))
    recordings = list_robotwin(args.source, options, faults)
    print(import_workspace(recordings, args.source, args.out, args.name, args.every, args.image, faults))
    return ranks.tell(faults, args.out / "faults.txt")


if __name__ == "__main__":
    run_resumable(main)
