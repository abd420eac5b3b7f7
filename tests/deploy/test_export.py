import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.data.workspace import PROJECT, SAMPLE, Workspace
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.export import EXAMPLE, export_onnx, open_onnx, parity
from rgb2pc_lib.deploy.frames import resized
from rgb2pc_lib.deploy.lighter import to_fp16, to_int8
from rgb2pc_lib.encoders.extract import list_frames
from rgb2pc_lib.errors import InputError

pytest.importorskip("onnxruntime", reason="pip install 'rgb2pc[deploy]'")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A ResNet-18 whose batch norms have statistics like a trained one's, and its file."""
    network = Compact("resnet18", 64, 32, seed=1, places=4, width=24)
    generator = torch.Generator().manual_seed(2)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.running_mean, -0.5, 0.5), (layer.running_var, 0.5, 2), (layer.weight.data, 0.5, 1.5),
                (layer.bias.data, -0.5, 0.5),
            ):  # fmt: skip
                tensor.uniform_(low, high, generator=generator)
    folder = tmp_path_factory.mktemp("exported")
    return network.eval(), export_onnx(network, folder, 17), folder


def sample_frames(n):
    files = list_frames(Workspace.load(SAMPLE).rgb, ["hammer", "door-open"])
    return [file for some in files.values() for file in some[:: 16 * len(files) // n]][:n]


def test_file_and_network_agree_on_real_frames(exported):
    network, path, _ = exported
    pixels = np.stack([resized(read_image(file), 64) for file in sample_frames(16)])
    assert len(pixels) == 16
    found = parity(network, path, pixels)
    assert found["relative"] < 1e-4 and min(found["cosine"], found["spatial cosine"]) > 1 - 1e-6
    with torch.no_grad():
        outputs, spatial = network.look(torch.from_numpy(pixels))
        network.norm.running_mean.add_(0.3)
        changed = parity(network, path, pixels)
        network.norm.running_mean.sub_(0.3)
    assert changed["relative"] > 1e-3  # the statistics do matter
    assert outputs.std(0).max() > 1e-3  # and frames differ
    session = open_onnx(path)
    assert [o.name for o in session.get_outputs()] == ["embedding", "spatial"]
    for alone, both in zip(session.run(None, {"images": pixels[:1]}), (outputs, spatial), strict=True):
        np.testing.assert_allclose(alone, both[:1].numpy(), atol=1e-4 * both.abs().max().item())
    network.spatial.expect(torch.zeros(16, 24), 2.0)
    assert parity(network, path, pixels)["relative"] > 0.1  # tokens are compared too
    network.spatial.expect(torch.zeros(16, 24), 1.0)


def test_lighter_files_are_lighter_and_near(exported, tmp_path):
    network, path, _ = exported
    pixels = np.stack([resized(read_image(file), 64) for file in sample_frames(16)])
    to_fp16(path, tmp_path / "half.onnx")
    to_int8(path, tmp_path / "int8.onnx", pixels[::2])
    for name, size, far, near in (("half.onnx", 0.51, 0.01, 0.9999), ("int8.onnx", 0.28, 0.3, 0.98)):
        file = tmp_path / name
        found = parity(network, file, pixels[1::2])
        assert file.stat().st_size < size * path.stat().st_size
        assert 1e-5 < found["relative"] < far and near < min(found["cosine"], found["spatial cosine"]) < 1, found
        outputs = {o.name: (o.type, o.shape[1:]) for o in open_onnx(file).get_outputs()}
        assert outputs == {"embedding": ("tensor(float)", [32]), "spatial": ("tensor(float)", [16, 24])}
    dark = np.zeros_like(pixels[:8])
    to_int8(path, tmp_path / "dark.onnx", dark)  # what it is calibrated on matters
    wrong = parity(network, tmp_path / "dark.onnx", pixels[1::2])
    assert wrong["relative"] > 1.5 * found["relative"]


def test_the_opset_is_chosen(exported, tmp_path):
    """An older one; the usual one is compared with its network in test_compress."""
    import onnx

    network, path, _ = exported
    (opset,) = onnx.load(path).opset_import
    assert opset.version == 17
    with pytest.raises(InputError, match="--opset 12: expected one from 17 to 20"):
        export_onnx(network, tmp_path, 12)


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


def test_the_example_of_the_docs_needs_numpy_alone(exported, tmp_path):
    network, _, folder = exported
    page = (PROJECT / "docs" / "how" / "small_model.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if "onnxruntime" in block]
    assert len([line for line in example.splitlines() if line.strip()]) <= 20
    frames = np.stack([read_image(file) for file in sample_frames(4)])
    np.save(tmp_path / "frames.npy", frames)
    shutil.copy(folder / "model.onnx", tmp_path)
    blocked = "import sys; sys.modules.update(torch=None, rgb2pc_lib=None, PIL=None, scipy=None)\n"
    ending = "\nnp.savez('found.npz', *look(np.load('frames.npy')))\n"
    (tmp_path / "example.py").write_text(blocked + example + ending)
    out = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    with np.load(tmp_path / "found.npz") as z, torch.no_grad():
        wanted = network.look(torch.from_numpy(np.stack([resized(frame, 64) for frame in frames])))
        for name, ours in zip(z.files, wanted, strict=True):  # Pillow rounds to 8 bits on the way
            assert np.abs(z[name] - ours.numpy()).max() < 0.03 * ours.abs().max()


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
