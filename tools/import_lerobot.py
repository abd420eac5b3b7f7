"""Import a LeRobot data set (format v3): the frames of one camera or several and the state, as a workspace.

    python tools/import_lerobot.py --source ~/lerobot/aloha_sim_insertion --camera top --every 5 --out ../aloha

The source is only read. An interrupted import continues where it stopped; `OUT/NAME.toml` is the workspace to go on
with. There are no point clouds: bring the teacher's files, or use a student that was trained elsewhere.
Needs: pip install -e '.[import]'.
"""

import argparse
from pathlib import Path

from rgb2pc_lib.command_line import run_resumable
from rgb2pc_lib.data.files.faults import Faults
from rgb2pc_lib.learning import ranks
from rgb2pc_lib.recordings.importers import SAVE, import_workspace
from rgb2pc_lib.recordings.lerobot import list_lerobot


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--source", type=Path, required=True, help="the data set's folder, with meta/info.json in it")
    p.add_argument("--out", type=Path, required=True, help="folder for rgb/, state/ and the workspace file")
    p.add_argument("--camera", nargs="+", default=[], metavar="NAME",
                   help="its feature, or the last part of it: top; needed where there are several")  # fmt: skip
    p.add_argument("--name", default="lerobot", help="of the workspace (default: %(default)s)")
    p.add_argument("--every", type=int, default=1, metavar="N", help="take each Nth frame (default: all)")
    p.add_argument("--image", choices=sorted(SAVE), default="jpg",
                   help="png keeps every pixel, jpg (quality 95) is smaller (default: %(default)s)")  # fmt: skip
    return p.parse_args(argv)


def main(argv=None) -> int:
    args = parse(argv)
    faults = Faults()
    recordings = list_lerobot(args.source, *args.camera)
    print(import_workspace(recordings, args.source, args.out, args.name, args.every, args.image, faults))
    return ranks.tell(faults, args.out / "faults.txt")


if __name__ == "__main__":
    run_resumable(main)
