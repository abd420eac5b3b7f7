"""Several cameras: a workspace that names them, experts of each, and batches in which one is missing."""

import numpy as np
import pytest
import tiny

from rgb2pc_lib.data.pairing import pair, select
from rgb2pc_lib.data.sampling import Planner
from rgb2pc_lib.data.workspace import Workspace, camera_of, encoder_of
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config

TWO = """
[roots]
teacher = "teacher"
rgb.head = "rgb"
rgb.wrist = "rgb_wrist"

[experts]
left.head = "features_left"
left.wrist = "features_left_wrist"
"right@wrist" = "features_right"
"""


def written(folder, text):
    path = folder / "two.toml"
    path.write_text(text)
    return path


def test_a_workspace_names_cameras_and_experts_of_each(tmp_path):
    workspace = Workspace.load(written(tmp_path, TWO))
    assert list(workspace.experts) == ["left@head", "left@wrist", "right@wrist"]
    assert workspace.rgb == tmp_path / "rgb" and workspace.cameras == {
        "head": tmp_path / "rgb", "wrist": tmp_path / "rgb_wrist",
    }  # fmt: skip
    assert [workspace.frames_of(e) for e in workspace.experts] == [tmp_path / "rgb", *[tmp_path / "rgb_wrist"] * 2]
    assert workspace.of_encoder("left") == ["left@head", "left@wrist"]
    assert [(encoder_of(e), camera_of(e)) for e in ("a@b", "a")] == [("a", "b"), ("a", "")]
    again = Config().with_workspace(workspace).workspace
    assert (again.cameras, again.experts, again.rgb) == (workspace.cameras, workspace.experts, workspace.rgb)
    assert Config.from_json(Config().with_workspace(workspace).to_json()).workspace.cameras == workspace.cameras


@pytest.mark.parametrize(
    "text, said",
    [
        (TWO.replace("left.wrist", "left.side"), "left: expected one of head, wrist, .* found the camera 'side'"),
        (TWO.replace("left.wrist", "left_too"), "left_too: expected one of head, wrist, .* found the camera none"),
        (TWO.replace("rgb.head", "rgb").replace("rgb.wrist", "clouds"), "to name its camera, as in rgb"),
        (TWO.replace("rgb.wrist", 'rgb."a@b"'), "a camera cannot be called 'a@b'"),
        (TWO.replace('"rgb_wrist"', "3"), "expected text in quotes for rgb.wrist"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(tmp_path, text, said):
    with pytest.raises(InputError, match=said):
        Workspace.load(written(tmp_path, text))


def test_points_belong_to_the_camera_that_saw_them(tmp_path):
    workspace = Workspace.load(written(tmp_path, TWO))
    with pytest.raises(InputError, match="camera that saw them, 'head'; leave out .* left@wrist, right@wrist"):
        Config(route="geometric").with_workspace(workspace)
    assert Config(route="geometric").with_workspace(workspace.only("left@head")).aligns


def test_whole_cameras_are_left_out_too(tmp_path):
    made = tiny.make(tmp_path, "left", episodes=4)
    experts = {
        "left@head": made.experts["left"],
        "left@wrist": made.experts["left"],
        "right@wrist": made.experts["right"],
    }
    roots = {"head": tmp_path / "rgb", "wrist": tmp_path / "rgb_wrist"}
    samples = select(pair(Workspace(teacher=made.teacher, rgb=roots["head"], experts=experts, cameras=roots)))
    planner = Planner(samples, np.arange(96), 32, 8, 0, drop=0.3, drop_batches=20)
    keep = np.concatenate([planner(n).keep for n in range(20)])
    together = np.corrcoef(keep.T)
    assert keep.any(1).all() and together[0, 1] < -0.1 and together[1, 2] > 0.05  # the wrist's two go together
    assert planner(20).keep.all()
