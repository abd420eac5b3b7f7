"""Simulated robot episodes: Meta-World scripted experts rendered to RGB, point clouds and low-dimensional state.

One episode is one (task, seed, randomisation): object placement, camera, light, colours, textures and
distractors all follow from it, so it can be rebuilt bit for bit. A roll-out has two passes: physics first,
then only the kept steps are rendered. Needs the extra ``sim``, as the `sim_` modules beside it do.

>>> scene = Scene("drawer-open")                                # doctest: +SKIP
>>> scene.record(seed=0, randomise=RANDOM).clouds[0].xyz.shape   # doctest: +SKIP
(1024, 3)
"""

import ctypes.util
import os
import sys
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from rgb2pc_lib.data.clouds import Cloud, back_project, read_ply, transform, write_ply
from rgb2pc_lib.data.files.guarded import check_npz
from rgb2pc_lib.data.files.writing import new_folder, write_atomic
from rgb2pc_lib.data.listing import IMAGES, steps_of
from rgb2pc_lib.data.pictures import encoded
from rgb2pc_lib.data.states import read_state, state_file
from rgb2pc_lib.errors import InputError

GL_HELP = (
    "off-screen rendering needs an OpenGL library: expected MUJOCO_GL=osmesa (Debian package libosmesa6) or "
    "MUJOCO_GL=egl (libegl1 and libegl-mesa0, or a GPU driver)"
)


def choose_gl() -> str:
    """The off-screen OpenGL that MuJoCo should use: MUJOCO_GL if set, else OSMesa, else EGL."""
    if os.environ.get("MUJOCO_GL"):
        return os.environ["MUJOCO_GL"]
    for name, library in (("osmesa", "OSMesa"), ("egl", "EGL")):
        if ctypes.util.find_library(library):
            return name
    raise InputError(f"{GL_HELP}; found neither. Install one: apt-get install libosmesa6")


if sys.platform == "linux":  # elsewhere MuJoCo's own default works
    os.environ["MUJOCO_GL"] = choose_gl()  # read once, when mujoco is imported

try:
    import mujoco

    warnings.filterwarnings("ignore", module="gymnasium|metaworld")
    from gymnasium.envs.mujoco import MujocoEnv
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as ENVIRONMENTS
    from metaworld.policies import ENV_POLICY_MAP as EXPERTS
except ModuleNotFoundError as error:
    raise InputError(f"recording needs the simulator, found no module {error.name}; pip install -e '.[sim]'") from error
except (ImportError, AttributeError, RuntimeError) as error:  # what PyOpenGL raises without its library
    raise InputError(f"{GL_HELP}; found MUJOCO_GL={os.environ.get('MUJOCO_GL')}, which fails: {error}") from error

from rgb2pc_lib.recordings import sim_cameras  # noqa: E402, imports mujoco, like the next
from rgb2pc_lib.recordings.sim_cameras import View  # noqa: E402
from rgb2pc_lib.recordings.sim_labels import LABELS, geom_labels, pixel_labels  # noqa: E402
from rgb2pc_lib.recordings.sim_looks import FIXED, LOOKS, RANDOM, Looks, Randomise, add_distractors  # noqa: E402

TASKS = tuple(sorted(name.removesuffix("-v3") for name in EXPERTS))
SAMPLE_TASKS = (
    "drawer-open", "door-open", "assembly", "hammer",
    "peg-insert-side", "window-open", "button-press-topdown", "bin-picking",
)  # fmt: skip
# parts of the names of the tasks whose goal is a marker and nothing else
MARKER_GOALS = ("reach", "push", "pick-", "coffee-pull", "stick-pull", "hand-insert", "peg-unplug")
SLIDE, HINGE = int(mujoco.mjtJoint.mjJNT_SLIDE), int(mujoco.mjtJoint.mjJNT_HINGE)  # comparing enums is slow
ARM_JOINTS = 9  # seven arm joints and two finger slides come first in every Meta-World model
TABLE_TOP = 0.012  # m above the table plane: higher points belong to robot and objects


