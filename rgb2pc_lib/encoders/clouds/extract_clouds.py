"""From point clouds to teacher files: one point encoder over all clouds, one file a cloud, resumable.

Layout of a file: `data/README.md`. A file appears under its name only once it is complete.
"""

from __future__ import annotations

import importlib
import pickle
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rgb2pc_lib.data.clouds import Cloud, count_points, read_ply, transform
from rgb2pc_lib.data.files.exclusions import NOTHING, Exclusions
from rgb2pc_lib.data.files.faults import AT_ONCE, Faults
from rgb2pc_lib.data.files.writing import write_atomic
from rgb2pc_lib.data.listing import step_name, steps
from rgb2pc_lib.data.numbers import as_type
from rgb2pc_lib.data.states import poses, rows_of, state_file, state_once
from rgb2pc_lib.encoders.encode import out_of_memory
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.ranks import rank, shard

# encoder -> module of this package that holds a function `load_<encoder>(weights, device, frame) -> CloudEncoder`
ENCODERS = {"pointnet": "points", "ulip": "ulip", "ulip2": "ulip"}
_METRES = "give positions in metres"
GREY = 0.5  # colour of points whose colour is unknown


@dataclass(frozen=True)
class CloudEncoder:
    """A frozen point encoder, as the extraction sees it. Its features depend on the cloud alone."""

    name: str
    features: Callable[[Tensor], dict[str, Tensor]]  # [B, N, 6] -> pc_feat [B, N, E], perhaps pooled [B, E]
    made_by: str  # fingerprint of the weights
    width: int  # E
    frame: str | None = None  # of the clouds that it sees, "camera" or "world"; None: whichever they are in
    fewest: int = 1  # points a cloud must have
    most: int | None = None  # points it looks at; of larger clouds it sees a sample
    grey: float = GREY  # the colour of a cloud without colours
    device: str = "cpu"


