"""The table of runs and the player, as a person uses them: tick, compare, resume, delete; play and shift."""

import dataclasses
import json

import pytest
import tiny

from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train

pytestmark = pytest.mark.long

ROW = ".rgb2pc-runs .rgb2pc-table tr[data-key='{}']"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two finished runs and one that was stopped, on points that know their pixels."""
    root = tmp_path_factory.mktemp("made")
    workspace = tiny.make_points(root / "data", episodes=4)
    workspace = dataclasses.replace(workspace, rgb=tiny.write_frames(root / "rgb", workspace, 200))
    small = Config(
        steps=6, batch_size=8, fuse_dim=8, moe_hidden=8, eval_every=3, validation=0.0, amp="off", save_every=2
    )
    for name, changes in {"weighted": {}, "moe": {"fusion": "moe"}, "stopped": {"seed": 3}}.items():
        config = dataclasses.replace(small, save_dir=str(root / "out" / "judge" / name), log_every=1, **changes)
        training = train(config.with_workspace(workspace))
        for progress in training:
            if name == "stopped" and progress.step == 3:
                break
        training.close()
    return root / "out"


def rows(nb):
    return nb.page.locator(".rgb2pc-runs .rgb2pc-table").first.locator("tbody tr").evaluate_all(
        "rows => rows.map(r => r.dataset.key)"
    )  # fmt: skip


def press(nb, text):
    nb.page.locator(".rgb2pc-runs .jupyter-button", has_text=text).click()


def test_runs_are_compared_resumed_and_deleted_and_an_episode_is_played(nb, made):
    nb.write("runs.ipynb", [
        f"from pathlib import Path\nfrom rgb2pc_lib import Run\nOUT = Path({str(made)!r})\n"
        "from rgb2pc_lib.views.widgets.runs import RunTable\nfrom rgb2pc_lib.views.widgets.player import Player",
        "table = RunTable(OUT)\ntable",
        "player = Player.of(Run(OUT / 'judge' / 'moe'))\nplayer",
    ])  # fmt: skip
    nb.open("runs.ipynb")
    nb.run_all()
    nb.until(lambda: sorted(rows(nb)) == ["judge/moe", "judge/stopped", "judge/weighted"])
    search = nb.page.locator(".rgb2pc-runs input[type=search]").first
    search.fill("finished fusion=moe")
    nb.until(lambda: rows(nb) == ["judge/moe"])
    search.fill("")
    nb.until(lambda: len(rows(nb)) == 3)

    # two runs side by side
    for name in ("judge/weighted", "judge/moe"):
        nb.page.locator(ROW.format(name)).locator("input").check()
    nb.until(lambda: "both hold out" in nb.text(".rgb2pc-runs-pair"))
    assert nb.page.locator(ROW.format("judge/moe")).locator("b").inner_text() == "B"
    nb.until(lambda: nb.page.locator(".rgb2pc-runs-pair .js-plotly-plot .trace").count() >= 4)
    nb.page.locator(".rgb2pc-runs-pair .rgb2pc-table tbody tr").nth(2).click()
    opened = nb.until(lambda: nb.kernel("print(table.steps.opened, end='')"))
    nb.until(lambda: opened.replace("/", " / ") in nb.text(".rgb2pc-runs-pair"))
    nb.shot("runs", ".rgb2pc-runs")

    # the player
    player = nb.page.locator(".rgb2pc-player")
    player.scroll_into_view_if_needed()
    shown = lambda: player.get_attribute("data-shown")  # noqa: E731
    nb.until(lambda: shown() == "0 0")
    player.locator(".rgb2pc-player-keys").click()
    nb.page.keyboard.press("ArrowRight")
    nb.page.keyboard.press("Shift+ArrowRight")
    nb.until(lambda: shown() == "1 1")
    nb.until(lambda: nb.kernel("print(player.reel.at, player.reel.shift, player.chosen[2], end='')") == "1 1 step_0001")
    assert "+1: points of step_0002" in player.inner_text()
    nb.page.keyboard.press("Space")
    nb.until(lambda: nb.kernel("print(player.reel.playing, end='')") == "True")
    nb.until(lambda: int(shown().split()[0]) > 3)
    nb.page.keyboard.press("Space")
    nb.until(lambda: nb.kernel("print(player.reel.playing, end='')") == "False")
    nb.page.keyboard.press("0")
    nb.until(lambda: shown().endswith(" 0"))
    nb.shot("player", ".rgb2pc-player-panel")
    assert len(json.loads(nb.kernel("import json; print(json.dumps(player.reel.steps))"))) == 12

    # a stopped run goes on; a run is deleted once that was confirmed, and no other
    for name in ("judge/weighted", "judge/moe"):
        nb.page.locator(ROW.format(name)).locator("input").uncheck()
    nb.page.locator(ROW.format("judge/stopped")).locator("input").check()
    press(nb, "resume the ticked run")
    nb.until(lambda: Run(made / "judge" / "stopped").finished)
    nb.until(lambda: "finished" in nb.page.locator(ROW.format("judge/stopped")).inner_text())
    press(nb, "delete the ticked run")
    nb.until(lambda: "Delete judge/stopped?" in nb.text(".rgb2pc-runs-asking"))
    nb.shot("runs_asking", ".rgb2pc-runs")
    press(nb, "keep it")
    nb.until(lambda: not nb.page.locator(".rgb2pc-runs-asking").is_visible())
    assert (made / "judge" / "stopped").is_dir()
    press(nb, "delete the ticked run")
    press(nb, "delete it")
    nb.until(lambda: sorted(rows(nb)) == ["judge/moe", "judge/weighted"])
    assert sorted(p.name for p in (made / "judge").iterdir()) == ["moe", "weighted"]
