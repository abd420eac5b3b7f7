"""Sentences are made from intervals: what is not told apart is said to be so."""

import numpy as np
import pandas as pd
import pytest

from rgb2pc_lib.judging.verdicts import TEACHER, advice, against_best, ahead, answer, figures, gap_closed


def seeds(values, measure="R@1", spread=0.01, n=3):
    lines = [(m, s, measure, v + spread * (s - 1)) for m, v in values.items() for s in range(n)]
    return pd.DataFrame(lines, columns=["model", "seed", "measure", "value"])


def episodes(values, spread=0.0, probe="object"):
    """Ten episodes of one task whose errors give the R2 of `values`; `spread` sets them apart, each its own way."""
    lines = [
        (model, -1, probe, f"t/e{i}", "", 1 - r2 + spread * (i - 4.5) * (-1) ** k, 1.0)
        for k, (model, r2) in enumerate(values.items()) for i in range(10)
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=["model", "seed", "probe", "episode", "look", "error", "around"])


@pytest.mark.parametrize(
    ("fused", "said"),
    [(0.6, "Use moe: fusion gains over a alone (R@1 +0.100"), (0.5, "Use a alone: fusion shows no gain (R@1 +0.000"),
     (0.4, "Use a alone: fusion shows no gain (R@1 -0.100 [-0.100, -0.100])")],
)  # fmt: skip
def test_advice_is_fusion_only_where_its_gain_is_shown(fused, said):
    assert advice(seeds({"a only": 0.5, "b only": 0.3, "moe": fused})).startswith(said)


def test_an_expert_can_go_unless_the_mixture_is_shown_to_miss_it():
    said = advice(seeds({"a only": 0.5, "moe": 0.6, "moe without b": 0.6, "moe without c": 0.4}))
    assert "b can go (moe misses it by +0.000 [+0.000, +0.000])" in said and "c can go" not in said


def test_one_seed_advises_nothing():
    assert "one seed tells no interval" in advice(seeds({"a only": 0.5, "moe": 0.9}, n=1))


def test_the_question_of_the_report_is_answered_by_intervals():
    long = seeds({TEACHER: 0.8, "moe": 0.5}, "R2 object", n=1)
    clear, blurred = (episodes({TEACHER: 0.8, "moe": 0.5}, spread) for spread in (0.0, 0.3))
    assert answer(long, "moe", clear) == ("No: in R2, moe is worse than the teacher on object -0.300 [-0.300, -0.300].")
    assert answer(long, "moe", blurred) == (
        "Not told apart: moe is worse than the teacher on no probe; not told apart on object."
    )
    assert answer(long, "moe", episodes({TEACHER: 0.4, "moe": 0.5})).startswith("Yes: ")
    assert answer(seeds({"moe": 0.5}), "moe").startswith("Not asked")


def test_no_share_is_told_of_a_gap_that_episodes_do_not_show():
    long = seeds({TEACHER: 0.52, "a": 0.5, "moe": 0.9}, "R2 object", 0.0, 1)
    errors = pd.concat([long.assign(measure="object cm", value=long["value"].rsub(10)), long])
    small = gap_closed(errors, ["moe"], episodes({TEACHER: 0.52, "a": 0.5, "moe": 0.9}, 0.1)).set_index("measure")
    assert set(small["a gap"]) == {"not told apart"} and small["closed"].isna().all()
    shown = gap_closed(errors, ["moe"], episodes({TEACHER: 0.52, "a": 0.5, "moe": 0.9})).set_index("measure")
    assert set(shown["a gap"]) == {"yes"} and shown.loc["R2 object", "student is"] == "above the best rival"
    assert shown.loc["R2 object", "closed"] == pytest.approx(20)
    assert ahead(episodes({"a": 0.4, "b": 0.6}), "object cm", "a", "b") == "no"


def test_a_student_is_no_rival_of_another():
    long = seeds({TEACHER: 0.9, "a": 0.5, "a only": 0.4, "moe": 0.6, "moe + geometric": 0.8}, "R2 object")
    assert set(gap_closed(long, ("moe", "moe + geometric"))["best rival"]) == {"a"}


def test_ways_are_paired_by_episode():
    hard = np.array([0.1, 0.5, 0.9, 0.3])
    table = pd.DataFrame({"way": ["a"] * 4 + ["b"] * 4, "iou": [*(hard + 0.05 + 0.001 * np.arange(4)), *hard]})
    assert against_best(table, "way", "iou", "a").endswith(", better")
    assert against_best(table, "way", "iou", "b").endswith(", worse")
    assert figures(0.1, float("nan"), float("nan")) == "+0.100, one value: no interval"
