"""What a batch gathered from packs would hold, from grids of tokens that were made just now."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rgb2pc_lib.data.geometry import Layout
from rgb2pc_lib.data.sampling import embedding_lattice
from rgb2pc_lib.data.workspace import camera_of, encoder_of
from rgb2pc_lib.encoders import rays
from rgb2pc_lib.encoders.images import Expert, ImageEncoder, load_encoder
from rgb2pc_lib.encoders.rays import Cameras, RayEncoder
from rgb2pc_lib.errors import InputError

Images = np.ndarray | Mapping[str, np.ndarray]  # [B, H, W, 3] uint8, or camera -> such; of one size a camera


Encoder = ImageEncoder | RayEncoder


def open_encoder(expert: str, device: str = "cpu", weights: str | Path | None = None) -> Encoder:
    """The encoder of a run's expert, with its weights: see `load_encoder`.

    >>> open_encoder("rays").channels
    48
    """
    kind = encoder_of(expert)
    return rays.live_rays(device) if kind == rays.NAME else load_encoder(kind, device, weights)


def frame_tokens(encoder: Encoder, images: np.ndarray, cameras: Cameras = None) -> Tensor:
    """Tokens `[B, Hf, Wf, C]` of frames `[B, H, W, 3]` uint8, each seen alone; rays are of the frames' cameras."""
    frames = torch.tensor(images)
    return encoder(frames, cameras) if isinstance(encoder, RayEncoder) else encoder(frames)


def seen_by(expert: str, images: Images) -> np.ndarray | None:
    """The images that an expert sees, none where its camera is missing. Raises InputError where it is not known which.

    >>> seen_by("vggt@wrist", {"head": np.zeros((1, 4, 6, 3), np.uint8)}) is None
    True
    """
    camera = camera_of(expert)
    if not isinstance(images, Mapping):
        if camera:
            raise InputError(
                f"expert {expert} sees through a camera of its own; give frames by camera, {{'{camera}': ...}}"
            )
        return images
    return images.get(camera)


def needed_beside_frames(experts: Collection[str]) -> str:
    """What experts need that frames of one camera do not tell, in words; nothing where frames are enough.

    >>> needed_beside_frames(["xfeat", "rays"]), needed_beside_frames(["xfeat@head", "xfeat@wrist"])
    ('where the camera of each frame stands', 'the frames of head, wrist by name')
    >>> needed_beside_frames(["xfeat"])
    ''
    """
    cameras = dict.fromkeys(map(camera_of, experts))
    if any(cameras):
        return f"the frames of {', '.join(cameras)} by name"
    return "where the camera of each frame stands" if rays.NAME in map(encoder_of, experts) else ""


def refuse_weights(weights: Iterable[str], experts: Iterable[str], owner: str) -> None:
    """Raises InputError for weights, by name, of what is none of the owner's experts."""
    known = list(dict.fromkeys(map(encoder_of, experts)))
    if strange := [name for name in weights if name not in known]:
        raise InputError(
            f"weights of {', '.join(strange)}: not asked for by {owner}, whose experts are "
            f"{', '.join(known) or 'none'}; leave them out"
        )


def refuse_cameras(experts: Iterable[str], images: Images) -> None:
    """Raises InputError for frames of cameras that no expert sees through, and where there are none at all."""
    known = list(dict.fromkeys(camera_of(name) for name in experts))
    if isinstance(images, Mapping) and not (images and set(images) <= set(known)):
        expected = f"frames of {', '.join(known)}" if any(known) else "frames of one camera, not by name"
        raise InputError(f"expected {expected}, found {', '.join(map(str, images)) or 'none'}")


def at_places(
    experts: Mapping[str, Expert], grids: dict[str, Tensor], images: Images, at: np.ndarray | None = None
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The experts' grids `[B, Hf, Wf, C]` of `images`, at the places `at` `[K, 2]`; those without a grid are absent.

    Returns tokens (expert -> `[B, K, C]`), present `[B, K, M]` and positions `[B, K, 2]`; without places at those where
    steps are embedded (`embedding_lattice` of the finest of these experts' grids).
    """
    seen = {name: seen_by(name, images) for name in grids}
    views = {name: experts[name].view(*image.shape[1:3]) for name, image in seen.items() if image is not None}
    if at is None:
        at = embedding_lattice(max((view.grid for view in views.values()), key=math.prod))
    some = next(iter(grids.values()))
    tokens, present = {}, torch.zeros(len(some), len(at), len(experts), dtype=torch.bool, device=some.device)
    for m, name in enumerate(experts):
        if name not in views:
            continue
        view, grid = views[name], grids[name]
        cells = torch.from_numpy(Layout(view.grid, view.box).cells(at)).to(some.device)  # [K]
        tokens[name] = grid.flatten(1, 2)[:, cells.clamp(min=0)]  # [B, K, C]
        present[:, :, m] = cells >= 0
    return tokens, present, torch.tensor(at, dtype=torch.float32, device=some.device).expand(len(some), -1, -1)
