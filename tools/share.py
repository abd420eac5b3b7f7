"""Save a finished run, or a compact student, as one folder ready to hand on, or upload it to a model hub.

    python tools/share.py runs/compact/more-frames shared/compact
    python tools/share.py runs/compact/more-frames --push owner/name

The folder has a card, README.md, with the run's own figures. To add to it before it is public: share, write, and push
the shared folder, whose card is kept. A hub wants huggingface_hub (pip install 'rgb2pc[hub]') and `hf auth login`.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from rgb2pc_lib import InputError, share
from rgb2pc_lib.deploy.share import push


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="folder of a finished run or of a compact student, or a folder shared before")
    p.add_argument(
        "folder", type=Path, nargs="?", help="new folder to write: weights, settings without paths, the card"
    )
    p.add_argument("--push", metavar="OWNER/NAME", help="upload it there; the folder may be left out then")
    p.add_argument("--private", action="store_true", help="make the repository for those only whom you let in")
    a = p.parse_args(argv)
    try:
        if not (a.folder or a.push):
            raise InputError("expected a folder to write, or --push OWNER/NAME, or both")
        if a.private and not a.push:
            raise InputError("--private: is of a hub; name one with --push OWNER/NAME")
        with tempfile.TemporaryDirectory() as there:
            folder = share(a.run, a.folder or Path(there) / "shared")
            names = ", ".join(sorted(p.name for p in folder.iterdir()))
            print(f"{a.folder or a.push}: {names}")
            if a.push:
                print(push(folder, a.push, a.private))
    except (InputError, OSError) as e:
        print(f"share: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
