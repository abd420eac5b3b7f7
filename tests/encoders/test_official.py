"""The real experts with random weights in the official layouts: their tokens, their packs, training on them."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
import tiny
import tiny_weights
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from rgb2pc_lib.data.geometry import token_box
from rgb2pc_lib.data.packs import FeaturePack, list_packs, sees_single_frames
from rgb2pc_lib.data.pairing import OK, pair
from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.data.workspace import PROJECT, SAMPLE, Workspace
from rgb2pc_lib.encoders import da3, vggt
from rgb2pc_lib.encoders.encode import encode
from rgb2pc_lib.encoders.extract import extract, list_frames
from rgb2pc_lib.encoders.images import EXPERTS, STANDINS, describe, load_encoder
from rgb2pc_lib.encoders.vit import normalise
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.runs import Run
from rgb2pc_lib.learning.train import train

OFFICIAL = sorted(set(EXPERTS) - set(STANDINS))
TOGETHER = {"da3", "vggt"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Name -> its tiny weights, saved once."""
    saved = {}

    def get(name):
        missing = [m for m in tiny_weights.NEEDS[name] if importlib.util.find_spec(m) is None]
        if missing:
            pytest.skip(f"expert '{name}' needs {', '.join(missing)}")
        if name not in saved:
            saved[name] = tiny_weights.save(name, tmp_path_factory.mktemp(name))
        return saved[name]

    return get


@pytest.fixture(scope="module")
def load(weights):
    loaded = {}

    def get(name):
        if name not in loaded:
            loaded[name] = load_encoder(name, weights=weights(name))
        return loaded[name]

    return get


def noise(frames, height, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8))


def test_every_expert_is_tested():
    assert set(OFFICIAL) == set(tiny_weights.NEEDS)


# -- where tokens lie


@pytest.mark.parametrize(
    "name, height, width, grid, box",
    [
        ("croco", 240, 320, (14, 14), (0, 0, 1, 1)),
        ("dinov3", 480, 640, (14, 14), (0, 0, 1, 1)),
        ("dinov2", 240, 320, (16, 16), (0, 0, 1, 1)),
        ("vggt", 240, 320, (28, 37), (0, 0, 1, 1)),
        ("vggt", 224, 224, (37, 37), (0, 0, 1, 1)),
        ("vggt", 480, 640, (28, 37), (0, 0, 1, 1)),
        ("vggt", 320, 240, (37, 37), (0, 84 / 686, 1, 602 / 686)),  # 690.7 is rounded to 686 = 49 x 14
        ("vggt", 1036, 518, (37, 37), (0, 0.25, 1, 0.75)),
        ("da3", 240, 320, (27, 36), (0, 0, 1, 1)),
        ("da3", 320, 240, (36, 27), (0, 0, 1, 1)),
        ("da3", 720, 1280, (20, 36), (0, 0, 1, 1)),  # 283.5 is rounded to 284, then to 280
        ("da3", 224, 224, (36, 36), (0, 0, 1, 1)),
    ],
)
def test_grids_and_boxes(name, height, width, grid, box):
    view = describe(name).view(height, width)
    assert view.grid == grid and view.box == pytest.approx(box)
    if name == "vggt":  # what is assumed of the packs that others made
        assert token_box({"model_name": "VGGT"}, grid, raw_size=(height, width)) == pytest.approx(box)


def test_images_that_are_too_thin_are_refused():
    with pytest.raises(InputError, match="'vggt': expected images less than 37 times as wide as high, found 800 x 8"):
        describe("vggt").view(8, 800)
    with pytest.raises(InputError, match="'da3': expected images less than 72 times as long as wide, found 8 x 800"):
        describe("da3").view(800, 8)


WIDE, TALL = (60, 200, [(0.3, 0.75), (0.7, 0.2)]), (200, 100, [(0.4, 0.75), (0.6, 0.3)])  # of TALL VGGT sees the middle


