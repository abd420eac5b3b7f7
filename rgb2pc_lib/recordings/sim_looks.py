"""How a simulated scene looks: its light, colours, textures and distractors, and the place of its camera, drawn anew.

Needs the extra ``sim``.
"""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from PIL import Image

from rgb2pc_lib.recordings import sim_cameras
from rgb2pc_lib.recordings.sim_cameras import View

MAX_DISTRACTORS = 6
PARKED = (0, 0, -5)  # m, where unused distractors wait, far below the floor


@dataclass(frozen=True)
class Randomise:
    """How strongly the look of an episode varies; 0 leaves it as it is, 1 is the documented range."""

    camera: float = 0.0  # +-20 degrees azimuth, +-8 degrees elevation, +-10 % distance, +-4 cm target
    light: float = 0.0  # lamps moved by up to 0.6 m and dimmed or brightened by up to 60 %
    colour: float = 0.0  # every material tinted by up to 60 %
    texture: float = 0.0  # chance of each texture to become smooth noise
    distractors: int = 0  # up to this many boxes, cylinders and ellipsoids beside the workspace (at most 6)

    def __bool__(self) -> bool:
        return self != FIXED


FIXED = Randomise()
LOOKS = {"fixed": (), "half": (1, 3), "mostly": (1, 2, 3), "random": (0, 1, 2, 3)}  # which of four episodes are random
RANDOM = Randomise(camera=1.0, light=1.0, colour=1.0, texture=0.5, distractors=4)


class Looks:
    """The looks of one compiled scene: as it was made, or drawn."""

    def __init__(self, model: mujoco.MjModel, renderer: mujoco.Renderer, view: View):
        self.model, self.renderer, self.view = model, renderer, view
        names = "light_pos light_diffuse mat_rgba tex_data".split()
        self._original = {name: getattr(model, name).copy() for name in names}
        headlight = model.vis.headlight
        self._headlight = headlight.ambient.copy(), headlight.diffuse.copy()
        self._plain_textures = True

    def draw(self, rng: np.random.Generator, randomise: Randomise) -> None:
        """Give the scene the look that ``rng`` draws, whatever it looked like before."""
        model, headlight = self.model, self.model.vis.headlight
        for name in ("light_pos", "light_diffuse", "mat_rgba"):
            getattr(model, name)[:] = self._original[name]
        headlight.ambient[:], headlight.diffuse[:] = self._headlight

        sim_cameras.place(model, self.view.jittered(rng, randomise.camera))

        amount = randomise.light
        model.light_pos[:] += amount * rng.uniform(-0.6, 0.6, (model.nlight, 3))
        model.light_diffuse[:] *= 1 + amount * rng.uniform(-0.6, 0.6, (model.nlight, 1))
        model.light_diffuse[:] *= 1 + amount * rng.uniform(-0.15, 0.15, (model.nlight, 3))
        headlight.ambient[:] *= 1 + amount * rng.uniform(-0.5, 0.4)
        headlight.diffuse[:] *= 1 + amount * rng.uniform(-0.5, 0.4)

        amount = randomise.colour
        tint = 1 + amount * rng.uniform(-0.6, 0.6, (model.nmat, 3))
        model.mat_rgba[:, :3] *= tint
        model.mat_rgba[:, :3] += amount * rng.uniform(0, 0.25, (model.nmat, 3))
        np.clip(model.mat_rgba, 0, 1, out=model.mat_rgba)
        self._textures(rng, randomise.texture)
        self._distractors(rng, randomise.distractors)

    def _textures(self, rng: np.random.Generator, chance: float) -> None:
        model = self.model
        if not chance and self._plain_textures:
            return
        model.tex_data[:] = self._original["tex_data"]
        for i in range(model.ntex):
            if rng.random() < chance and model.tex_type[i] != int(mujoco.mjtTexture.mjTEXTURE_SKYBOX):
                height, width, channels = model.tex_height[i], model.tex_width[i], model.tex_nchannel[i]
                pixels = _noise_texture(rng, height, width)[..., :channels]
                model.tex_data[model.tex_adr[i] :][: pixels.size] = pixels.ravel()
        self.renderer._gl_context.make_current()
        for i in range(model.ntex):
            mujoco.mjr_uploadTexture(model, self.renderer._mjr_context, i)
        self._plain_textures = not chance

    def _distractors(self, rng: np.random.Generator, most: int) -> None:
        shown = rng.integers(0, most, endpoint=True)
        for i in range(MAX_DISTRACTORS):
            geom = self.model.geom(f"distractor{i}")
            size, spin = rng.uniform(0.015, 0.045, 3), rng.uniform(0, np.pi)
            height = size[1] if geom.type[0] == int(mujoco.mjtGeom.mjGEOM_CYLINDER) else size[2]
            side = rng.choice([-1, 1])  # left or right, out of the expert's way
            place = side * rng.uniform(0.32, 0.45), rng.uniform(0.40, 0.85), height
            geom.size[:], geom.rbound[:] = size, np.linalg.norm(size)
            geom.quat[:] = np.cos(spin), 0, 0, np.sin(spin)
            geom.rgba[:3] = rng.uniform(0, 1, 3)
            geom.pos[:] = place if i < shown else PARKED


def add_distractors(spec: mujoco.MjSpec) -> None:
    """Put parked distractors into a scene that is not compiled yet: seen, but without contact or mass."""
    kinds = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER, mujoco.mjtGeom.mjGEOM_ELLIPSOID
    for i in range(MAX_DISTRACTORS):
        looks = {"type": kinds[i % 3], "size": [0.02] * 3, "pos": PARKED, "rgba": [1, 1, 1, 1]}
        spec.worldbody.add_geom(name=f"distractor{i}", contype=0, conaffinity=0, mass=0, **looks)


def _noise_texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Two random colours blended by coarse noise, uint8 [height, width, 3]."""
    coarse = rng.integers(0, 256, rng.integers(2, 12, 2), dtype=np.uint8)
    smooth = rng.choice([Image.Resampling.NEAREST, Image.Resampling.BILINEAR])
    blend = np.asarray(Image.fromarray(coarse).resize((width, height), int(smooth)))[..., None] / 255
    first, second = rng.uniform(30, 255, (2, 3))
    return np.clip(first * blend + second * (1 - blend) + rng.normal(0, 3, (height, width, 1)), 0, 255).astype(np.uint8)
