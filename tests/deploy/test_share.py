import getpass
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from rgb2pc_lib.data.workspace import PROJECT, Workspace
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.compact import CompactConfig, CompactRun, open_run
from rgb2pc_lib.deploy.embed import Embedder, embed_packs
from rgb2pc_lib.deploy.export import export_onnx
from rgb2pc_lib.deploy.lighter import to_fp16, to_int8
from rgb2pc_lib.deploy.lookup import open_encoder
from rgb2pc_lib.deploy.share import model_card, share
from rgb2pc_lib.encoders.rays import SOMEWHERE
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run, build_student
from rgb2pc_lib.learning.train import train


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    """A compact student's folder with everything a finished one may hold."""
    folder = tmp_path_factory.mktemp("compact") / "run"
    folder.mkdir()
    run = CompactRun(folder)
    run.save_compact(Compact("resnet18", 32, 8, seed=5), "resnet18")
    config = CompactConfig(run=str(folder / "fused"), size=32, save_dir=str(folder), more_rgb=(str(folder / "more"),))
    run.file("config.json").write_text(config.to_json())
    held_out = {"R@1": 0.125, "cosine": 0.875}
    run.file("summary.json").write_text(
        json.dumps({"n_train": 70, "n_more": 30, "n_held_out": 24, "held-out": held_out})
    )
    ledger = [("teacher", "R2 tcp", 0.9), ("compact", "R2 tcp", 0.71875), ("compact", "CPU ms a frame", 5.5)]
    pd.DataFrame(ledger, columns=["hop", "measure", "value"]).to_csv(run.file("ledger.csv"), index=False)
    run.file("onnx.json").write_text(json.dumps({"relative": 4e-7, "frames": 24}))
    lighter = "model.fp16.onnx", "exports.csv"
    for name in (*lighter, "model.onnx", "infer.py", "state.pt", "metrics.jsonl", "embeddings.npz"):
        run.file(name).write_text("x")
    return run


def no_traces(folder: Path, *paths) -> None:
    for file in folder.rglob("*"):
        data = file.read_bytes()
        for path in (str(PROJECT), str(Path.home()), *map(str, paths)):
            assert path.encode() not in data, f"{file.name} names {path}"
        if file.suffix in (".json", ".md"):
            assert f"/{getpass.getuser()}/".encode() not in data


def test_a_compact_student_comes_back_equal(compact, tmp_path):
    folder = share(compact, tmp_path / "shared")
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    assert isinstance(open_run(folder), CompactRun)
    assert np.array_equal(Embedder.from_run(folder)(images), Embedder.from_run(compact)(images))
    assert {p.name for p in folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "summary.json", "ledger.csv", "onnx.json", "model.onnx",
        "model.fp16.onnx", "exports.csv", "infer.py",
    }  # fmt: skip
    no_traces(folder, compact.folder)


