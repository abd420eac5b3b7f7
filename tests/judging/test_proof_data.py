"""The road to the tables in small: episodes recorded and extracted, a teacher judged, settings compared; twice."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from rgb2pc_lib.data.workspace import PROJECT

pytest.importorskip("metaworld", reason="the simulator is the extra sim")

TOML = """name = "small proof"
[roots]
teacher = "teacher"
rgb = "rgb"
clouds = "clouds"
state = "state"
[experts]
daisy = "features_daisy"
simdepth = "features_simdepth"
"""


def call(tool, *words):
    command = [sys.executable, str(PROJECT / "tools" / f"{tool}.py"), *map(str, words)]
    small = os.environ | {"RGB2PC_FAST": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=small)
    assert done.returncode == 0, f"{tool}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def proof(tmp_path_factory):
    root = tmp_path_factory.mktemp("proof")
    (root / "proof.toml").write_text(TOML)
    words = ["--tasks", "drawer-open", "window-open", "--episodes", 7, "--first_seed", 7000]
    call("record_sim", "--out", root, *words, "--randomise", "mostly")
    call("extract_teacher", "--workspace", root / "proof.toml")
    call("extract_features", "--workspace", root / "proof.toml", "--encoder", "daisy", "simdepth")
    return root


def test_a_teacher_is_judged_beside_others(proof, tmp_path):
    table = tmp_path / "teachers.csv"
    shipped = PROJECT / "data" / "teacher" / "pointnet.safetensors"
    words = ["--weights", f"again={shipped}", "--pooling", "mean", "mean+max", "--out", table]
    call("judge_teacher", "--workspace", proof / "proof.toml", *words)
    found = pd.read_csv(table, index_col=0)
    assert set(found) == {f"{n}, {p}" for n in ("untrained", "shipped", "again") for p in ("mean", "mean+max")}
    assert (found["again, mean"] == found["shipped, mean"]).all()
    assert found.loc["width", ["shipped, mean", "shipped, mean+max"]].tolist() == [256, 512]


def test_settings_are_compared_and_finished_runs_kept(proof, tmp_path):
    shutil.copytree(proof / "teacher", proof / "teacher_copy")
    other = f"same={proof / 'teacher_copy'}"
    words = ["--workspace", proof / "proof.toml", "--out", tmp_path, "--seeds", 2, "--steps", 4]
    asked = ["--only", "fusion", "experts", "episodes", "teachers", "--teachers", other]
    said = call("ablate", *words, *asked)
    table = pd.read_csv(tmp_path / "answers.csv").set_index(["answer", "measure"])
    names = {"weighted", "moe", "uniform", "daisy only", "simdepth only"}  # of two, one alone is also without the other
    assert names | {"1 episodes a task", "2 episodes a task", "teacher same"} <= set(table.index.get_level_values(0))
    assert (table.loc["teacher same", "difference"].abs() < 1e-9).all()  # the same teacher by another name
    assert (table["seeds"] == 2).all() and "Validation episodes" in said
    assert "0 of 16" in said and "16 of 16 runs are there already" in call("ablate", *words, *asked)
