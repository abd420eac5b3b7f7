"""Which representation tells the robot's actions best, on your own recordings? No simulator is needed.

    python tools/judge_actions.py --workspace my.toml --runs runs/mine/weighted-seed0 runs/mine/moe-seed0

The state files must hold actions: `action` of every step (LeRobot), or `qpos`, whose next values are taken for the
action (RoboTwin's joints), or `actions` of the whole episode (the simulator). The same small policy head is trained on
every representation's training episodes and judged on held-out ones, which must be the same for all runs. Runs that
differ only in their seed share a line. Prints one table and writes it as CSV.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pandas as pd

from rgb2pc_lib import InputError, Run, Workspace
from rgb2pc_lib.data.workspace import SAMPLE, home
from rgb2pc_lib.judging.loop.actions import error_table, held_out_errors
from rgb2pc_lib.judging.loop.compared import recorded_features
from rgb2pc_lib.judging.loop.demonstrations import CHUNK
from rgb2pc_lib.judging.loop.heads import HeadSettings
from rgb2pc_lib.judging.loop.representations import Source


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--workspace", type=Path, default=SAMPLE, help="TOML file that names the roots (default: the sample)"
    )
    p.add_argument("--runs", type=Path, nargs="+", required=True, metavar="DIR", help="folders of finished runs")
    p.add_argument("--heads", type=int, default=3, help="head seeds (default: %(default)s)")
    p.add_argument("--head_steps", type=int, default=HeadSettings().steps, help="of a head (default: %(default)s)")
    p.add_argument("--chunk", type=int, default=CHUNK, help="actions foretold at once (default: %(default)s)")
    p.add_argument("--against", help="what all are compared with (default: the first expert, pooled)")
    p.add_argument("--out", type=Path, help="default: runs/actions.csv; of MINE.toml runs/MINE/actions.csv")
    a = p.parse_args(argv)
    a.out = a.out or home(a.workspace) / "actions.csv"
    try:
        workspace = Workspace.load(a.workspace)
        runs = [Run.open(folder) for folder in a.runs]
        config = runs[0].config.with_workspace(workspace)
        source = Source.open(config, a.chunk)
        features = recorded_features(runs, source)
        against = a.against or next(iter(config.vis_roots))
        if against not in features:
            raise InputError(f"--against: expected one of {'; '.join(features)}, found {against}")
        parts = []
        for part in held_out_errors(features, source.demonstrations, a.heads, HeadSettings(steps=a.head_steps)):
            print(f"{part['representation'][0]}: {part['error'].mean():.3f}", flush=True)
            parts.append(part)
    except (InputError, OSError) as e:
        print(f"judge_actions: {e}", file=sys.stderr)
        return 2
    table = error_table(pd.concat(parts, ignore_index=True), against)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(a.out, index=False)
    tasks = source.demonstrations.keys["task"].nunique()
    print(f"\nHeld-out action error, standard deviations of each action, {tasks} task(s), {a.heads} head seeds;")
    print(f"intervals of 95 % over episodes and head seeds, differences from {against}:\n")
    print(table.to_string(index=False, float_format=lambda v: f"{v:.3f}"))
    print(f"\ntable: {os.path.relpath(a.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
