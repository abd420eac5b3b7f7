"""RoboTwin's raw episodes (HDF5) as recordings: frames of one camera or several, the point cloud, and the joints.

The layout of RoboTwin 2.0's collector (`envs/_base_task.py`, `envs/utils/pkl2hdf5.py`, `envs/camera/camera.py`):

| dataset | shape | |
|---|---|---|
| `observation/<camera>/rgb` | T | JPEG bytes, padded with zeros to one length |
| `observation/<camera>/intrinsic_cv` | T x 3 x 3 | px; pixel centres lie at index + 0.5 |
| `observation/<camera>/extrinsic_cv` | T x 3 x 4 | world to camera, OpenCV axes, metres |
| `observation/<camera>/cam2world_gl` | T x 4 x 4 | camera to world, OpenGL axes (y up, z backward) |
| `pointcloud`, or `pointcloud/<camera>` | T x N x 6 | x y z (m, world), r g b (0 to 1); rows of zeros fill up |
| `joint_action/{left,right}_{arm,gripper}`, `endpose/...` | T ... | rad; 0 closed to 1 open; m and quaternion |

The collector hands its RGB arrays to OpenCV, which takes them for BGR: in the JPEG bytes red and blue are exchanged.
They are put right here; `channels="rgb"` is for files written otherwise. Where the cloud's colours tell that the choice
is wrong, that is an error. Later files (`vision/<camera>/colors`, `state/...`) give frames and joints, no clouds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rgb2pc_lib.data.clouds import Cloud, project, transform
from rgb2pc_lib.data.files.faults import AT_ONCE, Faults
from rgb2pc_lib.data.files.guarded import DAMAGE, first_line
from rgb2pc_lib.data.listing import walk
from rgb2pc_lib.data.numbers import as_bytes, as_positions, numbers
from rgb2pc_lib.data.pictures import as_rgb, decode
from rgb2pc_lib.errors import InputError, remedy, tell
from rgb2pc_lib.recordings.importers import Recording, array_name, choose_cameras, optional, short_names

FRAMES = {"observation": "rgb", "vision": "colors"}  # group of cameras -> the dataset of a camera's frames
JOINTS = ("state", "endpose", "joint_action")  # groups of arrays [T, ...] for the state file
CAMERA = {"intrinsic_cv": [(3, 3)], "extrinsic_cv": [(3, 4), (4, 4)], "cam2world_gl": [(4, 4)]}  # shapes of one frame
GL_TO_CV = np.diag([1.0, -1, -1, 1])


@dataclass(frozen=True)
class RobotwinOptions:
    """How the files are to be understood."""

    camera: str | None = None  # None: the only one there is; clouds are moved into its frame
    channels: str = "bgr"  # order of the encoded images: bgr as RoboTwin writes them, rgb of files written otherwise
    cloud_frame: str = "world"  # of the stored clouds: world as RoboTwin writes them, or camera (OpenCV axes)
    more: tuple[str, ...] = ()  # further cameras, of which the images alone are taken


def list_robotwin(
    source: Path,
    options: RobotwinOptions = RobotwinOptions(),
    faults: Faults = AT_ONCE,  # noqa: B008
) -> list[Recording]:
    """Every `.hdf5` or `.h5` file below a folder (or the one file) as a recording.

    RoboTwin's `<task>/<config>/data/episode0.hdf5` is episode `<config>_episode0` of the task; any other file is an
    episode of the task that its folder is called. A file that is not such an episode is put into `faults`.
    """
    optional("h5py")  # without it nothing can be read, which is no file's fault
    files = [source] if source.is_file() else walk(source, ".hdf5", ".h5")
    if not files:
        raise InputError(f"{source}: expected RoboTwin episodes <task>/<config>/data/episode0.hdf5, found none")
    recordings = []
    for path in files:
        home = Path(os.path.abspath(path)).parent  # of its own path, wherever a link leads
        inside = home.name == "data" and len(home.parts) > 3
        task = home.parent.parent.name if inside else home.name
        episode = f"{home.parent.name}_{path.stem}" if inside else path.stem
        with faults.at(f"{task}/{episode}"):
            with _open(path) as file:
                found = _frames(path, file, [options.camera, *options.more])
            about: dict[str, str | int] = {"source": path.name, "bytes": path.stat().st_size}
            about |= {"camera": ", ".join(found), "channels": options.channels, "cloud_frame": options.cloud_frame}
            every = [f"{group}/{camera}" for camera, (group, _) in found.items()]
            files_of = [EpisodeFile(path, every, i, FRAMES[g], options) for i, (g, _) in enumerate(found.values())]
            one, (frames, *others) = files_of[0], [number for _, number in found.values()]
            if set(others) - {frames}:
                raise InputError(
                    f"{path}: its cameras differ in their frames, {sorted({frames, *others})}; import them one by one"
                )
            names = short_names([*found])
            more = {name: more.images for name, more in zip(names[1:], files_of[1:], strict=True)}
            recordings.append(Recording(task, episode, frames, one.read, one.state, about, names[0], more))
    return recordings


@dataclass(frozen=True)
class EpisodeFile:
    """One HDF5 file, opened only while it is read."""

    path: Path
    groups: list[str]  # of all cameras that are taken
    number: int  # of this one
    dataset: str  # of its frames
    options: RobotwinOptions

    @property
    def group(self) -> str:
        """Of the camera."""
        return self.groups[self.number]

    @property
    def camera(self) -> str:
        return self.group.split("/")[-1]

    def images(self, frames: range) -> Iterator[np.ndarray]:
        """Image `[H, W, 3]` uint8 of each frame. Raises InputError for images that cannot be decoded."""
        with _open(self.path) as file:
            stored = file[f"{self.group}/{self.dataset}"]
            for i in frames:
                yield self._decode(stored[i], i)

    def read(self, frames: range) -> Iterator[tuple[np.ndarray, Cloud | None]]:
        """Image `[H, W, 3]` uint8 and cloud of each frame; none where the camera sees no point of it.

        Where the camera is known, clouds are in its frame and have pixels, and points outside the image are left out.
        Raises InputError for images that cannot be decoded and clouds that do not fit the images.
        """
        with _open(self.path) as file:
            images, clouds = file[f"{self.group}/{self.dataset}"], self._clouds(file)
            K, pose = self._camera(file)
            to_camera = None if self.options.cloud_frame == "camera" else pose
            checked = clouds is None or K is None
            for i in frames:
                image, cloud = self._decode(images[i], i), None
                if clouds is not None:
                    whole = _cloud(clouds[i], None if to_camera is None else to_camera[i], f"{self.path}: cloud {i}")
                    cloud = whole if K is None else in_image(whole, K[i], image.shape[:2])
                if not checked and cloud is not None and len(cloud):
                    self._check_colours(cloud, image)
                    checked = True
                yield image, cloud if cloud is not None and len(cloud) else None
            if not checked:
                raise InputError(
                    f"{self.path}: expected points in sight of {self.camera}, found none in {len(frames)} frames; are "
                    "the clouds in the camera's frame already? Then say --cloud_frame camera"
                )

    def state(self, frames: range) -> dict[str, np.ndarray]:
        """Joints and end poses of the frames, and where the camera stands."""
        kept = slice(frames.start, frames.stop, frames.step)
        with _open(self.path) as file:
            total = len(file[f"{self.group}/{self.dataset}"])
            values: dict[str, np.ndarray] = {}
            taken: set[str] = set()
            for group in JOINTS:
                for name, array in file.get(group, {}).items():
                    if getattr(array, "shape", ())[:1] == (total,) and array.dtype.kind in "fiub":
                        values[array_name(name, group, values)] = array[kept]
                        taken.add(array.name)
            K, pose = self._camera(file)
            self._tell_left_out(file, taken)
        if "vector" in values:
            values["qpos"] = values.pop("vector")
        for side in ("left", "right"):
            if f"{side}_endpose" in values:
                values[f"{side}_tcp"] = values[f"{side}_endpose"][:, :3]  # m, world
        for name, array in (("K", K), ("world_to_camera", pose)):
            if array is not None:  # of a camera that stands still once, else of every step
                values[name] = array[0] if np.allclose(array, array[0], atol=1e-6) else array[kept]
        in_camera = pose is not None or self.options.cloud_frame == "camera"
        return values | {"frame": np.array("camera" if in_camera else "world")}  # of the clouds

    def _tell_left_out(self, file, taken: set[str]) -> None:
        clouds = self._clouds(file)
        used = taken | {f"/{self.group}/{name}" for name in CAMERA}
        used |= {f"/{group}/{FRAMES[group.split('/')[0]]}" for group in self.groups}
        used |= set() if clouds is None else {clouds.name}
        left: list[str] = []

        def look(name, item):
            if getattr(item, "size", 0) and f"/{name}" not in used:
                left.append(name)

        file.visititems(look)
        if left:
            some = ", ".join(sorted(left)[:12]) + (f" and {len(left) - 12} more" if len(left) > 12 else "")
            tell(f"{self.path.parent}: left out, as neither of {self.camera} nor numbers of every frame: {some}")

    def _clouds(self, file):  # dataset [T, N, 3 or 6] or None
        found = file.get("pointcloud")
        if isinstance(found, optional("h5py").Group):
            found = found.get(self.camera)
        if found is None or 0 in found.shape:  # RoboTwin writes an empty one when it collects none
            return None
        total = len(file[f"{self.group}/{self.dataset}"])
        if found.ndim != 3 or found.shape[0] != total or found.shape[2] not in (3, 6):
            raise InputError(f"{self.path}: expected {found.name} [{total}, N, 6], found {list(found.shape)}")
        return found

    def _camera(self, file):  # K [T, 3, 3] and world to camera [T, 4, 4] of every frame, or None
        group, total = file[self.group], len(file[f"{self.group}/{self.dataset}"])
        known = {}
        for name, shapes in ((n, shapes) for n, shapes in CAMERA.items() if n in group):
            shape = group[name].shape
            if shape[-2:] not in shapes or shape[:-2] not in ((), (1,), (total,)):
                expected = " or ".join(str([total, *one]) for one in shapes)
                raise InputError(f"{self.path}: expected {group[name].name} {expected}, found {list(shape)}")
            known[name] = _each(numbers(group[name][()], f"{self.path}: {name}", name), total)
        K, pose = known.get("intrinsic_cv"), known.get("extrinsic_cv")
        if pose is None and "cam2world_gl" in known:
            pose = GL_TO_CV @ np.linalg.inv(known["cam2world_gl"])
        elif pose is not None and pose.shape[1] == 3:
            pose = np.concatenate([pose, np.tile([[[0.0, 0, 0, 1]]], (total, 1, 1))], 1)
        if pose is None and self.options.cloud_frame == "world":
            K = None  # without the pose, pixels of points in the world cannot be told
        return K, pose

    def _decode(self, stored, frame):
        what = f"{self.path}: frame {frame} of {self.group}"
        if isinstance(stored, np.ndarray) and stored.ndim > 1:  # not encoded: as the simulator gave it
            return as_rgb(stored, what)
        pixels = decode(bytes(stored), what)
        return np.ascontiguousarray(pixels[..., ::-1]) if self.options.channels == "bgr" else pixels

    def _check_colours(self, cloud, image):
        if cloud.rgb is None:
            return
        u, v = cloud.uv.astype(int).T
        seen, told = image[v, u].astype(float), cloud.rgb.astype(float)
        wrong, otherwise = (abs(pixels - told).mean() for pixels in (seen, seen[:, ::-1]))
        if wrong > otherwise + 5 and wrong > 1.5 * otherwise:
            other = "rgb" if self.options.channels == "bgr" else "bgr"
            raise InputError(
                f"{self.path}: the points' colours differ from their pixels of {self.camera} by {wrong:.0f} of 255, "
                f"with red and blue exchanged by {otherwise:.0f}; say --channels {other}"
            )


def in_image(cloud: Cloud, K: np.ndarray, size: tuple[int, int]) -> Cloud:
    """The points of a camera-frame cloud that project into an image of `size` (height, width), with their pixels.

    What stands before what is not looked at: of a cloud from other viewpoints, hidden points stay.

    >>> K = np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]])
    >>> in_image(Cloud(np.array([[0, 0, 1], [0, 0, -1], [2, 0, 1]], np.float32)), K, (100, 100)).uv
    array([[50., 50.]], dtype=float32)
    """
    before = cloud.xyz[:, 2] > 1e-6
    uv = np.full((len(cloud), 2), -1.0)
    uv[before] = np.floor(project(cloud.xyz[before].astype(np.float64), K))
    inside = (uv >= 0).all(1) & (uv < size[::-1]).all(1)
    rgb = None if cloud.rgb is None else cloud.rgb[inside]
    return Cloud(cloud.xyz[inside], rgb, uv[inside].astype(np.float32))


def _cloud(points, pose, what):  # rows [N, 3 or 6] -> Cloud, moved by the pose if there is one
    points = points[(points != 0).any(1)]  # rows of zeros fill up
    xyz, rgb = numbers(points[:, :3], what, "positions"), None
    if points.shape[1] == 6:
        rgb = as_bytes(points[:, 3:], what)
    return Cloud(as_positions(xyz if pose is None else transform(xyz.astype(np.float64), pose), what), rgb)


def _each(array, total):  # what is given once holds for every frame
    return np.broadcast_to(array, (total, *array.shape[-2:])).astype(np.float64)


@contextmanager
def _open(path):
    h5py = optional("h5py")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except DAMAGE as e:
        what = remedy(path, "copy it again", "write it as RoboTwin's collector does", first_line(e))
        raise InputError(f"{path}: expected an HDF5 file of RoboTwin, found: {first_line(e)}; {what}") from None


def _frames(path, file, asked):  # camera -> group of cameras, number of frames
    there: dict[str, str] = {}
    for group, dataset in FRAMES.items():
        for name, camera in file.get(group, {}).items():
            if isinstance(camera, optional("h5py").Group) and dataset in camera:
                there.setdefault(name, group)
    if not there:
        raise InputError(f"{path}: expected frames in observation/<camera>/rgb, found {', '.join(file) or 'nothing'}")
    found = {}
    for camera in choose_cameras(asked, [*there], path):
        frames = file[f"{there[camera]}/{camera}/{FRAMES[there[camera]]}"]
        if not getattr(frames, "shape", ()):
            raise InputError(f"{path}: expected a list of frames in {frames.name}, found none; record it again")
        found[camera] = there[camera], len(frames)
    return found
