import numpy as np
import pandas as pd
import pytest

from rgb2pc_lib.judging.rivals import CONCATENATED
from rgb2pc_lib.judging.verdicts import SHUFFLED, TEACHER
from rgb2pc_lib.views.probes import centimetres_figure, reading, task_only, task_only_figure


@pytest.fixture
def told():
    """A target that is the task's number and noise, and one that has nothing to do with the task."""
    rng = np.random.default_rng(0)
    keys = pd.DataFrame({"task": np.repeat(["a", "b", "<i>c"], 200)})
    number = np.repeat([0.0, 5.0, 9.0], 200)[:, None]
    targets = {"object": np.concatenate([rng.normal(size=(600, 2)), number + rng.normal(size=(600, 1))], 1)}
    targets["progress"] = rng.random((600, 1))
    return targets, keys, np.tile([True, False], 300)


def table(best, student, teacher, seeds=3):
    """A table of one R2 and one error in cm with given values; the student's spread over seeds is tiny."""
    flip = {"R2 tcp": 1, "tcp cm": -1}
    lines = []
    for measure, sign in flip.items():
        fixed = {TEACHER: teacher, "x": best, "y": best - 1, CONCATENATED: best}
        lines += [(m, -1, measure, sign * v + 10) for m, v in fixed.items()]
        for seed in range(seeds):
            for m, v in {"weighted": student, "moe": best, "x only": best, "y only": best - 1, SHUFFLED: 0}.items():
                lines.append((m, seed, measure, sign * (v + 0.01 * (seed - 1)) + 10))
    return pd.DataFrame(lines, columns=["model", "seed", "measure", "value"])


def test_the_task_alone_flatters_plain_r2_only(told):
    found = task_only(*told)
    assert found.loc["object", "plain R2"] > 0.8 and abs(found.loc["object", "R2 within task"]) < 0.05
    assert (found.loc["progress"].abs() < 0.05).all()


def test_figure_takes_the_axis_that_the_task_tells(told):
    figure = task_only_figure(*told, "object")
    assert figure.get_suptitle().startswith("object, axis z (m), 300 held-out steps")
    plain, within = (float(a.get_title().split()[-1]) for a in figure.axes[:2])
    assert plain > 0.8 and abs(within) < 0.1


@pytest.mark.parametrize(
    ("student", "said"), [(3, "above the best rival"), (1, "below the best rival"), (2, "not told apart")]
)
def test_reading_knows_the_better_side_of_every_measure(student, said):
    words = reading(table(best=2, student=student, teacher=4)).set_index(["student", "measure"])
    assert (words.loc["weighted", "student is"] == said).all() and (words["a gap to close"] == "yes").all()
    assert (words["best rival"] == "x").all()
    assert (reading(table(2, student, teacher=1))["a gap to close"] == "no").all()


def test_one_seed_decides_nothing():
    assert set(reading(table(2, 3, 4, seeds=1))["student is"]) == {"not told apart"}


def test_centimetres_show_every_model():
    figure = centimetres_figure(table(2, 3, 4))
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert names[0] == TEACHER and names[-1] == SHUFFLED and {"x, pooled", "x only"} <= set(names) and len(names) == 9
    assert len(centimetres_figure(table(2, 3, 4, seeds=1)).axes) == 1
