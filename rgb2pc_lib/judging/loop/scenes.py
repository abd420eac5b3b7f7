"""What a policy meets: scenes that are looked at and acted in, whoever simulates them.

`recordings.sim.Scene` is one; nothing here imports the simulator, which is optional.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, JpegImagePlugin

from rgb2pc_lib.data.clouds import Cloud
from rgb2pc_lib.data.pictures import decode, encoded
from rgb2pc_lib.data.workspace import camera_of
from rgb2pc_lib.deploy.stream import Moment
from rgb2pc_lib.encoders.rays import Camera
from rgb2pc_lib.errors import InputError

LOOKS = {"fixed": False, "random": True}  # whether camera, light, colours, textures and distractors are drawn anew


class Seen(Protocol):
    """What one look gives."""

    @property
    def image(self) -> np.ndarray: ...  # uint8 [H, W, 3]

    @property
    def cloud(self) -> Cloud | None: ...  # where it was asked for

    @property
    def state(self) -> dict[str, np.ndarray]: ...

    @property
    def more(self) -> Mapping[str, np.ndarray]: ...  # further camera -> its image, likewise

    # state: of one step, tcp [3], opening, object [3], goal [3], joint; if calibrated K [3, 3], world_to_camera [4, 4]


class Scene(Protocol):
    """One task: `begin` an episode, `look`, `act`."""

    def begin(self, seed: int, randomise: bool) -> Any: ...

    def look(self, cloud: bool) -> Seen: ...

    def act(self, action: np.ndarray) -> bool: ...  # [A]; whether the task is solved

    def close(self) -> None: ...


OpenScene = Callable[[str], Scene]  # of a task
Policy = Callable[[Sequence[Seen]], np.ndarray]  # B looks -> chunks of actions [B, H, A]


@dataclass(frozen=True)
class Recorder:
    """What recording makes of a look: frames compressed with the tables and subsampling of recorded JPEGs, or as they
    are; by camera where the workspace names its cameras.
    """

    tables: tuple[tuple[int, ...], ...] | None = None
    subsampling: int = -1
    cameras: tuple[str, ...] = ()  # the first is the scene's own, the others are called as the scene calls them

    @classmethod
    def of(cls, path: Path, cameras: Iterable[str] = ()) -> Recorder:
        """That of a recorded frame, and of a workspace's cameras."""
        with Image.open(path) as image:
            if not isinstance(image, JpegImagePlugin.JpegImageFile):
                return cls(cameras=tuple(cameras))
            tables = tuple(tuple(image.quantization[k]) for k in sorted(image.quantization))
            return cls(tables, JpegImagePlugin.get_sampling(image), tuple(cameras))

    def moment(self, seen: Seen, experts: Iterable[str]) -> Moment:
        """What experts see of a look: the frame, or those of their cameras by name.

        Raises InputError for a camera that is not here.
        """
        wanted = {camera_of(expert) for expert in experts} - {""}
        if not wanted:
            return self.frame(seen.image)
        if unknown := wanted - set(self.cameras):
            raise InputError(
                f"camera {', '.join(sorted(unknown))}: expected one of the workspace, which names "
                f"{', '.join(self.cameras) or 'none'}; name it under [roots], as in rgb.{min(unknown)} = FOLDER"
            )
        images = {**seen.more, self.cameras[0]: seen.image}
        return {name: self.frame(images[name]) for name in self.cameras if name in wanted}

    def frame(self, image: np.ndarray) -> np.ndarray:
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
