"""One self-contained HTML report of one or several runs: data, pairing, curves, verdict, gates, maps, probes, versions.

Without --runs: the judged runs of the workspace (those of tools/judge.py; missing ones are trained). The file can be
opened anywhere, without network or kernel.

    python tools/report.py --runs runs/judge/moe-seed0 runs/judge/weighted-seed0 --out runs/report.html
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import nbformat

from rgb2pc_lib import InputError, Run, Workspace
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.workspace import SAMPLE, home, portable
from rgb2pc_lib.views.report import Report
from rgb2pc_lib.views.report_html import execute, static_copy, write_html


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--runs", nargs="+", type=Path, default=[], help="finished runs, the most important first")
    p.add_argument("--workspace", type=Path, default=SAMPLE, help="TOML file (default: the sample)")
    p.add_argument("--seeds", type=int, default=3, help="seeds of the judged runs (default: 3)")
    p.add_argument("--out", type=Path, help="the file (default: runs/report.html; of MINE.toml runs/MINE/report.html)")
    p.add_argument("--title", default="rgb2pc report", help="title of the page (default: %(default)s)")
    p.add_argument("--notebook", type=Path, help="keep the executed notebook here: its texts, tables, pictures")
    a = p.parse_args(argv)
    a.out = a.out or home(a.workspace) / "report.html"
    folders = [portable(folder) for folder in a.runs]
    try:
        if folders:
            Report([Run.open(folder) for folder in a.runs])
        else:
            Workspace.load(a.workspace).require("teacher", "experts")
        settings = {"WORKSPACE": portable(a.workspace), "RUN_FOLDERS": folders, "SEEDS": a.seeds}
        executed = execute(**settings)
        if a.notebook:
            write_atomic(a.notebook, lambda path: nbformat.write(static_copy(executed), path))
        out = write_html(executed, a.out, a.title)
    except InputError as e:
        print(f"report: {e}", file=sys.stderr)
        return 2
    print(f"{os.path.relpath(out)}: {out.stat().st_size / 1e6:.1f} MB, opens anywhere")
    return 0


if __name__ == "__main__":
    sys.exit(main())
