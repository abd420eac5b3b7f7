"""LeRobot datasets (format v3) as recordings: one camera's frames, from videos or tables of images, and the state.

| file | holds |
|---|---|
| `meta/info.json` | fps, features, where files lie (`data_path`, `video_path`) |
| `meta/episodes/chunk-000/file-000.parquet` | a row an episode: length, tasks, its data file, its place in the videos |
| `data/chunk-000/file-000.parquet` | a row a frame: `timestamp` (s), `observation.state`, `action`, perhaps images |
| `videos/<camera>/chunk-000/file-000.mp4` | the frames of several episodes, one after the other |

A frame is found in its video by its time: `from_timestamp` of its episode plus its own `timestamp`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.recordings.importers import Recording, choose_camera, optional, slug

VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
STATE = {"observation.state": "qpos", "action": "action", "timestamp": "timestamp"}  # column -> array of the state file


def list_lerobot(source: Path, camera: str | None = None) -> list[Recording]:
    """The episodes of a data set as recordings `<its task's words>/episode_0000`.

    Raises InputError naming the file for a folder that is no such data set, another format, and an unknown camera.
    """
    info = _info(source)
    pictures = {k: f for k, f in info["features"].items() if f.get("dtype") in ("video", "image") and not _is_depth(f)}
    camera = choose_camera(camera, list(pictures), source / "meta" / "info.json")
    columns = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
    if pictures[camera]["dtype"] == "video":
        columns += [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    recordings = []
    files = sorted((source / "meta" / "episodes").glob("*/*.parquet"))
    for row in (row for file in files for row in _table(file, columns).to_pylist()):
        one = EpisodeRows(source, info, camera, row)
        task = slug(row["tasks"][0]) if row["tasks"] else ""
        episode = f"episode_{row['episode_index']:04d}"
        name = task or slug(source.resolve().name)
        about = {"source": source.resolve().name, "camera": camera}
        recordings.append(Recording(name, episode, row["length"], one.read, one.state, about))
    if not recordings:
        raise InputError(f"{source / 'meta' / 'episodes'}: expected parquet files that list episodes, found none")
    return recordings


@dataclass(frozen=True)
class EpisodeRows:
    """One episode: a row of `meta/episodes`, and what it points at."""

    source: Path
    info: dict
    camera: str
    row: dict

    def read(self, frames: range) -> Iterator[tuple[np.ndarray, None]]:
        """Image `[H, W, 3]` uint8 of each frame; there are no clouds. Raises InputError where a frame is lacking."""
        if self.info["features"][self.camera]["dtype"] == "image":
            column = self._rows([self.camera])[self.camera]
            for i in frames:
                yield self._decode(column[i].as_py(), i), None
            return
        where = {name: self.row[f"videos/{self.camera}/{name}"] for name in ("chunk_index", "file_index")}
        path = self.source / (self.info.get("video_path") or VIDEO).format(video_key=self.camera, **where)
        begin = self.row[f"videos/{self.camera}/from_timestamp"]
        times = begin + self._rows(["timestamp"])["timestamp"].to_numpy().astype(np.float64)
        for image in video_frames(path, times[frames.start : frames.stop : frames.step], 0.5 / self.info["fps"]):
            yield image, None

    def state(self, frames: range) -> dict[str, np.ndarray]:
        """`qpos` (observation.state), `action` and `timestamp` (s) of the frames, as far as they are there."""
        there = [name for name in STATE if name in self.info["features"]]
        table = self._rows(there)
        return {STATE[name]: np.array(table[name].to_pylist(), np.float32)[frames] for name in there}

    def _rows(self, columns):  # the episode's rows of these columns, in the order of its frames
        where = {name: self.row[f"data/{name}"] for name in ("chunk_index", "file_index")}
        path = self.source / (self.info.get("data_path") or DATA).format(**where)
        index = self.row["episode_index"]
        table = _table(path, [*columns, "frame_index"], [("episode_index", "==", index)]).sort_by("frame_index")
        if len(table) != self.row["length"]:
            found = f"{len(table)} rows of episode {index}"
            raise InputError(f"{path}: expected {self.row['length']} frames, found {found}; copy the data set again")
        return table

    def _decode(self, stored, frame):
        try:
            data = stored["bytes"] or (self.source / stored["path"]).read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                return np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, TypeError) as e:
            place = f"{self.camera}, frame {frame} of episode {self.row['episode_index']}"
            raise InputError(f"{self.source}: {place}: expected an image, found: {e}; copy it again") from None


def video_frames(path: Path, times: np.ndarray, tolerance: float) -> Iterator[np.ndarray]:
    """The frames `[H, W, 3]` uint8 of a video that are shown at some rising times (s), each within the tolerance.

    It is decoded once, from the last key frame before the first time on.
    Raises InputError naming the file when it cannot be read or has no frame at one of the times.
    """
    av = optional("av")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            container.seek(max(int((times[0] - tolerance) / stream.time_base), 0), stream=stream)
            wanted = iter(times.tolist())
            time = next(wanted, None)
            for frame in container.decode(stream):
                if time is None:
                    break
                if frame.time < time - tolerance:
                    continue
                if frame.time > time + tolerance:
                    break
                yield frame.to_ndarray(format="rgb24")
                time = next(wanted, None)
    except (OSError, IndexError, av.error.FFmpegError) as e:
        raise InputError(f"{path}: expected a video, found: {e}; copy the data set again") from None
    if time is not None:
        raise InputError(f"{path}: expected a frame at {time:.3f} s, found none; copy the data set again")


def _info(source):
    path = source / "meta" / "info.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version, _ = info["codebase_version"], (info["features"], info["fps"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise InputError(f"{path}: expected the description of a LeRobot data set, found: {e!r}") from None
    if not str(version).startswith("v3"):
        convert = "convert it with LeRobot's own convert_dataset_v21_to_v30"
        raise InputError(f"{path}: expected format v3, found {version}; {convert}")
    return info


def _is_depth(feature):
    notes = (feature.get("info") or {}) | (feature.get("video_info") or {})
    return bool(notes.get("is_depth_map") or notes.get("video.is_depth_map"))


def _table(path, columns, filters=None):
    parquet = optional("pyarrow.parquet")
    try:
        return parquet.read_table(path, columns=columns, filters=filters, partitioning=None)
    except (OSError, ValueError, KeyError) as e:  # those of pyarrow are among them
        raise InputError(f"{path}: expected a parquet file with {', '.join(columns)}, found: {e}") from None
