"""Imported before the library: one thread, and what is derived goes to a temporary folder instead of the project's."""

import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked process has no threads of its parent
PROJECT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

import rgb2pc_lib.data.workspace as places  # noqa: E402

BASE = Path(tempfile.mkdtemp(prefix="rgb2pc-trust-"))  # whoever is started removes it
CACHE = places.CACHE = BASE / "cache"
