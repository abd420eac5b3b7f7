"""Train and judge: both fusions, each expert alone and the shuffled control, over several seeds, on held-out episodes.

Prints the table and the share of the gap between best rival and teacher that the students close; writes both as CSV
and a figure into --out. Finished runs in --out are kept, unfinished ones resumed.

    python tools/judge.py --seeds 3 --out runs/judge
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rgb2pc_lib import InputError, Run, Workspace, gap_closed, judge, judged_config, line_up
from rgb2pc_lib.data.workspace import SAMPLE, home
from rgb2pc_lib.judging.evaluate import STEPS
from rgb2pc_lib.judging.verdicts import advice, answer, mean_table
from rgb2pc_lib.learning.runs import left_out_words, look_ahead_words
from rgb2pc_lib.views.notebook import train_missing
from rgb2pc_lib.views.plots import judgement_figure, save_figure


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workspace", default=SAMPLE, help="TOML file that names the roots (default: the sample)")
    p.add_argument("--exclude", nargs="+", metavar="FILE", help="exclusion list, instead of the workspace's")
    p.add_argument("--out", type=Path, help="folder of the runs (default: runs/judge; of MINE.toml runs/MINE/judge)")
    p.add_argument("--seeds", type=int, default=3, help="trainings per student (default: %(default)s)")
    p.add_argument("--steps", type=int, help=f"steps of each run (default: {STEPS})")
    p.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE",
                   help="settings of all students, named as in tools/train_rgb2pc_distill.py")  # fmt: skip
    a = p.parse_args(argv)
    a.out = a.out or home(a.workspace) / "judge"
    try:
        workspace = Workspace.load(a.workspace).excluding(a.exclude)
        config = judged_config(workspace, a.steps).with_settings(a.set)
        rows = line_up(config, a.seeds, a.out)
        train_missing(rows)
        judged = judge(config, rows)
        summary = Run.open(rows[0][1].folder).summary
        said = " ".join(filter(None, [left_out_words(summary), look_ahead_words(summary)]))
    except InputError as e:
        print(f"judge: {e}", file=sys.stderr)
        return 2
    closed = gap_closed(judged.long, episodes=judged.episodes)
    judged.long.to_csv(a.out / "judgement.csv", index=False)
    judged.episodes.to_csv(a.out / "episodes.csv", index=False)
    closed.to_csv(a.out / "gap_closed.csv", index=False)
    student = judged.long.loc[judged.long["model"].isin(("moe", "weighted")), "model"].iloc[0]
    print("", answer(judged.long, student, judged.episodes), advice(judged.long), sep="\n")
    print(f"\nHeld-out episodes, mean over {a.seeds} seeds (R2 within task; cm: median error). {said}\n")
    table = mean_table(judged.long)
    shown = [m for m in table.index if not m.endswith(" PCs") or m in set(closed["best rival"])]  # all are in the CSV
    print(table.loc[shown].T.to_string(float_format=lambda v: f"{v:.3f}", na_rep="-"))
    print("\nGap closed = (student - best rival of equal width) / (teacher - best rival), with a 95 % interval,")
    print("of R2 over seeds and episodes, else over seeds:\n")
    columns = ["student", "measure", "best rival", "teacher", "best", "mean", "closed", "low", "high", "a gap"]
    print(closed[[*columns, "student is"]].to_string(index=False, float_format=lambda v: f"{v:.2f}", na_rep="-"))
    out, made = os.path.relpath(a.out), {"seeds": a.seeds, "steps": config.steps}
    figure = save_figure(judgement_figure(judged.long, judged.episodes), "judgement", a.out, out=out, **made)
    print(f"\nfigure: {os.path.relpath(figure)}   table: {out}/judgement.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