def load_cloud_encoder(
    name: str, weights: Path | None = None, device: str = "cpu", frame: str = "camera"
) -> CloudEncoder:
    """The point encoder of that name, with its weights, on a device.

    frame: axes of the clouds, "camera" (OpenCV: x right, y down, z forward) or "world" (z up).
    Raises InputError for an unknown name or device, and for missing weights.

    >>> encoder = load_cloud_encoder("pointnet")
    >>> encoder.width, encoder.frame
    (256, 'world')
    """
    if name not in ENCODERS:
        raise InputError(f"no point encoder is called '{name}'; there are {', '.join(sorted(ENCODERS))}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise InputError(f"device '{device}' cannot be used here: {str(e).splitlines()[0]}; try cpu") from None
    return getattr(importlib.import_module(f"{__package__}.{ENCODERS[name]}"), f"load_{name}")(weights, device, frame)


def list_clouds(
    root: Path, faults: Faults = AT_ONCE, exclude: Exclusions = NOTHING
) -> dict[tuple[str, str], list[Path]]:
    """(task, episode) -> its clouds `<root>/<task>/<episode>/<step>.ply` in the order of time, but for excluded ones.

    An episode with a step that stands there twice, or with clouds of two series, is put into `faults`.
    """
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder of clouds <task>/<episode>/step_0000.ply, found none")
    broken: dict[tuple[str, str], str] = {}
    every = exclude.episodes(steps(root, (".ply",), broken))
    found = {key: [*exclude.steps(key, files).values()] for key, files in every.items()}
    faults.add_episodes(exclude.episodes(broken))
    if not (found or broken):
        raise InputError(f"{root}: expected clouds <task>/<episode>/step_0000.ply, found none there")
    return found


def read_cloud(path: Path, grey: float = GREY) -> tuple[np.ndarray, Cloud]:
    """A cloud as an encoder takes it, `[N, 6]` float32 (grey where the file has no colour), and as it is.

    Raises InputError naming a file without points or with positions that are not finite.
    """
    cloud = read_ply(path)
    if not len(cloud):
        raise InputError(f"{path}: expected points, found an empty cloud; remove the file, or record the step again")
    return cloud_points(cloud, grey), cloud


def cloud_points(cloud: Cloud, grey: float = GREY) -> np.ndarray:
    """A cloud as an encoder takes it, `[N, 6]` float32: xyz (m) and rgb (0 to 1, `grey` where there is none)."""
    rgb = np.full_like(cloud.xyz, grey) if cloud.rgb is None else cloud.rgb.astype(np.float32) / 255
    return np.concatenate([cloud.xyz, rgb], 1)


def turn(path: Path, frame: str | None, state_root: Path | None, clouds_in: str = "camera") -> np.ndarray | None:
    """What turns a cloud `<task>/<episode>/<step>.ply` into the frame an encoder sees, `[4, 4]`; None if it is there.

    The step's state file says what frame the cloud is in, and where the camera stands; what is not said is
    `clouds_in`. Raises InputError where the turn is not told.
    """
    if frame is None:
        return None
    if state_root is None:
        if frame == clouds_in:
            return None
        raise InputError(
            f"{path}: in the {clouds_in}'s frame, and the encoder sees clouds in the {frame}'s; name a state root in "
            "the workspace, whose files tell frame and world_to_camera [4, 4]"
        )
    told = state_file(state_root, path.parent.parent.name, path.parent.name)
    state = state_once(told)
    row = rows_of(state, [step_name(path.name)], told)
    is_in = str(state.get("frame", clouds_in))
    if is_in == frame:
        return None
    now, wanted = (poses(state, row, told, where) for where in (is_in, frame))
    if now is None or wanted is None:
        raise InputError(
            f"{told}: the encoder sees clouds in the {frame}'s frame, and no array world_to_camera [4, 4] says how to "
            "turn them; add it, or use an encoder that takes clouds as they are"
        )
    turned: np.ndarray = wanted[0] @ np.linalg.inv(now[0])
    return turned


def sample_points(number: int, most: int | None, cloud: str) -> np.ndarray:
    """Which points of a cloud of `number` are looked at: all, or `most` drawn without replacement, in their order.

    The draw follows from the cloud's name `<task>/<episode>/<step>.ply`, so it is the same at every extraction,
    whatever was extracted before, on how many machines.

    >>> sample_points(5, 3, "push/episode_0000/step_0000.ply"), sample_points(2, 3, "any")
    (array([1, 3, 4]), array([0, 1]))
    """
    if most is None or number <= most:
        return np.arange(number)
    return np.sort(np.random.default_rng(zlib.crc32(cloud.encode())).choice(number, most, replace=False))


@dataclass(frozen=True)
class Plan:
    """What an extraction has to do: clouds, and the files to write for them."""

    todo: list[tuple[Path, Path]]
    kept: int  # files that are there already

    def bytes(self, encoder: CloudEncoder, faults: Faults = AT_ONCE) -> int:
        """Disk that the files to write will take, told from the headers of their clouds."""
        sizes = []
        for path, _ in self.todo:
            with faults.at(_name(path)):
                sizes.append(min(count_points(path), encoder.most or 2**62))
        return sum(n * (24 + 8 + 2 * encoder.width) + 2 * encoder.width + 2500 for n in sizes)  # pc, uv, pc_feat


def plan(
    encoder: CloudEncoder, clouds: Path, out: Path, tag: str, faults: Faults = AT_ONCE, exclude: Exclusions = NOTHING
) -> Plan:
    """This rank's clouds, the file `out/<task>/<episode>/<step>.ply.ulip_<tag>.pt` of each, and whether it is there.

    Raises InputError for an `out` among the clouds and for a file that another encoder made. One that is there and
    cannot be read is put into `faults`.
    """
    if out.resolve() == clouds.resolve() or clouds.resolve() in out.resolve().parents:
        raise InputError(f"{out}: the teacher must not be written into the clouds' folder {clouds}; choose another")
    every = [path for paths in list_clouds(clouds, faults, exclude).values() for path in paths]
    todo, kept = [], 0
    for path in shard(every):  # shared out before looking what is there: other ranks are writing
        target = out / path.relative_to(clouds).parent / f"{path.name}.ulip_{tag}.pt"
        if target.exists():
            with faults.at(_name(path)):
                made_by = _made_by(target)
                kept += 1
            if _name(path) not in faults.found:
                _check_kept(target, made_by, encoder.made_by)
        else:
            todo.append((path, target))
    return Plan(todo, kept)


def extract_teacher(
    encoder: CloudEncoder, clouds: Path, out: Path, tag: str | None = None, batch: int = 1, progress: bool = True,
    faults: Faults = AT_ONCE, exclude: Exclusions = NOTHING, state_root: Path | None = None, clouds_in: str = "camera",
) -> tuple[int, int]:  # fmt: skip
    """Write `out/<task>/<episode>/<step>.ply.ulip_<tag>.pt` for every cloud of this rank; the numbers (written, kept).

    A file is a dict: `pc [N, 6]` float32 as the cloud has it, `uv [N, 2]` float32 where it has that, `pc_feat [N, E]`
    float16, `pooled [E]` float16 where the encoder has such an embedding, `encoder`, a fingerprint of the weights, and
    `frame`, where the encoder sees clouds in one: then each is turned (see `turn`) before it looks. Files
    of the same encoder are kept. Clouds of one size are encoded together, at most `batch` and as many as memory holds.
    A cloud that cannot be read or encoded is put into `faults`. Raises InputError for a file that another encoder made.
    """
    tag, written = tag or encoder.name, 0
    work = plan(encoder, clouds, out, tag, faults, exclude)
    with tqdm(total=len(work.todo), desc=tag, unit="cloud", disable=not (progress and work.todo and not rank())) as bar:
        for some in _batches(work.todo, batch):
            read = []
            for path, target in some:
                with faults.at(_name(path)):
                    read.append((path, target, *_read(encoder, path, turn(path, encoder.frame, state_root, clouds_in))))
            for _, group in groupby(read, key=lambda item: len(item[2])):
                same = list(group)
                with faults.at(*(_name(path) for path, *_ in same)):
                    features = _encode(encoder, torch.from_numpy(np.stack([seen for *_, seen, _ in same])))
                    written += _save_each(encoder, same, features, faults)
            bar.update(len(some))
    return written, work.kept


def _save_each(encoder, same, features, faults):
    written = 0
    frame = {} if encoder.frame is None else {"frame": encoder.frame}
    for i, (path, target, points, _, uv) in enumerate(same):
        with faults.at(_name(path)):
            what = f"{path}: its features"
            one = {k: as_type(v[i], torch.float16, what, _METRES) for k, v in features.items()}
            pixels = {} if uv is None else {"uv": torch.from_numpy(uv)}
            save(target, {"pc": torch.from_numpy(points), **pixels, **one, "encoder": encoder.made_by, **frame})
            written += 1
    return written


def _name(path):
    return "/".join(path.parts[-3:])


def _batches(items, size):
    return (items[i : i + size] for i in range(0, len(items), size))


def _read(encoder, path, turned):  # of those points that are looked at: [N, 6], the same as seen, uv [N, 2] or None
    points, cloud = read_cloud(path, encoder.grey)
    if len(points) < encoder.fewest:
        raise InputError(
            f"{path}: {encoder.name} needs {encoder.fewest} points, found {len(points)}; use denser clouds"
        )
    rows = sample_points(len(points), encoder.most, _name(path))
    points = points[rows]
    return points, in_frame(points, turned), None if cloud.uv is None else cloud.uv[rows]


def in_frame(points: np.ndarray, turned: np.ndarray | None) -> np.ndarray:
    """Points `[N, 6]` float32 in another frame (see `turn`; None: as they are); colours stay."""
    if turned is None:
        return points
    xyz = transform(points[:, :3].astype(np.float64), turned)
    return np.concatenate([xyz.astype(np.float32), points[:, 3:]], 1)


@torch.inference_mode()
def _encode(encoder, points):
    try:
        return {name: value.cpu() for name, value in encoder.features(points.to(encoder.device)).items()}
    except (MemoryError, RuntimeError) as e:
        if not out_of_memory(e):
            raise
        if len(points) == 1:
            raise InputError(
                f"{encoder.device}: too little memory for one cloud of {points.shape[1]} points; use --device cpu"
            ) from None
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    parts = [_encode(encoder, half) for half in points.tensor_split(2)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def save(path: Path, file: dict) -> None:
    """`torch.save` under a hidden temporary name, then the name itself."""
    write_atomic(path, lambda p: torch.save(file, p))


def _made_by(path: Path) -> str | None:
    try:
        made_by: str | None = torch.load(path, map_location="cpu", mmap=True, weights_only=True).get("encoder")
    except (OSError, EOFError, RuntimeError, AttributeError, pickle.UnpicklingError) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise InputError(f"{path}: expected an extracted teacher file, found: {reason}; delete the file") from None
    return made_by


def _check_kept(path: Path, found: str | None, expected: str) -> None:
    if found != expected:
        raise InputError(
            f"{path}: made by another encoder ({found or 'unnamed'} instead of {expected}); "
            "delete the folder to extract it again, or choose another --tag or --out"
        )
