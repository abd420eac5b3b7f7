"""tools/proof.py from recordings to a verdict, in the simulator; and what is seen live there equals the recording."""

import functools

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scripts import load_script

from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.encoders.clouds.extract_clouds import extract_teacher, load_cloud_encoder
from rgb2pc_lib.encoders.extract import extract
from rgb2pc_lib.encoders.images import load_encoder
from rgb2pc_lib.errors import InputError

try:
    from rgb2pc_lib.recordings import sim
except InputError as error:  # no simulator, or no off-screen OpenGL
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:Constant:UserWarning")  # of Meta-World's experts
TASK = "button-press-topdown"  # the shortest roll-outs
SMALL = sim.RecordConfig(size=64, steps=16, points=300)


@pytest.fixture(scope="module")
def tool():
    return load_script(PROJECT / "tools" / "proof.py")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("recorded")
    list(sim.record_task(root, TASK, 10, 100, "half", SMALL, 85))
    extract(load_encoder("daisy"), root / "rgb", root / "features_daisy", progress=False)
    encoder = load_cloud_encoder("pointnet")
    extract_teacher(encoder, root / "clouds", root / "teacher", progress=False, state_root=root / "state")
    roots = "\n".join(f'{name} = "{name}"' for name in ("teacher", "rgb", "clouds", "state"))
    (root / "small.toml").write_text(f'[roots]\n{roots}\n[experts]\ndaisy = "features_daisy"\n')
    return root / "small.toml"


def test_from_recordings_to_a_verdict(tool, workspace, tmp_path, capsys):
    words = ["--workspace", workspace, "--runs", tmp_path / "runs", "--out", tmp_path / "loop",
             "--seeds", 1, "--steps", 5, "--rollouts", 2, "--heads", 1, "--head_steps", 600, "--processes", 1,
             "--scenes", 2, "--only", "full state", "teacher", "daisy", "weighted"]  # fmt: skip
    tool.main([*map(str, words)])
    said = capsys.readouterr().out
    assert "gap_closed, intervals of 95 %" in said and "roll-outs in" in said
    success = pd.read_csv(tmp_path / "loop" / "success.csv").set_index(["look", "representation"])["success"]
    assert success["fixed", "full state"] == 1.0
    assert set(success.index.get_level_values("representation")) == {"full state", "teacher", "daisy", "weighted"}
    assert len(pd.read_csv(tmp_path / "loop" / "rollouts.csv")) == 4 * 2 * 2
    with pytest.raises(
        InputError, match="--only: expected names among full state; proprioception; full state, object 1"
    ):
        tool.main([*map(str, words[:-4]), "clairvoyance"])


def test_live_equals_recorded_in_the_simulator(workspace):
    from rgb2pc_lib.data.states import read_state
    from rgb2pc_lib.judging.loop.scenes import Compression

    root = workspace.parent
    recorded = sim.RecordConfig(**sim.config_of(root, TASK, "episode_0001"))
    assert (recorded.size, recorded.points, recorded.frame) == (64, 300, "camera")
    scene = functools.partial(sim.Scene, config=recorded)(TASK)
    state = read_state(root / "state" / TASK / "episode_0001.npz")
    frames = root / "rgb" / TASK / "episode_0001"
    same = Compression.of(frames / "step_0000.jpg")
    scene.begin(int(state["seed"]), True)
    for time, action in enumerate(state["actions"]):
        if time in state["time"]:
            step = state["steps"][np.flatnonzero(state["time"] == time)[0]]
            with Image.open(frames / f"{step}.jpg") as stored:
                np.testing.assert_array_equal(same(scene.look().image), np.asarray(stored))
        scene.act(action)
    scene.close()
