"""Other people's recordings -> the folders of a workspace: frames, clouds, state, and the file that names them.

What a recording holds is said by its reader (`robotwin`, `lerobot`) as a list of `Recording`; here it is written:
`rgb/<task>/<episode>/step_0042.jpg`, `clouds/<task>/<episode>/step_0042.ply` and, last, `state/<task>/<episode>.npz`,
whose presence marks a finished episode. Steps carry the number of their frame. The source is only read.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm import tqdm

from rgb2pc_lib.data.clouds import Cloud, write_ply
from rgb2pc_lib.data.files.faults import AT_ONCE, Faults
from rgb2pc_lib.data.files.guarded import expect, parse_json, read_npz
from rgb2pc_lib.data.files.writing import new_folder, write_atomic
from rgb2pc_lib.data.listing import IMAGES, steps_of
from rgb2pc_lib.data.pictures import encoded
from rgb2pc_lib.data.states import MEANT, state_file
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.ranks import rank, shard

SAVE = {"jpg": ("JPEG", {"quality": 95, "subsampling": 0}), "png": ("PNG", {"compress_level": 1})}


@dataclass(frozen=True)
class Recording:
    """One episode, not yet read."""

    task: str
    episode: str
    frames: int
    # the frames asked for, in their order: image [H, W, 3] uint8, cloud or None
    read: Callable[[range], Iterator[tuple[np.ndarray, Cloud | None]]]
    state: Callable[[range], dict[str, np.ndarray]]  # arrays of these frames, and whatever else is known
    about: dict[str, str | int] = field(default_factory=dict)  # what else decides what is written, such as the camera
    camera: str = ""  # what the first one is called, where there are several
    # further camera -> its images, likewise; clouds are those of the first
    more: Mapping[str, Callable[[range], Iterator[np.ndarray]]] = field(default_factory=dict)


def import_recordings(
    recordings: list[Recording], source: Path, out: Path, every: int = 1, image: str = "jpg", progress: bool = True,
    faults: Faults = AT_ONCE,
) -> tuple[int, int]:  # fmt: skip
    """Write this rank's recordings below `out`; the numbers of episodes (written, kept).

    every: take each so-many-th frame. image: "png" keeps every pixel, "jpg" (quality 95) is several times smaller.
    An episode that is there is kept if it was imported in the same way; an interrupted one is begun again. One that
    cannot be read, or was imported otherwise, is put into `faults`.
    Raises InputError for an `out` inside the source, and two recordings of one name.
    """
    if every < 1:
        raise InputError(f"--every: expected 1 or more, found {every}")
    folder = source if source.is_dir() else source.parent
    if folder.resolve() in (out.resolve(), *out.resolve().parents):
        raise InputError(f"{out}: the import must not be written into its source {folder}; choose another --out")
    if twice := [n for n, count in Counter(f"{r.task}/{r.episode}" for r in recordings).items() if count > 1]:
        raise InputError(f"{source}: several recordings would be called {twice[0]}; import their folders one by one")
    written = kept = 0
    total = sum(len(range(0, r.frames, every)) for r in shard(recordings))
    with tqdm(total=total, unit="frame", disable=not progress or rank() > 0) as bar:
        for recording in shard(recordings):
            bar.set_postfix_str(f"{recording.task}/{recording.episode}")
            frames = range(0, recording.frames, every)
            about = recording.about | {"frames": recording.frames, "every": every, "image": image}
            with faults.at(f"{recording.task}/{recording.episode}"):
                if _is_there(out, recording, about):
                    kept += 1
                    bar.update(len(frames))
                else:
                    _write(out, recording, frames, image, about, bar)
                    written += 1
    return written, kept


def import_workspace(
    recordings: list[Recording], source: Path, out: Path, name: str, every: int = 1, image: str = "jpg",
    faults: Faults = AT_ONCE,
) -> str:  # fmt: skip
    """The whole of an import: `import_recordings`, then the workspace file called `name`. What was done, in a line."""
    written, kept = import_recordings(recordings, source, out, every, image, faults=faults)
    cameras = next(([r.camera, *r.more] for r in recordings if r.more), [])
    return f"{written} episodes written, {kept} kept; the workspace: {write_workspace(out, slug(name), cameras)}"


def _is_there(out, recording, about):
    path = state_file(out / "state", recording.task, recording.episode)
    if not path.exists():
        return False
    again = "delete it, and the episode is imported again"
    found = read_npz(path, {"about": ("U", ""), "steps": ("U", "S")}, again)
    told = expect(parse_json(str(found["about"]), path, again), dict, path, "about", again)
    if other := {k: v for k, v in told.items() if about.get(k, v) != v}:  # older imports say less
        asked = {k: about[k] for k in other}
        raise InputError(f"{path}: imported otherwise, {other} instead of {asked}; delete it or choose another --out")
    there = [steps_of(root / recording.task / recording.episode, IMAGES) for root in _frame_roots(out, recording)]
    return all(set(frames) == set(found["steps"].tolist()) for frames in there)  # else somebody has taken frames away


def _frame_roots(out, recording):  # of the first camera, then of the others
    return [out / "rgb", *(out / f"rgb_{camera}" for camera in recording.more)]


def _write(out, recording, frames, image, about, bar):
    rgb, clouds = (out / kind / recording.task / recording.episode for kind in ("rgb", "clouds"))
    steps = [f"step_{i:04d}" for i in frames]
    kind, options = SAVE[image]
    for camera, root in zip(recording.more, _frame_roots(out, recording)[1:], strict=True):
        with new_folder(root / recording.task / recording.episode, "step_*") as now:
            for name, pixels in zip(steps, recording.more[camera](frames), strict=True):
                (now / f"{name}.{image}").write_bytes(encoded(pixels, kind, **options))
    with ExitStack() as unfinished:
        rgb_now = unfinished.enter_context(new_folder(rgb, "step_*"))
        clouds_now = unfinished.enter_context(new_folder(clouds, "step_*")) if clouds.is_dir() else None
        for name, (pixels, cloud) in zip(steps, recording.read(frames), strict=True):
            (rgb_now / f"{name}.{image}").write_bytes(encoded(pixels, kind, **options))
            if cloud is not None:
                clouds_now = clouds_now or unfinished.enter_context(new_folder(clouds, "step_*"))
                write_ply(clouds_now / f"{name}.ply", cloud)
            bar.update()
        last = max(recording.frames - 1, 1)
        values = {
            "steps": np.array(steps),
            "time": np.array(frames, np.int32),  # frames of the source
            "progress": (np.array(frames) / last).astype(np.float32),
            **recording.state(frames),
            "about": np.array(json.dumps(about)),
        }
    state = state_file(out / "state", recording.task, recording.episode)
    write_atomic(state, lambda p: np.savez_compressed(p, **values))


def write_workspace(out: Path, name: str, cameras: Sequence[str] = ()) -> Path:
    """The workspace file `<out>/<name>.toml` over what was imported; one that is there is left as it is.

    Of several `cameras` the first one's frames are in `rgb`, where the clouds were seen from.
    """
    path = out / f"{name}.toml"
    if path.exists():
        return path
    clouds = '# <task>/<episode>/step_0042.ply\nclouds = "clouds"' if (out / "clouds").is_dir() else "# no clouds"
    rgb, experts = 'rgb = "rgb"', [f'{encoder} = "features_{encoder}"' for encoder in _ENCODERS]
    if cameras:
        folders = dict.fromkeys(cameras, "rgb") | {c: f"rgb_{c}" for c in cameras[1:]}
        rgb = "# the first camera is the one that clouds were seen from\n"
        rgb += "\n".join(f'rgb.{camera} = "{folder}"' for camera, folder in folders.items())
        experts = [f'{e}.{camera} = "features_{e}@{camera}"' for e in _ENCODERS for camera in cameras]
    text = _TOML.format(name=name, rgb=rgb, clouds=clouds, experts="\n".join(experts))
    write_atomic(path, lambda p: p.write_text(text, encoding="utf-8"))
    return path


_TOML = """\
# What was imported, as a workspace. Every path counts from the folder of this file; absolute paths work too.
name = "{name}"

