import os
from pathlib import Path

import pytest

from rgb2pc_lib.data.files.stamps import stamp


def test_a_stamp_tells_files_their_order_and_how_it_was_made(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"22")
    first = stamp([one, two])
    assert stamp(iter([one, two])) == first
    others = {stamp([two, one]), stamp([one]), stamp([one, two], "8 px"), stamp([one, two], "9 px")}
    os.utime(one, ns=(0, 0))
    others.add(stamp([one, two]))
    one.write_bytes(b"11")
    others.add(stamp([one, two]))
    assert len(others | {first}) == 7
    with pytest.raises(FileNotFoundError):
        stamp([tmp_path / "none"])


def test_a_folder_stands_for_what_it_holds_and_a_relative_path_for_the_same_file(tmp_path, monkeypatch):
    inside = tmp_path / "pack.zarr" / "c" / "0"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"1")
    first = stamp([tmp_path / "pack.zarr"])
    monkeypatch.chdir(tmp_path)
    assert stamp([Path("pack.zarr")]) == first
    inside.write_bytes(b"22")
    assert stamp([tmp_path / "pack.zarr"]) != first
