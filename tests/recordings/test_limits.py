"""Where not all of an image fits, its episode is not there: a part of a file is told, whoever encodes it."""

import subprocess
import sys

import pytest

pytest.importorskip("resource")

_WRITE = """
import resource, sys
import numpy as np
from rgb2pc_lib.data.pictures import encoded
from rgb2pc_lib.data.files.writing import new_folder
from rgb2pc_lib.errors import InputError

noise = encoded(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8), sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (len(noise) // 2,) * 2)
try:
    with new_folder(__import__("pathlib").Path(sys.argv[1])) as folder:
        (folder / "step_0000").write_bytes(noise)
except InputError as e:
    sys.exit(str(e))
"""


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_half_an_image_is_told(tmp_path, kind):
    done = subprocess.run(
        [sys.executable, "-c", _WRITE, str(tmp_path / "ep_0"), kind], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "ep_0: cannot be written (File too large)" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())
