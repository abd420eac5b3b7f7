import dataclasses

import numpy as np
import pytest
import tiny
from PIL import Image

from rgb2pc_lib.data.pairing import pair
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """A workspace whose points know their pixels, with frames, a run, and its pairing."""
    root = tmp_path_factory.mktemp("points")
    workspace = tiny.make_points(root, episodes=3)
    for task in ("push", "pull"):
        for e in range(3):
            folder = root / "rgb" / task / f"ep_{e}"
            folder.mkdir(parents=True)
            for i in range(12):
                Image.fromarray(np.full((160, 200, 3), 20 * i, np.uint8)).save(folder / f"step_{i:04d}.png")
    workspace = dataclasses.replace(workspace, rgb=root / "rgb")
    config = Config(fusion="moe", steps=4, batch_size=8, fuse_dim=8, moe_hidden=8, eval_every=0, validation=0.0,
                    amp="off", save_dir=str(root / "run")).with_workspace(workspace)  # fmt: skip
    list(train(config))
    return workspace, pair(workspace), Run(config.folder)
