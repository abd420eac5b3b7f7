"""Run folders of other versions, and damaged ones: they open, resume and embed as before, or one line says why not."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from rgb2pc_lib.deploy.compact import CompactConfig, CompactRun, open_run
from rgb2pc_lib.deploy.embed import embed_packs
from rgb2pc_lib.errors import InputError, tell
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run, look_ahead_words, most_ahead
from rgb2pc_lib.learning.train import train

OLD = Path(__file__).with_name("old_run")  # finished by an earlier version, with its checkpoint of step 4 of 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The data that the old run was trained on."""
    root = tmp_path_factory.mktemp("data")
    tiny.make(root, "left", episodes=4)
    return root


def old_run(folder: Path, data: Path, changes: dict | None = None, without: tuple[str, ...] = ()) -> Run:
    shutil.copytree(OLD, folder)
    path = folder / "config.json"
    settings = json.loads(path.read_text().replace("DATA", str(data)).replace("RUN", str(folder))) | (changes or {})
    path.write_text(json.dumps({k: v for k, v in settings.items() if k not in without}))
    return Run.open(folder)


def test_an_old_run_opens_and_embeds(data, tmp_path):
    run = old_run(tmp_path / "run", data)
    stored = run.embeddings()
    assert run.finished and run.metrics()["step"].tolist() == [1, 2, 4, 6, 8, 10, 12]
    assert run.summary["held-out"].keys() == {"R@1", "R@5", "R@10", "median rank", "cosine", "CKA", "kNN overlap"}
    keys, found = embed_packs(run, run.config.workspace, device="cpu")
    assert (keys["step"].to_numpy() == stored["step"]).all()
    np.testing.assert_allclose(found, stored["student"], atol=1e-5)


def test_an_old_run_resumes_to_its_numbers(data, tmp_path):
    run = old_run(tmp_path / "run", data)
    then = run.summary
    for name in ("summary.json", "model.safetensors", "embeddings.npz"):
        run.file(name).unlink()
    steps = [p.step for p in train(run.config, resume=True)]
    assert steps == list(range(5, 13))
    assert run.summary["held-out"] == pytest.approx(then["held-out"], abs=1e-5)
    assert run.summary["data_hash"] == then["data_hash"]


def test_what_is_refused_today_still_opens(data, tmp_path):
    with pytest.raises(InputError, match="--moe_top_k 1"):
        Config(fusion="moe", moe_top_k=1)
    run = old_run(tmp_path / "run", data, {"moe_top_k": 1, "held_out": 0.0})
    assert run.config.moe_top_k == 1 and len(embed_packs(run, run.config.workspace, device="cpu")[1]) == 96


def test_a_setting_that_the_file_does_not_name_has_its_default_and_that_is_told(data, tmp_path, caplog):
    tell.cache_clear()
    run = old_run(tmp_path / "run", data, without=("anchor", "point_target"))
    run.student()
    run.student()
    (told,) = [r.getMessage() for r in caplog.records]
    assert told.startswith(f"{run.folder}: config.json does not say all settings; those it leaves out are taken to be ")
    assert "point_target = 'teacher'" in told and "anchor = 'middle'" in told and "validation = 0.0" in told
    assert "amp" not in told
    run = old_run(tmp_path / "other", data, without=("fuse_dim",))
    with pytest.raises(InputError, match=r"not the weights that config.json describes .*fuse_dim = 256") as found:
        run.student()
    assert "\n" not in str(found.value)