@dataclass(frozen=True)
class RecordConfig:
    """What one recording looks like, the same for all its episodes."""

    size: int = 224  # px, height and width of the image
    steps: int = 16  # kept per episode, evenly spaced over the roll-out, first and last included
    points: int = 1024  # per cloud
    frame: str = "camera"  # of the clouds: "camera" (OpenCV axes) or "world" (uses the extrinsics, which RGB lacks)
    view: View = field(default_factory=View)
    workspace: tuple = ((-0.45, 0.30, -0.03), (0.45, 0.97, 0.55))  # m, world: what is kept; the table's wall is not
    above_table: float = 0.85  # share of the points on robot and objects, as far as so many are visible
    cell: float = 0.02  # m: cells of space above the table are equally likely to give a point; 0: pixels are
    max_length: int = 300  # control steps before an episode counts as failed
    after_success: int = 2  # control steps recorded after the first success
    more: tuple[str, ...] = ()  # further cameras, of `sim_cameras.MORE`; the clouds are seen from the first alone

    def __post_init__(self):
        sim_cameras.refuse_unknown(self.more)
        if self.frame not in ("camera", "world"):
            raise InputError(f"frame: expected camera or world, found {self.frame!r}")
        for name, least in (
            ("size", 16), ("steps", 2), ("points", 1), ("max_length", 2), ("cell", 0), ("after_success", 0)
        ):  # fmt: skip
            if not getattr(self, name) >= least:
                raise InputError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        if not 0 <= self.above_table <= 1:
            raise InputError(f"above_table: expected a share, 0 to 1, found {self.above_table}")
        if self.steps > self.max_length:
            raise InputError(f"steps: an episode has at most max_length = {self.max_length}, found {self.steps}")
        if not (np.array(self.workspace[0]) < np.array(self.workspace[1])).all():
            raise InputError(f"workspace: expected its lowest corner and its highest, found {self.workspace}")
        if not (self.view.distance > 0 and 0 < self.view.fovy < 180):
            raise InputError(f"view: expected a distance above 0 m and 0 to 180 degrees, found {self.view}")


STANDARD = RecordConfig()  # of the bundled sample


@dataclass(frozen=True)
class Episode:
    """S kept steps of one roll-out; a failed one has no images and no clouds."""

    images: list[np.ndarray]  # S times uint8 [H, W, 3]
    clouds: list[Cloud]  # S times
    state: dict[str, np.ndarray]  # the arrays of the state file, see data/README.md
    more: dict[str, list[np.ndarray]] = field(default_factory=dict)  # further camera -> its images, likewise

    @property
    def success(self) -> bool:
        return bool(self.state["success"])


@dataclass(frozen=True)
class Seen:
    """What one look at a scene gives: its image, its cloud where that was asked for, and its state."""

    image: np.ndarray  # uint8 [H, W, 3]
    cloud: Cloud | None
    state: dict[str, np.ndarray]  # of a state file, one step: tcp [3], object [3], goal [3], K, world_to_camera, ...
    more: dict[str, np.ndarray] = field(default_factory=dict)  # further camera -> its image, likewise


def task_name(name: str) -> str:
    """A Meta-World task without its version suffix.

    >>> task_name("drawer-open-v3")  # doctest: +SKIP
    'drawer-open'
    """
    if name.removesuffix("-v3") not in TASKS:
        raise InputError(f"task: expected one of {', '.join(TASKS)}; found {name!r}")
    return name.removesuffix("-v3")


