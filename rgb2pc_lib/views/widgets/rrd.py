"""An episode for Rerun (rerun.io): frames, clouds, their pixels, gates and embeddings, in one `.rrd` file.

Rerun is an optional extra: `pip install 'rgb2pc[rerun]'`. `rerun FILE.rrd` opens the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rgb2pc_lib.checks.sources import rgb_file, step_cloud
from rgb2pc_lib.data.files.writing import new_file
from rgb2pc_lib.data.pairing import Pairing
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.gates import GateReader
from rgb2pc_lib.learning.metrics import unit
from rgb2pc_lib.learning.runs import Run

TIMELINE = "step"  # the number of a step in its episode


def export_rrd(
    workspace: Workspace, pairing: Pairing, task: str, episode: str, out: Path, run: Run | None = None
) -> Path:
    """Write one episode as `.rrd`; with a finished `run` also its gates and embeddings. Returns the file.

    On the timeline "step": `camera/rgb` (the frame's file as it is), `camera/rgb/points` (uv, in the points' colours),
    `world/cloud` (metres), `name`, and of the run `gates/<expert>` (0 to 1, at the embedding lattice),
    `mean_gate/<expert>`, `embedding/student`, `embedding/teacher` (centred) and `cosine` of the two.
    Raises InputError without rerun-sdk, for an episode that is not there, and where nothing can be written.

    >>> export_rrd(workspace, pair(workspace), "hammer", "episode_0001", Path("hammer.rrd"))  # doctest: +SKIP
    """
    rr = _rerun()
    rows = pairing.table
    steps = rows[(rows["task"] == task) & (rows["episode"] == episode) & (rows["step"] != "")]["step"].tolist()
    if not steps:
        raise InputError(f"{task}/{episode}: no such episode in the workspace '{workspace.name}', so none is exported")
    learned = _learned(run, task, episode) if run else {}
    with new_file(Path(out)) as partial:
        with rr.RecordingStream(f"rgb2pc {workspace.name}", recording_id=f"{task}/{episode}") as recording:
            recording.save(str(partial))
            for number, step in enumerate(steps):
                recording.set_time(TIMELINE, sequence=number)
                recording.log("name", rr.TextLog(step))
                _log_step(rr, recording, workspace, pairing, task, episode, step)
                for path, what in learned.get(step, {}).items():
                    recording.log(list(path), what)
            recording.flush()
            recording.disconnect()
    return Path(out)


def _rerun() -> Any:
    try:
        import rerun
    except ImportError:
        raise InputError("writing .rrd needs rerun-sdk; run: pip install 'rgb2pc[rerun]'") from None
    return rerun


def _log_step(
    rr: Any, recording: Any, workspace: Workspace, pairing: Pairing, task: str, episode: str, step: str
) -> None:
    if file := rgb_file(workspace, task, episode, step):
        recording.log("camera/rgb", rr.EncodedImage(path=file))
    found = step_cloud(workspace, pairing, task, episode, step)
    if found is None:
        return
    cloud = found[0]
    recording.log("world/cloud", rr.Points3D(cloud.xyz, colors=cloud.rgb))
    if cloud.uv is not None:
        recording.log("camera/rgb/points", rr.Points2D(cloud.uv + 0.5, colors=cloud.rgb))


def _learned(run: Run, task: str, episode: str) -> dict[str, dict[tuple[str, ...], Any]]:
    """Step -> parts of a path -> what a run made of it."""
    rr, reader, e = _rerun(), GateReader.open(run), run.embeddings_of_all()
    keys = reader.keys
    rows = keys[(keys["task"] == task) & (keys["episode"] == episode)]
    maps: Any = reader.maps(rows.index.to_numpy()) if len(rows) else []
    out: dict[str, dict[tuple[str, ...], Any]] = {step: {} for step in rows["step"]}
    for step, gates in zip(rows["step"], maps, strict=True):  # [H, W, M]
        for m, name in enumerate(reader.experts):
            out[step]["gates", name] = rr.Tensor(gates[..., m], dim_names=("row", "column"))
            out[step]["mean_gate", name] = rr.Scalars(float(gates[..., m].mean()))
    mean = e["teacher"][~e["held_out"] & ~e["validation"]].mean(0) if run.config.centre else 0.0
    mine = np.flatnonzero((e["task"] == task) & (e["episode"] == episode))
    for i in mine:
        student, teacher = e["student"][i], e["teacher"][i] - mean
        made: dict[tuple[str, ...], Any] = {("embedding", "student"): rr.Tensor(student)}
        made["embedding", "teacher"] = rr.Tensor(teacher)
        if len(student) == len(teacher):
            made["cosine",] = rr.Scalars(float(unit(student) @ unit(teacher)))
        out.setdefault(str(e["step"][i]), {}).update(made)
    return out
