"""What does a student know of things before they are touched? Median errors in cm on held-out episodes.

    python tools/judge_untouched.py runs/calibrated/weighted-seed0 runs/calibrated/efficientnet-only-seed0

Ridge regressions of each task tell the object's and the goal's place from the embedding and what the robot knows of
itself, at the steps at which nothing has moved yet; beside the students stand the teacher and the robot's own state
alone. The runs must have learned from the same steps; those of --train_only episodes are left out.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from rgb2pc_lib import InputError, Run
from rgb2pc_lib.data.pairing import matching
from rgb2pc_lib.judging.probes import LOOKS
from rgb2pc_lib.judging.rivals import PROPRIOCEPTION
from rgb2pc_lib.judging.untouched import untouched_errors, untouched_places
from rgb2pc_lib.judging.verdicts import TEACHER


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="+", type=Path, help="folders of finished runs, of the same data and split")
    p.add_argument("--look", choices=["fixed", "random"], help="score only episodes of that look (default: all)")
    p.add_argument("--out", type=Path, help="write the table here, as CSV")
    a = p.parse_args(argv)
    try:
        table = judge([Run.open(folder) for folder in a.runs], a.look)
    except (InputError, OSError) as e:
        print(f"judge_untouched: {e}", file=sys.stderr)
        return 2
    names = list(table.columns[3:])
    print(f"\nHeld-out episodes{f', {a.look} look' if a.look else ''}, before anything has moved: median error, cm\n")
    mean = pd.DataFrame([{"task": "mean", "place": "", "steps": table["steps"].sum(), **table[names].mean()}])
    print(pd.concat([table, mean]).to_string(index=False, float_format=lambda v: f"{v:.2f}"))
    if a.out:
        table.to_csv(a.out, index=False)
    return 0


def judge(runs: list[Run], look: str | None = None) -> pd.DataFrame:
    """The table of `untouched_errors` for proprioception, the teacher and the runs, named after their folders."""
    first, config = _plain(runs[0]), runs[0].config
    keys, root = first["keys"], config.workspace.root("state")
    found = {PROPRIOCEPTION: np.zeros((len(keys), 0)), TEACHER: first["teacher"]}
    for run in runs:
        this = _plain(run)
        if not (this["keys"].equals(keys) and np.array_equal(this["held_out"], first["held_out"])):
            raise InputError(
                f"{run.folder}: expected the steps and the split of {runs[0].folder}, found others; judge it alone"
            )
        if run.name in found:
            raise InputError(f"{run.folder}: expected folders of other names, found two of {run.name}; rename one")
        found[run.name] = this["student"]
    places, score = untouched_places(root, keys, runs[0].summary["teacher_frame"]), first["held_out"].copy()
    if look:
        if "randomised" not in places:
            raise InputError(f"--look {look}: expected state files that say whether a look is randomised, found some "
                             "that do not; leave it out")  # fmt: skip
        score &= places["randomised"] == LOOKS[f"{look} look"]
    return untouched_errors(found, places, keys, ~first["held_out"], score)


def _plain(run: Run) -> dict:
    """Embeddings of a run's training and held-out steps, but for those of episodes for training alone."""
    e = run.embeddings()
    keys = pd.DataFrame({k: e[k] for k in ("task", "episode", "step")})
    kept = ~matching(keys, run.config.train_only)
    return {"keys": keys[kept].reset_index(drop=True)} | {k: e[k][kept] for k in ("held_out", "student", "teacher")}


if __name__ == "__main__":
    sys.exit(main())
