"""LeRobot datasets (format v3) as recordings: frames, from videos or tables of images, and the state.

| file | holds |
|---|---|
| `meta/info.json` | fps, features, where files lie (`data_path`, `video_path`) |
| `meta/episodes/chunk-000/file-000.parquet` | a row an episode: length, tasks, its data file, its place in the videos |
| `data/chunk-000/file-000.parquet` | a row a frame: `timestamp` (s), `observation.state`, `action`, perhaps images |
| `videos/<camera>/chunk-000/file-000.mp4` | the frames of several episodes, one after the other |

Rows tell their episode themselves: where the file that `meta` names has not all of them, the others are looked through.
A frame is found in its video by counting, where the video has just as many frames as the episodes it is to hold; else
by its time, `from_timestamp` of its episode plus its own `timestamp`, where that tells one frame from the next.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rgb2pc_lib.data.files.guarded import expect, first_line, read_object
from rgb2pc_lib.data.listing import walk
from rgb2pc_lib.data.pictures import decode, frame_times, video_frames
from rgb2pc_lib.errors import InputError, remedy, tell
from rgb2pc_lib.recordings.importers import Recording, array_name, choose_cameras, optional, short_names, slugs

VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
# column -> array of the state file; all other columns of numbers keep their names
STATE = {"observation.state": "qpos", "state": "qpos", "action": "action", "actions": "action"}
PLACE = ("index", "episode_index", "frame_index", "task_index")  # columns that say where a row belongs
_NEAR = 0.25  # of the time between two frames: a clock that is off by more may mean the next one
_AGAIN = "copy the data set again"


def list_lerobot(source: Path, *asked: str) -> list[Recording]:
    """The episodes of a data set as recordings `<its task's words>/episode_0000`.

    Of the cameras asked for; none: of the only one.

    Raises InputError naming the file for a folder that is no such data set, another format, and an unknown camera.
    """
    info = _info(source)
    pictures = [k for k, f in info["features"].items() if f["dtype"] in ("video", "image") and not _is_depth(f)]
    cameras = choose_cameras(asked, pictures, source / "meta" / "info.json")
    columns = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
    for camera in (name for name in cameras if info["features"][name]["dtype"] == "video"):
        optional("av")
        columns += [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    rows = [row for f in walk(source / "meta" / "episodes", ".parquet") for row in _table(f, columns).to_pylist()]
    if not rows:
        raise InputError(f"{source / 'meta' / 'episodes'}: expected parquet files that list episodes, found none")
    _check(rows, columns, source / "meta" / "episodes")
    home = os.path.basename(os.path.abspath(source))
    words = {row["episode_index"]: (row["tasks"] or [home])[0] for row in rows}
    names = slugs(dict.fromkeys(words.values()))
    if several := [row["episode_index"] for row in rows if len(row["tasks"] or ()) > 1]:
        tell(f"{source}: {len(several)} episodes have several tasks, such as {several[0]}; the first one names them")
    short = short_names(cameras)
    first, *others = (DataSet(source, info, camera, tuple(rows), tuple(cameras)) for camera in cameras)
    about: dict[str, str | int] = {"source": home, "camera": ", ".join(cameras)}
    recordings = []
    for row in rows:
        n, one = row["episode_index"], Episode(first, row)
        more = {name: Episode(data, row).images for name, data in zip(short[1:], others, strict=True)}
        task, name = names[words[n]], f"episode_{n:04d}"
        recordings.append(Recording(task, name, one.length, one.read, one.state, about, short[0], more))
    return recordings


@dataclass(frozen=True)
class DataSet:
    """A data set and one of its cameras: what several episodes ask for is read once."""

    source: Path
    info: dict[str, Any]
    camera: str
    rows: tuple[dict[str, Any], ...]  # of meta/episodes
    cameras: tuple[str, ...]  # all that are taken, this one among them

    @functools.cached_property
    def lies_in(self) -> dict[int, list[Path]]:
        """episode -> the data files that have rows of it, by what the rows say. Unreadable files are left out."""
        found: dict[int, list[Path]] = {}
        for path in walk(self.source / Path(self.info.get("data_path") or DATA).parts[0], ".parquet"):
            try:
                here = _table(path, ["episode_index"])["episode_index"].unique().to_pylist()
            except InputError as e:
                tell(str(e))
                continue
            for episode in here:
                found.setdefault(episode, []).append(path)
        return found

    def file(self, row: dict[str, Any], template: str, prefix: str) -> Path:
        """Where `meta` says that an episode's rows or frames lie."""
        where = {name: row[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}
        try:
            return self.source / template.format(video_key=self.camera, **where)
        except (KeyError, ValueError, IndexError, AttributeError) as e:
            path = self.source / "meta" / "info.json"
            raise InputError(
                f"{path}: {template!r} is no path of chunk_index and file_index ({e!r}); {_AGAIN}"
            ) from None

    def video(self, row: dict[str, Any]) -> Path:
        return self.file(row, self.info.get("video_path") or VIDEO, f"videos/{self.camera}")

    @functools.cached_property
    def shown(self) -> dict[Path, np.ndarray]:
        """video -> when its frames are shown, s, as far as they were asked for."""
        return {}

    def times(self, video: Path) -> np.ndarray:
        if video not in self.shown:
            self.shown[video] = frame_times(video)
            if not len(self.shown[video]):
                raise InputError(f"{video}: expected frames, found none; {_AGAIN}")
        return self.shown[video]

    def sharing(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """All episodes whose frames are to lie in the same video as this one's, in their order there."""
        begin = f"videos/{self.camera}/from_timestamp"
        place = [f"videos/{self.camera}/{name}" for name in ("chunk_index", "file_index")]
        there = [r for r in self.rows if all(r[name] == row[name] for name in place)]
        return sorted(there, key=lambda r: (r[begin], r["episode_index"]))


@dataclass(frozen=True)
class Episode:
    """One episode: a row of `meta/episodes`, and what it points at."""

    data: DataSet
    row: dict[str, Any]

    @property
    def length(self) -> int:
        length: int = self.row["length"]
        return length

    @property
    def number(self) -> int:
        number: int = self.row["episode_index"]
        return number

    def read(self, frames: range) -> Iterator[tuple[np.ndarray, None]]:
        """Image `[H, W, 3]` uint8 of each frame; there are no clouds. Raises InputError where a frame is lacking."""
        for image in self.images(frames):
            yield image, None

    def images(self, frames: range) -> Iterator[np.ndarray]:
        """The images alone."""
        camera = self.data.camera
        if self.data.info["features"][camera]["dtype"] == "image":
            column = self._rows([camera])[camera]
            for i in frames:
                yield self._decode(column[i].as_py(), i)
            return
        path = self.data.video(self.row)
        numbers = self._in_video(path)
        yield from video_frames(path, numbers[frames.start : frames.stop : frames.step], self.data.times(path))

    def state(self, frames: range) -> dict[str, np.ndarray]:
        """Every column of numbers of the frames: `qpos` (observation.state), `action`, `timestamp` (s) and the rest.

        What is left out is told, with the reason.
        """
        pictures = [n for n, f in self.data.info["features"].items() if f["dtype"] in ("image", "video")]
        table = self._rows(pictures, without=True)
        values: dict[str, np.ndarray] = {}
        left = {name: feature["dtype"] for name, feature in self.data.info["features"].items()
                if name not in table.column_names and name not in (*self.data.cameras, *PLACE)}  # fmt: skip
        for name in table.column_names:
            if name in (*self.data.cameras, *PLACE):
                continue
            array = _numbers(table[name])
            if array is None:
                left[name] = self.data.info["features"].get(name, {}).get("dtype") or str(table[name].type)
                continue
            short = STATE.get(name, name)
            values[array_name(short if short not in values else name, "source", values)] = array[frames]
        if left:
            listed = ", ".join(f"{name} ({kind})" for name, kind in left.items())
            tell(f"{self.data.source}: left out, as neither frames of {self.data.camera} nor numbers: {listed}")
        return values

    def _rows(self, columns: list[str], without: bool = False) -> Any:
        """The episode's rows of these columns, or of all but these, in the order of its frames."""

        def mine(file: Path) -> Any:
            named = [n for n in _columns(file) if n not in columns] if without else [*columns, "frame_index"]
            return _table(file, named, [("episode_index", "==", self.number)])

        path = self.data.file(self.row, self.data.info.get("data_path") or DATA, "data")
        table = mine(path) if path.exists() or self.number not in self.data.lies_in else None
        if table is None or len(table) != self.length:
            others = [p for p in self.data.lies_in.get(self.number, []) if p != path]
            parts = [*([] if table is None else [table]), *map(mine, others)]
            table = optional("pyarrow").concat_tables(parts, promote_options="default")
            if len(table) == self.length:
                tell(f"{path}: has not all rows of episode {self.number}, as meta/episodes says; some lie elsewhere")
        if len(table) != self.length:
            what = remedy(path, _AGAIN, "metadata and data are of two versions; make them anew, or leave it out")
            found = f"{len(table)} rows of episode {self.number}"
            raise InputError(f"{path}: expected {self.length} frames, found {found} in all files; {what}")
        table = table.sort_by("frame_index")
        if (counted := table["frame_index"].to_pylist()) != [*range(self.length)]:
            wrong = next(i for i, n in enumerate(counted) if n != i)
            raise InputError(
                f"{path}: expected the frames 0 to {self.length - 1} of episode {self.number}, found "
                f"{counted[wrong]!r} in place of {wrong}; make the data set anew, or leave this episode out"
            )
        return table

    def _in_video(self, path: Path) -> list[int]:
        """Which frames of its video are those of the episode. Raises InputError where that cannot be told."""
        times, name = self.data.times(path), f"videos/{self.data.camera}/from_timestamp"
        if not self.length:
            return []
        clock = self.row[name] + self._rows(["timestamp"])["timestamp"].to_numpy().astype(np.float64)
        near = np.searchsorted((times[1:] + times[:-1]) / 2, clock)  # the nearest of each
        off = np.abs(times[near] - clock).max() / np.diff(times).min(initial=1 / self.data.info["fps"])  # in frames
        there = self.data.sharing(self.row)
        place, told = there.index(self.row), sum(row["length"] for row in there)
        if told == len(times):
            before = sum(row["length"] for row in there[:place])
            counted = [*range(before, before + self.length)]
            if not off <= _NEAR or near.tolist() != counted:
                tell(f"{path}: times do not tell the frames of episode {self.number}, so they are counted")
            return counted
        ends = [row[name] + (row["length"] - 0.5) / self.data.info["fps"] for row in there]
        overlap = any(ends[i] > there[i + 1][name] for i in (place - 1, place) if 0 <= i < len(there) - 1)
        if not off <= _NEAR or overlap or (np.diff(near) < 1).any():
            why = "others lie there too" if overlap else f"its times are off by up to {off:.2f} frames"
            raise InputError(
                f"{path}: expected a frame at each time of episode {self.number}, from {self.row[name]:.3f} s on, but "
                f"{why}, and of {len(times)} frames there meta/episodes tells {told}; encode the videos anew, or leave "
                "this episode out"
            )
        return [int(n) for n in near]

    def _decode(self, stored: Any, frame: int) -> np.ndarray:
        place = f"{self.data.source}: {self.data.camera}, frame {frame} of episode {self.number}"
        data, path = (stored.get(k) if isinstance(stored, dict) else None for k in ("bytes", "path"))
        if not data and isinstance(path, str):
            try:
                data = (self.data.source / path).read_bytes()
            except (OSError, ValueError) as e:
                raise InputError(f"{place}: expected the image {path}, found: {e}; {_AGAIN}") from None
        return decode(data if isinstance(data, bytes) else b"", place)


def _numbers(column: Any) -> np.ndarray | None:
    """A column as an array, in the type of its numbers; None where it holds something else, or rows of many shapes."""
    try:
        array = np.array(column.to_pylist())
    except ValueError:  # rows of many lengths
        return None
    if array.dtype.kind not in "fiub":
        return None
    kind = column.type
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    return array.astype(kind.to_pandas_dtype())


def _info(source: Path) -> dict[str, Any]:
    path = source / "meta" / "info.json"
    if not path.exists():
        raise InputError(f"{path}: expected the description of a LeRobot data set, found none; name its folder")
    info = read_object(path, _AGAIN)
    version = str(info.get("codebase_version"))
    if not version.startswith("v3"):
        convert = "convert it with LeRobot's own convert_dataset_v21_to_v30"
        raise InputError(f"{path}: expected format v3, found {version}; {convert}")
    for name, feature in expect(info.get("features"), dict, path, "features", _AGAIN).items():
        expect(expect(feature, dict, path, name, _AGAIN).get("dtype"), str, path, f"{name}: dtype", _AGAIN)
        for notes in ("info", "video_info"):
            expect(feature.get(notes) or {}, dict, path, f"{name}: {notes}", _AGAIN)
    if not expect(info.get("fps"), (int, float), path, "fps", _AGAIN) > 0:
        raise InputError(f"{path}: fps: expected more than 0, found {info['fps']}; {_AGAIN}")
    for name in ("data_path", "video_path"):
        expect(info.get(name) or "", str, path, name, _AGAIN)
    return info


def _check(rows: list[dict[str, Any]], columns: list[str], where: Path) -> None:
    """Raises InputError where a row that lists an episode holds something else than it must, or two list the same."""
    for row in rows:
        for name in columns:
            kind = list if name == "tasks" else (int, float) if name.endswith("from_timestamp") else int
            value = row[name] if name != "tasks" or row[name] is not None else []
            expect(value, kind, where, name, _AGAIN)
            if isinstance(value, int) and value < 0:
                raise InputError(f"{where}: {name}: expected 0 or more, found {value}; {_AGAIN}")
        if not all(isinstance(words, str) for words in row["tasks"] or ()):
            raise InputError(f"{where}: tasks: expected text, found {row['tasks']!r}; {_AGAIN}")
    numbers = [row["episode_index"] for row in rows]
    if len(set(numbers)) < len(numbers):
        twice = next(n for n in numbers if numbers.count(n) > 1)
        raise InputError(f"{where}: episode {twice} is listed twice; {_AGAIN}")


def _is_depth(feature: dict[str, Any]) -> bool:
    notes = (feature.get("info") or {}) | (feature.get("video_info") or {})
    return bool(notes.get("is_depth_map") or notes.get("video.is_depth_map"))


def _columns(path: Path) -> list[str]:
    with _reading(path, ["columns"]):
        return list(optional("pyarrow.parquet").read_schema(path).names)


def _table(path: Path, columns: list[str], filters: Any = None) -> Any:
    with _reading(path, columns):
        return optional("pyarrow.parquet").read_table(path, columns=columns, filters=filters, partitioning=None)


@contextmanager
def _reading(path: Path, columns: list[str]) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, NotImplementedError, TypeError) as e:  # those of pyarrow are among them
        said = first_line(e)
        what = remedy(path, _AGAIN, "write it as LeRobot's format v3 has it", said)
        expected = f"a parquet file with {', '.join(columns)}"
        raise InputError(f"{path}: expected {expected}, found: {said}; {what}") from None
