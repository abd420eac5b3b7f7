"""Ablations: one setting at a time, never the base against itself, judged on validation episodes."""

import pytest

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.ablations import BASE, SETTINGS, line_up
from rgb2pc_lib.judging.evaluate import judged_config


def test_every_answer_differs_from_the_base_in_what_was_asked(left, tmp_path):
    base = judged_config(left)
    rows = line_up(base, [*SETTINGS, "experts"], 2, tmp_path)
    assert len({config.folder for _, config in rows}) == len(rows)
    asked = {name: set(changes) for answers in SETTINGS.values() for name, changes in answers.items()}
    asked |= {name: {"vis_roots", "fusion"} for name, _ in rows if name.endswith(" only")}
    asked |= {f"without {name}": {"vis_roots"} for name in base.vis_roots}
    asked |= {name: {"train_episodes"} for name, _ in rows if name.endswith(" episodes a task")}
    asked |= {"half the steps": {"steps"}, "twice the steps": {"steps"}}
    for name, config in rows:
        changed = set(base.changes(config)) - {"seed"}
        assert not changed if name == BASE else changed and changed <= asked[name], name
    names = [name for name, config in rows if config.seed == 1]
    assert "mean" in names and "left only" in names and "2 x 2 blocks" not in names  # which is the base's own


def test_an_unknown_question_is_named(left, tmp_path):
    with pytest.raises(InputError, match="--only: .* found colours"):
        line_up(judged_config(left), ["colours"], 1, tmp_path)


def test_other_teachers_are_compared_on_the_same_steps(left, tmp_path):
    base = judged_config(left)
    rows = line_up(base, ["teachers"], 1, tmp_path, {"old": tmp_path / "old"})
    assert [(name, set(base.changes(config))) for name, config in rows] == [(BASE, set()), ("teacher old", {"pc_root"})]
