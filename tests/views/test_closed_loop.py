"""Pictures of the closed loop, of tables that are not complete."""

import pandas as pd

from rgb2pc_lib.views.closed_loop import success_figure


def test_what_was_rolled_out_with_one_look_has_no_bar_in_the_other():
    columns = ["representation", "task", "look", "success", "roll-outs"]
    rows = [(name, task, "random", 0.5, 17) for name in ("teacher", "weighted") for task in ("hammer", "assembly")]
    cells = pd.DataFrame([*rows, ("teacher", "hammer", "fixed", 1.0, 17)], columns=columns)
    random, fixed = success_figure(cells).axes
    assert [len(axes.patches) for axes in (random, fixed)] == [2, 1]
    assert [text.get_text() for text in random.get_yticklabels()] == ["teacher", "weighted"]
