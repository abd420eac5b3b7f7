"""Verdicts on tables with a known answer."""

import numpy as np
import pandas as pd
import pytest

from rgb2pc_lib import InputError
from rgb2pc_lib.judging.loop import verdict

RATES = {"full state": 1.0, "teacher": 0.8, "efficientnet": 0.4, "xfeat": 0.2, "weighted": 0.7, "moe": 0.7}
BASELINES = ["efficientnet", "xfeat"]


def rolled(rates=RATES, tasks=6, n=60, looks=("random",), seed=0):
    """Roll-outs with these rates of success; a scene's difficulty is shared by all."""
    rng = np.random.default_rng(seed)
    lines = []
    for look in looks:
        for t in range(tasks):
            difficulty = rng.random(n)
            for name, rate in rates.items():
                wins = difficulty < rate
                lines += [(name, f"task{t}", look, 9000 + i, i % 3, bool(wins[i]), 50 + i) for i in range(n)]
    return pd.DataFrame(lines, columns=["representation", "task", "look", "seed", "head", "success", "length"])


def test_success_and_its_interval():
    table = verdict.success_table(rolled(looks=("fixed", "random")))
    assert len(table) == 2 * len(RATES) and (table["roll-outs"] == 360).all()
    for row in table.itertuples():
        assert row.success == pytest.approx(RATES[row.representation], abs=0.08)
        assert row.low <= row.success <= row.high
    one = table.set_index(["look", "representation"]).loc[("random", "full state")]
    assert one["low"] == one["high"] == 1.0
    few = verdict.success_table(rolled(tasks=2, n=9)).set_index("representation").loc["xfeat"]
    many = table[table["look"] == "random"].set_index("representation").loc["xfeat"]
    assert few["high"] - few["low"] > many["high"] - many["low"]


def test_scenes_that_not_everybody_met_are_told():
    whole = rolled(tasks=2, n=9, looks=("fixed", "random"))
    assert verdict.scenes_left_out(whole) == []
    some = whole[~((whole["representation"] == "moe") & (whole["look"] == "random") & (whole["task"] == "task1"))]
    (said,) = verdict.scenes_left_out(some)
    assert said.startswith("random look") and "the 9 of 18 scenes" in said and "moe met 9." in said
    assert set(verdict.success_table(some).set_index("look").loc["random", "roll-outs"]) == {9}


def test_a_task_counts_as_much_as_another_however_often_it_was_rolled_out():
    table = rolled({"a": 1.0}, tasks=2, n=10)
    table.loc[table["task"] == "task1", "success"] = False
    more = pd.concat([table, table[table["task"] == "task0"].assign(seed=lambda t: t["seed"] + 100)])
    assert verdict.Drawn.of(more, "random").success("a")[0] == pytest.approx(0.5)


def test_gap_closed():
    found = verdict.gaps(rolled(), BASELINES).set_index("representation")
    assert set(found.index) == {"full state", "weighted", "moe"}
    assert (found["best baseline"] == "efficientnet").all()
    assert found.loc["weighted", "closed"] == pytest.approx(0.75, abs=0.1)
    assert found.loc["weighted", "low"] > 0.5 and found.loc["weighted", "said"] == "better"
    none = verdict.gaps(rolled(RATES | {"teacher": 0.4}), BASELINES).set_index("representation")
    assert none.loc["weighted", "said"] == "teacher not told apart: no gap"
    assert np.isnan(none.loc["weighted", "closed"])


def test_words_follow_the_numbers():
    table = rolled()
    found = verdict.comparisons(table, verdict.standard_pairs(list(RATES), BASELINES)).set_index(["one", "other"])
    assert found.loc[("teacher", "efficientnet"), "one is"] == "better"
    assert found.loc[("weighted", "teacher"), "one is"] == "worse"
    assert ("weighted", "moe") not in found.index
    same = verdict.comparisons(table, [("weighted", "moe")]).iloc[0]
    assert same["difference"] == same["low"] == same["high"] == 0 and same["one is"] == "not told apart"
    few = verdict.comparisons(rolled({"a": 0.5, "b": 0.55}, tasks=2, n=9), [("b", "a")]).iloc[0]
    assert few["one is"] == "not told apart"


def test_of_an_unfinished_table_only_what_all_met_counts():
    table = rolled()
    cut = table[~((table["representation"] == "moe") & ((table["head"] > 0) | (table["task"] == "task5")))]
    found = verdict.success_table(cut)
    assert (found["roll-outs"] == 5 * 20).all()
    with pytest.raises(InputError, match="every representation met, found none"):
        verdict.success_table(table[(table["representation"] == "moe") == (table["task"] == "task0")])


def test_of_a_handful_of_scenes_there_is_no_interval():
    few = rolled({"a": 1.0, "b": 0.0}, tasks=1, n=3)
    row = verdict.comparisons(few, [("a", "b")]).iloc[0]
    assert row["difference"] == 1 and np.isnan(row["low"]) and row["one is"] == "not told apart"
    assert verdict.comparisons(rolled({"a": 1.0, "b": 0.0}, tasks=1, n=20), [("a", "b")]).loc[0, "one is"] == "better"


def test_cells():
    found = verdict.cells(rolled(looks=("fixed", "random")))
    assert len(found) == len(RATES) * 6 * 2 and (found["roll-outs"] == 60).all()
    sure = found[found["representation"] == "full state"]
    assert (sure["high"] == 1).all() and (sure["low"] > 0.9).all() and sure["length"].between(50, 110).all()


def test_whether_probes_foretell_success():
    order = list(RATES)
    good = [(name, 0, "R2 object", RATES[name]) for name in order] + [(n, 0, "object cm", 9 - RATES[n]) for n in order]
    bad = [(name, 0, "R2 tcp", -RATES[name]) for name in order]
    of_look = [(name, 0, "R2 progress", -RATES[name]) for name in order]
    of_look += [(name, 0, "R2 progress, random look", RATES[name]) for name in order]
    long = pd.DataFrame(good + bad + of_look, columns=["model", "seed", "measure", "value"])
    found = verdict.foretold(rolled(), long).set_index("measure")
    assert set(found.index) == {"R2 object", "object cm", "R2 tcp", "R2 progress"}
    for name in ("R2 object", "object cm", "R2 progress"):
        assert found.loc[name, "correlation"] > 0.9 and found.loc[name, "representations"] == 6
    assert found.loc["R2 tcp", "high"] < 0
