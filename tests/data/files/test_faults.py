"""Faults of items: put down and grouped by remedy, or raised at once; nothing else is caught."""

import pytest

from rgb2pc_lib.data.files.faults import AT_ONCE, Faults
from rgb2pc_lib.errors import InputError


def spoiled(faults, *items, said="x.ply: expected points, found none; record it again"):
    with faults.at(*items):
        raise InputError(said)


def test_faults_are_put_down_and_told_by_remedy(tmp_path, capsys):
    faults = Faults()
    spoiled(faults, "push/ep_0")
    spoiled(faults, "push/ep_1", said="push/ep_1.pt: cut; copy it again")
    spoiled(faults, "push/ep_2", said="a; b; record it again")
    spoiled(faults, "push/ep_3", "push/ep_4", said="without a remedy")
    with faults.at("push/ep_5"):
        pass
    assert faults.lines() == [
        "record it again (2):", "  push/ep_0: x.ply: expected points, found none", "  push/ep_2: a; b",
        "others (2):", "  push/ep_3: without a remedy", "  push/ep_4: without a remedy",
        "copy it again (1):", "  push/ep_1.pt: cut",
    ]  # fmt: skip
    report = tmp_path / "deep" / "faults.txt"
    assert faults.tell(report) == 2
    said = capsys.readouterr().err.splitlines()
    assert report.read_text().splitlines() == faults.lines() == said[:-1] and said[-1].startswith("5 left out")
    assert Faults().tell(report) == Faults().tell(report) == 0
    assert not list((tmp_path / "deep").iterdir()) and not capsys.readouterr().err


def test_a_thousand_faults_fill_the_report_and_not_the_screen(tmp_path, capsys):
    faults = Faults()
    for i in range(1000):
        spoiled(faults, f"push/ep_{i}")
    assert faults.tell(tmp_path / "faults.txt") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 41 and "961 more lines; 1000 left out" in said[-1]
    assert len((tmp_path / "faults.txt").read_text().splitlines()) == 1001


def test_what_is_no_bad_input_is_not_caught():
    for error in (OSError("disk full"), RuntimeError("a mistake of ours"), KeyboardInterrupt()):
        faults = Faults()
        with pytest.raises(type(error)), faults.at("item"):
            raise error
        assert not faults.found


def test_where_nobody_asks_for_a_list_the_first_is_raised():
    with pytest.raises(InputError, match="record it again"):
        spoiled(AT_ONCE, "push/ep_0")
    assert not AT_ONCE.found
