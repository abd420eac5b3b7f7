"""What stands in the folders of a workspace, and what names tell: one listing and one reading of names for all roots.

Hidden files, and those that operating systems, archives and editors leave behind, are never data. A link keeps the name
of its own path, wherever it leads. Every key is made from a whole name, so two sources never share one unnoticed.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection, Iterable, Iterator
from decimal import Decimal
from pathlib import Path

from rgb2pc_lib.errors import InputError

IMAGES = (".png", ".jpg", ".jpeg")
VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
PACKS = (".pt", ".zarr")
_FOREIGN = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found", "$recycle.bin", "__pycache__",
    "system volume information",
}  # fmt: skip
_CAMERA = re.compile(r"(?:^|[^a-z])(?:cam|camera|view|sensor)[-_.]?$", re.IGNORECASE)
_CLOCK = 10  # digits: a number of so many is a clock's, in seconds or finer; a shorter one counts frames


# -- folders


def entries(folder: Path, *endings: str) -> list[Path]:
    """What lies in a folder and is data, in the order of its numbers; with `endings`, only names that end so.

    Nothing for a folder that is not there. Raises InputError naming one that cannot be read.
    """
    return [folder / name for name in sorted(_names(folder, endings), key=natural_key)]


def first(folder: Path, *endings: str) -> Path | None:
    """One of a folder's entries, always the same, or none where there is none; quicker than all of them in order."""
    return folder / name if (name := min(_names(folder, endings), default="")) else None


def _names(folder: Path, endings: tuple[str, ...]) -> list[str]:
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as e:
        raise InputError(f"{folder}: cannot be listed ({e.strerror}); give yourself the right to read it") from None
    return [n for n in names if is_data(n) and (not endings or n.lower().endswith(endings))]


def is_data(name: str) -> bool:
    """Whether a file or folder of that name can be somebody's data.

    >>> [n for n in ("step_1.png", "._step_1.png", ".DS_Store", "Thumbs.db", "__MACOSX", "a.png~") if is_data(n)]
    ['step_1.png']
    """
    return not (name.startswith((".", "~$")) or name.endswith("~") or name.lower() in _FOREIGN)


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, links to folders among them."""
    return [p for p in entries(folder) if p.is_dir()]


def tasks(root: Path) -> list[str]:
    """Names of the tasks below a root."""
    return [p.name for p in folders(root)]


def episodes(root: Path) -> Iterator[tuple[str, Path]]:
    """(task, file or folder) for everything of the form `<root>/<task>/<episode>...`."""
    for task in folders(root):
        for path in entries(task):
            yield task.name, path


def steps(
    root: Path, endings: tuple[str, ...], faults: dict[tuple[str, str], str] | None = None
) -> dict[tuple[str, str], dict[str, Path]]:
    """(task, episode) -> step -> its file `<root>/<task>/<episode>/<step><ending>`, in the order of time.

    Raises InputError for a step that stands there twice, and for frames of two series: with `faults`, these are put
    there by episode, which is left out, instead.
    """
    found = {}
    for task, folder in episodes(root):
        try:
            if here := folder.is_dir() and steps_of(folder, endings):
                found[task, folder.name] = here
        except InputError as e:
            if faults is None:
                raise
            faults[task, folder.name] = str(e)
    return found


def steps_of(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """step -> its file in an episode's folder, in the order of time.

    Raises InputError for a step that is there twice, and for frames of two series.
    """
    found: dict[str, Path] = {}
    for path in entries(folder, *endings):
        if path.is_dir():
            continue
        step = step_name(path.name)
        if step in found:
            raise InputError(f"{path}: this step is also there as {found[step].name}; keep one of the two")
        found[step] = path
    try:
        return {step: found[step] for step in timeline(found)}
    except InputError as e:
        raise InputError(f"{folder}: {e}") from None


def walk(source: Path, *endings: str) -> list[Path]:
    """Every file below a folder that is data and has one of the endings: those of a folder first, then its folders'.

    Links are followed, but not one to a folder that it lies in itself.
    """
    found: list[Path] = []

    def look(folder: Path, above: tuple[str, ...]) -> None:
        real = os.path.realpath(folder)
        if real in above:
            return
        here = entries(folder)
        found.extend(p for p in here if p.name.lower().endswith(endings) and not p.is_dir())
        for path in here:
            if path.is_dir():
                look(path, (*above, real))

    look(source, ())
    return found


# -- names


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key that counts: step_2 before step_10.

    >>> sorted(["step_10", "step_2"], key=natural_key)
    ['step_2', 'step_10']
    """
    parts = re.split(r"(\d+)", name)  # text, number, text, ...
    key = [(0, len(n := p.lstrip("0")), n) if i % 2 else (1, 0, p) for i, p in enumerate(parts) if p]
    return [*key, (-1, 0, name)]  # 1 and 01 count the same and are two names


