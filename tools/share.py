"""Save a finished run, or a compact student, as one folder ready to hand on or to upload to a model hub.

python tools/share.py runs/compact/more-frames shared/compact
"""

import argparse
import sys
from pathlib import Path

from rgb2pc_lib import InputError, share


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="folder of a finished run or of a compact student")
    p.add_argument("folder", type=Path, help="new folder to write: weights, settings without paths, and the card")
    a = p.parse_args(argv)
    try:
        folder = share(a.run, a.folder)
    except (InputError, OSError) as e:
        print(f"share: {e}", file=sys.stderr)
        return 2
    print(f"{folder}: " + ", ".join(sorted(p.name for p in folder.iterdir())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
