"""What a policy meets: scenes that are looked at and acted in, whoever simulates them.

`recordings.sim.Scene` is one; nothing here imports the simulator, which is optional.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, JpegImagePlugin

from rgb2pc_lib.data.clouds import Cloud
from rgb2pc_lib.data.pictures import decode, encoded
from rgb2pc_lib.encoders.rays import Camera

LOOKS = {"fixed": False, "random": True}  # whether camera, light, colours, textures and distractors are drawn anew


class Seen(Protocol):
    """What one look gives."""

    @property
    def image(self) -> np.ndarray: ...  # uint8 [H, W, 3]

    @property
    def cloud(self) -> Cloud | None: ...  # where it was asked for

    @property
    def state(self) -> dict[str, np.ndarray]: ...

    # of one step: tcp [3], opening, object [3], goal [3], joint; K [3, 3] and world_to_camera [4, 4] if calibrated


class Scene(Protocol):
    """One task: `begin` an episode, `look`, `act`."""

    def begin(self, seed: int, randomise: bool) -> Any: ...

    def look(self, cloud: bool) -> Seen: ...

    def act(self, action: np.ndarray) -> bool: ...  # [A]; whether the task is solved

    def close(self) -> None: ...


OpenScene = Callable[[str], Scene]  # of a task
Policy = Callable[[Sequence[Seen]], np.ndarray]  # B looks -> chunks of actions [B, H, A]


@dataclass(frozen=True)
class Compression:
    """What recording does to an image: the same tables and subsampling as those of a recorded JPEG, or nothing."""

    tables: tuple[tuple[int, ...], ...] | None = None
    subsampling: int = -1

    @classmethod
    def of(cls, path: Path) -> Compression:
        """That of a recorded frame."""
        with Image.open(path) as image:
            if not isinstance(image, JpegImagePlugin.JpegImageFile):
                return cls()
            tables = tuple(tuple(image.quantization[k]) for k in sorted(image.quantization))
            return cls(tables, JpegImagePlugin.get_sampling(image))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """An image `[H, W, 3]` uint8 as it would be read from disk after recording."""
        if self.tables is None:
            return image
        tables = [*map(list, self.tables)]
        return decode(encoded(image, "JPEG", qtables=tables, subsampling=self.subsampling), "a frame seen live")


def cameras_of(seen: Sequence[Seen]) -> list[Camera] | None:
    """Those of the looks; none where they are not calibrated."""
    if any("K" not in s.state or "world_to_camera" not in s.state for s in seen):
        return None
    return [Camera(s.state["K"], s.state["world_to_camera"]) for s in seen]


def own_state(seen: Sequence[Seen]) -> np.ndarray:
    """What the robot knows of itself, as in `Demonstrations.own` of a simulated recording: `[B, 4]` float32, m."""
    return np.stack([np.append(s.state["tcp"], s.state["opening"]) for s in seen]).astype(np.float32)
