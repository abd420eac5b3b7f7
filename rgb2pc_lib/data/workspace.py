"""A workspace: one small TOML file that names where the user's data lie.

The same file serves notebooks, the command line and the extraction tools, so that
moving to one's own data means copying `data/sample.toml` and changing five lines.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rgb2pc_lib.data.files.exclusions import NOTHING, Exclusions
from rgb2pc_lib.data.files.guarded import read_toml
from rgb2pc_lib.errors import InputError

PROJECT = Path(__file__).resolve().parents[2]
SAMPLE = PROJECT / "data" / "sample.toml"
CACHE = PROJECT / "data" / "cache"  # everything derived; users' folders are never written to

FAST = os.environ.get("RGB2PC_FAST") == "1"  # shrinks notebooks and the demo for tests; the code path stays the same
RUNS = Path(os.environ.get("RGB2PC_RUNS") or PROJECT / ("runs/fast" if FAST else "runs"))  # trainings

ROOTS = ("teacher", "rgb", "clouds", "state")


def camera_of(expert: str) -> str:
    """The camera that an expert sees through, of its name `ENCODER@CAMERA`; "" where cameras have no names.

    >>> camera_of("vggt@wrist"), camera_of("vggt")
    ('wrist', '')
    """
    return expert.partition("@")[2]


def encoder_of(expert: str) -> str:
    """The encoder behind an expert, whichever camera it sees through.

    >>> encoder_of("vggt@wrist"), encoder_of("vggt")
    ('vggt', 'vggt')
    """
    return expert.partition("@")[0]


@dataclass(frozen=True)
class Workspace:
    """The roots of one data set. Every root but the ones a task asks for may be missing.

    Several cameras are named under `rgb`, and experts are those of a camera, `ENCODER@CAMERA`. The first camera is the
    one that the clouds were seen from, and the one whose frames are shown.

    Each root holds `<task>/<episode>...`; see `data/README.md` for the layouts.

    >>> Workspace.load(SAMPLE).name
    'sample'
    """

    teacher: Path | None = None  # step_0042.ply.ulip_<tag>.pt files: point-cloud features
    experts: dict[str, Path] = field(default_factory=dict)  # name -> root of that expert's packs
    rgb: Path | None = None  # step_0042.jpg | png
    clouds: Path | None = None  # step_0042.ply
    state: Path | None = None  # <task>/<episode>.npz: cameras, actions, what probes ask
    teacher_tag: str | None = None  # which `ulip_<tag>`, where a step has several
    name: str = "workspace"
    exclude: Exclusions = NOTHING  # episodes and steps left out on purpose
    cameras: dict[str, Path] = field(
        default_factory=dict
    )  # name -> its frames, where cameras are named; `rgb` is first

    @classmethod
    def load(cls, path: str | Path) -> Workspace:
        """Read a TOML file; relative roots count from the file's own folder.

        Raises InputError for a missing or malformed file and for unknown keys.

        >>> Workspace.load("data/sample.toml").rgb.as_posix()
        'data/sample/rgb'
        """
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path}: no such workspace file; copy data/sample.toml and change its roots")
        raw = read_toml(path, "a TOML workspace file like data/sample.toml")
        roots, experts = raw.pop("roots", {}), raw.pop("experts", {})
        name, tag, bad = raw.pop("name", path.stem), raw.pop("teacher_tag", None), raw.pop("exclude", None)
        if not isinstance(roots, dict) or not isinstance(experts, dict):
            raise InputError(f"{path}: expected tables [roots] and [experts] of name = folder, like data/sample.toml")
        roots, experts = dict(roots), _of_cameras(experts)
        cameras = roots.pop("rgb") if isinstance(roots.get("rgb"), dict) else {}
        roots |= {"rgb": next(iter(cameras.values()))} if cameras else {}
        _refuse_cameras(path, list(cameras), experts)
        unknown = sorted({*raw, *(set(roots) - set(ROOTS))})
        if unknown:
            raise InputError(
                f"{path}: unknown key(s) {', '.join(unknown)}; expected name, teacher_tag, exclude, "
                f"[roots] with {', '.join(ROOTS)}, and [experts] with name = folder"
            )
        named = {f"rgb.{k}": v for k, v in cameras.items()}
        texts = {**roots, **named, **experts, "name": name, "teacher_tag": tag or "", "exclude": bad or ""}
        not_text = [k for k, v in texts.items() if not isinstance(v, str)]
        if not_text:
            raise InputError(f"{path}: expected text in quotes for {', '.join(not_text)}")

        def resolve(p: str) -> Path:
            return Path(os.path.normpath(path.parent / Path(p).expanduser()))

        return cls(
            **{k: resolve(v) for k, v in roots.items()},
            experts={k: resolve(v) for k, v in experts.items()},
            cameras={k: resolve(v) for k, v in cameras.items()},
            teacher_tag=tag,
            name=name,
            exclude=Exclusions.read(resolve(bad)) if bad else NOTHING,
        )

    def excluding(self, entries: Iterable[str] | None) -> Workspace:
        """The same workspace with another exclusion list: names of lists, FILE.toml, and entries. None: as it is.

        Raises InputError for what is neither.

        >>> workspace.excluding(["push/ep_0"]).exclude.out
        {'push/ep_0': ''}
        """
        return self if entries is None else replace(self, exclude=Exclusions.of(entries))

    def require(self, *kinds: str) -> Workspace:
        """Itself, after checking that these roots ("teacher", "experts", "rgb", ...) are named and exist.

        Raises InputError for the first one that is not.

        >>> workspace.require("teacher", "experts") is workspace
        True
        """
        for kind in kinds:
            if kind == "experts":
                if not self.experts:
                    raise InputError("no expert is named: give --vis_roots NAME=FOLDER or [experts] in the workspace")
                found = self.experts
            else:
                if getattr(self, kind) is None:
                    raise InputError(f"the workspace '{self.name}' names no {kind} root, which is needed here")
                found = {kind: getattr(self, kind)}
            for name, folder in found.items():
                if not folder.is_dir():
                    hint = " (for the bundled sample: run `make features`)" if CACHE in folder.parents else ""
                    raise InputError(f"{folder}: the {name} root is not a folder{hint}")
        return self

    def root(self, kind: str) -> Path:
        """The folder of one root ("teacher", "rgb", ...). Raises InputError where it is not named or not there.

        >>> workspace.root("rgb").is_dir()
        True
        """
        found: Path = getattr(self.require(kind), kind)
        return found

    def frames_of(self, expert: str) -> Path | None:
        """The frames that an expert sees: its camera's, or the only ones."""
        return self.cameras.get(camera_of(expert)) if camera_of(expert) else self.rgb

    def of_encoder(self, name: str) -> list[str]:
        """The experts of an encoder, one a camera. Raises InputError where there is none.

        >>> workspace.of_encoder("vggt")
        ['vggt']
        """
        return [e for e in self.experts if encoder_of(e) == name] or [*self.only(name).experts]

    def only(self, *experts: str) -> Workspace:
        """The same workspace with a subset of its experts. Raises InputError for one that it does not have.

        >>> list(workspace.experts), list(workspace.only("vggt").experts)
        (['dinov3', 'vggt'], ['vggt'])
        """
        missing = [e for e in experts if e not in self.experts]
        if missing:
            raise InputError(
                f"expert(s) {', '.join(missing)} not in the workspace; it has {', '.join(self.experts)}; "
                "name the folder of its packs under [experts]"
            )
        return replace(self, experts={e: self.experts[e] for e in experts})