# file -> what was done to it -> (new content, words that the message must have)
SETTINGS = {
    "an unknown setting": ({"moe_router": "sinkhorn"}, "moe_router: no such setting here"),
    "an unknown choice": ({"fusion": "attention"}, "fusion: expected one of weighted, moe, uniform, found 'attention'"),
    "text for a number": ({"fuse_dim": "wide"}, "fuse_dim: expected a whole number, found 'wide'"),
    "a number for text": ({"device": 0}, "device: expected text, found 0"),
    "true for a number": ({"steps": True}, "steps: expected a whole number, found True"),
    "a fraction for a number": ({"seed": 0.5}, "seed: expected a whole number, found 0.5"),
    "no number": ({"lr": float("nan")}, "lr: expected a number, found nan"),
    "null": ({"learn_tau": None}, "learn_tau: expected true or false, found None"),
    "out of range": ({"expert_drop": 7.0}, "expert_drop: expected at most 0.9, found 7.0"),
    "text for a list": ({"tasks": "push"}, "tasks: expected a list of texts, found 'push'"),
    "a list for folders": ({"vis_roots": ["a"]}, "vis_roots: expected names with folders, found"),
    "huge": ({"fuse_dim": 10**12}, "not the weights that config.json describes"),
}
TEXTS = {
    "empty": b"", "cut": b'{"route": "disti', "not UTF-8": b'{"route": "\xff"}', "a list": b"[1, 2]",
    "brackets": b"[" * 99_999, "text": b'"settings"', "UTF-16": '{"route": 1}'.encode("utf-16"),
}  # fmt: skip


def refused(call, *words):
    with pytest.raises(InputError) as found:
        call()
    message = str(found.value)
    assert "\n" not in message and len(message) < 1000, message
    assert all(w in message for w in words), message


@pytest.mark.parametrize(("changes", "words"), SETTINGS.values(), ids=SETTINGS)
def test_settings_of_another_version_are_named(data, tmp_path, changes, words):
    run = old_run(tmp_path / "run", data, changes)
    refused(run.student, str(run.folder), "config.json", words)
    if changes != SETTINGS["huge"][0]:
        resumed = Config(save_dir=str(run.folder)).with_workspace(Run.open(OLD).config.workspace)
        refused(lambda: next(train(resumed, resume=True)), str(run.file("config.json")), words)


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS)
def test_damaged_texts_are_named(data, tmp_path, name, content):
    run = old_run(tmp_path / "run", data)
    run.file(name).write_bytes(content)
    refused(lambda: run.config if name == "config.json" else run.summary, str(run.file(name)))
    if name == "config.json":
        refused(lambda: open_run(run.folder), str(run.file(name)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_train": "many"}, "n_train: expected a whole number, found 'many'"),
        ({"held-out": [1]}, "held-out: expected a table, found [1]"),
        ({"held-out": {"R@1": "high"}}, "held-out: R@1: expected a whole number or a number, found 'high'"),
        ({"gates": {"left": None}}, "gates: left: expected"),
    ],
)
def test_figures_of_another_type_are_named(data, tmp_path, changes, words):
    run = old_run(tmp_path / "run", data)
    run.file("summary.json").write_text(json.dumps(run.summary | changes))
    refused(lambda: run.summary, f"{run.file('summary.json')}: {words}")


def test_figures_that_a_newer_version_adds_are_no_fault(data, tmp_path):
    run = old_run(tmp_path / "run", data)
    run.file("summary.json").write_text(json.dumps(run.summary | {"carbon": {"g": 7}}))
    assert run.summary["carbon"] == {"g": 7}


@pytest.mark.parametrize("line", ['{"loss": 1.0}', '{"step": "1"}', '{"step": 1, "loss": "low"}', "[]", "{"])
def test_damaged_curves_are_named(data, tmp_path, line):
    run = old_run(tmp_path / "run", data)
    path = run.file("metrics.jsonl")
    path.write_text(line + "\n" + path.read_text())
    refused(run.metrics, f"{path}: line 1", "delete it; only the curve")


def damaged(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    return {
        "cut": content[:middle],
        "empty": b"",
        "another file": b"hello" * 100,
        "a flipped bit": content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :],
    }


