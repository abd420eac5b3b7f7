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
SMALL = sim.RecordConfig(size=64, steps=16, points=300, more=("wrist",))


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


@pytest.fixture(scope="module")
def two_cameras(workspace):
    """The same recordings, seen through the camera on the wrist as well."""
    root, path = workspace.parent, workspace.parent / "two.toml"
    extract(load_encoder("daisy"), root / "rgb_wrist", root / "features_daisy@wrist", progress=False)
    roots = "\n".join(f'{name} = "{name}"' for name in ("teacher", "clouds", "state"))
    cameras = 'rgb.front = "rgb"\nrgb.wrist = "rgb_wrist"'
    experts = 'daisy.front = "features_daisy"\ndaisy.wrist = "features_daisy@wrist"'
    path.write_text(f"[roots]\n{roots}\n{cameras}\n[experts]\n{experts}\n")
    return path


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
    with pytest.raises(InputError, match="--finetune: expected --head mlp, .* found diffusion"):
        tool.main([*map(str, words[:-5]), "--finetune", str(tmp_path), "--head", "diffusion"])


def test_students_of_several_cameras_see_through_all_of_them(tool, two_cameras, tmp_path, monkeypatch):
    from rgb2pc_lib.deploy.stream import ThroughExperts

    seen = []
    look = ThroughExperts.__call__

    def watched(self, pasts, *args, **kwargs):
        seen.extend((tuple(self.encoders), tuple(moment)) for past in pasts for moment in past)
        return look(self, pasts, *args, **kwargs)

    monkeypatch.setattr(ThroughExperts, "__call__", watched)
    only = ["weighted", "daisy@wrist only", "weighted, spatial tokens, 256 PCs", "experts concatenated"]
    words = ["--workspace", two_cameras, "--runs", tmp_path / "runs", "--out", tmp_path / "loop", "--looks", "fixed",
             "--seeds", 1, "--steps", 5, "--rollouts", 1, "--heads", 1, "--head_steps", 60, "--processes", 1,
             "--scenes", 1, "--only", *only]  # fmt: skip
    tool.main([*map(str, words)])
    assert len(pd.read_csv(tmp_path / "loop" / "rollouts.csv")) == 4
    both = ("daisy@front", "daisy@wrist"), ("front", "wrist")
    assert set(seen) == {both, (("daisy@wrist",), ("wrist",))}


def test_live_equals_recorded_in_the_simulator(workspace):
    from rgb2pc_lib.data.states import read_state
    from rgb2pc_lib.judging.loop.scenes import Recorder

    root = workspace.parent
    recorded = sim.RecordConfig(**sim.config_of(root, TASK, "episode_0001"), more=("wrist",))
    assert (recorded.size, recorded.points, recorded.frame) == (64, 300, "camera")
    scene = functools.partial(sim.Scene, config=recorded)(TASK)
    state = read_state(root / "state" / TASK / "episode_0001.npz")
    frames = root / "rgb" / TASK / "episode_0001"
    same = Recorder.of(frames / "step_0000.jpg", ("front", "wrist"))
    scene.begin(int(state["seed"]), True)
    for time, action in enumerate(state["actions"]):
        if time in state["time"]:
            step = state["steps"][np.flatnonzero(state["time"] == time)[0]]
            found = same.moment(scene.look(), ["daisy@front", "daisy@wrist"])
            for camera, folder in (("front", "rgb"), ("wrist", "rgb_wrist")):
                with Image.open(root / folder / TASK / "episode_0001" / f"{step}.jpg") as stored:
                    np.testing.assert_array_equal(found[camera], np.asarray(stored))
        scene.act(action)
    scene.close()
