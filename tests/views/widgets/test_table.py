import json

import numpy as np
import pandas as pd
import pytest

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.views.widgets import table as module
from rgb2pc_lib.views.widgets.table import Table

FRAME = pd.DataFrame(
    {"run": ["judge/moe", "judge/weighted", "panel/moe"], "R@1": [0.4, np.nan, 0.25], "median rank": [2.0, 9.0, 4.0]}
)


def shown(table):
    return [key for key, _ in json.loads(table.rows)]


def test_rows_are_sorted_searched_and_said():
    table = Table(FRAME, "run")
    assert shown(table) == FRAME["run"].tolist() and table.numeric == [False, True, True] and table.said == "3 of 3"
    table._told(None, {"sort": "R@1"}, None)  # numbers: the highest first; what is unknown is last, both ways
    assert shown(table) == ["judge/moe", "panel/moe", "judge/weighted"] and table.order == ["R@1", True]
    table._told(None, {"sort": "R@1"}, None)
    assert shown(table) == ["panel/moe", "judge/moe", "judge/weighted"]
    for text, found in {
        "moe": ["panel/moe", "judge/moe"], "MOE judge": ["judge/moe"], "r@1>0.3": ["judge/moe"],
        "R@1<=0.25": ["panel/moe"],
        "medianrank=9": ["judge/weighted"], "run=panel/moe": ["panel/moe"], "moe medianrank!=4": ["judge/moe"],
    }.items():  # fmt: skip
        table._told(None, {"find": text}, None)
        assert shown(table) == found, text
    table.search("colour=red")
    assert table.said.startswith("no column colour; there are run, r@1, medianrank") and len(shown(table)) == 3
    assert json.loads(table.rows)[1] == ["judge/moe", ["judge/moe", "0.4", "2"]]
    assert json.loads(table.rows)[2][1] == ["judge/weighted", "", "9"]


def test_rows_are_ticked_and_the_first_of_too_many_is_let_go():
    table = Table(FRAME, "run", most=2)
    for key in FRAME["run"]:
        table._told(None, {"tick": key, "on": True}, None)
    assert table.ticked == ["judge/weighted", "panel/moe"]
    table._told(None, {"tick": "panel/moe", "on": False}, None)
    assert table.ticked == ["judge/weighted"]
    table.fill(FRAME.iloc[:1])
    assert table.ticked == [] and shown(table) == ["judge/moe"]
    with pytest.raises(InputError, match="nowhere: no such row"):
        table.tick("nowhere")


def test_all_that_was_found_is_ticked_and_a_click_is_told():
    heard = []
    table = Table(FRAME, "run", heard.append)
    table.search("judge")
    table._told(None, {"all": True}, None)
    assert table.ticked == ["judge/moe", "judge/weighted"]
    table._told(None, {"all": False}, None)
    assert table.ticked == []
    table._told(None, {"open": "panel/moe"}, None)
    assert heard == ["panel/moe"]


def test_a_long_table_shows_its_first_rows_and_finds_the_others(monkeypatch):
    monkeypatch.setattr(module, "MOST", 5)
    table = Table(pd.DataFrame({"run": [f"r{i}" for i in range(12)]}), "run")
    assert len(shown(table)) == 5 and table.said == "12 of 12, the first 5 are shown"
    table.search("r11")
    assert shown(table) == ["r11"]
    assert Table(FRAME.iloc[:0], "run").said == "0 of 0"
