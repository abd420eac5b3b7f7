"""Image encoders: RGB frames in, one grid of tokens per frame out.

One small interface for every expert, used to write packs (`extract.py`) and to go from RGB to an embedding.
Packages and weights are touched only when an expert is loaded by name.
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

from rgb2pc_lib.errors import InputError

# expert -> module of this package that holds a function `load_<expert>(device) -> ImageEncoder`
EXPERTS = {"efficientnet": "standins", "xfeat": "standins", "disk": "standins", "daisy": "standins"}


@dataclass(frozen=True)
class ImageEncoder:
    """A frozen expert that sees one image at a time.

    The image is resized as a whole to `input_size`, its axes independently, so the grid covers all of it.
    Deterministic, without gradients, and a frame's tokens do not depend on the rest of the batch
    (up to rounding: kernels may change with the batch size).

    >>> encoder = load_encoder("xfeat")  # doctest: +SKIP
    >>> encoder(torch.zeros(2, 240, 320, 3, dtype=torch.uint8)).shape  # doctest: +SKIP
    torch.Size([2, 28, 28, 64])
    """

    name: str
    channels: int  # C
    grid: tuple[int, int]  # Hf, Wf
    features: Callable[[torch.Tensor], torch.Tensor]  # [B, 3, S, S] in [0, 1] -> [B, C, Hf, Wf]
    weights: str  # where they come from: package and version
    input_size: int = 224  # S, pixels
    device: str = "cpu"

    box = (0.0, 0.0, 1.0, 1.0)  # x0, y0, x1, y1: part of the original image under the grid, as fractions

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, Hf, Wf, C]` float32 of RGB images `[B, H, W, 3]` uint8. Raises InputError for another layout."""
        images = torch.as_tensor(images)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise InputError(
                f"expert '{self.name}': expected RGB images [B, H, W, 3] in uint8, "
                f"found {list(images.shape)} in {str(images.dtype).removeprefix('torch.')}"
            )
        x = images.to(self.device).permute(0, 3, 1, 2).float() / 255  # [B, 3, H, W]
        if x.shape[2:] != (self.input_size, self.input_size):
            x = F.interpolate(x, (self.input_size, self.input_size), mode="bilinear", antialias=True)
        return self.features(x).float().permute(0, 2, 3, 1).contiguous()

    def meta(self) -> dict:
        """What a pack says about its expert, in plain values."""
        return {
            "model_name": self.name,
            "weights": self.weights,
            "img_size": self.input_size,
            "patch_size": self.input_size // self.grid[0],
            "enc_embed_dim": self.channels,
            "grid": list(self.grid),
            "box": list(self.box),
        }


def load_encoder(name: str, device: str = "cpu") -> ImageEncoder:
    """The expert of that name, with its weights, on a device.

    Raises InputError for an unknown name, a device that is not there and a package that is not installed.

    >>> load_encoder("croco_v9")
    Traceback (most recent call last):
    rgb2pc_lib.errors.InputError: no expert is called 'croco_v9'; there are daisy, disk, efficientnet, xfeat
    """
    if name not in EXPERTS:
        raise InputError(f"no expert is called '{name}'; there are {', '.join(sorted(EXPERTS))}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise InputError(f"device '{device}' cannot be used here: {str(e).splitlines()[0]}; try cpu") from None
    module = importlib.import_module(f"{__package__}.{EXPERTS[name]}")
    return getattr(module, f"load_{name}")(device)


def package_folder(package: str, expert: str, install: str) -> Path:
    """Folder of an installed package, which is not imported. Raises InputError saying what to install."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"expert '{expert}' needs the package {package}, which is not installed; run: {install}")
    return Path(spec.submodule_search_locations[0])


def load_weights(network: torch.nn.Module, path: Path, key: str | None = None) -> None:
    """Fill a network from a checkpoint file (or its entry `key`): every parameter, no more and no fewer.

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
