import dataclasses

import pytest

from rgb2pc_lib import Config, Workspace, train
from rgb2pc_lib.deploy import frames
from rgb2pc_lib.encoders.clouds.extract_clouds import extract_teacher, load_cloud_encoder
from rgb2pc_lib.encoders.extract import extract
from rgb2pc_lib.encoders.images import load_encoder
from rgb2pc_lib.judging.loop.demonstrations import Demonstrations
from rgb2pc_lib.judging.loop.representations import Source
from rgb2pc_lib.learning.prepare import Data

EXPERTS = ("daisy", "efficientnet")


@pytest.fixture(scope="session", autouse=True)
def frames_of_their_own(tmp_path_factory):
    """What is derived from toys does not pile up in the project's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "CACHE", tmp_path_factory.mktemp("frames"))
        yield


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """The toy's demonstrations, extracted by the project's own tools, and one trained student."""
    import toy

    root = toy.record(tmp_path_factory.mktemp("toy"))
    for name in EXPERTS:
        extract(load_encoder(name), root / "rgb", root / f"features_{name}", progress=False)
    encoder = load_cloud_encoder("pointnet")
    extract_teacher(encoder, root / "clouds", root / "teacher", progress=False, state_root=root / "state")
    workspace = Workspace(
        teacher=root / "teacher", rgb=root / "rgb", clouds=root / "clouds", state=root / "state",
        experts={name: root / f"features_{name}" for name in EXPERTS}, name="toy",
    )  # fmt: skip
    config = Config(steps=20, batch_size=16, fuse_dim=16, eval_every=0, validation=0.125, pooling="blocks2")
    config = dataclasses.replace(config.with_workspace(workspace), save_dir=str(root / "runs" / "weighted-seed0"))
    list(train(config))
    data = Data.open(config)
    return Source(config, data, Demonstrations.of(data, root / "state"))
