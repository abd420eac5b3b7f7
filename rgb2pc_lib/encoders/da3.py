"""Depth Anything 3: one transformer over several frames of a scene, trained to tell depth and rays.

Source: Lin et al., Depth Anything 3 (2025); the network is that of the package depth-anything-3 (Apache-2.0), of which
only the backbone is used. From a third of its depth on, every other layer attends over all frames, so a frame's tokens
depend on the frames it is seen with. From three frames on, the package itself chooses the reference among them; tokens
come back in the order of the frames (the package's own `export_feat_layers` puts the reference first).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
import yaml
from torch import nn

from rgb2pc_lib.encoders.images import Expert, ImageEncoder, View, package_folder
from rgb2pc_lib.encoders.resize import opencv_area, opencv_cubic
from rgb2pc_lib.encoders.vit import normalise
from rgb2pc_lib.encoders.weights import Source, fill, fingerprint, read_shapes, read_state, weight_file
from rgb2pc_lib.errors import InputError

SIZE, PATCH = 504, 14
INSTALL = (
    "pip install --no-deps --ignore-requires-python depth-anything-3==0.1.1 && pip install einops addict omegaconf"
)
MODELS = {384: "small", 768: "base", 1024: "large", 1536: "giant"}  # width of the backbone -> the package's config
SOURCES = {
    "da3": Source(
        "the file model.safetensors (about 1.5 GB)",
        ["model.safetensors"],
        "https://huggingface.co/depth-anything/DA3-LARGE-1.1",
        "CC BY-NC 4.0, not for commercial use",
        repository="depth-anything/DA3-LARGE-1.1",
        others="DA3-SMALL and DA3-BASE (Apache-2.0) and DA3-GIANT (CC BY-NC 4.0) of depth-anything are read as well",
    )
}
LICENCES = {"small": "Apache-2.0", "base": "Apache-2.0"} | dict.fromkeys(("large", "giant"), SOURCES["da3"].licence)
BACKBONE = "model.backbone.pretrained."


def view(height: int, width: int) -> View:
    """The whole image: longest side to 504, then each side to the nearest multiple of 14.

    >>> view(240, 320).size, view(240, 320).grid
    ((378, 504), (27, 36))
    """
    h, w = (_nearest(side) for side in _longest(height, width))
    if not h or not w:
        raise InputError(f"expert 'da3': expected images less than 72 times as long as wide, found {width} x {height}")
    return View((h, w), (h // PATCH, w // PATCH))


def _longest(height, width):  # sides after the longest has become 504
    scale = SIZE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _nearest(side):  # multiple of 14; 7 rounds up
    return (side + PATCH // 2) // PATCH * PATCH


def prepare(images: torch.Tensor, view: View) -> torch.Tensor:
    """Both resizes in 8 bits, by area where the image shrinks, else cubic, as the package's own processor does."""
    height, width = images.shape[1:3]
    if max(height, width) != SIZE:
        shrinks = max(height, width) > SIZE
        images = (opencv_area if shrinks else opencv_cubic)(images, _longest(height, width))
    now = tuple(images.shape[1:3])
    if now != view.size:
        grows = view.size[0] > now[0] or view.size[1] > now[1]
        images = (opencv_cubic if grows else opencv_area)(images, view.size)
    return images.permute(0, 3, 1, 2).float() / 255


def describe(name: str = "da3", path: Path | None = None) -> Expert:
    model = "large" if path is None else _model(weight_file(path, SOURCES[name]))
    dim = next(width for width, m in MODELS.items() if m == model)
    return Expert(
        "da3", 2 * dim, view, SIZE, PATCH, LICENCES[model],
        "backbone, last layer: over the frame, and over all frames, normalised; patch tokens",
        "longest side to 504, then to multiples of 14, by area or cubic as OpenCV; ImageNet mean and std",
        together=True,
    )  # fmt: skip


def load_da3(device: str, path: Path) -> ImageEncoder:
    """An any-view model of Depth Anything 3 from the official file. On CUDA it runs in bfloat16, as the authors do."""
    for package in ("depth_anything_3", "einops", "addict", "omegaconf"):
        package_folder(package, "da3", INSTALL)
    path = weight_file(path, SOURCES["da3"])
    about, network = describe(path=path), backbone(_model(path))
    inner = network.get_submodule("pretrained")
    wanted = inner.state_dict()
    state = {key: value for key, value in read_state(path, BACKBONE).items() if key in wanted}  # as the package does
    name = fingerprint(path, fill(inner, state, path))
    network.to(device)

    def features(x):  # [T, 3, h, w]: one window
        with torch.autocast("cuda", torch.bfloat16, enabled=x.is_cuda):
            (*_, (tokens, _)), _ = network(normalise(x)[None])  # [1, T, N, 2 C]
        return tokens[0].unflatten(1, (x.shape[2] // PATCH, -1)).permute(0, 3, 1, 2)

    return ImageEncoder(**vars(about), features=features, prepare=prepare, weights=name, device=device)


def backbone(model: str) -> nn.Module:
    """The package's network of that size ("small", "base", "large", "giant"), without weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated calls at import
        import depth_anything_3.model.dinov2.dinov2 as package
        from depth_anything_3.utils.logger import LOG_LEVELS, logger
    logger.level = LOG_LEVELS["WARN"]  # else it prints a line a window
    file = package_folder("depth_anything_3", "da3", INSTALL) / "configs" / f"da3-{model}.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8"))["net"]
    return package.DinoV2(**{key: value for key, value in config.items() if key != "__object__"})


def _model(path) -> str:
    shapes = read_shapes(path)
    shape = shapes.get(f"{BACKBONE}camera_token")
    if shape is None or shape[-1] not in MODELS:
        raise InputError(
            f"{path}: expected an any-view model of Depth Anything 3 (small, base, large or giant) with "
            f"'{BACKBONE}camera_token', found {next(iter(shapes), 'nothing')} ...; no mono, metric or nested model"
        )
    return MODELS[shape[-1]]
