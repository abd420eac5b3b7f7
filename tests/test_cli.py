"""The main command line as a real process."""

import subprocess
import sys

import pytest
import yaml

from rgb2pc_lib.data.workspace import PROJECT, parse_expert_root
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.runs import Run

TOOL = PROJECT / "tools" / "train_rgb2pc_distill.py"
FLAGS = (
    "--batch_size 16 --student_tokens 16 --fuse_dim 16 --moe_hidden 8 --steps 12 --lr 1e-3 --tau 0.1 --seed 3 "
    "--device cpu --grad_clip 1 --num_threads 1 --save_every 5 --log_every 2"
).split()


def call(*words):
    return subprocess.run([sys.executable, str(TOOL), *map(str, words)], capture_output=True, text=True)


def roots(workspace):
    return ["--pc_root", workspace.teacher, "--vis_roots", *(f"{k}={v}" for k, v in workspace.experts.items())]


def test_every_documented_flag(left, tmp_path):
    out = call(*roots(left), *FLAGS, "--tasks", "push", "--fusion", "moe", "--loss_mse", "--strict_pairing",
               "--pairing_fallback", "skip", "--sample_unit", "step", "--teacher_points", 3, "--amp",
               "--save_dir", tmp_path)  # fmt: skip
    assert out.returncode == 0, out.stderr
    run = Run.open(tmp_path)
    c = run.config
    assert (c.fusion, c.loss_mse, c.tasks, c.amp, c.seed, c.teacher_points) == ("moe", 1.0, ("push",), "on", 3, 3)
    assert "held-out" in out.stdout and str(run.summary["n_held_out"]) in out.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json", "embeddings.npz", "metrics.jsonl", "model.safetensors", "state.pt", "summary.json",
        "tensorboard",
    ]  # fmt: skip
    assert list((tmp_path / "tensorboard").iterdir())


def test_workspace_yaml_and_overrides(left, tmp_path):
    toml = tmp_path / "mine.toml"
    experts = "\n".join(f'{k} = "{v}"' for k, v in left.experts.items())
    toml.write_text(f'[roots]\nteacher = "{left.teacher}"\n[experts]\n{experts}\n')
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"fusion": "moe", "steps": 9, "batch_size": 16, "fuse_dim": 16, "tau": 0.3}))
    out = call("--workspace", toml, "--config", settings, "--steps", 4, "--no_strict_pairing", "--loss_mse", 0.5,
               "--vis_roots", left.experts["left"], "--save_dir", tmp_path / "run")  # fmt: skip
    assert out.returncode == 0, out.stderr
    c = Run.open(tmp_path / "run").config
    assert (c.fusion, c.steps, c.tau, c.strict_pairing, c.loss_mse) == ("moe", 4, 0.3, False, 0.5)
    assert list(c.vis_roots) == ["left"]  # taken from the folder's name, features_left


def test_the_command_of_a_run_repeats_it(left, tmp_path):
    first = call(*roots(left), *FLAGS, "--save_dir", tmp_path / "a", "--expert_drop", 0.2, "--amp", "off")
    assert first.returncode == 0, first.stderr
    run = Run.open(tmp_path / "a")
    words = run.config.command().replace(str(tmp_path / "a"), str(tmp_path / "b")).split()[2:]
    again = call(*words)
    assert again.returncode == 0, again.stderr
    assert Run.open(tmp_path / "b").summary == run.summary


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fusion", "sum"], "'weighted', 'moe'"),
        (["--steps", "many"], "steps"),
        (["--steps", "0"], "--steps: expected at least 1"),
        (["--bogus"], "--bogus"),
        (["--workspace", "nowhere.toml"], "nowhere.toml: no such workspace file"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--pc_root", "nowhere", "--vis_roots", "a=nowhere"], "nowhere: the teacher root is not a folder"),
        (["--vis_roots", "packs"], "NAME=packs"),
        (["--vis_roots", "a=x", "a=y"], "names an expert twice"),
        (["--resume", "--save_dir", "nowhere"], "holds no run"),
    ],
)
def test_a_wrong_call_ends_with_one_message(words, message):
    out = call(*words)
    assert out.returncode == 2
    assert message in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1 and "Traceback" not in out.stderr


def test_unreadable_packs_and_empty_pairings_end_with_one_message(left, tmp_path):
    import shutil

    shutil.copytree(left.experts["left"], tmp_path / "features_left")
    broken = tmp_path / "features_left" / "push" / "ep_3.pt"
    broken.write_bytes(broken.read_bytes()[:1000])
    words = ["--pc_root", left.teacher, "--vis_roots", tmp_path / "features_left", "--save_dir", tmp_path / "run"]
    out = call(*words)
    assert out.returncode == 2 and str(broken) in out.stderr and "Traceback" not in out.stderr
    (tmp_path / "empty").mkdir()
    out = call("--pc_root", left.teacher, "--vis_roots", f"left={tmp_path / 'empty'}", "--save_dir", tmp_path / "run")
    assert out.returncode == 2 and "no usable sample" in out.stderr and "no such episode" in out.stderr
    assert not (tmp_path / "run").exists()


def test_help_tells_defaults_and_units():
    text = " ".join(call("--help").stdout.split())
    for phrase in ("--no_strict_pairing", "{random,skip,error}", "default: 0.05", "training steps", "steps (type: int"):
        assert phrase in text


def test_expert_names_from_folders():
    assert parse_expert_root("/data/features_vggt_1b_fp16")[0] == "vggt"
    name, folder = parse_expert_root("mine=/data/x=y")
    assert (name, str(folder)) == ("mine", "/data/x=y")
    with pytest.raises(InputError):
        parse_expert_root("/data/features_")
