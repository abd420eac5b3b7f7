"""What the doctor looks at in each root of a workspace: its files, through the readers that everything else uses."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from rgb2pc_lib.data.files.guarded import check_archive
from rgb2pc_lib.data.listing import IMAGES, PACKS, folders, is_data, step_name, steps
from rgb2pc_lib.data.packs import FeaturePack
from rgb2pc_lib.data.pairing import frame_size
from rgb2pc_lib.data.pictures import image_size, read_image
from rgb2pc_lib.data.states import read_state, rows_of, state_file
from rgb2pc_lib.data.teacher import TeacherFile, read_points, teacher_table
from rgb2pc_lib.encoders.clouds.extract_clouds import read_cloud
from rgb2pc_lib.errors import InputError

KINDS = {
    "missing": "a root, an episode or a step that is not there",
    "names": "two sources of one name, or names that tell no order",
    "files": "a file that cannot be read",
    "numbers": "values that are not finite, do not fit, or were never written",
    "sizes": "two facts that disagree: grids, images, widths, counts",
    "time": "clouds that fit other steps than those they are filed under",
    "unfinished": "what an earlier tool left out",
    "unread": "files that are left alone",
    "settings": "what a training on this would refuse",
}
SAMPLE = 16  # files, evenly spread, that are read where not all are
FAR = 100.0  # m: no scene that a robot arm sees extends so far

Key = tuple[str, str]  # (task, episode)
Item = TypeVar("Item")


class Trouble(NamedTuple):
    """Something that is wrong: of which kind, and what to do about it, at the end behind a semicolon."""

    kind: str
    said: str
    where: str = ""  # task/episode, or task/episode/step: what training does without
    loses: bool = True  # else it is only good to know


def some(items: Sequence[Item], deep: bool) -> list[Item]:
    """All of them, or a sample, evenly spread, with the first and the last."""
    if deep or len(items) <= SAMPLE:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, SAMPLE).round().astype(int)]


def packs(found: Mapping[Key, FeaturePack], deep: bool) -> Iterator[Trouble]:
    """Tokens of an expert: of a sample of its packs two frames each; or of all packs all, and their checksums."""
    for key, pack in some(list(found.items()), deep):
        try:
            if deep and pack.path.suffix == ".pt":
                check_archive(pack.path, "copy or extract it again")
            _tokens(pack, deep)
        except InputError as e:
            yield Trouble("numbers" if "tokens" in str(e) else "files", str(e), "/".join(key))


def _tokens(pack: FeaturePack, deep: bool) -> None:
    names = {place: step for step, places in pack.copies.items() for place in places}
    for place in sorted(names) if deep else {min(names), max(names)}:
        grid = pack.grid_at(place)
        if not grid.isfinite().all():
            bad = int((~grid.isfinite()).any(-1).sum())
            raise InputError(
                f"{pack.path}: {bad} of {pack.grid[0] * pack.grid[1]} tokens of {names[place]} are NaN or infinite; "
                "extract it again, with --dtype bf16 or fp32 if its values do not fit into fp16"
            )
        if not grid.any():
            raise InputError(
                f"{pack.path}: all tokens of {names[place]} are zero, as where nothing was written; extract it again"
            )


def teacher(found: Mapping[Key, Mapping[str, TeacherFile]], rgb: Path | None, deep: bool) -> Iterator[Trouble]:
    """Point features: of a sample of the steps, or of all; that they have one width, and pixels inside the frames."""
    files = {file: (key, step) for key, of in found.items() for step, file in of.items()}
    looked_at, faults = some(list(files), deep), dict[TeacherFile, str]()
    table = teacher_table(looked_at, progress=deep, faults=faults)
    for file in looked_at:
        key, step = files[file]
        where = "/".join((*key, step))
        try:
            if file not in faults and deep and file.path.suffix == ".pt":
                check_archive(file.path, "extract this step again")
        except InputError as e:
            faults[file] = str(e)
        if said := faults.get(file):
            kind = "sizes" if "of width" in said else "numbers" if "non-finite" in said else "files"
            yield Trouble(kind, said, where)
        elif said := _pixels_outside(file, frame_size(rgb, key)):
            yield Trouble("sizes", said, loses=False)
    whole = table[np.isfinite(table).all(1)]
    if len(whole) > 1 and not np.ptp(whole, axis=0).any():
        yield Trouble(
            "numbers", f"{looked_at[0].path}: all {len(whole)} embeddings looked at are equal, so nothing can be "
            "learned from them; extract the teacher again"
        )  # fmt: skip


def _pixels_outside(file: TeacherFile, size: tuple[int, int] | None) -> str:
    uv = read_points(file).uv if size and file.row is None else None
    if uv is None or size is None or not len(uv) or (uv.max(0) < size[::-1]).all() and uv.min() >= 0:
        return ""
    return (
        f"{file.path}: pixels up to ({uv[:, 0].max():g}, {uv[:, 1].max():g}) in frames of {size[1]} x {size[0]}; "
        "give uv in pixels of these frames: the geometric route needs them"
    )


def frames(root: Path, deep: bool) -> Iterator[Trouble]:
    """RGB frames: names of all; sizes of the first and last of an episode and pixels of a sample, or all of all."""
    broken: dict[Key, str] = {}
    listed = {key: list(files.values()) for key, files in steps(root, IMAGES, broken).items()}
    yield from (Trouble("names", said) for said in broken.values())
    decoded = set(some([file for files in listed.values() for file in files], deep))
    for files in listed.values():
        sizes = {}
        for file in dict.fromkeys([files[0], *(f for f in files if f in decoded), files[-1]]):
            try:
                sizes[file] = read_image(file).shape[:2] if file in decoded else image_size(file)
            except InputError as e:
                yield Trouble("files", str(e))
        odd = next((f for f, size in sizes.items() if size != next(iter(sizes.values()))), None)
        if odd:
            of, first = sizes[odd], next(iter(sizes.values()))
            yield Trouble(
                "sizes", f"{odd}: {of[1]} x {of[0]} pixels, the first frame of its episode has {first[1]} x "
                f"{first[0]}; bring the frames of an episode to one size"
            )  # fmt: skip


def clouds(root: Path, deep: bool) -> Iterator[Trouble]:
    """Clouds: names of all, points of a sample or of all."""
    broken: dict[Key, str] = {}
    listed = [file for files in steps(root, (".ply",), broken).values() for file in files.values()]
    yield from (Trouble("names", said) for said in broken.values())
    for file in some(listed, deep):
        try:
            xyz = read_cloud(file)[1].xyz
        except InputError as e:
            yield Trouble("numbers" if "finite" in str(e) or "colours" in str(e) else "files", str(e))
            continue
        if (reach := float(np.ptp(xyz, axis=0).max())) > FAR:
            yield Trouble("sizes", f"{file}: its points extend over {reach:g} m; if these are millimetres, give metres")


def states(root: Path, known: Mapping[Key, Collection[str]], deep: bool) -> Iterator[Trouble]:
    """State files: those of a sample of the episodes or of all, and whether they know the episodes' steps."""
    for key in some(list(known), deep):
        path = state_file(root, *key)
        if not path.exists():
            said = f"{path}: there is no such state, and judging asks for it"
            remedy = "add it, or leave the state root out and judge without probes"
            yield Trouble("missing", f"{said}; {remedy}", "/".join(key))
            continue
        try:
            rows_of(read_state(path), list(known[key]), path)
        except InputError as e:
            yield Trouble("missing" if "found none of" in str(e) else "files", str(e), "/".join(key))