@functools.lru_cache(4096)  # a frame stands in up to T windows
def step_name(path: str) -> str:
    """Name of a step from any path, also one written on Windows or another machine: the last component's stem.

    An ending is short and begins with a letter, so that what follows the last dot of a time or a number stays.

    >>> step_name("D:\\\\data\\\\step_0042.png"), step_name("a/step_0042.ply.ulip_x.pt"), step_name("left.0007")
    ('step_0042', 'step_0042', 'left.0007')
    """
    return re.sub(r"(\.ply\.ulip_.*|\.[A-Za-z][A-Za-z0-9]{0,4})$", "", re.split(r"[\\/]", path)[-1])


def timeline(steps: Iterable[str], one_series: bool = True) -> dict[str, int]:
    """The names of an episode's steps in the order of time, with their times.

    A step's time is the number that counts it: the one number that differs between names of one wording, whatever else
    stands in them (a camera's number, a date). Clocks, which have ten digits, decimals or several numbers, tell the
    order alone: then a time is a rank.
    Raises InputError for frames of two series, such as two cameras, whose common order nobody knows; `one_series` False
    takes them as they come.

    >>> timeline(["000043_cam0", "000041_cam0"]), timeline(["10.25", "9.5"]), timeline(["a", "b"])
    ({'000041_cam0': 41, '000043_cam0': 43}, {'9.5': 0, '10.25': 1}, {'a': 0, 'b': 1})
    """
    names = sorted(steps, key=natural_key)
    series: dict[tuple[str, ...], dict[str, list[str]]] = {}  # wording -> name -> its numbers
    for name in names:
        wording, numbers = _parts(name)
        series.setdefault(wording, {})[name] = numbers
    counts = {name: n for same in series.values() for name, n in _counts(same).items()}
    known = len(counts) == len(names)
    if one_series and len(series) > 1:
        _refuse_two(series.values(), counts if known else {})
    if known:
        return {name: counts[name] for name in sorted(names, key=counts.__getitem__)}
    return {name: rank for rank, name in enumerate(_by_seconds(names))}


def _parts(name: str) -> tuple[tuple[str, ...], list[str]]:
    """A name's wording, cameras' numbers among it, and its other numbers."""
    pieces = re.split(r"(\d+)", name)
    wording, numbers = [pieces[0]], []
    for number, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if _CAMERA.search(wording[-1]):
            wording[-1] += number + text
        else:
            numbers.append(number.lstrip("0"))
            wording.append(text)
    return tuple(wording), numbers


def _counts(same: dict[str, list[str]]) -> dict[str, int]:
    """name -> the number that counts it, of names of one wording; nothing where that is not one number, or a clock."""
    columns = list(zip(*same.values(), strict=True))
    differ = [column for column in columns if len(set(column)) > 1]
    if len(same) == 1:
        differ = columns[-1:]
    if len(differ) != 1 or max(map(len, differ[0])) >= _CLOCK:
        return {}
    return {name: int(number or "0") for name, number in zip(same, differ[0], strict=True)}


def _refuse_two(series: Collection[dict[str, list[str]]], counts: dict[str, int]) -> None:
    """Raises InputError where several names of one wording have the time of another's, or no time at all."""
    first: dict[int, str] = {}
    for same in sorted(series, key=len, reverse=True):
        told = [name for name in same if not counts or counts[name] in first]
        if first and len(told) > 1:
            other = first[counts[told[0]]] if counts else next(iter(first.values()))
            raise InputError(
                f"frames of two series, such as {other} and {told[0]}, stand in one episode, and their common order in "
                "time is not known; give each camera a task or an episode of its own"
            )
        first |= {counts.get(name, i): name for i, name in enumerate(same)}


_SECONDS = re.compile(r"(\D*)(\d+\.(\d+))(\D*)", re.ASCII)


def _by_seconds(names: list[str]) -> list[str]:
    """Names that are seconds with as many decimals as there happen to be, as Python prints them, by value.

    A count behind a dot (1.9, 1.10) comes to a ten sooner or later, and printed seconds never end in a zero; of
    equally many decimals both readings are the same order.
    """
    found = {name: m for name in names if (m := _SECONDS.fullmatch(name))}
    if len(found) < len(names) or len({(m[1], m[4]) for m in found.values()}) > 1:
        return names
    decimals = [m[3] for m in found.values()]
    if len({len(d) for d in decimals}) == 1 or any(len(d) > 1 and d.endswith("0") for d in decimals):
        return names
    return sorted(names, key=lambda name: Decimal(found[name][2]))
