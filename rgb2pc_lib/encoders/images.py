"""Image encoders: RGB frames in, one grid of tokens per frame out.

One small interface for every expert, used to write packs (`extract.py`) and to go from RGB to an embedding.
Packages and weights are touched only when an expert is loaded by name; what its tokens look like, where they lie
and under which licence it comes is known before (`describe`).
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from rgb2pc_lib.encoders.weights import find_weights
from rgb2pc_lib.errors import InputError

STANDINS = ("efficientnet", "xfeat", "disk", "daisy", "simdepth")  # their weights come inside packages, or with us
# expert -> module of this package with `describe(name, path)`, `load_<expert>(device)` of the stand-ins, and of the
# others `load_<expert>(device, path)` and `SOURCES`: where their weights are
EXPERTS = dict.fromkeys(STANDINS, "standins") | {
    "simdepth": "simdepth", "dinov2": "dino", "dinov3": "dino", "croco": "croco", "vggt": "vggt", "da3": "da3"
}  # fmt: skip
WHOLE = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class View:
    """How an expert sees images of one size."""

    size: tuple[int, int]  # h, w of the whole image after resizing, pixels
    grid: tuple[int, int]  # Hf, Wf: cells of tokens
    box: tuple[float, float, float, float] = WHOLE  # x0, y0, x1, y1: part of the image under the grid, as fractions


def square(size: int, grid: int) -> Callable[[int, int], View]:
    """The whole image resized to a square, its axes independently, whatever its size.

    >>> square(224, 14)(240, 320).grid
    (14, 14)
    """
    view = View((size, size), (grid, grid))
    return lambda height, width: view


@dataclass(frozen=True)
class Expert:
    """What is known of an expert before its weights are read."""

    name: str
    channels: int  # C
    view: Callable[[int, int], View]  # height, width of an image -> where its tokens lie
    img_size: int  # the longest side it sees, pixels
    patch_size: int  # side of a cell, pixels
    licence: str = ""  # of the weights
    layer: str = ""  # which output the tokens are
    pixels: str = "bilinear, antialiased"  # how it resizes
    together: bool = False  # it sees several frames: a frame's tokens depend on all frames given with it


def bilinear(images: torch.Tensor, view: View) -> torch.Tensor:
    """RGB images `[B, H, W, 3]` uint8 -> `[B, 3, h, w]` in [0, 1]: scaled first, then resized with antialiasing."""
    x = images.permute(0, 3, 1, 2).float() / 255
    return x if x.shape[2:] == view.size else F.interpolate(x, view.size, mode="bilinear", antialias=True)


@dataclass(frozen=True, kw_only=True)
class ImageEncoder(Expert):
    """An expert with its weights: call it with frames.

    Frames are taken one by one, except where `together` is set: there, the frames of one call are one window that is
    seen at once, so give it exactly the frames of a window, in order (`encode.encode` does, for either kind).
    Deterministic, without gradients, and a single frame's tokens do not depend on the rest of the batch
    (up to rounding: kernels may change with the batch size).

    >>> encoder = load_encoder("xfeat")  # doctest: +SKIP
    >>> encoder(torch.zeros(2, 240, 320, 3, dtype=torch.uint8)).shape  # doctest: +SKIP
    torch.Size([2, 28, 28, 64])
    >>> encoder.view(240, 320).grid, encoder.view(240, 320).box  # doctest: +SKIP
    ((28, 28), (0.0, 0.0, 1.0, 1.0))
    """

    features: Callable[[torch.Tensor], torch.Tensor]  # [B, 3, h, w] in [0, 1] -> [B, C, Hf, Wf]
    weights: str  # where they come from: package and version, or file and fingerprint
    prepare: Callable[[torch.Tensor, View], torch.Tensor] = bilinear  # [B, H, W, 3] uint8 -> [B, 3, h, w] in [0, 1]
    device: str = "cpu"

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, Hf, Wf, C]` float32 of RGB images `[B, H, W, 3]` uint8. Raises InputError for another layout."""
        images = torch.as_tensor(images)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(
                f"expert '{self.name}': expected RGB images [B, H, W, 3] in uint8, "
                f"found {list(images.shape)} in {str(images.dtype).removeprefix('torch.')}"
            )
        x = self.prepare(images.to(self.device), self.view(*images.shape[1:3]))  # [B, 3, h, w]
        return self.features(x).float().permute(0, 2, 3, 1).contiguous()

    def meta(self, height: int, width: int) -> dict:
        """What a pack of images of that size says about its expert, in plain values."""
        view = self.view(height, width)
        return {
            "model_name": self.name,
            "weights": self.weights,
            "licence": self.licence,
            "layer": self.layer,
            "pixels": self.pixels,
            "img_size": self.img_size,
            "patch_size": self.patch_size,
            "enc_embed_dim": self.channels,
            "raw_size": [height, width],
            "grid": list(view.grid),
            "box": list(view.box),
        }


def describe(name: str, weights: str | Path | None = None) -> Expert:
    """What is known of the expert of that name without reading weights; the size of its model is read off the file.

    >>> describe("vggt").channels, describe("vggt").view(240, 320).grid
    (2048, (28, 37))
    """
    return _module(name).describe(name, None if weights is None else locate_weights(name, weights))


def locate_weights(name: str, weights: str | Path | None = None, allow_download: bool = False) -> Path | None:
    """The file or folder with an expert's weights, downloaded only if that is allowed; None for the stand-ins.

    Raises InputError saying which file is needed, from where, under which licence, and how to pass it.
    """
    module = _module(name)
    if name not in STANDINS:
        return find_weights(name, module.SOURCES[name], weights, allow_download)
    if weights is not None:
        raise InputError(f"expert '{name}' brings its own weights; leave {weights} out")
    return None


def load_encoder(
    name: str, device: str = "cpu", weights: str | Path | None = None, allow_download: bool = False
) -> ImageEncoder:
    """The expert of that name, with its weights, on a device.

    The stand-ins bring their weights. The others take `weights`, the official file or folder, or the name of a hub
    repository; without, and only with `allow_download`, the default one is fetched from the hub.
    Raises InputError for an unknown name, a device that is not there, a package that is not installed, and weights
    that are missing (it says which file, from where, under which licence) or that do not fit.

    >>> load_encoder("croco_v9")
    Traceback (most recent call last):
    rgb2pc_lib.errors.InputError: no expert is called 'croco_v9'; there are croco, da3, daisy, ... xfeat
    """
    module = _module(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise InputError(f"device '{device}' cannot be used here: {str(e).splitlines()[0]}; try cpu") from None
    path = locate_weights(name, weights, allow_download)
    return getattr(module, f"load_{name}")(device, *([path] if path else []))


def _module(name):
    if name not in EXPERTS:
        raise InputError(f"no expert is called '{name}'; there are {', '.join(sorted(EXPERTS))}")
    return importlib.import_module(f"{__package__}.{EXPERTS[name]}")


def package_folder(package: str, expert: str, install: str) -> Path:
    """Folder of an installed package, which is not imported. Raises InputError saying what to install."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"expert '{expert}' needs the package {package}, which is not installed; run: {install}")
    return Path(spec.submodule_search_locations[0])


def load_weights(network: torch.nn.Module, path: Path, key: str | None = None) -> None:
    """Fill a network from a package's checkpoint file (or its entry `key`): every parameter, no more and no fewer.

    Raises InputError naming the file when it is missing, unreadable or made for another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state[key] if key else state, strict=True)
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise InputError(
            f"{path}: expected the weights of {type(network).__name__}, found: {reason}; reinstall the package"
        ) from e