@pytest.mark.parametrize("how", ["cut", "empty", "another file", "a flipped bit"])
@pytest.mark.parametrize("name", ["embeddings.npz", "model.safetensors", "state.pt"])
def test_damaged_arrays_are_named(data, tmp_path, name, how):
    run = old_run(tmp_path / "run", data)
    path = run.file(name)
    path.write_bytes(damaged(path.read_bytes())[how])
    if name == "model.safetensors" and how == "a flipped bit":
        return  # the format has no checksum
    read = {"embeddings.npz": run.embeddings, "model.safetensors": run.student, "state.pt": run.state}[name]
    refused(read, str(path), "with --resume")


def test_a_checkpoint_of_another_training_is_named(data, tmp_path):
    run = old_run(tmp_path / "run", data)
    path = run.file("state.pt")
    state = torch.load(path)
    for changes, words in (
        ({"step": "4"}, "step: expected a whole number, found '4'"), ({"step": 99}, "stands at step 99 of 12"),
        ({"student": {}}, "the checkpoint of another training"), ({"optimiser": {}}, "another training"),
        ({"log_tau": torch.zeros(3)}, "another training"), ({"student": 7}, "another training"),
    ):  # fmt: skip
        torch.save(state | changes, path)
        refused(lambda: next(train(run.config, resume=True)), str(path), words, "the training starts over")
    torch.save({"step": 4}, path)
    refused(run.state, str(path), "not the checkpoint of a training")
    path.unlink()
    assert next(train(run.config, resume=True)).step == 1  # as the message says


def test_weights_that_are_not_those_of_the_settings_are_named(data, tmp_path):
    run = old_run(tmp_path / "run", data)
    run.save_student(run.student()[0], {"left": 10**9, "right": 10}, torch.zeros(16))
    refused(run.student, str(run.file("model.safetensors")), "not the weights that config.json describes")
    run.file("config.json").write_text(CompactConfig(run="x").to_json())
    refused(lambda: run.config, "backbone", "no such setting here")
    refused(CompactRun(run.folder).compact, "weights of something else")


# -- what a run saw of the future


def test_a_run_says_what_it_saw_of_the_future(tmp_path):
    """Windows of 4 frames, one apart, of VGGT: 12 frames an episode, the middle copy of each."""
    made = tiny.make(tmp_path, "left", tasks=("push",), episodes=4)
    for path in made.experts["left"].rglob("*.pt"):  # as others' packs are, which do not say it
        pack = torch.load(path, weights_only=True)
        del pack["meta"]["look_ahead"]
        torch.save(pack, path)
    workspace = dataclasses.replace(made, experts=dict(zip(("vggt", "dinov3"), made.experts.values(), strict=True)))
    small = dict(steps=1, batch_size=8, student_tokens=4, fuse_dim=8, eval_every=0)
    ahead = {}
    for copy in ("middle", "last"):
        list(train(Config(frame_copy=copy, save_dir=str(tmp_path / copy), **small).with_workspace(workspace)))
        ahead[copy] = Run.open(tmp_path / copy).summary["look_ahead"]
        words = look_ahead_words(Run.open(tmp_path / copy).summary)
        assert words.startswith(f"Trained with a view of the future: vggt sees {ahead[copy]['vggt']['mean']:.1f} later")
    assert ahead["middle"]["vggt"]["mean"] == pytest.approx((3 + 2 + 9 * 1 + 0) / 12)  # of two middles the later
    assert ahead["last"]["vggt"]["mean"] == pytest.approx((3 + 2 + 1) / 12) and ahead["last"]["vggt"]["most"] == 3
    assert ahead["middle"]["dinov3"]["most"] == 0 and most_ahead(Run.open(tmp_path / "last").summary) == 3


def test_runs_of_before_say_what_their_names_tell(data, tmp_path):
    run = old_run(tmp_path / "run", data)  # of experts "left" and "right"
    assert "left may see later frames, which was not recorded" in look_ahead_words(run.summary)
    assert math.isnan(most_ahead(run.summary))
    assert look_ahead_words({"gates": {"dinov3": 0.5, "croco": 0.5}}) == "" and most_ahead({"gates": {"xfeat": 1}}) == 0