[roots]
# <task>/<episode>/step_0042.jpg (or .png)
{rgb}
{clouds}
# <task>/<episode>.npz: cameras, actions, what probes ask
state = "state"
# <task>/<episode>/step_0042.ply.ulip_<tag>.pt; written by tools/extract_teacher.py
teacher = "teacher"

# one line an expert: any name = the folder of its packs, written by tools/extract_features.py;
# delete the lines of those you do without
[experts]
{experts}
"""
_ENCODERS = ("croco", "vggt", "dinov3", "da3")


def choose_camera(asked: str | None, there: list[str], where: Path) -> str:
    """The camera of that name, or the only one there is; the last part of a dotted name is enough.

    >>> choose_camera("top", ["observation.images.top", "observation.images.wrist"], Path("data"))
    'observation.images.top'
    """
    if asked in there:
        return asked
    fits = [name for name in there if asked is None or asked == name.split(".")[-1]]
    if len(fits) == 1:
        return fits[0]
    wanted = f"a camera called '{asked}'" if asked else "one camera, or --camera to choose one"
    raise InputError(f"{where}: expected {wanted}, found {', '.join(there) or 'none'}")


def choose_cameras(asked: Sequence[str | None], there: list[str], where: Path) -> list[str]:
    """The cameras of these names, or the only one there is. Raises InputError, also for one that is named twice.

    >>> choose_cameras(["top", "wrist"], ["observation.images.top", "observation.images.wrist"], Path("data"))
    ['observation.images.top', 'observation.images.wrist']
    """
    found = [choose_camera(one, there, where) for one in asked or [None]]
    if len(set(found)) < len(found):
        raise InputError(f"--camera: expected each camera once, found {', '.join(found)}")
    return found


def short_names(cameras: Sequence[str]) -> list[str]:
    """What cameras are called in folders and workspaces: the last part of a dotted name, where that tells them apart.

    >>> short_names(["observation.images.top", "observation.images.wrist"])
    ['top', 'wrist']
    """
    last = [slug(name.split(".")[-1]) for name in cameras]
    return last if len(set(last)) == len(last) else list(slugs(cameras).values())


def slug(text: str) -> str:
    """A name fit for a folder, in the letters of any script.

    >>> slug("Pick up the cube, and place it!"), slug("抓取 方块")
    ('pick-up-the-cube-and-place-it', '抓取-方块')
    """
    name = re.sub(r"[^\w]+", "-", unicodedata.normalize("NFC", text).lower()).strip("-")
    return name if len(name.encode()) <= _LONGEST else f"{name[: _LONGEST // 8].rstrip('-')}-{_digest(text)}"


_LONGEST = 200  # bytes of a folder's name; file systems end at 255


def slugs(texts: Iterable[str]) -> dict[str, str]:
    """text -> its `slug`; texts that would share one have some digits of their own behind it.

    >>> slugs(["Push it", "push it!", "Open"])
    {'Push it': 'push-it-b021', 'push it!': 'push-it-88fd', 'Open': 'open'}
    """
    names = {text: slug(text) for text in texts}
    shared = Counter(names.values())
    return {t: name if shared[name] == 1 else f"{name}-{_digest(t)}".strip("-") for t, name in names.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:4]


def array_name(name: str, source: str, taken: Iterable[str]) -> str:
    """What a source's array is called in the state file: as it is there, where that means nothing else already.

    source: where it stands in the source, which tells it from others of its name.

    >>> array_name("left_arm", "joint_action", []), array_name("time", "joint_action", [])
    ('left_arm', 'joint_action.time')
    """
    return name if name not in {"about", *MEANT, *taken} else f"{source}.{name}"


def optional(module: str) -> ModuleType:
    """A package of the extra `import`. Raises InputError saying what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as e:
        package = module.split(".")[0]
        raise InputError(f"{package} cannot be imported ({e}); run: pip install -e '.[import]'") from None
