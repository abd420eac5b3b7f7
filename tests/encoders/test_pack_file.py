"""A pack written frame by frame: the documented layout, all of it, or nothing under its name."""

import resource

import numpy as np
import pytest
import torch

from rgb2pc_lib.data.packs import FeaturePack
from rgb2pc_lib.encoders.pack_file import new_pack
from rgb2pc_lib.errors import InputError

NAMES = [f"step_{i}.png" for i in range(5)]


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_it_is_the_file_that_torch_would_have_saved(tmp_path, dtype):
    tokens = torch.randn(3, 3, 2, 4, 6)  # 5 frames, windows of 3, one apart
    with new_pack(
        tmp_path / "t" / "e.pt", NAMES, (2, 4), {"enc_embed_dim": 6, "box": [0, 0, 1, 1]}, 3, 1, dtype
    ) as put:
        for place in np.random.default_rng(0).permutation(9):
            put(int(place), tokens.flatten(0, 1)[place])
    pack = torch.load(tmp_path / "t" / "e.pt", weights_only=True)  # in full
    expected = tokens.to({"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    assert torch.equal(pack["per_frame_features"], expected)
    assert pack["frame_paths"] == [NAMES[:3], NAMES[1:4], NAMES[2:]]
    assert pack["meta"] == {
        "enc_embed_dim": 6, "box": [0, 0, 1, 1], "num_frames": 5, "window_size": 3, "stride": 1, "num_windows": 3,
        "grid": [2, 4], "save_dtype": dtype,
    }  # fmt: skip
    opened = FeaturePack.open(tmp_path / "t" / "e.pt")
    assert torch.equal(opened.frame("step_4"), expected[2, 2]) and opened.steps == [f"step_{i}" for i in range(5)]
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["e.pt"]


def test_what_is_not_whole_gets_no_name(tmp_path):
    path, meta = tmp_path / "e.pt", {"enc_embed_dim": 1}
    with pytest.raises(InputError, match="expected tokens for all 5 places, 4 are missing"):
        with new_pack(path, NAMES, (1, 1), meta) as put:
            put(3, torch.zeros(1, 1, 1))
    with pytest.raises(InputError, match=r"e.pt: expected tokens \[1, 1, 1\] of a frame, found \[1, 2, 1\]"):
        with new_pack(path, NAMES, (1, 1), meta) as put:
            put(0, torch.zeros(1, 2, 1))
    with pytest.raises(KeyboardInterrupt), new_pack(path, NAMES, (1, 1), meta):
        raise KeyboardInterrupt
    assert not path.exists()


def test_a_large_pack_takes_the_memory_of_a_frame(tmp_path):
    """1.7 GB of windows that overlap, of which one frame in eight is filled; resident memory grows by less than 0.2."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    frame = torch.ones(37, 37, 1024)
    with pytest.raises(InputError, match="are missing"):
        with new_pack(
            tmp_path / "e.pt", [f"step_{i}.png" for i in range(84)], (37, 37), {"enc_embed_dim": 1024}, 8, 1
        ) as put:
            for place in range(0, 616, 8):
                put(place, frame)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 0.2e6  # in kB
