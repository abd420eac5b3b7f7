"""A compact student as an ONNX file that needs no torch: pixels in, embeddings out, and a short script that uses it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.frames import resized
from rgb2pc_lib.deploy.stream import Moment, alone
from rgb2pc_lib.errors import InputError

OPSET = 20
INSTALL = "pip install 'rgb2pc[deploy]'"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
EXAMPLE = '''"""Embeddings of images by the compact student beside this file: python infer.py IMAGE [IMAGE ...]

Needs onnxruntime, numpy and pillow; nothing else."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"), providers=["CPUExecutionProvider"])
size = session.get_inputs()[0].shape[1]  # images: uint8 [B, size, size, 3], RGB


def upright(path):  # alpha over white, of 16 bits the upper 8: as in training
    image = ImageOps.exif_transpose(Image.open(path))
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)) if image.mode[0] == "I" else image
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def embed(paths):  # -> float32 [B, E]
    images = [upright(path).resize((size, size), Image.Resampling.BILINEAR) for path in paths]
    return session.run(None, {"images": np.stack([np.asarray(image) for image in images])})[0]


if __name__ == "__main__":
    np.savez("embeddings.npz", names=sys.argv[1:], embeddings=embed(sys.argv[1:]))
'''


def export_onnx(network: Compact, folder: Path) -> Path:
    """Write `model.onnx` (opset 20, any batch size) and `infer.py`, the example that uses it, into a folder.

    The graph's input is `images` `[B, S, S, 3]` uint8, its output `embedding` `[B, E]` float32.
    Raises InputError where the packages for it are missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise InputError(f"{folder}: exporting to ONNX needs {e.name}; run: {INSTALL}") from None
    plain = torch.contiguous_format
    network = network.to("cpu", memory_format=plain).eval()  # type: ignore[call-overload]  # torch's types lack it
    images = torch.zeros(2, network.size, network.size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            network, (images,), dynamo=True, opset_version=OPSET, input_names=["images"], output_names=["embedding"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
        )  # fmt: skip
    assert program is not None  # only torch's older way to export gives none
    write_atomic(folder / "model.onnx", lambda p: program.save(str(p), external_data=False))
    write_atomic(folder / "infer.py", lambda p: p.write_text(EXAMPLE, encoding="utf-8"))
    return folder / "model.onnx"


def onnx_devices() -> list[str]:
    """Where onnxruntime can run here: "cpu", "cuda"; nothing where it is not installed."""
    try:
        from onnxruntime import get_available_providers
    except ImportError:
        return []
    return [name for name, provider in _PROVIDERS.items() if provider in get_available_providers()]


def open_onnx(path: Path, threads: int = 1, device: str = "cpu"):
    """An onnxruntime session. Raises InputError when it is not installed or the file is no model."""
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f"{path}: running it needs onnxruntime; run: {INSTALL}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[_PROVIDERS[device]])
    except Exception as e:  # onnxruntime's own kinds, which share no base but this
        raise InputError(f"{path}: not a readable ONNX model ({str(e).splitlines()[0]}); export it again") from None


class ThroughOnnx:
    """A compact student's ONNX file, live (see `stream.Live`), on a provider of onnxruntime's."""

    keeps = 1

    def __init__(self, path: Path, threads: int = 1, device: str = "cpu"):
        self.session = open_onnx(path, threads, device)
        self.size = self.session.get_inputs()[0].shape[1]

    def __call__(
        self, pasts: Sequence[Sequence[Moment]], done: Callable[[str], None] = lambda part: None
    ) -> tuple[torch.Tensor, None]:
        """Embeddings `[n, E]` of the newest frames, `[H, W, 3]` uint8 of any size."""
        small = np.stack([resized(frame, self.size) for frame in alone(pasts)])
        done("resizing")
        found = self.session.run(None, {"images": small})[0]
        done("network")
        return torch.from_numpy(found), None


@torch.no_grad()
def parity(network: Compact, path: Path, images: np.ndarray) -> dict[str, float]:
    """How far the file is from the network on frames `[n, S, S, 3]` uint8, both in full precision.

    "relative": the largest difference of any number over the largest number; "cosine": the least over frames.
    """
    ours = network.eval()(torch.from_numpy(images)).numpy()
    theirs = open_onnx(path).run(None, {"images": images})[0]
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return {
        "relative": float(np.abs(ours - theirs).max() / np.abs(ours).max()),
        "cosine": float(((ours * theirs).sum(1) / lengths).min()),
        "frames": len(images),
    }
