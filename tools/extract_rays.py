"""Where the camera looks, as an expert: the rays of a calibrated camera, from the state files' K and world_to_camera.

    python tools/extract_rays.py --workspace data/calibrated.toml

Packs go to the folder that the workspace names for the expert "rays"; docs/how/calibrated_camera.md says when that
helps. An episode with a fault does not stop the others: all are listed at the end and in faults.txt beside the packs,
and the exit status is 2.
"""

import argparse
from pathlib import Path

from rgb2pc_lib import InputError, Workspace
from rgb2pc_lib.command_line import run_resumable
from rgb2pc_lib.data.files.faults import Faults
from rgb2pc_lib.encoders.rays import NAME, extract_rays
from rgb2pc_lib.learning import ranks


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workspace", type=Path, required=True, help="TOML file naming the roots")
    p.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="only these tasks (default: all)")
    p.add_argument("--exclude", nargs="+", metavar="FILE", help="exclusion list, instead of the workspace's")
    args = p.parse_args(argv)
    workspace = Workspace.load(args.workspace).excluding(args.exclude)
    first = next(iter(workspace.cameras), "")  # whose place the state files tell
    expert = f"{NAME}@{first}" if first else NAME
    if expert not in workspace.experts:
        line = expert.replace("@", ".")
        raise InputError(f"{args.workspace}: names no expert {expert}; add a line {line} = FOLDER to [experts]")
    out, faults = workspace.experts[expert], Faults()
    written, kept = extract_rays(
        workspace.root("rgb"), workspace.root("state"), out, tasks=args.tasks, faults=faults, exclude=workspace.exclude
    )
    print(f"{NAME}: {written} packs written, {kept} kept, in {out}")
    return ranks.tell(faults, out / "faults.txt")


if __name__ == "__main__":
    run_resumable(main)