@pytest.mark.parametrize(
    "name, image", [*((name, WIDE) for name in OFFICIAL), *((name, TALL) for name in OFFICIAL if name != "da3")]
)  # Depth Anything 3 is not tiny, and sees all of either
def test_a_bright_square_changes_the_tokens_under_it(load, name, image):
    height, width, places = image
    encoder = load(name)
    low = torch.rand(1, 3, height // 10, width // 10, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(low, (height, width))
    plain = (smooth * 60 + 80).byte()[0].permute(1, 2, 0)
    view = encoder.view(height, width)
    before = encoder(plain[None])[0]
    for y, x in places:
        marked, row, col = plain.clone(), int(y * height), int(x * width)
        marked[row - 4 : row + 4, col - 4 : col + 4] = torch.tensor([255, 250, 20], dtype=torch.uint8)
        change = (encoder(marked[None])[0] - before).norm(dim=-1)  # [Hf, Wf]
        cell = np.array(divmod(change.argmax().item(), view.grid[1])) + 0.5  # row, column
        x0, y0, x1, y1 = view.box
        expected = (y - y0) / (y1 - y0) * view.grid[0], (x - x0) / (x1 - x0) * view.grid[1]  # in cells
        assert np.abs(cell - expected).max() <= 1


# -- what a token depends on


@pytest.mark.parametrize("name", OFFICIAL)
def test_only_what_sees_frames_together_depends_on_the_window(load, name):
    encoder, images = load(name), noise(3, 40, 200)
    whole, alone = encoder(images), torch.cat([encoder(images[i : i + 1]) for i in range(3)])
    assert encoder.together == (name in TOGETHER)
    off = (whole - alone).norm(dim=-1).mean(dim=(1, 2)) / whole.norm(dim=-1).mean()  # [3]
    assert (off > 0.005).all() if encoder.together else off.max() < 1e-5
    assert torch.equal(encoder(images), whole) and not whole.requires_grad
    tokens = encode(encoder, images, window=2, stride=1, batch=2)
    assert tokens.shape == (2, 2, *encoder.view(40, 200).grid, encoder.channels)
    same = torch.isclose(tokens[0, 1], tokens[1, 0], atol=1e-4).float().mean()  # frame 1 in both windows
    assert same < 0.1 if encoder.together else same == 1
    torch.testing.assert_close(tokens[1], encoder(images[1:]), rtol=1e-4, atol=1e-4)


def test_names_tell_which_experts_see_frames_together():
    """What is said of packs that do not say it themselves (`data.packs.frames_ahead`)."""
    for name in EXPERTS:
        assert sees_single_frames(name) != describe(name).together


def test_the_first_frame_of_vggt_is_special(load):
    images = noise(2, 40, 200)
    forth, back = load("vggt")(images), load("vggt")(images.flip(0)).flip(0)
    assert (forth - back).norm() > 0.005 * forth.norm()


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_da3_is_the_packages_own_network(load, weights, frames):
    """The package's export of features gives the second half; from 3 frames on in its own order, reference first."""
    encoder, images = load("da3"), noise(frames, 40, 320)
    theirs = da3.backbone("small").eval()
    state = load_file(weights("da3") / "model.safetensors")
    theirs.load_state_dict({k.removeprefix("model.backbone."): v for k, v in state.items() if "backbone" in k})
    x = normalise(da3.prepare(images, encoder.view(40, 320)))[None]
    outputs, (exported,) = theirs(x, export_feat_layers=[11])
    tokens = encoder(images).flatten(1, 2)
    torch.testing.assert_close(tokens, outputs[-1][0][0], rtol=1e-5, atol=1e-5)
    off = torch.cdist(tokens[..., 384:].flatten(1), exported[0].flatten(1)) / tokens[..., 384:].flatten(1).norm(dim=1)
    order = off.argmin(1).tolist()
    assert off.min(1).values.max() < 1e-4 and sorted(order) == list(range(frames))
    assert order == list(range(frames)) or frames >= 3
    changed = images.clone()
    changed[-1] = 255 - changed[-1]
    moved = (encoder(changed).flatten(1, 2) - tokens)[..., :384].norm(dim=(1, 2))
    assert moved.argmax() == frames - 1  # ours stay in the order of the frames


@torch.no_grad()
@pytest.mark.parametrize("name", ["dinov2", "dinov3"])
def test_dino_is_the_last_layer_without_special_tokens(load, weights, name):
    transformers = pytest.importorskip("transformers")
    images = noise(2, 48, 80)
    if name == "dinov3":
        pixels = F.interpolate(images.permute(0, 3, 1, 2) / 255, (224, 224), mode="bilinear", antialias=True)
    else:
        pixels = [np.asarray(Image.fromarray(i).resize((224, 224), Image.Resampling.BICUBIC)) for i in images.numpy()]
        pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    hidden = transformers.AutoModel.from_pretrained(weights(name)).eval()((pixels - mean) / std).last_hidden_state
    tokens = load(name)(images)
    side = {"dinov2": 16, "dinov3": 14}[name]
    assert hidden.shape[1] - side**2 == {"dinov2": 1, "dinov3": 5}[name]
    torch.testing.assert_close(tokens, hidden[:, -(side**2) :].unflatten(1, (side, side)), rtol=1e-5, atol=1e-5)


# -- weights


@pytest.mark.parametrize("name", OFFICIAL)
def test_without_weights_it_says_what_to_get(weights, name):
    weights(name)  # the packages are there
    with pytest.raises(InputError) as e:
        load_encoder(name)
    for said in ("licence: ", "https://", f"--weights {name}=PATH", "--allow_download", describe(name).licence):
        assert said in str(e.value)
    with pytest.raises(InputError, match=f"nowhere: no such file or folder. expert '{name}' needs its weights"):
        load_encoder(name, weights="nowhere")


@pytest.mark.parametrize("name", [n for n, packages in tiny_weights.NEEDS.items() if packages])
def test_a_missing_package_says_what_to_install(weights, name, monkeypatch):
    path = weights(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=f"expert '{name}' needs the package .* run: pip install"):
        load_encoder(name, weights=path)


@pytest.mark.parametrize("name", ["croco", "da3", "vggt"])
def test_other_weights_are_refused_by_name(weights, tmp_path, name):
    weights(name)
    torch.save(
        {"model": {"fc.weight": torch.zeros(2)}, "croco_kwargs": {"pos_embed": "RoPE100"}}, tmp_path / "other.pth"
    )
    with pytest.raises(InputError, match="other.pth: expected"):
        load_encoder(name, weights=tmp_path / "other.pth")
    with pytest.raises(InputError, match="expected .* in this folder, found other.pth"):
        load_encoder(name, weights=tmp_path)


def test_one_missing_parameter_is_named(weights, tmp_path):
    found = torch.load(weights("croco"), weights_only=True)
    del found["model"]["enc_blocks.1.mlp.fc1.bias"]
    torch.save(found, tmp_path / "croco.pth")
    with pytest.raises(InputError, match=r"croco.pth: .* 'enc_blocks.1.mlp.fc1.bias' is missing instead of \(128,\)"):
        load_encoder("croco", weights=tmp_path / "croco.pth")
    found["croco_kwargs"]["pos_embed"] = "cosine"
    torch.save(found, tmp_path / "croco.pth")
    with pytest.raises(InputError, match="a CroCo v1 checkpoint"):
        load_encoder("croco", weights=tmp_path / "croco.pth")


def test_dino_folders_are_checked(weights, tmp_path):
    with pytest.raises(InputError, match="expected dinov3_vit for expert 'dinov3', found 'dinov2'"):
        load_encoder("dinov3", weights=weights("dinov2"))
    with pytest.raises(InputError, match="expected a folder with config.json and model.safetensors"):
        load_encoder("dinov2", weights=tmp_path)
    config = json.loads((weights("dinov2") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="expected a model that transformers reads"):
        load_encoder("dinov2", weights=tmp_path)
    (tmp_path / "model.safetensors").write_bytes((weights("dinov2") / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match="weights do not fit config.json"):
        load_encoder("dinov2", weights=tmp_path)


def test_other_weights_are_told_apart_by_their_fingerprint(tmp_path):
    saved = (tiny_weights.save("vggt", tmp_path / name, seed) for name, seed in {"a": 0, "b": 1, "again": 0}.items())
    a, b, again = (load_encoder("vggt", weights=path) for path in saved)
    assert a.weights == again.weights != b.weights


# -- packs of real frames, and training on them


def band(root, episodes=4, steps=4):
    """The middle of frames of the sample, 32 x 224 pixels: fewer tokens for the network that is not tiny."""
    for (task, episode), files in list_frames(Workspace.load(SAMPLE).rgb, ["hammer"]).items():
        if int(episode[-4:]) < episodes:
            (root / task / episode).mkdir(parents=True)
            for file in files[:steps]:
                Image.fromarray(read_image(file)[96:128]).save(root / task / episode / f"{file.stem}.png")
    return root


def test_from_frames_to_training(load, tmp_path):
    rng, rgb = np.random.default_rng(0), band(tmp_path / "rgb")
    for name in OFFICIAL:
        assert extract(load(name), rgb, tmp_path / f"features_{name}", window=3, stride=1, progress=False) == (4, 0)
        assert extract(load(name), rgb, tmp_path / f"features_{name}", window=3, stride=1, progress=False) == (0, 4)
        pack = FeaturePack.open(list_packs(tmp_path / f"features_{name}")["hammer", "episode_0001"])
        view = load(name).view(32, 224)
        assert pack.features.shape == (2, 3, *view.grid, load(name).channels) and pack.dtype == torch.float16
        assert pack.box == view.box and pack.meta["raw_size"] == [32, 224] and pack.meta["licence"]
        first, second = pack.features[0, 1].astype(float), pack.features[1, 0].astype(float)  # step 1 in both windows
        assert (np.abs(first - second).max() > 0.01) == (name in TOGETHER)
    for (task, episode), files in list_frames(rgb).items():
        names = [f.stem for f in files]
        tiny.write_teacher(tmp_path / "teacher", task, episode, names, rng.normal(size=(4, 16)), rng)
    experts = {name: tmp_path / f"features_{name}" for name in OFFICIAL}
    workspace = Workspace(teacher=tmp_path / "teacher", experts=experts, rgb=rgb, name="official")
    assert (pair(workspace).table[OFFICIAL] == OK).all().all()
    config = Config(steps=4, batch_size=4, student_tokens=16, fuse_dim=16, eval_every=0, save_dir=str(tmp_path / "run"))
    list(train(config.with_workspace(workspace)))
    stored = Run.open(tmp_path / "run").embeddings_of_all()
    assert len(stored["student"]) == 16 and np.isfinite(stored["student"]).all()


def test_a_tall_image_has_no_vggt_token_outside_its_band(load, tmp_path):
    (tmp_path / "rgb" / "push" / "ep_0").mkdir(parents=True)
    Image.fromarray(noise(1, 200, 100)[0].numpy()).save(tmp_path / "rgb" / "push" / "ep_0" / "step_0000.png")
    extract(load("vggt"), tmp_path / "rgb", tmp_path / "out", progress=False)
    pack = FeaturePack.open(tmp_path / "out" / "push" / "ep_0.pt")
    _, covered = pack.tokens("step_0000", np.array([[0.5, 0.2], [0.5, 0.3], [0.5, 0.7], [0.5, 0.8]]))
    assert covered.tolist() == [False, True, True, False] and pack.box == (0, 0.25, 1, 0.75)
    assert vggt.describe().licence == pack.meta["licence"]


# -- command line


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("tool", PROJECT / "tools" / "extract_features.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.main


def test_the_tool_takes_weights_and_tells_disk_needs(tool, weights, tmp_path, capsys):
    rgb = band(tmp_path / "rgb", episodes=2)
    words = ["--encoder", "croco", "vggt", "--rgb_root", str(rgb), "--out", str(tmp_path / "out"), "--window", "4"]
    assert tool([*words, "--stride", "2"]) == 2 and "expert 'croco' needs its weights" in capsys.readouterr().err
    given = ["--weights", f"vggt={weights('vggt')}", f"croco={weights('croco')}"]
    assert tool([*words, "--stride", "2", *given, "--dry_run"]) == 0 and not (tmp_path / "out").exists()
    told = capsys.readouterr().out
    sizes = {"croco": 1 * 4 * 14 * 14 * 32 * 2, "vggt": 1 * 4 * 5 * 37 * 64 * 2}  # bytes an episode
    for name, shape in (("croco", [1, 4, 14, 14, 32]), ("vggt", [1, 4, 5, 37, 64])):
        assert told.count(f"{shape} {sizes[name] / 1e6:.1f} MB") == 2
        assert f"{name}: {2 * sizes[name] / 1e6:.1f} MB in 2 packs, {2 * sizes[name] / 1e6:.1f} MB to write" in told
    assert tool([*words, "--stride", "2", *given]) == 0 and "vggt: 2 packs written, 0 kept" in capsys.readouterr().out
    for name, path in ((n, p) for n in sizes for p in list_packs(tmp_path / "out" / f"features_{n}").values()):
        assert FeaturePack.open(path).nbytes == sizes[name]
    assert tool([*words, "--stride", "2", *given, "--dry_run"]) == 0
    assert "(there already)" in (told := capsys.readouterr().out) and "0.0 GB to write" in told
    assert tool([*words, "--weights", "vgt=x"]) == 2
    assert "expected NAME=PATH" in capsys.readouterr().err


def test_ranks_share_the_episodes(tool, weights, tmp_path, monkeypatch, capsys):
    rgb = band(tmp_path / "rgb", episodes=3, steps=2)
    words = [
        "--encoder",
        "croco",
        "--rgb_root",
        str(rgb),
        "--out",
        str(tmp_path),
        "--weights",
        f"croco={weights('croco')}",
    ]
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, written in ((0, 2), (1, 1)):
        monkeypatch.setenv("RANK", str(rank))
        assert tool(words) == 0 and f"croco: {written} packs written, 0 kept" in capsys.readouterr().out
    assert len(list_packs(tmp_path / "features_croco")) == 3


def test_the_expert_is_described_as_it_is_loaded(load, weights):
    for name in OFFICIAL:
        about = {f.name: getattr(describe(name, weights(name)), f.name) for f in dataclasses.fields(describe(name))}
        loaded = {key: getattr(load(name), key) for key in about}
        assert about.pop("view")(32, 224) == loaded.pop("view")(32, 224) and about == loaded
