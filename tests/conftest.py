import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two contending threads make tiny steps many times slower

import pytest
import tiny
import torch

from rgb2pc_lib.data import pack_index

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def pack_index_of_its_own(tmp_path_factory):
    """What tests learn about their packs does not stay in the project's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_index, "CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="session")
def left(tmp_path_factory):
    """A workspace in which expert "left" carries the latent and "right" misleads."""
    return tiny.make(tmp_path_factory.mktemp("left"), "left", episodes=8)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A workspace in which the carrier changes with the place, and only both experts together tell which it is."""
    return tiny.make(tmp_path_factory.mktemp("place"), "place", episodes=8)