class Scene:
    """One task with our camera in it; ``record`` rolls out its expert, ``begin``, ``look`` and ``act`` anybody."""

    renderer: Any = None  # mujoco's
    _points: np.random.Generator  # which pixels become points, of the episode that was begun last

    def __init__(self, task: str, config: RecordConfig = STANDARD):
        self.task = task_name(task)
        self.config = config
        self.env = _build_environment(self.task, config)
        self.env._freeze_rand_vec, self.env.seeded_rand_vec = False, True  # so that env.seed decides the placement
        self.model, self.data = self.env.model, self.env.data
        self.model.vis.quality.offsamples = 0  # anti-aliasing and shadows cost a software renderer ten times the rest
        self.model.vis.quality.shadowsize = 0
        self.model.vis.global_.offwidth = self.model.vis.global_.offheight = config.size
        self.renderer = _open_renderer(self.model, config.size)
        self.options = mujoco.MjvOption()
        self.options.sitegroup[:] = 0
        self._show_goal_marker()
        self._looks = Looks(self.model, self.renderer, config.view)
        self._geom_labels = geom_labels(self.model)

    def close(self) -> None:
        """Free the OpenGL context; a scene that is forgotten does so by itself."""
        if self.renderer is not None:
            self.renderer._gl_context.make_current()  # else it would free the buffers of the scene drawn last
            self.renderer.close()
            self.renderer = None

    def __del__(self):
        self.close()

    # ------------------------------------------------------------------ one episode

    def record(self, seed: int, randomise: Randomise = FIXED) -> Episode:
        """Roll out the expert from ``seed``; the kept steps are rendered if it succeeds."""
        snapshots, success = self._roll_out(self.begin(seed, randomise))
        last = len(snapshots) - 1
        kept = np.unique(np.linspace(0, last, self.config.steps).round().astype(int))
        images, clouds, labels, rows = [], [], [], []
        more: dict[str, list[np.ndarray]] = {name: [] for name in self.config.more}
        for index in kept:
            self._restore(snapshots[index])
            rows.append(self._state() | {"action": snapshots[index]["action"]})
            if success:
                image, cloud = self._observe()
                images.append(image)
                clouds.append(cloud)
                labels.append(self._labels(cloud))
                for name, seen in self._more().items():
                    more[name].append(seen)
        K, world_to_camera = self.camera()
        state = {name: np.stack([row[name] for row in rows]) for name in rows[0]} | {
            "steps": np.array([f"step_{i:04d}" for i in range(len(kept))]),
            "time": kept.astype(np.int32),
            "progress": (kept / max(last, 1)).astype(np.float32),
            "goal": np.asarray(self.env._target_pos, np.float32),
            "K": K,
            "world_to_camera": world_to_camera,
            "success": np.array(success),
            "randomised": np.array(bool(randomise)),
            "seed": np.array(seed),
            "actions": np.stack([s["action"] for s in snapshots]),
            "frame": np.array(self.config.frame),
            "labels": np.array(labels, np.uint8).reshape(len(labels), self.config.points),
            "label_names": np.array(LABELS),
        }
        return Episode(images, clouds, state, more)

    # ------------------------------------------------------------------ one roll-out, driven from outside

    def begin(self, seed: int, randomise: Randomise | bool = FIXED) -> np.ndarray:
        """Set the look and the placement of ``seed``, as ``record`` does; Meta-World's own observation of it.

        ``randomise``: how strongly the look varies; True is the documented range, False leaves it as it is.
        """
        stream = [seed, zlib.crc32(self.task.encode())]
        looks = randomise if isinstance(randomise, Randomise) else RANDOM if randomise else FIXED
        self._looks.draw(np.random.default_rng([*stream, 0]), looks)
        self._points = np.random.default_rng([*stream, 1])
        self.env.seed(seed)
        observation, _ = self.env.reset()
        others = np.random.default_rng([*stream, 2])
        sim_cameras.place_more(self.model, self.data, self.config.view, self.config.more, others, looks.camera)
        return observation

    def look(self, cloud: bool = True) -> Seen:
        """What is seen and known now; a cloud costs a second rendering."""
        self._refresh()
        K, world_to_camera = self.camera()
        known = {"goal": np.asarray(self.env._target_pos, np.float32), "K": K, "world_to_camera": world_to_camera}
        state = self._state() | known
        image, points = self._observe() if cloud else (self._draw(), None)
        return Seen(image, points, state, self._more())

    def act(self, action: np.ndarray) -> bool:
        """One control step with an action `[4]`, clipped to -1 to 1; whether Meta-World calls the task solved."""
        *_, info = self.env.step(np.clip(action, -1, 1).astype(np.float32))
        return bool(info["success"] > 0)

    def _roll_out(self, observation: np.ndarray) -> tuple[list[dict], bool]:
        expert = EXPERTS[f"{self.task}-v3"]()
        snapshots: list[dict[str, np.ndarray]] = []
        stop = self.config.max_length
        success = False
        while len(snapshots) < stop:
            action = np.clip(expert.get_action(observation), -1, 1).astype(np.float32)
            snapshots.append({name: getattr(self.data, name).copy() for name in ("qpos", "qvel", "mocap_pos")})
            snapshots[-1]["action"] = action
            observation, _, _, _, info = self.env.step(action)
            if info["success"] > 0 and not success:
                success = True
                stop = min(len(snapshots) + self.config.after_success, self.config.max_length)
        return snapshots, success

    def _restore(self, snapshot: dict) -> None:
        for name in ("qpos", "qvel", "mocap_pos"):
            getattr(self.data, name)[:] = snapshot[name]
        self._refresh()

    def _refresh(self) -> None:
        """Bring what depends on the positions up to them: a control step leaves it a little behind."""
        mujoco.mj_forward(self.model, self.data)
        for name, position in self.env._target_site_config:  # Meta-World moves goal markers by hand
            self.env._set_pos_site(name, position)

    def _state(self) -> dict[str, np.ndarray]:
        model, data = self.model, self.data
        articulated = [i for i in range(ARM_JOINTS, model.njnt) if model.jnt_type[i] in (SLIDE, HINGE)]
        joint = data.qpos[model.jnt_qposadr[articulated[0]]] if articulated else np.nan
        values = {
            "tcp": self.env.tcp_center,
            "object": self.env._get_pos_objects()[:3],
            "opening": np.linalg.norm(data.body("rightclaw").xpos - data.body("leftclaw").xpos),
            "joint": joint,
            "qpos": data.qpos,
        }
        return {name: np.array(value, np.float32) for name, value in values.items()}

    # ------------------------------------------------------------------ what the camera sees

    def camera(self) -> tuple[np.ndarray, np.ndarray]:
        """K [3, 3] (px, a pixel's centre at index + 0.5) and world_to_camera [4, 4] (OpenCV axes, m)."""
        camera, size = self.model.camera("view"), self.config.size
        focal = 0.5 * size / np.tan(np.radians(camera.fovy[0]) / 2)
        K = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
        rotation = self.data.cam_xmat[camera.id].reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])  # OpenGL -> OpenCV
        world_to_camera = np.eye(4)
        world_to_camera[:3, :3] = rotation.T
        world_to_camera[:3, 3] = -rotation.T @ self.data.cam_xpos[camera.id]
        return K, world_to_camera

    def _observe(self) -> tuple[np.ndarray, Cloud]:
        image = self._draw()
        self.renderer.enable_depth_rendering()
        depth = self._draw()
        self.renderer.disable_depth_rendering()
        return image, self._sample_cloud(image, depth, self._points)

    def _labels(self, cloud: Cloud) -> np.ndarray:
        """What the simulator says each point belongs to, uint8 [N]: indices into ``LABELS``."""
        self.renderer.enable_segmentation_rendering()
        shown = pixel_labels(self._draw(), self._geom_labels)
        self.renderer.disable_segmentation_rendering()
        assert cloud.uv is not None  # all points here were pixels
        u, v = cloud.uv.astype(int).T
        return shown[v, u]

    def _more(self) -> dict[str, np.ndarray]:
        """Further camera -> what it sees."""
        return {name: self._draw(sim_cameras.called(name)) for name in self.config.more}

    def _draw(self, camera: str = "view") -> np.ndarray:
        self.renderer.update_scene(self.data, camera=camera, scene_option=self.options)
        self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        return self.renderer.render().copy()

    def _sample_cloud(self, image: np.ndarray, depth: np.ndarray, rng: np.random.Generator) -> Cloud:
        """Distinct pixels inside the workspace; geometry alone decides what is above the table, not labels."""
        config = self.config
        K, world_to_camera = self.camera()
        xyz = back_project(depth, K).reshape(-1, 3)  # camera frame, [H*W, 3]
        world = transform(xyz, np.linalg.inv(world_to_camera))
        low, high = np.array(config.workspace)
        inside = np.all((world > low) & (world < high), axis=1)
        raised = world[:, 2] > TABLE_TOP
        above, table = np.flatnonzero(inside & raised), np.flatnonzero(inside & ~raised)
        if len(above) + len(table) < config.points:
            raise InputError(
                f"points: expected at most {len(above) + len(table)}, the pixels that show the workspace of "
                f"{self.task} at {config.size} px; found {config.points}; ask for fewer points or a larger image"
            )
        wanted = max(round(config.points * config.above_table), config.points - len(table))
        wanted = min(wanted, len(above))
        chance = _even(world[above], config.cell)
        pixels = np.concatenate([
            rng.choice(above, wanted, replace=False, p=chance),
            rng.choice(table, config.points - wanted, replace=False),
        ])  # fmt: skip
        return Cloud(
            (xyz if config.frame == "camera" else world)[pixels].astype(np.float32),
            image.reshape(-1, 3)[pixels],
            np.stack([pixels % config.size, pixels // config.size], axis=1).astype(np.float32),
        )

    def _show_goal_marker(self) -> None:
        """Some goals exist only as a marker (a site): show those, hide every other site."""
        if any(word in self.task for word in MARKER_GOALS):
            self.options.sitegroup[5] = 1
            for i in range(self.model.nsite):
                if "goal" in self.model.site(i).name:
                    self.model.site_group[i] = 5


def _build_environment(task: str, config: RecordConfig):
    """The task's environment, with our cameras and parked distractors added to its scene before it is compiled.

    The environments name their own class in ``super``, so they cannot be subclassed: the one method that
    compiles the scene is replaced while the environment is built.
    """

    def compile_scene(env):
        spec = mujoco.MjSpec.from_file(env.fullpath)
        sim_cameras.add_cameras(spec, config.view, config.more)
        add_distractors(spec)
        model = spec.compile()
        return model, mujoco.MjData(model)

    with mock.patch.object(MujocoEnv, "_initialize_simulation", compile_scene):
        return ENVIRONMENTS[f"{task}-v3-goal-observable"](seed=0)


def _even(xyz: np.ndarray, cell: float) -> np.ndarray | None:
    """Chance of each point `[N]` to be drawn, such that every occupied cell of space (m) has the same.

    Else a thin ring far from the camera, a few dozen pixels, is lost beside the arm that stands before it.
    """
    if not cell or not len(xyz):
        return None
    _, which, count = np.unique(np.floor(xyz / cell), axis=0, return_inverse=True, return_counts=True)
    weight = 1 / count[which.ravel()]
    return weight / weight.sum()


def _open_renderer(model, size: int):
    try:
        return mujoco.Renderer(model, size, size)
    except Exception as error:  # each OpenGL fails in its own way
        raise InputError(f"{GL_HELP}; found MUJOCO_GL={os.environ.get('MUJOCO_GL')}: {error}") from error


# ---------------------------------------------------------------------- on disk


def write_episode(root: str | Path, task: str, name: str, episode: Episode, jpeg_quality: int = 90) -> None:
    """Write ``rgb/``, ``clouds/`` and, last, ``state/<task>/<name>.npz``: its presence marks a finished episode.

    Frames of a further camera lie in ``rgb_<camera>/``.
    """
    root = Path(root)
    for camera, frames in episode.more.items():
        with new_folder(root / f"rgb_{camera}" / task / name, "step_*") as images:
            for step, image in zip(episode.state["steps"], frames, strict=True):
                (images / f"{step}.jpg").write_bytes(_jpeg(image, jpeg_quality))
    rgb, clouds = root / "rgb" / task / name, root / "clouds" / task / name
    with new_folder(rgb, "step_*") as images, new_folder(clouds, "step_*") as points:
        for step, image, cloud in zip(episode.state["steps"], episode.images, episode.clouds, strict=True):
            (images / f"{step}.jpg").write_bytes(_jpeg(image, jpeg_quality))
            write_ply(points / f"{step}.ply", cloud)
    arrays: dict[str, Any] = episode.state
    write_atomic(state_file(root / "state", task, name), lambda p: np.savez_compressed(p, **arrays))


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    return encoded(image, "JPEG", quality=quality, optimize=True)


def record_task(
    root: str | Path,
    task: str,
    episodes: int,
    first_seed: int = 0,
    randomise: str = "half",
    config: RecordConfig = STANDARD,
    jpeg_quality: int = 90,
) -> Iterator[tuple[str, int, str]]:
    """Record ``episode_0000`` ... of one task, each from the next seed at which the expert succeeds.

    ``randomise`` is fixed, random, half (every second episode is random) or mostly (all but every fourth are).
    Finished episodes are left alone.
    Yields (episode, seed, outcome), outcome being ``recorded``, ``kept`` (was there already) or ``failed``.
    """
    if randomise not in LOOKS:
        raise InputError(f"randomise: expected {', '.join(LOOKS)}; found {randomise!r}")
    if episodes < 1 or first_seed < 0 or not 1 <= jpeg_quality <= 95:
        found = f"episodes {episodes}, first seed {first_seed}, JPEG quality {jpeg_quality}"
        raise InputError(f"expected 1 episode or more, a first seed of 0 or more, a quality of 1 to 95; found {found}")
    task = task_name(task)
    scene, seed = None, first_seed
    try:
        for index in range(episodes):
            name = f"episode_{index:04d}"
            looks = RANDOM if index % 4 in LOOKS[randomise] else FIXED
            if (Path(root) / "state" / task / f"{name}.npz").exists():
                kept = _check_finished(Path(root), task, name, looks, config)
                yield name, kept, "kept"
                seed = kept + 1
                continue
            scene = scene or Scene(task, config)
            for tried in range(seed, seed + 50):
                episode = scene.record(tried, looks)
                if episode.success:
                    write_episode(root, task, name, episode, jpeg_quality)
                    yield name, tried, "recorded"
                    break
                yield name, tried, "failed"
            else:
                raise InputError(f"{task}: expected a success within 50 seeds, found none from {seed} to {tried}")
            seed = tried + 1
    finally:
        if scene:
            scene.close()


def config_of(root: Path, task: str, name: str) -> dict[str, Any]:
    """What a finished episode's files tell of the `RecordConfig` behind them: `frame`, `size` and `points`."""
    state = read_state(root / "state" / task / f"{name}.npz")
    cloud = read_ply(root / "clouds" / task / name / f"{state['steps'][0]}.ply")
    return {"frame": str(state["frame"]), "size": round(2 * float(state["K"][0, 2])), "points": len(cloud)}


def _check_finished(root: Path, task: str, name: str, looks: Randomise, config: RecordConfig) -> int:
    """The seed of a finished episode, which must have been recorded with the same settings."""
    path = root / "state" / task / f"{name}.npz"
    state = read_state(path)
    wanted = {"randomised": ("b", ""), "frame": ("U", ""), "K": ("f", "33"), "seed": ("iu", ""), "time": ("iuf", "S")}
    check_npz(path, state, wanted, "delete it, and the episode is recorded again")
    found = config_of(root, task, name)
    found |= {"randomised": bool(state["randomised"]), "steps": len(state["steps"])}
    found["images"] = len(steps_of(root / "rgb" / task / name, IMAGES))
    asked = {name: getattr(config, name) for name in ("frame", "size", "points")}
    asked["randomised"] = bool(looks)
    asked["images"] = len(state["steps"])
    for camera in config.more:
        found[camera] = len(steps_of(root / f"rgb_{camera}" / task / name, IMAGES))
        asked[camera] = len(state["steps"])
    asked["steps"] = min(config.steps, int(state["time"][-1]) + 1)  # a short roll-out has no more
    differing = [key for key in asked if asked[key] != found[key]]
    if differing:
        raise InputError(
            f"{path}: expected an episode with {', '.join(f'{key} = {asked[key]}' for key in differing)}, "
            f"found {', '.join(str(found[key]) for key in differing)}; "
            "record into another folder, or ask for the settings of the first recording"
        )
    return int(state["seed"])
