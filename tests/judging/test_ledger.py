import json

import numpy as np
import pandas as pd
import pytest
import tiny_weights
import torch
from scripts import load_script

from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.compact import CompactConfig, CompactRun
from rgb2pc_lib.encoders.rays import CHANNELS
from rgb2pc_lib.judging.evaluate import Judgement
from rgb2pc_lib.judging.ledger import (
    COSTS,
    FUSED,
    TEACHER,
    advantage_kept,
    compact_hops,
    costs,
    expert_hops,
    in_words,
)
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run, build_student
from rgb2pc_lib.views.compact import ledger_figure

QUALITY = {
    TEACHER: {"CKA": 1.0, "R2 tcp": 0.9, "tcp cm": 3.0, "R2 object": 0.3},
    "a": {"CKA": 0.3, "R2 tcp": 0.6, "tcp cm": 6.0, "R2 object": 0.5},
    "b": {"CKA": 0.2, "R2 tcp": 0.5, "tcp cm": 5.0, "R2 object": 0.1},
    FUSED: {"R@1": 0.4, "R@5": 0.7, "R@10": 0.8, "CKA": 0.6, "R2 tcp": 0.8, "tcp cm": 4.0, "R2 object": 0.4},
    "small": {"R@1": 0.3, "R@5": 0.6, "R@10": 0.7, "CKA": 0.5, "R2 tcp": 0.75, "tcp cm": 4.5, "R2 object": 0.2},
}


@pytest.fixture
def table():
    cost = {FUSED: dict(zip(COSTS, (10.0, 200.0, 300.0), strict=True)), "small": {COSTS[1]: 9.0}}
    rows = [(h, m, v) for some in (QUALITY, cost) for h, row in some.items() for m, v in row.items()]
    return pd.DataFrame(rows, columns=["hop", "measure", "value"])


def ledger(table, spread=0.0):
    """The sums by episode that give the R2 of a table: ten episodes, whose errors are spread evenly."""
    r2 = table[table["measure"].str.startswith("R2 ")]
    rows = [
        (r.hop, 0, r.measure.removeprefix("R2 "), f"t/e{i}", "", 1 - r.value + spread * (i - 4.5) * len(r.hop), 1.0)
        for r in r2.itertuples() for i in range(10)
    ]  # fmt: skip
    return Judgement(
        table, pd.DataFrame(rows, columns=["model", "seed", "probe", "episode", "look", "error", "around"])
    )


def test_advantage_is_measured_from_the_best_expert_of_each_probe(table):
    kept = advantage_kept(ledger(table), "small").set_index("measure")
    assert kept.loc["R2 tcp", "best expert"] == "a" and kept.loc["R2 tcp", "kept"] == pytest.approx(0.75)
    assert kept.loc["tcp cm", "best expert"] == "b" and kept.loc["tcp cm", "kept"] == pytest.approx(0.5)
    assert np.isnan(kept.loc["R2 object", "kept"])  # the best expert knows more than the fused student
    assert set(kept.index) == {"R2 tcp", "tcp cm", "R2 object"} and kept.loc["R2 object", "advantage"] == "no"
    assert kept.loc["R2 tcp", ["low", "high"]].tolist() == pytest.approx([0.75, 0.75])


def test_of_an_advantage_that_episodes_do_not_show_no_share_is_told(table):
    kept = advantage_kept(ledger(table, spread=0.03), "small").set_index("measure")
    assert set(kept.loc[["R2 tcp", "tcp cm"], "advantage"]) == {"not told apart"} and kept["kept"].isna().all()
    assert "whether there is one is not told apart" in in_words(ledger(table, spread=0.03))[0]


def test_the_figure_knows_who_is_who(table):
    assert expert_hops(table) == ["a", "b"] and compact_hops(table) == ["small"]
    figure = ledger_figure(table)
    assert [t.get_text() for t in figure.axes[2].get_yticklabels()] == [FUSED, "small"]
    more = table[table["measure"] == "R2 tcp"].assign(measure="R2 places: tcp")
    places = ledger_figure(pd.concat([table, more], ignore_index=True)).axes[1]
    assert "spatial tokens" in places.get_title() and [t.get_text() for t in places.get_xticklabels()] == ["tcp"]


