"""All runs of a workspace in one table: what was trained, how far it is, and what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.runs import Run

SHOWN = ("R@1", "R@5", "median rank", "CKA")


def all_runs(out: Path) -> pd.DataFrame:
    """Every student below a folder, wherever it was trained from, the latest first; an empty table where there is none.

    Columns: run (kind of folder/name), state (finished, step N of M, or what is wrong), held-out figures,
    and every setting in which these runs differ. Compact students, which have other settings, are left out.

    >>> all_runs(RUNS).query("fusion == 'moe'").sort_values("R@1")  # doctest: +SKIP
    """
    found = sorted(out.glob("*/*/config.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    rows: list[dict[str, Any]] = []
    configs = []
    for path in (p for p in found if "vis_roots" in p.read_text(encoding="utf-8", errors="replace")):
        run, row = Run(path.parent), {"run": path.parent.relative_to(out).as_posix()}
        try:
            configs.append((len(rows), run.config))
            row |= {"state": _state(run)}
            row |= {m: v for m, v in run.summary["held-out"].items() if m in SHOWN} if run.finished else {}
        except InputError as e:  # one broken run hides no others
            row["state"] = str(e)
        rows.append(row)
    differs = {k: None for _, config in configs for k in configs[0][1].changes(config)}
    for i, config in configs:
        for key in differs:
            value = getattr(config, key)
            rows[i][key] = "+".join(value) if isinstance(value, (dict, tuple)) else value
    return pd.DataFrame(rows, columns=["run", "state", *SHOWN, *differs])


def _state(run: Run) -> str:
    if run.finished:
        return "finished"
    steps = run.metrics().get("step", pd.Series([0]))
    return f"step {steps.max():.0f} of {run.config.steps}"