_READ = {"rgb": (IMAGES, 3), "clouds": ((".ply",), 3), "state": ((".npz",), 2), "teacher": ((".pt", ".zarr"), 3)}


def unread(kind: str, root: Path) -> Iterator[Trouble]:
    """What lies where files of a root belong and is none: hidden and foreign files, and endings that are not read."""
    endings, level = _READ.get(kind, (PACKS, 2))
    hidden: list[Path] = []
    other: list[Path] = []
    for task in folders(root):
        inside = [task] if level == 2 else folders(task)
        for folder in inside:
            for path in folder.iterdir():
                if not is_data(path.name):
                    hidden.append(path)
                elif not path.name.lower().endswith(endings) and not path.is_dir():
                    other.append(path)
    if hidden:
        said = f"{len(hidden)} hidden or foreign files, such as {hidden[0]}, are no data; nothing needs to be done"
        yield Trouble("unread", said, loses=False)
    if other:
        said = f"{len(other)} files of another kind, such as {other[0]}, are not read here"
        yield Trouble("unread", f"{said}; save them as {' or '.join(endings)} if they are data", loses=False)
    for report in (p for p in [root / "faults.txt"] if p.is_file()):
        remedy = "mend what it lists and run that tool again"
        yield Trouble("unfinished", f"{report}: an earlier tool left out what it could not do; {remedy}")


def alike(ours: Collection[str], theirs: Collection[str]) -> str:
    """How the names of two sources that never meet would meet, in words; nothing where nobody knows.

    >>> alike(["step_1", "step_2"], ["step_0001", "step_0002"]), alike(["a"], ["b"])
    ('they count alike but with other numbers of zeros, such as step_1 and step_0001', '')
    """

    def bare(name: str) -> str:
        parts = ["".join(c for c in step_name(name).lower() if not c.isdigit())]
        digits = "".join(c if c.isdigit() else " " for c in name).split()
        return " ".join([*parts, *(d.lstrip("0") for d in digits)])

    other = {bare(name): name for name in theirs}
    both = [(name, other[bare(name)]) for name in ours if bare(name) in other]
    return f"they count alike but with other numbers of zeros, such as {both[0][0]} and {both[0][1]}" if both else ""
