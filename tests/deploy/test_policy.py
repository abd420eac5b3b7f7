"""A compact student inside a policy: frozen or tuned, under torchvision's names, and the example of the docs."""

import re
import runpy
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from rgb2pc_lib.data.workspace import PROJECT
from rgb2pc_lib.deploy.backbones import Compact, feature_map
from rgb2pc_lib.deploy.compact import CompactConfig, CompactRun
from rgb2pc_lib.deploy.embed import Embedder
from rgb2pc_lib.deploy.policy import PolicyBackbone, save_torchvision, torchvision_state
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config

SIZE = 48


def trained_like(name="resnet18"):
    """A network whose batch norms have statistics like a trained one's."""
    network, draw = Compact(name, SIZE, 8, seed=1, places=4, width=6), torch.Generator().manual_seed(2)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.running_mean, -0.5, 0.5), (layer.running_var, 0.5, 2), (layer.weight.data, 0.5, 1.5),
                (layer.bias.data, -0.5, 0.5),
            ):  # fmt: skip
                tensor.uniform_(low, high, generator=draw)
    return network.eval()


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    """A finished compact student's folder."""
    run = CompactRun(tmp_path_factory.mktemp("compact"))
    run.save_compact(trained_like(), "resnet18")
    run.file("config.json").write_text(CompactConfig(size=SIZE).to_json())
    run.file("summary.json").write_text('{"n_train": 1, "n_held_out": 1, "held-out": {}}')
    return run


# -- the module


