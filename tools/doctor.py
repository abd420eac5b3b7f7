"""Look at a workspace before anything is trained: what is there, what is wrong, what to do, and what to run next.

    python tools/doctor.py --workspace data/mine.toml
    python tools/doctor.py --workspace data/mine.toml --deep --exclude-out bad.toml

Headers and a sample of the files are read; with --deep everything, checksums included. --exclude-out writes what
training has to do without as an exclusion list. Nothing else is written. Exit status: 0 sound, 1 usable with losses,
2 not usable.
"""

import argparse
import json
import sys
from pathlib import Path

from rgb2pc_lib import InputError, Workspace
from rgb2pc_lib.checks.doctor import examine
from rgb2pc_lib.data.workspace import SAMPLE


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workspace", type=Path, default=SAMPLE, help="TOML file naming the roots (default: the sample)")
    p.add_argument(
        "--deep", action="store_true", help="read everything: checksums, tokens, points, images, states, times"
    )
    p.add_argument("--json", action="store_true", help="print one JSON object, for scripts")
    p.add_argument("--exclude", nargs="+", metavar="FILE", help="exclusion list, instead of the workspace's")
    p.add_argument("--exclude-out", dest="out", type=Path, metavar="FILE", help="write an exclusion list, FILE.toml")
    a = p.parse_args(argv)
    try:
        if a.out and a.out.suffix != ".toml":
            raise InputError(f"--exclude-out {a.out}: expected a name that ends in .toml; rename it")
        workspace = Workspace.load(a.workspace).excluding(a.exclude)
        found = examine(workspace, a.deep, str(a.workspace), str(a.out or "bad.toml"))
        if a.out:
            found.exclusions.write(a.out)
    except (InputError, OSError) as e:
        print(f"doctor: {e}", file=sys.stderr)
        return 2
    print(json.dumps(found.json(), indent=2) if a.json else "\n".join(found.lines()))
    return found.status


if __name__ == "__main__":
    sys.exit(main())
