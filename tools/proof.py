"""The closed loop: does a robot act as well on it? The same small policy on every representation, rolled out.

    python tools/proof.py --workspace data/calibrated.toml --runs runs/calibrated

Students that are missing in --runs are trained first, as tools/judge.py does. Every roll-out is a line in --out, so the
same command goes on where it stopped; --rollouts asks for more. Prints and writes success, differences and the share
of the gap closed, all with intervals. Needs the extra ``sim``.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from rgb2pc_lib import InputError, Run, Workspace, judged_config, line_up
from rgb2pc_lib.command_line import run_resumable
from rgb2pc_lib.data.workspace import PROJECT, RUNS, SAMPLE
from rgb2pc_lib.judging.evaluate import STEPS
from rgb2pc_lib.judging.loop import verdict
from rgb2pc_lib.judging.loop.compared import line_up as representations
from rgb2pc_lib.judging.loop.compared import merged, named_runs
from rgb2pc_lib.judging.loop.heads import HeadSettings
from rgb2pc_lib.judging.loop.proof import HEADS, ProofSettings, prove, read_proof, refuse
from rgb2pc_lib.judging.loop.representations import Representation, Source, SpatialTokens, Student, Teacher
from rgb2pc_lib.judging.loop.scenes import LOOKS
from rgb2pc_lib.judging.loop.tuned import Tuned
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.views.closed_loop import success_figure
from rgb2pc_lib.views.notebook import train_missing
from rgb2pc_lib.views.plots import save_figure

QUICK = {
    "workspace": SAMPLE, "runs": RUNS / "proof-quick", "out": RUNS / "loop-quick",
    "tasks": ["drawer-open", "button-press-topdown"], "seeds": 1, "steps": 60, "rollouts": 4, "heads": 1,
    "head_steps": 500, "only": ["full state", "proprioception", "teacher", "weighted", "efficientnet"],
}  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workspace", type=Path, default=PROJECT / "data" / "calibrated.toml", help="TOML file")
    p.add_argument("--runs", type=Path, default=RUNS / "calibrated",
                   help="folder of the students (default: runs/calibrated)")  # fmt: skip
    p.add_argument("--more", type=Path, nargs="+", default=[], metavar="DIR", help="further finished runs")
    p.add_argument("--compact", type=Path, nargs="+", default=[], metavar="FOLDER", help="compact students")
    p.add_argument("--finetune", type=Path, metavar="FOLDER",
                   help="a compact student, tuned with the policy, beside the same network at random")  # fmt: skip
    p.add_argument("--out", type=Path, default=RUNS / "loop", help="folder of the roll-outs (default: runs/loop)")
    p.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all of the workspace")
    p.add_argument("--only", nargs="+", metavar="NAME", help="representations (a wrong name lists all)")
    p.add_argument("--seeds", type=int, default=3, help="trainings per student, one a head seed (default: %(default)s)")
    p.add_argument("--steps", type=int, help=f"steps of a training (default: {STEPS})")
    p.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE",
                   help="settings of the students, named as in tools/train_rgb2pc_distill.py")  # fmt: skip
    p.add_argument("--rollouts", type=int, default=50, help="a cell: representation, task, look (default: %(default)s)")
    p.add_argument("--heads", type=int, default=3, help="head seeds that share them (default: %(default)s)")
    p.add_argument("--head", choices=[*HEADS], default="mlp", help="the policy's head (default: %(default)s)")
    p.add_argument("--head_steps", type=int, default=HeadSettings().steps, help="default: %(default)s")
    p.add_argument("--looks", nargs="+", choices=[*LOOKS], default=[*LOOKS], help="default: both")
    p.add_argument("--first_seed", type=int, default=9000, help="of the scenes (default: %(default)s)")
    p.add_argument("--scenes", type=int, default=8, help="side by side in a process (default: %(default)s)")
    p.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 2), help="default: %(default)s")
    p.add_argument("--quick", action="store_true", help="five minutes on the sample: the machine, not the answer")
    if "--quick" in (sys.argv[1:] if argv is None else argv):
        p.set_defaults(**QUICK)
    return p.parse_args(argv)


def chosen(a: argparse.Namespace, rows: list[tuple[str, Config]], config: Config) -> dict[str, list[Representation]]:
    """The representations that are asked for. Their students may still be untrained."""
    if a.finetune and a.head != "mlp":
        raise InputError(f"--finetune: expected --head mlp, in which a tuned network ends; found {a.head}; tune apart")
    tuned = {f"tuned, from {start}": Tuned(a.finetune, start == "compact") for start in ("compact", "random")}
    found = merged(
        representations(rows, config, a.compact),
        named_runs([Run.open(folder) for folder in a.more]),
        {name: [one] for name, one in tuned.items() if a.finetune},
    )
    if unknown := [name for name in a.only or () if name not in found]:
        raise InputError(f"--only: expected names among {'; '.join(found)}; found {', '.join(unknown)}")
    return {name: variants for name, variants in found.items() if not a.only or name in a.only}


def main(argv: list[str] | None = None) -> None:
    a = parse(argv)
    settings = ProofSettings(
        a.rollouts,
        a.heads,
        a.first_seed,
        a.head,
        HeadSettings(steps=a.head_steps),
        a.scenes,
        a.processes,
        tuple(a.looks),
    )
    from rgb2pc_lib.recordings import sim  # not needed for --help, slow, and an optional extra

    workspace = Workspace.load(a.workspace)
    config = judged_config(workspace, a.steps).with_settings(a.set)
    rows = line_up(config, a.seeds, a.runs)
    wanted = chosen(a, rows, config)
    source = Source.open(config)
    tasks = a.tasks or [*source.demonstrations.horizons]
    refuse(source.demonstrations, tasks, settings)
    asked = [one for variants in wanted.values() for one in variants if isinstance(one, Student | SpatialTokens)]
    train_missing([row for row in rows if row[1].folder in [one.folder for one in asked]])
    first = source.demonstrations.keys.iloc[0]
    recorded = sim.config_of(workspace.root("state").parent, first["task"], first["episode"])
    recorded["more"] = tuple(workspace.cameras)[1:]  # called as they are in the simulator
    recorded["frame"] = Teacher().frame or recorded["frame"]  # of live clouds, which the teacher alone sees
    scene = functools.partial(sim.Scene, config=sim.RecordConfig(**recorded))
    follow(prove(wanted, source, scene, a.out, tasks, settings))
    report(a.out, a.runs)


def follow(progress) -> None:
    """Show how far it is, and how long it will still take."""
    begun, bar = time.monotonic(), None
    for done, total, what in progress:
        if not total:
            print(what, flush=True)
            continue
        bar = bar or tqdm(total=total, unit="roll-out", smoothing=0.05)
        bar.set_description(what)
        bar.update(done - bar.n)
    if bar is not None:
        bar.close()
        print(f"{bar.n} roll-outs in {(time.monotonic() - begun) / 60:.1f} min")


def report(out: Path, runs: Path) -> None:
    """Every table, on the screen and as CSV in the folder."""
    table, baselines = read_proof(out)
    names = list(dict.fromkeys(table["representation"]))
    tables = {
        "success": verdict.success_table(table),
        "cells": verdict.cells(table),
        "gap_closed": verdict.gaps(table, baselines),
        "differences": verdict.comparisons(table, verdict.standard_pairs(names, baselines)),
    }
    if (runs / "judgement.csv").exists():
        tables["foretold"] = verdict.foretold(table, pd.read_csv(runs / "judgement.csv"))
    for said in verdict.scenes_left_out(table):
        print(said)
    for name, one in tables.items():
        one.to_csv(out / f"{name}.csv", index=False)
        if name != "cells" and len(one):
            print(f"\n{name}, intervals of 95 % over tasks, head seeds and roll-outs:\n")
            print(one.to_string(index=False, float_format=lambda v: f"{v:.2f}", na_rep="-"))
    made = {"out": os.path.relpath(out), "roll_outs": len(table)}
    print(f"\nfigure: {os.path.relpath(save_figure(success_figure(table), 'closed_loop', out, **made))}")


if __name__ == "__main__":
    run_resumable(main)
