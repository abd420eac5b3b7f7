import dataclasses
import json

import pytest
from tiny import contents

from rgb2pc_lib.data.files.writing import claim
from rgb2pc_lib.deploy.compact import CompactConfig
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.views.runs import all_runs, built_on, delete_run

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


# -- deleting


def kept(tmp_path, *names):
    return all((tmp_path / name).exists() for name in names)


def test_a_run_is_deleted_alone(tmp_path):
    left(tmp_path / "judge" / "moe", SMALL)
    left(tmp_path / "judge" / "weighted", SMALL)
    outside = tmp_path.parent / f"{tmp_path.name}-notes"
    outside.mkdir()
    (outside / "kept.txt").write_text("mine")
    (tmp_path / "judge" / "moe" / "tensorboard").mkdir()
    (tmp_path / "judge" / "moe" / "tensorboard" / "events").symlink_to(outside, target_is_directory=True)
    delete_run(tmp_path, "judge/moe")
    assert sorted(p.name for p in (tmp_path / "judge").iterdir()) == ["weighted"]
    assert (outside / "kept.txt").read_text() == "mine"  # what a link leads to stays
    assert all_runs(tmp_path)["run"].tolist() == ["judge/weighted"]


@pytest.mark.parametrize("name", ["../judge/moe", "judge/../judge", "judge", ".", "", "judge/moe/tensorboard", "./moe"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    left(tmp_path / "judge" / "moe", SMALL)
    before = contents(tmp_path)
    with pytest.raises(InputError):
        delete_run(tmp_path, name)
    with pytest.raises(InputError):
        delete_run(tmp_path / "judge", str(tmp_path / "judge" / "moe"))
    assert contents(tmp_path) == before


def test_what_is_no_run_or_more_than_one_is_refused(tmp_path):
    left(tmp_path / "judge" / "moe", SMALL)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "moe").symlink_to(tmp_path / "judge" / "moe", target_is_directory=True)
    (tmp_path / "linked").symlink_to(tmp_path / "judge", target_is_directory=True)
    (tmp_path / "judge" / "broken").mkdir()
    (tmp_path / "judge" / "broken" / "config.json").write_text('{"vis_roots": ')
    (tmp_path / "compact" / "small").mkdir(parents=True)
    (tmp_path / "compact" / "small" / "config.json").write_text('{"run": "judge/moe"}')
    left(tmp_path / "judge" / "noted", SMALL)
    (tmp_path / "judge" / "noted" / "thesis.tex").write_text("mine")
    before = contents(tmp_path)
    for name, said in {
        "data/mine": "holds no run", "links/moe": "is a link", "linked/moe": "is a link", "judge/broken": "config.json",
        "compact/small": "holds no run", "judge/noted": "thesis.tex", "judge/nowhere": "holds no run",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=said):
            delete_run(tmp_path, name)
    with claim(tmp_path / "judge" / "moe"), pytest.raises(InputError, match="is being trained"):
        delete_run(tmp_path, "judge/moe")
    assert contents(tmp_path) == before


def test_compact_students_of_a_run_are_named(tmp_path):
    left(tmp_path / "judge" / "moe", SMALL)
    for name, of in {"small": tmp_path / "judge" / "moe", "other": tmp_path / "judge" / "weighted"}.items():
        (tmp_path / "compact" / name).mkdir(parents=True)
        (tmp_path / "compact" / name / "config.json").write_text(CompactConfig(run=str(of)).to_json())
    assert built_on(tmp_path, "judge/moe") == ["compact/small"]