def test_images_in_every_form_give_the_embedders_numbers(compact):
    eyes, frames = PolicyBackbone.from_run(compact), np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), "u1")
    expected, images = Embedder.from_run(compact)(frames), torch.from_numpy(frames).permute(0, 3, 1, 2)
    for form in (images, images / 255):
        np.testing.assert_allclose(eyes(form), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert torch.equal(eyes(images.view(2, 2, 3, SIZE, SIZE)), eyes(images).view(2, 2, 8)) and eyes.embed_dim == 8
    smooth = np.linspace(0, 255, 2 * SIZE).round().astype(np.uint8)  # resized, Pillow rounds to 8 bits
    large = np.broadcast_to(smooth[:, None, None], (2 * SIZE, 2 * SIZE, 3))[None]
    ours, theirs = eyes(torch.tensor(large).permute(0, 3, 1, 2)).numpy(), Embedder.from_run(compact)(large)
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()
    assert eyes.grid(images.view(2, 2, 3, SIZE, SIZE)).shape == (2, 2, 512, 2, 2)
    embedding, spatial = eyes.look(images.view(2, 2, 3, SIZE, SIZE))
    wanted = Embedder.from_run(compact).look(frames).spatial
    assert torch.equal(embedding, eyes(images).view(2, 2, 8)) and spatial.shape == (2, 2, 16, 6)
    np.testing.assert_allclose(spatial.flatten(0, 1), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    assert eyes.spatial_dim == 6


def test_a_network_without_spatial_tokens_says_so():
    eyes = PolicyBackbone(Compact("resnet18", 32, 8))
    assert eyes.spatial_dim == 0 and eyes.look(torch.rand(1, 3, 32, 32))[1] is None


@pytest.mark.parametrize("freeze", [True, False])
def test_it_is_frozen_or_tuned_and_keeps_its_statistics(compact, freeze):
    eyes = PolicyBackbone.from_run(compact, freeze=freeze)
    policy = nn.Sequential(eyes, nn.Linear(8, 2)).train()
    before = {k: v.clone() for k, v in eyes.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], 0.1)
    images = torch.rand(4, 3, SIZE, SIZE)
    (policy(images).square().mean() + eyes.look(images)[1].square().mean()).backward()
    optimiser.step()
    moved = {k for k, v in eyes.state_dict().items() if not torch.equal(v, before[k])}
    assert not {k for k in moved if "running" in k or "num_batches" in k} and eyes.training
    assert (not moved) if freeze else moved == {k for k, p in eyes.named_parameters() if p.grad is not None}
    assert freeze or len(moved) > 60


def test_what_is_no_image_or_no_compact_student_is_refused(compact, tmp_path):
    eyes = PolicyBackbone.from_run(compact)
    for wrong in (torch.rand(3, SIZE, SIZE), torch.rand(1, SIZE, SIZE, 3), torch.zeros(1, 3, 8, 8, dtype=torch.int64)):
        with pytest.raises(InputError, match=r"expected images \[..., 3, H, W\] as uint8 or fractions"):
            eyes(wrong)
    fractions = torch.rand(1, 3, SIZE, SIZE)
    for wrong in (fractions * 255, (fractions - 0.45) / 0.22, fractions.half() + 0.1, fractions / 0):
        with pytest.raises(InputError, match=r"fractions from 0 to 1, found .*; divide .* by 255, leave normal"):
            eyes(wrong)
    assert eyes(fractions * 1.002 - 0.001).isfinite().all()  # as resizing by others may leave them
    (tmp_path / "config.json").write_text(Config().to_json())
    with pytest.raises(InputError, match="expected a compact student, .* tools/train_compact.py --run"):
        PolicyBackbone.from_run(tmp_path)


def test_it_is_compiled_traced_and_exported(compact):
    eyes, images = PolicyBackbone.from_run(compact), torch.rand(2, 3, SIZE, SIZE)
    expected = eyes(images)
    compiled = torch.compile(eyes, backend="eager", fullgraph=True)
    exported = torch.export.export(eyes, (images,)).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that become constants
        traced = torch.jit.trace(eyes, (images,))
    for module in (compiled, exported, traced):
        torch.testing.assert_close(module(images), expected)


# -- torchvision's layout


class Basic(nn.Module):
    """A block of torchvision's ResNet-18, by its names."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """torchvision's, up to its last map; `fc` is there and unused."""

    def __init__(self, depths):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        width = 64
        for i, depth in enumerate(depths):
            wider = 64 * 2**i
            blocks = [Basic(width if n == 0 else wider, wider, 2 if i and n == 0 else 1) for n in range(depth)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            width = wider
        self.fc = nn.Linear(512, 1000)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


@pytest.mark.parametrize("name, depths", [("resnet18", (2, 2, 2, 2)), ("resnet34", (3, 4, 6, 3))])
def test_a_resnet_has_torchvisions_names_shapes_and_outputs(tmp_path, name, depths):
    network, theirs = trained_like(name), ResNet(depths).eval()
    state = torch.load(save_torchvision(network, tmp_path / "torchvision.pth"), weights_only=True)
    found = theirs.load_state_dict(state, strict=False)  # shapes are checked all the same
    assert found.missing_keys == ["fc.weight", "fc.bias"] and not found.unexpected_keys
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), feature_map(network.backbone, x), rtol=1e-5, atol=1e-5)


def test_torchvision_itself_agrees(compact):
    models = pytest.importorskip("torchvision.models")
    theirs = models.resnet18(weights=None)
    assert set(theirs.state_dict()) - set(torchvision_state(compact.compact())) == {"fc.weight", "fc.bias"}


def test_other_networks_have_no_such_layout():
    with pytest.raises(InputError, match="expected a ResNet, found a network with 'embeddings"):
        torchvision_state(Compact("vit_tiny", 32, 8))


# -- the example of the docs


@pytest.mark.parametrize("more", [[], ["tune"]])
def test_the_example_trains_a_policy(compact, tmp_path, monkeypatch, capsys, more):
    page = (PROJECT / "docs" / "how" / "policy.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if "STEPS" in block]
    assert len(example.splitlines()) <= 60
    short = example.replace('STEPS, BATCH = "hammer", 300, 32', 'STEPS, BATCH = "hammer", 3, 4')
    assert short != example
    (tmp_path / "policy.py").write_text(short)
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(sys, "argv", ["policy.py", str(compact.folder), *more])
    made = runpy.run_path(str(tmp_path / "policy.py"))
    assert re.fullmatch(r"held-out error \d+\.\d+; of always the mean action \d+\.\d+\n", capsys.readouterr().out)
    assert made["frames"].shape == (128, 3, 224, 224) and made["training"].sum() == 96
    assert made["policy"].eyes.network.head.weight.requires_grad == bool(more)