def test_an_exported_file_names_no_folder(compact, tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install 'rgb2pc[deploy]'")
    run = CompactRun(tmp_path / "run")
    shutil.copytree(compact.folder, run.folder)
    path = export_onnx(run.compact(), run.folder)
    to_fp16(path, run.file("model.fp16.onnx"))
    to_int8(path, run.file("model.int8.onnx"), np.zeros((8, 32, 32, 3), np.uint8))
    folder = share(run, tmp_path / "shared")
    no_traces(folder, compact.folder, tmp_path, Path(torch.__file__).parent)
    assert len(list(folder.glob("*.onnx"))) == 3
    run.file("model.int8.onnx").write_bytes(b"pkg.torch.onnx.stack_trace")  # of before they were stripped
    with pytest.raises(InputError, match="model.int8.onnx: names folders of the machine that exported it; export it"):
        share(run, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_the_card_says_its_own_figures(compact, tmp_path):
    card = (share(compact, tmp_path / "shared") / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: rgb2pc\n") and "# Compact student: resnet18 at 32 x 32" in card
    figures = "| R@1 | 0.125 |", "| cosine | 0.875 |", "| R2 tcp | 0.9 | 0.7188 |", "4.0e-07", "24 held-out frames"
    assert not [figure for figure in figures if figure not in card]
    assert "Trained on 70 frames, 30 of them without a cloud." in card and "## Limits" in card


def test_the_card_does_not_hide_a_view_of_the_future(compact, tmp_path, caplog):
    summary = compact.summary
    seen = {"mean": 3.5, "most": 7, "told": True, "window": 8, "stride": 8, "causal": False}
    compact.file("summary.json").write_text(json.dumps(summary | {"look_ahead": {"vggt": seen}}))
    card = (share(compact, tmp_path / "shared") / "README.md").read_text()
    assert not Embedder.from_run(compact).look_ahead and "learned from was not live" in caplog.text
    compact.file("summary.json").write_text(json.dumps(summary))
    assert "- It sees one frame, but the fused student that it learned from was not live: Trained with a view" in card
    assert "vggt sees 3.5 later frames on average, at most 7" in card
    assert "future" not in (share(compact, tmp_path / "again") / "README.md").read_text()


def card_of(folder, *experts, **settings):
    """The card of a run of such experts with random weights, and the folder that was shared with it."""
    folder.mkdir()
    run, config = Run(folder), Config(fuse_dim=8, **settings)
    channels = {name: open_encoder(name).channels for name in experts}
    run.file("config.json").write_text(config.to_json())
    run.save_student(build_student(config, channels, 8), channels, torch.zeros(8))
    told = {"n_train": 9, "n_held_out": 3, "held-out": {"R@1": 0.5}, "gates": dict.fromkeys(experts, 0.5)}
    run.file("summary.json").write_text(json.dumps(told))
    shared = share(run, folder.with_name("shared"))
    return shared, (shared / "README.md").read_text()


@pytest.mark.parametrize("experts", [("xfeat",), ("xfeat", "rays"), ("xfeat@head", "rays@head", "xfeat@wrist")])
def test_what_the_card_shows_runs(tmp_path, experts):
    """With the frames, and the cameras, that its experts need."""
    folder, card = card_of(tmp_path / "run", *experts)
    (code,) = re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8)
    known = dict(SOMEWHERE._asdict(), images=images, images_1=images, images_2=images[:, ::-1])
    exec(code.replace("this/folder", str(folder)), known)
    assert known["embeddings"].shape == (2, 8)
    assert ("where the camera stands" in card) == ("- It is told where the" in card) == (len(experts) > 1)
    assert ("- It sees through head, wrist: frames are given by camera" in card) == (len(experts) > 2)


def test_the_card_asks_for_weights_that_experts_do_not_bring(tmp_path):
    _, card = card_of(tmp_path / "run", "xfeat")
    assert "weights=" not in card
    run = Run(tmp_path / "run")
    summary = run.summary | {"gates": {"vggt@head": 0.5, "dinov3@head": 0.5}}
    run.file("summary.json").write_text(json.dumps(summary))
    weights = 'weights={"vggt": "its/official/weights", "dinov3": "its/official/weights"})'
    assert f'Embedder.from_run("this/folder", {weights}' in model_card(run)


def test_a_run_of_windows_says_so(tmp_path, caplog):
    folder, card = card_of(tmp_path / "run", "xfeat", sample_unit="window", window=4)
    assert "3 held-out windows of 4 steps against" in card and "- Trained on 9 windows of 4 steps." in card
    assert "- Trained and judged on windows of 4 steps, pooled: its figures say nothing of single frames." in card
    Embedder.from_run(folder, device="cpu")
    assert "shared: Trained and judged on windows of 4 steps, pooled" in caplog.text
    assert "train with --sample_unit step" in caplog.text


def test_a_run_comes_back_equal(left, tmp_path, monkeypatch):
    config = Config(steps=4, batch_size=16, student_tokens=16, fuse_dim=16, save_dir=str(tmp_path / "run"))
    list(train(config.with_workspace(left)))
    folder = share(tmp_path / "run", tmp_path / "shared")
    ours, theirs = (embed_packs(Run.open(f), left)[1] for f in (tmp_path / "run", folder))
    assert np.array_equal(ours, theirs)
    card = (folder / "README.md").read_text()
    assert "# Student of left, right (weighted fusion)" in card
    assert f"{Run.open(folder).summary['held-out']['cosine']:.4g}" in card
    assert "No encoder is called left, right, so it takes no frames" in card
    code = re.findall(r"^```python\n(.*?)^```$", card, re.M | re.S)[0].replace("this/folder", str(folder))
    monkeypatch.setattr(Workspace, "load", lambda path: left)
    known: dict = {}
    exec(code, known)
    assert np.array_equal(known["embeddings"], ours)
    no_traces(folder, tmp_path, *left.experts.values())
    with pytest.raises(InputError, match="holds files already"):
        share(tmp_path / "run", folder)


def test_an_unfinished_run_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(Config().to_json())
    with pytest.raises(InputError, match="unfinished"):
        share(tmp_path / "run", tmp_path / "shared")
    assert not (tmp_path / "shared").exists()
