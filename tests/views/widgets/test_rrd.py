import builtins

import numpy as np
import pytest

from rgb2pc_lib.checks.sources import step_cloud
from rgb2pc_lib.data.pairing import pair
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.gates import GateReader
from rgb2pc_lib.learning.metrics import unit
from rgb2pc_lib.views.widgets.player import Player
from rgb2pc_lib.views.widgets.rrd import TIMELINE, export_rrd


def read(path):
    """What Rerun's own reader finds: entity -> [(step, {component: value})]."""
    from rerun.chunk import RrdReader

    found = {}
    for chunk in RrdReader(path).stream():
        table = chunk.to_record_batch().to_pydict()
        for i in range(chunk.num_rows if TIMELINE in table else 0):
            row = {k.split(":")[-1]: v[i] for k, v in table.items() if ":" in k and v[i] is not None}
            found.setdefault(chunk.entity_path, []).append((table[TIMELINE][i], row))
    return {entity: [row for _, row in sorted(rows, key=lambda r: r[0])] for entity, rows in found.items()}


def test_an_episode_comes_back_from_reruns_own_reader(points, tmp_path):
    workspace, pairing, run = points
    player = Player(workspace, pairing, run, start=("pull", "ep_1"))
    found = read(player.export(tmp_path / "episode.rrd"))
    assert set(found) == {
        "/name", "/camera/rgb", "/camera/rgb/points", "/world/cloud", "/gates/left", "/gates/right", "/mean_gate/left",
        "/mean_gate/right", "/embedding/student", "/embedding/teacher", "/cosine",
    }  # fmt: skip
    assert {len(rows) for rows in found.values()} == {12}
    assert [row["text"] for row in found["/name"]] == [[f"step_{i:04d}"] for i in range(12)]
    cloud = step_cloud(workspace, pairing, "pull", "ep_1", "step_0004")[0]
    assert np.allclose(found["/camera/rgb/points"][4]["positions"], cloud.uv + 0.5)
    assert np.allclose(found["/world/cloud"][4]["positions"], cloud.xyz)
    frame = workspace.rgb / "pull" / "ep_1" / "step_0004.png"
    assert bytes(found["/camera/rgb"][4]["blob"][0]) == frame.read_bytes()  # the file as it is
    gates = GateReader.open(run).map("pull", "ep_1", "step_0004")
    (tensor,) = found["/gates/left"][4]["data"]
    assert np.allclose(np.reshape(tensor["buffer"], tensor["shape"]), gates[..., 0])
    assert found["/mean_gate/left"][4]["scalars"] == pytest.approx([gates[..., 0].mean()])
    e = run.embeddings_of_all()
    (row,) = np.flatnonzero((e["task"] == "pull") & (e["episode"] == "ep_1") & (e["step"] == "step_0004"))
    assert np.allclose(found["/embedding/student"][4]["data"][0]["buffer"], e["student"][row])
    teacher = e["teacher"][row] - e["teacher"][~e["held_out"]].mean(0)
    assert np.allclose(found["/embedding/teacher"][4]["data"][0]["buffer"], teacher, atol=1e-5)
    cosine = unit(e["student"][row]) @ unit(teacher)
    assert found["/cosine"][4]["scalars"] == pytest.approx([cosine], abs=1e-5)


def test_without_a_run_frames_or_rerun(left, tmp_path, monkeypatch):
    pairing = pair(left)
    found = read(export_rrd(left, pairing, "push", "ep_0", tmp_path / "a.rrd"))
    assert set(found) == {"/name", "/world/cloud"}
    with pytest.raises(InputError, match="push/ep_99: no such episode"):
        export_rrd(left, pairing, "push", "ep_99", tmp_path / "b.rrd")
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "rerun":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'rgb2pc\[rerun\]'"):
        export_rrd(left, pairing, "push", "ep_0", tmp_path / "c.rrd")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.rrd"]
