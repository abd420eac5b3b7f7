"""All runs of a workspace in one table, two of them side by side, and a run that is no longer wanted."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rgb2pc_lib.checks.sources import rgb_file
from rgb2pc_lib.data.files.writing import claim
from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.deploy.compact import CompactRun
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.versus import Versus
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.views.look import ALARM, CALM, plain

SHOWN = ("R@1", "R@5", "median rank", "CKA")
PARTS = {  # of a run's folder: what a training writes there, and nothing else
    "config.json", "metrics.jsonl", "summary.json", "model.safetensors", "state.pt", "embeddings.npz", "tensorboard",
}  # fmt: skip
_DELETED = ".deleted-"  # how a folder is called while it goes


def all_runs(out: Path) -> pd.DataFrame:
    """Every student below a folder, wherever it was trained from, the latest first; an empty table where there is none.

    Columns: run (kind of folder/name), state (finished, step N of M, or what is wrong), held-out figures,
    and every setting in which these runs differ. Compact students, which have other settings, are left out.

    >>> all_runs(RUNS).query("fusion == 'moe'").sort_values("R@1")  # doctest: +SKIP
    """
    found = sorted(out.glob("*/*/config.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    rows: list[dict[str, Any]] = []
    configs = []
    for path in (p for p in found if _is_students(p) and not p.parent.name.startswith(_DELETED)):
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


def _is_students(config: Path) -> bool:
    return "vis_roots" in config.read_text(encoding="utf-8", errors="replace")


def _state(run: Run) -> str:
    if run.finished:
        return "finished"
    steps = run.metrics().get("step", pd.Series([0]))
    return f"step {steps.max():.0f} of {run.config.steps}"


# -- a run that is no longer wanted


def deletable(out: Path, name: str) -> Path:
    """The folder of a run of `all_runs(out)`, after making sure that deleting it deletes a run and nothing else.

    Raises InputError for a name that leads out of `out` or through a link, for what is no run, and where anything lies
    in the folder that no training wrote.
    """
    folder = out / name
    parts = Path(name).parts
    if len(parts) != 2 or Path(name).is_absolute() or any(p in (".", "..") or p.startswith(".") for p in parts):
        raise InputError(
            f"{name}: expected KIND/NAME, a run in {out} as the table of runs names it; nothing is deleted"
        )
    for path in (folder.parent, folder):
        if path.is_symlink():
            raise InputError(f"{path}: is a link to {os.readlink(path)}; what it leads to is not deleted from here")
    if not folder.is_dir() or not (folder / "config.json").is_file() or not _is_students(folder / "config.json"):
        raise InputError(f"{folder}: holds no run (no config.json of a training), so it is not deleted")
    Run(folder).config  # noqa: B018  # raises InputError for a config.json that is not a run's
    foreign = sorted(p.name for p in folder.iterdir() if p.name not in PARTS and not p.match(".*.partial"))
    if foreign:
        raise InputError(
            f"{folder}: holds {', '.join(foreign[:3])} too, which no training writes; move that away, then delete"
        )
    return folder


def delete_run(out: Path, name: str) -> None:
    """Delete a run's folder, which cannot be undone. It is gone at once: nobody sees half of one.

    Raises InputError for what `deletable` refuses, and while the run is being trained.

    >>> delete_run(RUNS, "panel/moe-seed0-1a2b3c")  # doctest: +SKIP
    """
    folder = deletable(out, name)
    going = folder.with_name(f"{_DELETED}{folder.name}-{secrets.token_hex(4)}")
    with claim(folder):
        try:
            folder.rename(going)
        except OSError as e:
            raise InputError(
                f"{folder}: cannot be deleted ({e.strerror}); see to it that you may write there"
            ) from None
    shutil.rmtree(going)  # of links in it the links alone


def built_on(out: Path, name: str) -> list[str]:
    """Names of compact students below `out` that were distilled from a run, and keep what they need of it.

    >>> built_on(RUNS, "judge/weighted-seed0")  # doctest: +SKIP
    ['compact/own-frames']
    """
    wanted, found = (out / name).resolve(), []
    for path in sorted(out.glob("*/*/config.json")):
        with suppress(InputError):  # of another kind, or damaged
            if not _is_students(path) and (PROJECT / CompactRun(path.parent).config.run).resolve() == wanted:
                found.append(path.parent.relative_to(out).as_posix())
    return found


# -- two runs side by side


def differences(a: Run, b: Run) -> pd.DataFrame:
    """Settings in which two runs differ, one row each: A and B."""
    rows = {k: [_short(v) for v in pair] for k, pair in a.config.changes(b.config).items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["A", "B"])


def _short(value: Any) -> str:
    return ", ".join(value) if isinstance(value, (dict, tuple)) else str(value)


def versus_figure(found: Versus, a: Run, b: Run, count: int = 5) -> Figure:
    """Two runs on the steps that both hold out: rank against rank, and the frames that changed most, both ways."""
    steps, table = found.steps, found.table
    figure = Figure(figsize=(13, 5.4), layout="constrained")
    ranks, frames = np.asarray(figure.subfigures(1, 2, width_ratios=[1, 1.7]))
    axes = ranks.subplots()
    better, worse = steps["change"] > 0, steps["change"] < 0
    for rows, tint, mark, said in (
        (better, CALM, "^", "better in B"), (worse, ALARM, "v", "worse in B"), (~better & ~worse, "0.6", "o", "alike"),
    ):  # fmt: skip
        axes.scatter(steps.loc[rows, "rank A"], steps.loc[rows, "rank B"], s=22, color=tint, marker=mark, alpha=0.6,
                     label=f"{said}: {int(rows.sum())}")  # fmt: skip
    most = float(steps[["rank A", "rank B"]].max(axis=None))
    axes.plot([1, most], [1, most], color="0.5", lw=1)
    axes.set(xscale="log", yscale="log", xlabel=plain(f"rank of the own cloud in A, {a.name}"),
             ylabel=plain(f"in B, {b.name}"))  # fmt: skip
    row = table.loc["R@1"]
    axes.set_title(f"{len(steps)} held-out steps; R@1 {row['A']:.2f} in A, {row['B']:.2f} in B: {row['B is']}",
                   fontsize=10)  # fmt: skip
    axes.legend(fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    grid = frames.subplots(2, count, squeeze=False)
    parts = ("improved most", steps[better].head(count)), ("worsened most", steps[worse].iloc[::-1].head(count))
    for line, (said, chosen) in zip(grid, parts, strict=True):
        for axes in line:
            axes.axis("off")
        line[0].set_title(said if len(chosen) else f"{said}: none", loc="left", fontsize=10)
        for axes, step in zip(line, chosen.itertuples(index=False, name=None), strict=False):
            axes.imshow(frame_of(a, *step[:3]))
            place = f"{plain(step[0])}\n{plain(step[1])} {plain(step[2])}\nrank {step[3]:.0f} to {step[4]:.0f}"
            axes.text(0.5, -0.04, place, transform=axes.transAxes, ha="center", va="top", fontsize=7)
    return figure


def frame_of(run: Run, task: str, episode: str, step: str) -> np.ndarray:
    """uint8 `[H, W, 3]`: the RGB frame of a step of a run's data; grey where there is none."""
    file = rgb_file(run.config.workspace, task, episode, step)
    return read_image(file) if file else np.full((64, 64, 3), 200, np.uint8)
