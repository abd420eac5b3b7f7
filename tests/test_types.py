"""The types hold: strict over `data/` and `learning/`, normal over the rest; `pyproject.toml` says which is which."""

import subprocess
import sys

from rgb2pc_lib.data.workspace import CACHE, PROJECT


def test_types_agree():
    check = [sys.executable, "-m", "mypy", "--cache-dir", CACHE / "mypy", "--no-error-summary"]
    found = subprocess.run(check, cwd=PROJECT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