def test_costs_of_a_compact_student_and_of_one_that_is_told_the_camera(tmp_path):
    fused = Run(tmp_path / "fused")
    fused.folder.mkdir()
    config = Config(fuse_dim=8, vis_roots={"rays": "x"})
    fused.file("config.json").write_text(config.to_json())
    fused.save_student(build_student(config, {"rays": CHANNELS}, 4), {"rays": CHANNELS}, torch.zeros(4))
    told = {"n_train": 1, "n_held_out": 1, "held-out": {}, "gates": {"rays": 1.0}}
    fused.file("summary.json").write_text(json.dumps(told))
    run = CompactRun(tmp_path)
    network = Compact("resnet18", 32, 8)
    run.save_compact(network, "resnet18")
    run.file("config.json").write_text(CompactConfig(size=32).to_json())
    images = np.zeros((2, 40, 40, 3), np.uint8)
    found = costs({FUSED: fused, "small": run}, images, repeats=2).set_index(["hop", "measure"])["value"]
    assert found["small", COSTS[0]] == pytest.approx(sum(p.numel() for p in network.parameters()) / 1e6)
    assert found[FUSED, COSTS[1]] > 0 and found[FUSED, COSTS[0]] < 0.1
    assert found["small", COSTS[1]] > 0 and 20 < found["small", COSTS[2]] < 2000  # 11 M floats are 45 MB


def test_costs_of_several_cameras_and_of_experts_that_are_not_here(tmp_path, caplog):
    runs = {}
    for name, channels in (("two", {"rays@head": CHANNELS, "rays@wrist": CHANNELS}), ("far", {"croco": 32})):
        run = runs[name] = Run(tmp_path / name)
        run.folder.mkdir()
        config = Config(fuse_dim=8, vis_roots=dict.fromkeys(channels, "x"))
        run.file("config.json").write_text(config.to_json())
        run.save_student(build_student(config, channels, 4), channels, torch.zeros(4))
        told = {"n_train": 1, "n_held_out": 1, "held-out": {}, "gates": dict.fromkeys(channels, 0.5)}
        run.file("summary.json").write_text(json.dumps(told))
    images = np.zeros((1, 40, 40, 3), np.uint8)
    found = costs(runs, images, repeats=1)
    assert set(found["hop"]) == {"two"} and set(found["measure"]) == set(COSTS)
    assert "far: no costs, as its experts cannot be opened here: expert 'croco' needs its weights" in caplog.text
    weights = tiny_weights.save("croco", tmp_path / "croco")
    found = costs({"far": runs["far"]}, images, repeats=1, weights={"croco": weights})
    assert set(found["measure"]) == set(COSTS)


def test_folders_of_one_name_are_not_judged_as_one(tmp_path, capsys):
    tool = load_script(PROJECT / "tools" / "judge_compact.py")
    for parent in ("a", "b"):
        (tmp_path / parent / "x").mkdir(parents=True)
        (tmp_path / parent / "x" / "config.json").write_text(CompactConfig().to_json())
    assert tool.main([str(tmp_path / "a" / "x"), str(tmp_path / "b" / "x")]) == 2
    assert "expected folders of different names" in capsys.readouterr().err


def test_words_follow_the_figures():
    values = {
        "teacher": (0.95, 0.9, 1.0, None), "a": (0.80, 0.75, None, None), FUSED: (0.90, 0.71, 0.4, 100.0),
        "small": (0.85, 0.9, 0.3, 20.0),
    }  # fmt: skip
    names = ("R2 tcp", "R2 object", "R@1", COSTS[1])
    lines = [(hop, m, v) for hop, row in values.items() for m, v in zip(names, row, strict=True) if v is not None]
    lines += [("small, ONNX", COSTS[1], 10.0)] + [(hop, "CKA", 0.5) for hop in values]
    table = pd.DataFrame(lines, columns=["hop", "measure", "value"])
    table = table[~((table["hop"] == "teacher") & (table["measure"] == "R@1"))]
    assert in_words(ledger(table)) == [
        "small: R2 tcp 0.85, -0.050 [-0.050, -0.050] from the fused student, worse; "
        "keeps 50% [50%, 50%] of what fusion gained over a",
        "small: R2 object 0.90, +0.190 [+0.190, +0.190] from the fused student, better; "
        "advantage of fusion over a that could be kept: no",
        "small: 20 CPU ms a frame, 5 times faster",
        "small, ONNX: 10 CPU ms a frame, 10 times faster",
        "One training each: what another seed changes is not in these figures.",
    ]
    without = table[(table["hop"] != FUSED) | (table["measure"] != COSTS[1])]  # whose experts were not here
    assert "small: 20 CPU ms a frame" in in_words(ledger(without))
