import io

import numpy as np
import pytest
import tiny
from PIL import Image

from rgb2pc_lib.checks.shift import feature_check
from rgb2pc_lib.data.pairing import pair
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.views.look import in_camera_frame
from rgb2pc_lib.views.widgets import player as module
from rgb2pc_lib.views.widgets.player import Player


def frame(reel, i):
    start = reel.frame_ends[i - 1] if i else 0
    return np.asarray(Image.open(io.BytesIO(reel.frames[start : reel.frame_ends[i]])))


def test_all_of_an_episode_travels_and_runs_in_step(points):
    workspace, pairing, run = points
    checks = [feature_check(pairing, progress=False)]
    player = Player(workspace, pairing, run, checks, start=("pull", "ep_1"))
    reel = player.reel
    assert player.chosen[:2] == ("pull", "ep_1") and reel.steps == [f"step_{i:04d}" for i in range(12)]
    assert reel.shape == [160, 200] and [round(float(frame(reel, i).mean()), -1) for i in (0, 5)] == [0, 100]
    assert reel.point_ends == [16 * (i + 1) for i in range(12)]
    uv = np.frombuffer(reel.uv, np.float32).reshape(12, 16, 2)
    assert uv.min() > 0 and uv.max() < 1 and len(reel.tint) == 12 * 16 * 3 and len(reel.xyz) == 12 * 16 * 3 * 4
    grid = reel.layers["tokens"]["grid"]
    assert len(reel.tokens) == 12 * grid[0] * grid[1] * 3 and all(reel.layers["tokens"]["there"])
    means = np.array(reel.trust["means"])  # gates of each step
    assert means.shape == (12, 2) and np.allclose(means.sum(1), 1, atol=1e-3)
    assert reel.trust["experts"] == ["left", "right"]
    (check,) = reel.checks
    assert (
        check["name"] == "features"
        and check["shifts"][0] == -8
        and len(check["fits"]) == 17
        and check["said"] == checks[0].verdict("pull", "ep_1")[0]
    )

    before = reel.tokens
    player.tokens.value = "right"
    assert reel.tokens != before and "right" in reel.layers["tokens"]["title"]
    player.gates.value = "left"
    assert reel.layers["gates"]["title"].startswith("gate of left")
    player.step.value = 7
    assert reel.at == 7
    reel.at = 3  # as the page does
    assert player.chosen == ("pull", "ep_1", "step_0003")
    reel.shift = 2
    frames = reel.frames
    player.go("push", "ep_2")
    assert reel.shift == 0 and reel.frames == frames and reel.uv != uv.tobytes()  # frames are alike, points are not
    assert player.static(4).get_suptitle().startswith("push / ep_2")


def test_a_file_that_breaks_is_said_and_the_player_lives_on(tmp_path):
    workspace = tiny.make(tmp_path, episodes=2)
    pairing = pair(workspace)
    player = Player(workspace, pairing, start=("push", "ep_0"))
    assert player.reel.trust == {} and player.gates.disabled and player.reel.frames == b""
    pairing.teacher["push", "ep_1"]["step_0003"].path.write_bytes(b"damaged")
    player.go("push", "ep_1")
    assert "not a readable torch file" in player.reel.said
    player.go("push", "ep_0")
    assert player.reel.said == "" and player.reel.point_ends[-1] == 12 * 5
    with pytest.raises(InputError, match="holds no step to play"):
        Player(workspace, module.Pairing(pairing.table.iloc[:0], pairing.packs, pairing.teacher))


def test_many_points_are_thinned_and_an_upright_cloud_is_turned(monkeypatch):
    rng = np.random.default_rng(0)
    xyz = rng.normal(size=(1000, 3)).astype(np.float32)
    cloud = module.Cloud(xyz)
    assert len(module._fewer(cloud, 300)) == 250 and not in_camera_frame(cloud)
    places, uv, tint = module._drawn(cloud, 10, 20)
    assert np.isnan(uv).all() and (np.diff(places[:, 2]) <= 0).all()  # far ones first
    assert np.allclose(np.sort(places[:, 1]), np.sort(-xyz[:, 2])) and tint.shape == (1000, 3)
    seen = module.Cloud(xyz, uv=np.array([[0, 0], [19, 9]] * 500, np.float32))
    assert np.allclose(sorted(set(map(tuple, module._drawn(seen, 10, 20)[1]))), [(0.025, 0.05), (0.975, 0.95)])
