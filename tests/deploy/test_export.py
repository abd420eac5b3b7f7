import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.data.workspace import SAMPLE, Workspace
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.export import EXAMPLE, export_onnx, open_onnx, parity
from rgb2pc_lib.deploy.frames import resized
from rgb2pc_lib.encoders.extract import list_frames
from rgb2pc_lib.errors import InputError

pytest.importorskip("onnxruntime", reason="pip install 'rgb2pc[deploy]'")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A ResNet-18 whose batch norms have statistics like a trained one's, and its file."""
    network = Compact("resnet18", 64, 32, seed=1)
    generator = torch.Generator().manual_seed(2)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.running_mean, -0.5, 0.5), (layer.running_var, 0.5, 2), (layer.weight.data, 0.5, 1.5),
                (layer.bias.data, -0.5, 0.5),
            ):  # fmt: skip
                tensor.uniform_(low, high, generator=generator)
    folder = tmp_path_factory.mktemp("exported")
    return network.eval(), export_onnx(network, folder), folder


def sample_frames(n):
    files = list_frames(Workspace.load(SAMPLE).rgb, ["hammer", "door-open"])
    return [file for some in files.values() for file in some[:: 16 * len(files) // n]][:n]


def test_file_and_network_agree_on_real_frames(exported):
    network, path, _ = exported
    pixels = np.stack([resized(read_image(file), 64) for file in sample_frames(16)])
    assert len(pixels) == 16
    found = parity(network, path, pixels)
    assert found["relative"] < 1e-4 and found["cosine"] > 1 - 1e-6
    with torch.no_grad():
        outputs = network(torch.from_numpy(pixels))
        network.norm.running_mean.add_(0.3)
        changed = parity(network, path, pixels)
        network.norm.running_mean.sub_(0.3)
    assert changed["relative"] > 1e-3  # the statistics do matter
    assert outputs.std(0).max() > 1e-3  # and frames differ
    alone = open_onnx(path).run(None, {"images": pixels[:1]})[0]
    np.testing.assert_allclose(alone, outputs[:1].numpy(), atol=1e-4 * outputs.abs().max().item())


def test_the_example_needs_no_torch(exported, tmp_path):
    network, _, folder = exported
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 20
    files = [str(file) for file in sample_frames(2)]
    blocked = "import sys; sys.modules.update(torch=None, rgb2pc_lib=None, transformers=None); "
    run = f"sys.argv[1:] = {files!r}; import runpy; runpy.run_path({str(folder / 'infer.py')!r}, run_name='__main__')"
    out = subprocess.run([sys.executable, "-c", blocked + run], cwd=tmp_path, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    with np.load(tmp_path / "embeddings.npz") as z:
        pixels = np.stack([resized(read_image(file), 64) for file in z["names"]])
        with torch.no_grad():
            ours = network(torch.from_numpy(pixels)).numpy()
        np.testing.assert_allclose(z["embeddings"], ours, atol=1e-4 * np.abs(ours).max())


def test_what_is_no_model_is_named(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match="model.onnx: not a readable ONNX model"):
        open_onnx(tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"needs onnxscript; run: pip install 'rgb2pc\[deploy\]'"):
        export_onnx(Compact("resnet18", 32, 8), tmp_path)


def test_images_are_read_alike(tmp_path):
    """The example resizes as the library does, grey and transparent pictures included."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50), np.uint8)).save(tmp_path / "grey.png")
    image = Image.open(tmp_path / "grey.png").convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(image), resized(read_image(tmp_path / "grey.png"), 16))
