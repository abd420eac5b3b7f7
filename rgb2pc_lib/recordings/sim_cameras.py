"""Cameras of a simulated scene: where they stand, how they vary, and the further ones beside the first.

The first, "view", is the one that clouds are seen from. Needs the extra ``sim``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import mujoco
import numpy as np

from rgb2pc_lib.errors import InputError

CORNER, WRIST = "corner", "wrist"
MORE = (CORNER, WRIST)  # further cameras: a fixed one in the opposite corner, and one on the hand
_WRIST_FROM, _WRIST_TO = (0.15, -0.05, 0.05), (0.0, 0.02, -0.10)  # m from the hand, world axes: stands at, looks at
_WRIST_FOVY = 75.0  # degrees, vertical


@dataclass(frozen=True)
class View:
    """A pinhole camera on a sphere around the point it looks at (world frame, z up)."""

    azimuth: float = -35.0  # degrees; 0 looks from +x, 90 from +y
    elevation: float = 40.0  # degrees above the horizon
    distance: float = 1.05  # m
    target: tuple[float, float, float] = (0.0, 0.64, 0.16)  # m
    fovy: float = 45.0  # degrees, vertical

    def pose(self) -> tuple[np.ndarray, np.ndarray]:
        """Position [3] (m) and rotation [3, 3] whose columns are right, up and backward (OpenGL axes)."""
        azimuth, elevation = np.radians([self.azimuth, self.elevation])
        ground = np.cos(elevation)
        back = np.array([ground * np.cos(azimuth), ground * np.sin(azimuth), np.sin(elevation)])
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
        return np.array(self.target) + self.distance * back, np.stack([right, np.cross(back, right), back], axis=1)

    def jittered(self, rng: np.random.Generator, amount: float) -> View:
        """Moved at random: by up to 20 degrees azimuth, 8 elevation, a tenth of the distance, 4 cm of the target."""
        return replace(
            self,
            azimuth=self.azimuth + amount * rng.uniform(-20, 20),
            elevation=self.elevation + amount * rng.uniform(-8, 8),
            distance=self.distance * (1 + amount * rng.uniform(-0.1, 0.1)),
            target=tuple(np.array(self.target) + amount * rng.uniform(-0.04, 0.04, 3)),
        )


def called(camera: str) -> str:
    """What a further camera is called inside a scene, whose own cameras have names too."""
    return f"more_{camera}"


def refuse_unknown(names: Iterable[str]) -> None:
    """Raises InputError for a further camera that there is not, or that is asked for twice."""
    names = list(names)
    if unknown := [name for name in names if name not in MORE]:
        raise InputError(f"cameras: expected {', '.join(MORE)}; found {unknown[0]!r}")
    if len(set(names)) < len(names):
        raise InputError(f"cameras: expected each once, found {', '.join(names)}")


def add_cameras(spec: Any, view: View, more: Iterable[str]) -> None:
    """Put our cameras into a scene (``MjSpec``) before it is compiled; nothing else of it changes."""
    spec.worldbody.add_camera(name="view", fovy=view.fovy)
    for name in more:
        if name == CORNER:
            spec.worldbody.add_camera(name=called(name), fovy=view.fovy)
        else:
            spec.body("hand").add_camera(name=called(name), fovy=_WRIST_FOVY)


def place(model: Any, view: View) -> None:
    """Put the first camera where a view says."""
    position, rotation = view.pose()
    camera = model.camera("view")
    camera.pos[:] = position
    mujoco.mju_mat2Quat(camera.quat, rotation.ravel())


def place_more(model: Any, data: Any, view: View, more: Iterable[str], rng: np.random.Generator, amount: float) -> None:
    """Put the further cameras of a scene in place, after its reset: the corner's moved at random as the first is, the
    wrist's by up to 1 cm. Their draws come from a generator of their own, so a scene is the same with and without them.
    """
    for name in more:
        camera = model.camera(called(name))
        if name == CORNER:
            position, rotation = replace(view, azimuth=view.azimuth + 180).jittered(rng, amount).pose()
        else:  # the hand keeps its orientation, so what it is now holds for the episode
            hand = data.body("hand").xmat.reshape(3, 3)
            stands = np.array(_WRIST_FROM) + amount * rng.uniform(-0.01, 0.01, 3)
            position, rotation = hand.T @ stands, hand.T @ _looking(stands, np.array(_WRIST_TO))
        camera.pos[:] = position
        mujoco.mju_mat2Quat(camera.quat, np.ascontiguousarray(rotation).ravel())


def _looking(stands: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] of a camera that looks from one point at another, up as far as it goes: right, up, backward."""
    back = (stands - at) / np.linalg.norm(stands - at)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back], axis=1)
