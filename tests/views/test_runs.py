import dataclasses
import json

from rgb2pc_lib.learning.runs import Config
from rgb2pc_lib.views.runs import all_runs

SMALL = Config(steps=20, vis_roots={"a": "x", "b": "y"}, pc_root="z")


def left(folder, config, found=None, step=0):
    """What a training leaves of itself at some moment."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    (folder / "metrics.jsonl").write_text(json.dumps({"step": step, "loss": 1.0}) + "\n")
    if found is not None:
        (folder / "summary.json").write_text(json.dumps({"n_train": 8, "n_held_out": 4, "held-out": found}))


def test_runs_of_all_kinds_stand_in_one_table_with_what_differs(tmp_path):
    left(tmp_path / "judge" / "moe-seed0", dataclasses.replace(SMALL, fusion="moe"), {"R@1": 0.5, "CKA": 0.9}, 20)
    left(tmp_path / "judge" / "a-only", dataclasses.replace(SMALL, vis_roots={"a": "x"}), {"R@1": 0.25}, 20)
    left(tmp_path / "panel" / "moe", dataclasses.replace(SMALL, fusion="moe", lr=0.1), step=7)
    left(tmp_path / "panel" / "broken", SMALL, {"R@1": "high"})
    (tmp_path / "compact" / "small").mkdir(parents=True)
    (tmp_path / "compact" / "small" / "config.json").write_text('{"run": "judge/moe-seed0"}')
    table = all_runs(tmp_path).set_index("run")
    assert set(table.index) == {"judge/moe-seed0", "judge/a-only", "panel/moe", "panel/broken"}
    assert table.loc["judge/moe-seed0", ["state", "R@1", "fusion", "vis_roots"]].tolist() == [
        "finished",
        0.5,
        "moe",
        "a+b",
    ]
    assert table.loc["panel/moe", "state"] == "step 7 of 20" and table.loc["panel/moe", "lr"] == 0.1
    assert "R@1" in table.loc["panel/broken", "state"] and "summary.json" in table.loc["panel/broken", "state"]
    assert "steps" not in table and all_runs(tmp_path / "nowhere").empty
