"""Which choices matter: change one setting at a time, train over several seeds, judge on validation episodes.

    python tools/ablate.py --workspace data/proof.toml --only pooling fusion --seeds 3

Finished runs in --out are kept, unfinished ones resumed. Prints a table; writes it, and what it is made from, as CSV.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rgb2pc_lib import InputError, Workspace, judged_config
from rgb2pc_lib.data.workspace import PROJECT, RUNS
from rgb2pc_lib.judging.ablations import QUESTIONS, answers, line_up
from rgb2pc_lib.judging.evaluate import STEPS
from rgb2pc_lib.views.notebook import train_missing


def _named(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER, found {text}")
    return name, Path(folder)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workspace", default=PROJECT / "data" / "proof.toml", help="TOML file (default: the proof's)")
    p.add_argument("--only", nargs="+", default=list(QUESTIONS), choices=QUESTIONS, metavar="QUESTION",
                   help=f"of {', '.join(QUESTIONS)} (default: all)")  # fmt: skip
    p.add_argument("--teachers", nargs="+", default=[], type=_named, metavar="NAME=FOLDER",
                   help="other teachers' features of the same steps (tools/extract_teacher.py)")  # fmt: skip
    p.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE",
                   help="settings of the base, named as in tools/train_rgb2pc_distill.py")  # fmt: skip
    p.add_argument("--exclude", nargs="+", metavar="FILE", help="exclusion list, instead of the workspace's")
    p.add_argument("--out", type=Path, default=RUNS / "ablations", help="folder of the runs (default: runs/ablations)")
    p.add_argument("--seeds", type=int, default=3, help="trainings per answer (default: %(default)s)")
    p.add_argument("--steps", type=int, help=f"steps of each run (default: {STEPS})")
    a = p.parse_args(argv)
    try:
        workspace = Workspace.load(a.workspace).excluding(a.exclude)
        base = judged_config(workspace, a.steps).with_settings(a.set)
        rows = line_up(base, a.only, a.seeds, a.out, dict(a.teachers))
        train_missing(rows)
        judged, table = answers(rows, workspace.state)
    except InputError as e:
        print(f"ablate: {e}", file=sys.stderr)
        return 2
    judged.long.to_csv(a.out / "judgement.csv", index=False)
    judged.episodes.to_csv(a.out / "episodes.csv", index=False)
    table.to_csv(a.out / "answers.csv", index=False)
    print(f"\nValidation episodes, difference from the base with a 95 % interval, {a.seeds} seeds:\n")
    print(table.to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="-"))
    print(f"\ntable: {os.path.relpath(a.out)}/answers.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
