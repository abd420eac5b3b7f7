"""Pictures of the closed loop, of tables that are not complete."""

import pandas as pd
import pytest

from rgb2pc_lib.views.closed_loop import success_figure


def rolled(name, task, look, wins):
    columns = ["representation", "task", "look", "seed", "head", "success", "length"]
    return pd.DataFrame([(name, task, look, i, 0, win, 9) for i, win in enumerate(wins)], columns=columns)


def test_what_was_rolled_out_with_one_look_has_no_bar_in_the_other():
    rows = [rolled(name, task, "random", [0, 1] * 8) for name in ("teacher", "weighted") for task in ("hammer", "push")]
    table = pd.concat([*rows, rolled("teacher", "hammer", "fixed", [1] * 16)]).astype({"success": bool})
    random, fixed = success_figure(table).axes
    assert [len(axes.patches) for axes in (random, fixed)] == [2, 1]
    assert [text.get_text() for text in random.get_yticklabels()] == ["teacher", "weighted"]


def test_a_bar_says_what_the_table_says():
    easy, hard = (rolled("a", task, "random", wins * 12) for task, wins in (("easy", [1]), ("hard", [0])))
    table = pd.concat([easy, hard, rolled("b", "easy", "random", [1] * 12)]).astype({"success": bool})
    (axes,) = success_figure(table).axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([1, 1])  # of the scenes that both met
