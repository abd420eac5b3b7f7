"""DINOv2 and DINOv3: self-supervised transformers that see one image; networks of transformers.

Sources: Oquab et al., DINOv2 (2023); Simeoni et al., DINOv3 (2025). A folder as the hub has it: config.json and
model.safetensors. Tokens are the patches of the last layer, normalised; class token and registers are left out.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from rgb2pc_lib.data.files.guarded import expect, read_object
from rgb2pc_lib.encoders.images import Expert, ImageEncoder, View, bilinear, package_folder, square
from rgb2pc_lib.encoders.resize import pillow_bicubic
from rgb2pc_lib.encoders.vit import normalise
from rgb2pc_lib.encoders.weights import Source, fingerprint
from rgb2pc_lib.errors import InputError

SIZE = 224
INSTALL = 'pip install "transformers>=5.0"'
KINDS = {"dinov2": ("dinov2", "dinov2_with_registers"), "dinov3": ("dinov3_vit",)}  # model_type in config.json
FOLDER = "config.json and model.safetensors"
SOURCES = {
    "dinov2": Source(
        f"a folder with {FOLDER} (350 MB)", ["model.safetensors"],
        "https://huggingface.co/facebook/dinov2-base", "Apache-2.0",
        repository="facebook/dinov2-base",
        others="The other sizes, and those with registers, are read as well",
    ),
    "dinov3": Source(
        f"a folder with {FOLDER} (350 MB)", ["model.safetensors"],
        "https://huggingface.co/facebook/dinov3-vitb16-pretrain-lvd1689m",
        "DINOv3 License, to be accepted there",
        repository="facebook/dinov3-vitb16-pretrain-lvd1689m",
        others="The other vision transformers of DINOv3 are read as well",
    ),
}  # fmt: skip


def describe(name: str, path: Path | None = None) -> Expert:
    config = {"hidden_size": 768, "patch_size": 14 if name == "dinov2" else 16}
    if path is not None:
        config = _config(name, path)
    patch = config["patch_size"]
    return Expert(
        name, config["hidden_size"], square(SIZE, SIZE // patch), SIZE, patch, SOURCES[name].licence,
        "last layer, normalised, patch tokens",
        ("bicubic of Pillow" if name == "dinov2" else "bilinear, antialiased,")
        + " to 224 x 224, the whole image; ImageNet mean and std",
    )  # fmt: skip


def load_dinov2(device: str, path: Path) -> ImageEncoder:
    """DINOv2. The authors resize the short side to 256 and crop 224; here the whole image is seen.

    transformers resizes the learnt positions without the offset of 0.1 that the authors' code adds, for which tokens
    differ by about 1 % (of their norm, random weights); DINOv3 has no learnt positions and agrees to rounding.
    """
    return _load("dinov2", device, path)


def load_dinov3(device: str, path: Path) -> ImageEncoder:
    """DINOv3, a vision transformer, with the authors' preprocessing."""
    return _load("dinov3", device, path)


def _load(name, device, folder):
    package_folder("transformers", name, INSTALL)
    about = describe(name, folder)
    network = _network(folder).to(device)
    skipped = 1 + getattr(network.config, "num_register_tokens", 0)

    def features(x):  # [B, 3, 224, 224]
        tokens = network(pixel_values=normalise(x)).last_hidden_state[:, skipped:]  # [B, N, C]
        return tokens.transpose(1, 2).unflatten(2, about.view(SIZE, SIZE).grid)

    return ImageEncoder(
        **vars(about), features=features, prepare=prepare_dinov2 if name == "dinov2" else bilinear,
        weights=fingerprint(folder, network), device=device,
    )  # fmt: skip


def prepare_dinov2(images: torch.Tensor, view: View) -> torch.Tensor:
    return pillow_bicubic(images, view.size).permute(0, 3, 1, 2).float() / 255


def _network(folder) -> nn.Module:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        network, found = AutoModel.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise InputError(f"{folder}: expected a model that transformers reads, found: {reason}") from None
    wrong = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    if wrong:
        raise InputError(f"{folder}: the weights do not fit config.json: {sorted(wrong)[0]}, {len(wrong)} in all")
    return network.eval().requires_grad_(False)


def _config(name, folder) -> dict:
    if not folder.is_dir() or not (folder / "config.json").is_file():
        raise InputError(f"{folder}: expected a folder with {FOLDER} as {SOURCES[name].url} has it, found none")
    path, again = folder / "config.json", f"download it again from {SOURCES[name].url}"
    found = read_object(path, again)
    kind, config = found.get("model_type"), {}
    for key in ("hidden_size", "patch_size"):
        config[key] = expect(found.get(key), int, path, key, again)
    if kind not in KINDS[name]:
        raise InputError(f"{folder}: expected {' or '.join(KINDS[name])} for expert '{name}', found '{kind}'")
    return config
