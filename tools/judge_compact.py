"""The ledger of compact students of one run: teacher -> fused student -> compact, on held-out episodes.

    python tools/judge_compact.py runs/compact/own-frames runs/compact/more-frames

Prints quality, costs and the share of the fused student's advantage over the best expert that each one keeps; leaves
ledger.csv in each folder and a figure beside the first. Exports to ONNX what was not exported since it was trained.
"""

import argparse
import os
import sys

from rgb2pc_lib import CompactRun, InputError
from rgb2pc_lib.command_line import named
from rgb2pc_lib.deploy.export import exported
from rgb2pc_lib.encoders.images import EXPERTS
from rgb2pc_lib.judging.ledger import advantage_kept, judge
from rgb2pc_lib.learning.runs import look_ahead_words
from rgb2pc_lib.views.compact import ledger_figure
from rgb2pc_lib.views.plots import save_figure


def main(argv=None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="+", help="folders of compact students")
    p.add_argument("--weights", nargs="+", default=[], metavar="NAME=PATH",
                   help="official weights of experts that do not bring their own, for the costs")  # fmt: skip
    a = p.parse_args(argv)
    try:
        weights = named(a.weights, EXPERTS)
        opened = [CompactRun.open(folder) for folder in a.runs]
        runs = {f"compact, {run.name}": run for run in opened}
        if len(runs) < len(opened):
            raise InputError(f"{', '.join(a.runs)}: expected folders of different names, which tell them apart in the "
                             "table; rename one, or judge them apart")  # fmt: skip
        for run in opened:
            exported(run)
        ledger = judge(runs, weights=weights)
    except InputError as e:
        print(f"judge_compact: {e}", file=sys.stderr)
        return 2
    table = ledger.long
    wide = table.pivot_table(index="measure", columns="hop", values="value", sort=False)
    print(wide[table["hop"].unique()].to_string(float_format=lambda v: f"{v:.3f}", na_rep="-"))
    for name in runs:
        print(f"\n{name}: advantage kept = (compact - best expert) / (fused - best expert)\n")
        kept = advantage_kept(ledger, name)
        print(kept.to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="no advantage"))
    for run in runs.values():
        if ahead := look_ahead_words(run.summary):
            print(f"\n{run.name}: its fused student was not live. {ahead}")
    made = {name: os.path.relpath(run.folder) for name, run in runs.items()}
    beside = next(iter(runs.values())).folder.parent
    print("\nfigure:", os.path.relpath(save_figure(ledger_figure(table), "ledger", beside, runs=made)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
