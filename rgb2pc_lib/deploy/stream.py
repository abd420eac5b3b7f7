"""Frames as they come: one moment of one camera, or of several, to the embedding and the spatial tokens of that moment.

Experts that see single frames need nothing of the past. Those of causal windows attend over all frames of a window,
both ways, so nothing of theirs that is kept would stay exact when a frame is added: the last frames themselves are
kept, and seen anew, as they were at extraction (`encoders.encode.past`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rgb2pc_lib.data.pictures import as_rgb, pixels_of
from rgb2pc_lib.data.workspace import camera_of
from rgb2pc_lib.deploy.backbones import Compact
from rgb2pc_lib.deploy.frames import resized
from rgb2pc_lib.deploy.lookup import Encoder, Images, at_places, frame_tokens, refuse_cameras, seen_by
from rgb2pc_lib.encoders.rays import Camera, Cameras, RayEncoder
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.models import SIDE, Student

Moment = np.ndarray | Mapping[str, np.ndarray]  # a frame [H, W, 3] uint8; or those of several cameras, by name
Done = Callable[[str], None]  # told of each part of the work as it is done, in turn: the name of an expert, "student"


class Look(NamedTuple):
    """What a student makes of one moment; with a first axis of n for n cameras."""

    embedding: np.ndarray  # [E] float32
    spatial: np.ndarray | None  # [S * S, D] float32, S x S blocks of the image row by row; None where it gives none


class Live(Protocol):
    """What turns moments into embeddings: a student behind its experts, or a compact student."""

    @property
    def keeps(self) -> int:
        """How many frames it sees at once, the newest among them."""

    def __call__(
        self, pasts: Sequence[Sequence[Moment]], done: Done = ..., cameras: Cameras = None
    ) -> tuple[Tensor, Tensor | None]:
        """`[n, E]` and `[n, S * S, D]` (or None: see `Look`) of n cameras' last frames `[H, W, 3]` uint8, oldest first,
        all of one size; or of n robots', each moment camera -> frame, and then as many spatial tokens for each camera.
        `cameras` are calibrated, as they stand now; only rays are made of them.
        """


def _nobody(part: str) -> None:
    pass


@dataclass(frozen=True)
class ThroughExperts:
    """A student behind its experts' encoders."""

    student: Student
    encoders: dict[str, Encoder]
    windows: Mapping[str, int]  # frames seen at once, of those experts that see several together
    side: int = SIDE  # S, of the spatial tokens
    at: np.ndarray | None = None  # [K, 2] places that are looked at; none: those at which steps are embedded

    @property
    def keeps(self) -> int:
        return max(self.windows.values(), default=1)

    @torch.no_grad()
    def __call__(
        self, pasts: Sequence[Sequence[Moment]], done: Done = _nobody, cameras: Cameras = None
    ) -> tuple[Tensor, Tensor | None]:
        now, grids = stacked([past[-1] for past in pasts]), {}
        refuse_cameras(self.encoders, now)
        for name, encoder in self.encoders.items():
            if (frames := seen_by(name, now)) is None:  # its camera is missing
                continue
            if encoder.together and not isinstance(encoder, RayEncoder):
                seen = [_seen(name, past[-self.windows[name] :]) for past in pasts]
                grids[name] = torch.cat([encoder(window)[-1:] for window in seen])
            else:
                grids[name] = frame_tokens(encoder, frames, cameras)
            done(name)
        tokens, present, positions = at_places(self.encoders, grids, now, self.at)
        looked = self.student.look(tokens, present, positions, self.side)
        done("student")
        return looked


def stacked(moments: Sequence[Moment]) -> Images:
    """Moments of as many cameras and of the same sizes, in one batch."""
    first = moments[0]
    if isinstance(first, Mapping):
        return {camera: np.stack([m[camera] for m in moments if isinstance(m, Mapping)]) for camera in first}
    return np.stack([m for m in moments if not isinstance(m, Mapping)])


def _seen(expert: str, past: Sequence[Moment]) -> Tensor:
    """The last frames of an expert's camera, `[T, H, W, 3]`; those of moments when it was missing are not there."""
    found = [m.get(camera_of(expert)) if isinstance(m, Mapping) else m for m in past]
    return torch.from_numpy(np.stack([frame for frame in found if frame is not None]))


def alone(pasts: Sequence[Sequence[Moment]]) -> list[np.ndarray]:
    """The newest frames, of what sees through one camera. Raises InputError for frames by camera."""
    found = [past[-1] for past in pasts]
    frames = [frame for frame in found if not isinstance(frame, Mapping)]
    if len(frames) < len(found):
        raise InputError("a compact student sees through one camera, whose frames have no names; give them alone")
    return frames


@dataclass(frozen=True)
class ThroughPixels:
    """A compact student, which sees the frame itself."""

    network: Compact
    keeps = 1

    @torch.no_grad()
    def __call__(
        self, pasts: Sequence[Sequence[Moment]], done: Done = _nobody, cameras: Cameras = None
    ) -> tuple[Tensor, Tensor | None]:
        small = torch.from_numpy(np.stack([resized(frame, self.network.size) for frame in alone(pasts)]))
        done("resizing")
        looked = self.network.look(small.to(self.network.head.weight.device))
        done("network")
        return looked


