import asyncio
import dataclasses
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train
from rgb2pc_lib.views.plots import colour
from rgb2pc_lib.views.widgets import runs as module
from rgb2pc_lib.views.widgets import twin
from rgb2pc_lib.views.widgets.runs import RunTable


@pytest.fixture
def out(points, tmp_path):
    """Two finished runs and one that was stopped at step 3 of 6."""
    workspace, _, _ = points
    small = Config(
        steps=6, batch_size=8, fuse_dim=8, moe_hidden=8, eval_every=3, validation=0.0, amp="off", log_every=1
    )
    for name, changes in {"weighted": {}, "moe": {"fusion": "moe"}, "stopped": {"seed": 3}}.items():
        config = dataclasses.replace(small, save_dir=str(tmp_path / "judge" / name), **changes)
        training = train(config.with_workspace(workspace))
        for progress in training:
            if name == "stopped" and progress.step == 3:
                break
        training.close()
    return tmp_path


def test_two_ticked_runs_stand_side_by_side(out, monkeypatch):
    table = RunTable(out)
    assert "Tick two" in table.hint.value and not table.pair.children
    with pytest.raises(InputError, match="tick two finished runs"):
        table.static()
    table.compare("judge/weighted", "judge/moe")
    assert table.hint.value == "" and table.versus.runs[1][0].name == "moe"
    words, settings, curves, *_ = table.pair.children
    assert "both hold out" in words.value and "fusion" in settings.children[0].value
    assert "mean gate of left" in settings.children[1].value
    assert [t.name for t in curves.figure.data if t.showlegend] == ["A", "B"]
    assert all(len(t.x) for t in curves.figure.data)
    steps = table.versus.steps
    first = "/".join(steps.loc[0, ["task", "episode", "step"]])
    assert table.steps.opened == first and f"A: rank {steps.loc[0, 'rank A']:.0f}" in table.captions[1].value
    assert [t.line.color for t in curves.figure.data if t.showlegend] == [colour(f, []) for f in ("weighted", "moe")]
    table.expert.value = "left"
    before = table.gates[1].value
    table.steps._told(None, {"open": "/".join(steps.iloc[-1][["task", "episode", "step"]])}, None)
    assert table.gates[1].value != before or table.captions[0].value != ""
    assert "change" in table.steps.columns and table.steps.said == f"{len(steps)} of {len(steps)}"
    assert isinstance(table.static(), Figure)

    monkeypatch.setattr(module, "fold", lambda x: x[:, :2].astype(float))  # UMAP takes seconds
    table.draw_maps()
    maps = table.maps
    assert maps.titles == ["A: weighted", "B: moe"]
    maps.rows = [0, 2]
    chosen = [key for key, _ in json.loads(table.steps.rows)]
    assert set(chosen) == set(np.array(module._keys(table.versus.keys))[[0, 2]])
    maps.rows = None
    assert len(json.loads(table.steps.rows)) == len(steps)
    table._acted("click", 2)
    assert table.steps.opened == module._keys(table.versus.keys)[2] and maps.opened == 2
    table._acted("hover", 1)
    assert maps.hovered == 1 and maps.caption.count("\n") == 2

    table.compare("judge/weighted", "judge/stopped")  # what is there of an unfinished one is shown
    assert table.versus is None and "unfinished" in table.hint.value and len(table.pair.children) == 3
    table.compare("judge/weighted", "judge/weighted")
    assert table.table.ticked == ["judge/weighted"] and not table.pair.children


def test_what_is_left_without_a_kernel_is_the_two_runs_or_the_table(out, monkeypatch):
    kept = []
    monkeypatch.setattr(twin, "display", lambda shown, **_: kept.append(shown) or SimpleNamespace(update=kept.append))
    table = RunTable(out)
    table._ipython_display_()
    assert "no two finished ones are ticked" in kept[-1].data and "(3 of 3)" in kept[-1].data
    assert all(f"<td>judge/{name}</td>" in kept[-1].data for name in ("weighted", "moe", "stopped"))
    table.compare("judge/weighted", "judge/moe")
    assert "held-out steps; R@1" in kept[-1].alt
    table.compare("judge/weighted", "judge/stopped")
    assert "step 3 of 6" in kept[-1].data
    for text, said in {"moe": "(1 of 3)", "<b>": "(no column &lt;b; "}.items():
        table.table.search(text)
        table.refresh()
        assert said in kept[-1].data and kept[-1].data.count("<td>judge/") == len(table.table.found)


def test_maps_that_a_click_asks_for_are_folded_beside_the_kernel(out, monkeypatch):
    monkeypatch.setattr(module, "fold", lambda x: x[:, :2].astype(float))

    async def drive():
        table = RunTable(out)
        table.compare("judge/weighted", "judge/moe")  # at once
        table.map_box.children[0].click()
        await asyncio.sleep(0)
        assert table.maps is None and "compiled" in table.map_box.children[0].value
        await table._mapping
        assert table.map_box.children[-1] is table.maps
        table.map_box.children = ()
        table._begin_maps()  # what is looked at meanwhile stays
        table.compare("judge/weighted", "judge/stopped")
        await table._mapping
        assert table.versus is None and table.map_box.children[-1] is not table.maps

    asyncio.run(drive())


def test_a_stopped_run_goes_on_and_a_run_is_deleted_when_that_was_confirmed(out):
    async def drive():
        table = RunTable(out)
        b = table.buttons
        assert b["resume"].disabled and b["delete"].disabled
        table.table.tick("judge/moe")
        await asyncio.sleep(0.01)
        assert b["resume"].disabled and not b["delete"].disabled
        with pytest.raises(InputError, match="is finished"):
            table.resume("judge/moe")
        table.table.ticked = ["judge/stopped"]
        await asyncio.sleep(0.01)
        assert not b["resume"].disabled
        b["resume"].click()
        deadline = time.time() + 120
        while dict(json.loads(table.table.rows))["judge/stopped"][1] != "finished":
            assert time.time() < deadline
            await asyncio.sleep(0.05)
        assert Run(out / "judge" / "stopped").finished and b["resume"].disabled

        b["delete"].click()
        await asyncio.sleep(0.01)
        assert table.asking.layout.display == "" and "Delete judge/stopped?" in table.question.value
        table.answer(False)
        assert (out / "judge" / "stopped").is_dir() and table.asking.layout.display == "none"
        table.answer(True)  # nothing is asked any more
        assert (out / "judge" / "stopped").is_dir()
        b["delete"].click()
        await asyncio.sleep(0.01)
        table.answer(True)
        await asyncio.sleep(0.01)
        assert sorted(p.name for p in (out / "judge").iterdir()) == ["moe", "weighted"]
        assert "is deleted" in table.said.value and table.table.ticked == [] and b["delete"].disabled
        (out / "judge" / "moe" / "notes.md").write_text("mine")
        table.table.ticked = ["judge/moe"]
        b["delete"].click()
        await asyncio.sleep(0.01)
        assert "notes.md" in table.said.value and table.asking.layout.display == "none"
        assert (out / "judge" / "moe" / "notes.md").exists()

    asyncio.run(drive())