def _of_cameras(experts: dict[str, Any]) -> dict[str, Any]:
    """`vggt.wrist = "folder"` of a TOML file, which is a table in a table, as the expert `vggt@wrist`."""
    found: dict[str, Any] = {}
    for name, value in experts.items():
        found |= {f"{name}@{camera}": v for camera, v in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _refuse_cameras(path: Path, cameras: list[str], experts: Iterable[str]) -> None:
    """Raises InputError for a camera that cannot be called so, and an expert that sees through none of them."""
    if bad := [name for name in cameras if not name or set(name) & set("@./\\ ")]:
        raise InputError(f"{path}: [roots] rgb: a camera cannot be called {bad[0]!r}; use letters, digits, - and _")
    for expert in experts:
        if camera_of(expert) not in (cameras or [""]):
            name, example = encoder_of(expert), cameras[0] if cameras else camera_of(expert)
            found = f"'{camera_of(expert)}'" if camera_of(expert) else "none"
            there = (
                f"one of {', '.join(cameras)}, as in {name}.{example} = FOLDER"
                if cameras
                else (f"[roots] to name its camera, as in rgb.{example} = FOLDER")
            )
            raise InputError(f"{path}: expert {name}: expected {there}, found the camera {found}")


def home(workspace: str | Path = SAMPLE, out: str | Path | None = None) -> Path:
    """The folder of all that is made from a workspace file: trainings, figures, reports.

    `RUNS` for the bundled sample, and a folder there for any other workspace, called like its file; or `out`, counted
    from the project's folder.

    >>> portable(home("data/mine.toml")), portable(home("data/mine.toml", out="elsewhere"))
    ('runs/mine', 'elsewhere')
    """
    if out:
        return PROJECT / Path(out).expanduser()
    return RUNS if Path(workspace).resolve() == SAMPLE else RUNS / Path(workspace).stem


def portable(path: str | Path | None) -> str:
    """A path as it is written into a run's config: from the project's folder where it lies below it, else absolute.

    >>> portable(PROJECT / "runs" / "first"), portable(None)
    ('runs/first', '')
    """
    if not path:
        return ""
    full = Path(os.path.abspath(Path(path).expanduser()))
    return (full.relative_to(PROJECT) if full.is_relative_to(PROJECT) else full).as_posix()


def parse_expert_root(text: str) -> tuple[str, Path]:
    """`name=path`, or a bare path whose folder's name tells the expert (`features_<name>...`).

    >>> parse_expert_root("vggt=/data/a")[0], parse_expert_root("/data/features_da3_small")[0]
    ('vggt', 'da3')
    """
    name, equals, path = text.partition("=")
    if equals and name and os.sep not in name:
        return name, Path(path).expanduser()
    folder = Path(text).expanduser()
    stem = folder.name.removeprefix("features_")
    if stem == folder.name or not stem:
        raise InputError(f"{text}: cannot tell the expert's name; write NAME={text} or name the folder features_<name>")
    return stem.split("_")[0], folder