class Stream:
    """One camera, or `cameras` of them at once, each by itself, whose frames come one after the other.

    A run whose experts see through several cameras of one robot takes what they see now by name, `{"head": frame,
    "wrist": frame}`, in place of a frame; one that is missing is left out. `cameras` is then the number of robots.

    It keeps as many frames of each as its experts see at once; `reset` forgets them, between episodes.
    Raises InputError for less than one camera.

    >>> stream = Embedder.from_run(compact).stream()
    >>> stream(np.zeros((120, 160, 3), np.uint8)).embedding.shape  # a frame in, [E] out
    (16,)
    >>> both = Embedder.from_run(compact).stream(cameras=2)
    >>> both([np.zeros((120, 160, 3), np.uint8), np.zeros((48, 64, 3), np.uint8)]).embedding.shape
    (2, 16)
    """

    def __init__(self, live: Live, cameras: int | None = None, done: Done = _nobody):
        if cameras is not None and cameras < 1:
            raise InputError(f"expected at least 1 camera, found {cameras}; leave it out for one")
        self.live, self.cameras, self.done = live, cameras, done
        self.pasts = [deque[Moment](maxlen=live.keeps) for _ in range(1 if cameras is None else cameras)]

    def __call__(self, frame: Any, camera: Camera | Sequence[Camera] | None = None) -> Look:
        """What is seen now. `frame` is a camera's next, or with `cameras` a sequence with the next of each.

        A frame is a PIL image, or an array or tensor: `[H, W, 3]` or `[3, H, W]`, uint8 or fractions from 0 to 1.
        Any size will do, but for an expert that sees several together a camera's must stay the same until `reset`.
        A run with rays is told `camera` too, K and world_to_camera of this frame; with `cameras`, those of each.
        Raises InputError otherwise; what is refused was not seen, so the moment may be given again.
        """
        frames = [frame] if self.cameras is None else list(frame)
        if len(frames) != len(self.pasts):
            raise InputError(f"expected a frame of each of {len(self.pasts)} cameras, found {len(frames)}")
        moments = [_as_moment(frame) for frame in frames]
        for number, (past, moment) in enumerate(zip(self.pasts, moments, strict=True)):
            before = {k: size for m in past for k, size in _sizes(m)} if self.live.keeps > 1 else {}
            for name, size in _sizes(moment):
                if (known := before.get(name, size)) != size:
                    raise InputError(
                        f"camera {name or number}: expected {known[1]} x {known[0]} pixels as before, found "
                        f"{size[1]} x {size[0]}; reset() the stream where an episode begins"
                    )
        told = [camera] if isinstance(camera, Camera) else camera
        if told is not None and len(told) != len(self.pasts):
            raise InputError(f"expected the Camera of each of {len(self.pasts)} frames, found {len(told)}")
        seen = [deque([*past, moment], self.live.keeps) for past, moment in zip(self.pasts, moments, strict=True)]
        embedding, spatial = self._look(seen, told)
        self.pasts = seen
        if self.cameras is None:
            return Look(embedding[0], None if spatial is None else spatial[0])
        return Look(embedding, spatial)

    def reset(self, cameras: Iterable[int] | None = None) -> None:
        """Forget what was seen, by all cameras or by those of some numbers: before a new episode."""
        for number in range(len(self.pasts)) if cameras is None else cameras:
            self.pasts[number].clear()

    def _look(self, pasts: list[deque[Moment]], cameras: Cameras) -> tuple[np.ndarray, np.ndarray | None]:
        """Cameras of one size in one batch."""
        sizes = [_sizes(past[-1]) for past in pasts]
        found: dict[int, tuple[Tensor, Tensor | None]] = {}
        for size in dict.fromkeys(sizes):
            alike = [i for i, other in enumerate(sizes) if other == size]
            told = None if cameras is None else [cameras[i] for i in alike]
            embedding, spatial = self.live([list(pasts[i]) for i in alike], self.done, told)
            for row, i in enumerate(alike):
                found[i] = embedding[row], None if spatial is None else spatial[row]
        rows = [found[i] for i in range(len(pasts))]
        coarse = [spatial for _, spatial in rows if spatial is not None]
        return _numpy([embedding for embedding, _ in rows]), _numpy(coarse) if coarse else None


def _numpy(rows: list[Tensor]) -> np.ndarray:
    stacked: np.ndarray = torch.stack(rows).float().cpu().numpy()
    return stacked


def _as_moment(frame: Any) -> Moment:
    """A frame, or those of several cameras; one that is None is missing."""
    if not isinstance(frame, Mapping):
        return as_frame(frame)
    return {camera: as_frame(one) for camera, one in frame.items() if one is not None}


def _sizes(moment: Moment) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Camera and the shape of its frame, of those that are there."""
    frames = moment if isinstance(moment, Mapping) else {"": moment}
    return tuple((camera, frame.shape) for camera, frame in sorted(frames.items()))


def as_frame(frame: Any) -> np.ndarray:
    """A frame as RGB `[H, W, 3]` uint8; see `Stream`. Raises InputError for what is none.

    >>> as_frame(torch.full((3, 4, 5), 0.5)).shape, as_frame(Image.new("L", (5, 4))).shape
    ((4, 5, 3), (4, 5, 3))
    """
    if isinstance(frame, Image.Image):
        return pixels_of(frame)
    if isinstance(frame, Tensor):  # numpy knows no bfloat16
        frame = (frame.float() if frame.is_floating_point() else frame).detach().cpu()
    array = np.asarray(frame)
    if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    fractions = array.dtype.kind == "f" and array.size and 0 <= array.min() and array.max() <= 1
    if array.ndim != 3 or array.shape[2] != 3 or not (array.dtype == np.uint8 or fractions):
        spread = f" from {array.min():g} to {array.max():g}" if array.dtype.kind in "iuf" and array.size else ""
        raise InputError(
            f"expected a frame [H, W, 3] or [3, H, W], uint8 or fractions from 0 to 1, found {list(array.shape)} in "
            f"{array.dtype}{spread}; convert it"
        )
    return as_rgb(array, "frame")
