"""A compact student as ONNX files that need no torch: pixels in, embedding and spatial tokens out.

Beside them lies a short script that uses one. The lighter kinds of file are made from the first, see `lighter`.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rgb2pc_lib.data.files.guarded import read_object
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.compact import CompactRun
from rgb2pc_lib.deploy.frames import frame_cache, resized
from rgb2pc_lib.deploy.lighter import to_fp16, to_int8
from rgb2pc_lib.deploy.policy import save_torchvision
from rgb2pc_lib.deploy.stream import Moment, alone
from rgb2pc_lib.deploy.targets import own_targets
from rgb2pc_lib.encoders.rays import Cameras
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.metrics import unit

OPSET = 20
OPSETS = range(17, 21)  # tried
TRACES = b"stack_trace"  # what a file holds that torch wrote and nobody stripped
MODEL = "model.onnx"
KINDS = {"fp32": MODEL, "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
_CHECKED, _CALIBRATED = 64, 64  # frames
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


def export_onnx(network: Compact, folder: Path, opset: int = OPSET) -> Path:
    """Write `model.onnx` (any batch size) and `infer.py`, the example that uses it, into a folder.

    The graph's input is `images` `[B, S, S, 3]` uint8, its outputs `embedding` `[B, E]` float32 and, where the network
    gives spatial tokens, `spatial` `[B, P, D]` float32.
    Raises InputError where the packages for it are missing.
    """
    if opset not in OPSETS:
        raise InputError(f"--opset {opset}: expected one from {OPSETS.start} to {OPSETS.stop - 1}")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    except ImportError as e:
        raise InputError(f"{folder}: exporting to ONNX needs {e.name}; run: {INSTALL}") from None
    plain = torch.contiguous_format
    network = network.to("cpu", memory_format=plain).eval()  # type: ignore[call-overload]  # torch's types lack it
    images = torch.zeros(2, network.size, network.size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _Looks(network), (images,), dynamo=True, opset_version=opset, input_names=["images"],
            output_names=["embedding"] + ["spatial"] * bool(network.places),
            dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
        )  # fmt: skip
    assert program is not None  # only torch's older way to export gives none
    ClearMetadataAndDocStringPass()(program.model)  # whose stack traces name this machine's folders
    write_atomic(folder / MODEL, lambda p: program.save(str(p), external_data=False))
    write_atomic(folder / "infer.py", lambda p: p.write_text(EXAMPLE, encoding="utf-8"))
    return folder / MODEL


class _Looks(torch.nn.Module):
    """What is exported: everything that a network gives."""

    def __init__(self, network: Compact):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(x for x in self.network.look(images) if x is not None)


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
        self, pasts: Sequence[Sequence[Moment]], done: Callable[[str], None] = lambda part: None,
        cameras: Cameras = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        """Embeddings `[n, E]`, and spatial tokens, of the newest frames, `[H, W, 3]` uint8 of any size."""
        small = np.stack([resized(frame, self.size) for frame in alone(pasts)])
        done("resizing")
        found = [torch.from_numpy(x) for x in self.session.run(None, {"images": small})]
        done("network")
        return found[0], found[1] if len(found) > 1 else None


@torch.no_grad()
def parity(network: Compact, path: Path, images: np.ndarray) -> dict[str, float]:
    """How far the file is from the network in full precision, on frames `[n, S, S, 3]` uint8.

    "relative": the largest difference of any number of an output over the output's largest, of the worst output;
    "cosine": the least over frames, of the embeddings; "spatial cosine": the same of spatial tokens, all of a frame.
    """
    ours = [x.flatten(1).numpy() for x in network.eval().look(torch.from_numpy(images)) if x is not None]
    theirs = [x.reshape(len(images), -1) for x in open_onnx(path).run(None, {"images": images})]
    far = [float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(ours, theirs, strict=True)]
    near = [float((unit(a) * unit(b)).sum(1).min()) for a, b in zip(ours, theirs, strict=True)]
    said = dict(zip(("cosine", "spatial cosine"), near, strict=False))
    return {"relative": max(far), **said, "frames": len(images)}


def export_run(
    run: CompactRun, kinds: Sequence[str] = ("fp32",), opset: int = OPSET, limit: float = 1e-4
) -> dict[str, Any]:
    """Export into the run's own folder and check the files on real held-out frames; the parity is kept in `onnx.json`.

    Of a ResNet the weights are left there too under torchvision's names, `torchvision.pth`. Files of an earlier export
    that are not asked for are removed, as they may be of other weights, and `exports.csv`, the table of them.

    Args:
        kinds: "fp32" is always there; "fp16" halves the file, "int8" quarters it and is faster on processors. It is
            calibrated on training frames.
        opset: version of ONNX's operators, for runtimes that know older ones only.

    Returns what is in `onnx.json`: the fp32 file's `parity`, opset and bytes, and under "lighter" those of the others.
    Raises InputError when the fp32 file and the network differ by more than `limit` relative, and when a package is
    missing.

    >>> found = export_run(compact)
    >>> found["relative"] < 1e-4, found["frames"], compact.file("model.onnx").stat().st_size == found["bytes"]
    (True, 24, True)
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(f"--kinds {unknown[0]}: expected some of {', '.join(KINDS)}")
    network, data = run.compact(), own_targets(run.fused())
    frames = frame_cache(data.files, network.size)
    judged = frames[np.flatnonzero(data.held_out)[:_CHECKED]]
    for name in (*KINDS.values(), "onnx.json", "exports.csv"):
        run.file(name).unlink(missing_ok=True)
    path = export_onnx(network, run.folder, opset)
    found: dict[str, Any] = parity(network, path, judged) | {"opset": opset, "bytes": path.stat().st_size}
    if not found["relative"] < limit:
        path.unlink()
        raise InputError(f"{path}: differs from the network by {found['relative']:.1e} relative (limit {limit:.0e})")
    training = np.flatnonzero(~data.held_out)
    for kind in [kind for kind in kinds if kind != "fp32"]:
        other = run.file(KINDS[kind])
        if kind == "fp16":
            to_fp16(path, other)
        else:
            to_int8(path, other, frames[training[:: math.ceil(len(training) / _CALIBRATED)]])
        told = parity(network, other, judged) | {"bytes": other.stat().st_size}
        found.setdefault("lighter", {})[kind] = told
    write_atomic(run.file("onnx.json"), lambda p: p.write_text(json.dumps(found, indent=2), encoding="utf-8"))
    if run.config.backbone.startswith("resnet"):
        save_torchvision(network, run.file("torchvision.pth"))
    return found


def exported(run: CompactRun) -> dict[str, Any]:
    """What `export_run` told of a compact student, which is exported first where that was not done since its training.

    >>> exported(compact) == export_run(compact) == exported(compact)
    True
    """
    told, model, weights = files = [run.file(name) for name in ("onnx.json", MODEL, "model.safetensors")]
    if all(file.exists() for file in files) and told.stat().st_mtime_ns >= weights.stat().st_mtime_ns:
        return read_object(told, "delete it, and it is exported again")
    return export_run(run)
