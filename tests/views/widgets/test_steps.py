"""Controls that stand at one step: they always name a step of the table, whatever is moved first."""

import pandas as pd
import pytest

from rgb2pc_lib.views.widgets.steps import StepBrowser

STEPS = {("push", "ep_0"): 6, ("push", "ep_1"): 2, ("pull", "ep_0"): 4}


class Seen(StepBrowser):
    """Keeps what it was asked to paint."""

    def __init__(self, keys):
        self.drawn = []
        super().__init__(keys)

    def _draw(self):
        self.drawn.append(self.chosen)
        self._show_name(self.chosen[2])


@pytest.fixture
def browser():
    rows = [(*k, f"step_{i:04d}") for k, n in STEPS.items() for i in range(n)]
    return Seen(pd.DataFrame(rows, columns=["task", "episode", "step"]))


def test_controls_follow_the_table(browser):
    assert not browser.drawn  # a panel paints for the first time when its parts are there
    assert browser.task.options == ("push", "pull") and browser.episode.options == ("ep_0", "ep_1")
    browser.step.value = 5
    assert browser.chosen == browser.drawn[-1] == ("push", "ep_0", "step_0005") and "step_0005" in browser.name.value
    browser.episode.value = "ep_1"  # a shorter episode: its last step
    assert browser.drawn[-1] == ("push", "ep_1", "step_0001") and browser.step.max == 1
    browser.task.value = "pull"
    assert browser.episode.options == ("ep_0",) and browser.drawn[-1][:2] == ("pull", "ep_0") and browser.step.max == 3
    browser.task.value = "push"  # its first episode has the same name as the one that was chosen
    assert browser.drawn[-1][:2] == ("push", "ep_0") and browser.step.max == 5


def test_what_is_not_named_is_as_chosen(browser):
    browser.step.value = 3
    assert browser.at(None, None, None) == ("push", "ep_0", "step_0003")
    assert browser.at("pull", None, "step_0001") == ("pull", "ep_0", "step_0001")


def test_names_never_become_html():
    browser = Seen(pd.DataFrame({"task": ["a"], "episode": ["b"], "step": ["<b>step"]}))
    browser.repaint()
    assert "&lt;b&gt;step" in browser.name.value and "<b>" not in browser.name.value
