"""The doctor: looks at a user's folders before anything is trained, and says what to do about what is wrong with them.

By default headers and a sample of the files are read, with `deep` everything. Nothing is written but the project's own
caches. What is looked at in each root: `checks.roots`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rgb2pc_lib.checks import roots
from rgb2pc_lib.checks.roots import Key, Trouble
from rgb2pc_lib.checks.shift import feature_check
from rgb2pc_lib.checks.sources import memory, pack_sizes
from rgb2pc_lib.data.files.exclusions import Exclusions
from rgb2pc_lib.data.files.faults import parted
from rgb2pc_lib.data.files.writing import gigabytes
from rgb2pc_lib.data.listing import IMAGES, steps
from rgb2pc_lib.data.pairing import FALLBACKS, NO_EPISODE, NO_STEP, OK, Pairing, pair, select, split
from rgb2pc_lib.data.teacher import TeacherFile, list_teacher
from rgb2pc_lib.data.workspace import ROOTS, RUNS, Workspace, encoder_of
from rgb2pc_lib.encoders.extract import disk_needs
from rgb2pc_lib.encoders.images import EXPERTS, describe
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.learning.config import Config

VERDICTS = ("sound", "usable with losses", "not usable")  # and the tool's exit status
EXAMPLES = 3
WIDEST = 1280  # numbers in an embedding of the widest teacher that there usually is
_SPARE = 0.7  # share of the memory that tokens may take
_NAMES = re.compile(r"also exists|would both be|two series|no step names|by name|frame_paths as|names in frame_paths")


@dataclass(frozen=True)
class Finding:
    """Troubles of one root that are of one kind and have one remedy."""

    root: str
    kind: str  # of `roots.KINDS`
    count: int
    examples: tuple[str, ...]
    remedy: str
    loses: bool  # else it is only good to know


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found. As words: `lines`; for scripts: `json`; as tables: `there`, `findings`, `usable`."""

    workspace: Workspace
    there: pd.DataFrame  # one row a root: folder, tasks, episodes, steps, and GB on disk
    findings: list[Finding]
    excluded: dict[str, str]  # task/episode or task/episode/step -> why training does without
    usable: pd.DataFrame  # one row a fallback: steps, episodes, and in words why not
    needs: list[str]  # disk and memory
    command: str  # to run next
    status: int  # of VERDICTS

    @property
    def verdict(self) -> str:
        return VERDICTS[self.status]

    @property
    def exclusions(self) -> Exclusions:
        """The workspace's exclusion list, and on it whatever training does without."""
        own = self.workspace.exclude
        return dataclasses.replace(own, out=own.out | self.excluded)

    @property
    def table(self) -> pd.DataFrame:
        """The findings, one row each."""
        rows = [dataclasses.asdict(f) | {"examples": " | ".join(f.examples)} for f in self.findings]
        return pd.DataFrame(rows, columns=[f.name for f in dataclasses.fields(Finding)])

    def lines(self) -> list[str]:
        """The whole of it, to be read."""
        said = [*self.there.to_string().splitlines(), ""]
        for f in self.findings:
            said.append(f"{f.root}, {f.kind} ({f.count}){'' if f.loses else ', good to know'}: {f.remedy}")
            said += [f"    {example}" for example in f.examples]
            said += [f"    ... and {f.count - len(f.examples)} more"] * (f.count > len(f.examples))
        said += [""] * bool(self.findings) + [*self.usable.to_string().splitlines(), "", *self.needs, ""]
        return [*said, f"{self.workspace.name}: {self.verdict}", f"next: {self.command}"]

    def json(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "workspace": self.workspace.name, "verdict": self.verdict, "status": self.status, "next": self.command,
            "roots": self.there.to_dict("index"), "findings": [dataclasses.asdict(f) for f in self.findings],
            "usable": self.usable.to_dict("index"), "needs": self.needs, "exclude": list(self.exclusions.lines),
        }  # fmt: skip


def examine(workspace: Workspace, deep: bool = False, file: str = "FILE", bad: str = "") -> Diagnosis:
    """Look at every root of a workspace. Nothing in it is an error: whatever is wrong is a finding.

    Args:
        deep: read everything: checksums, all tokens, points, images and states, and the times of the clouds.
        file: the workspace's file, for the command to run next.
        bad: the exclusion list that will be written, likewise.

    >>> found = examine(workspace)
    >>> found.verdict, found.usable.loc["skip", "steps"].item(), [f.remedy for f in found.findings]
    ('sound', 96, ['give --batch_size 24'])
    """
    troubles: dict[str, list[Trouble]] = {name: [] for name in ("teacher", *workspace.experts, *ROOTS[1:], "training")}
    here = _folders(workspace, troubles)
    pairing = _paired(here, troubles)
    _statuses(pairing, troubles, workspace)
    for name, found in pairing.packs.items():
        troubles[name] += roots.packs(found, deep)
    if pairing.teacher:
        troubles["teacher"] += roots.teacher(pairing.teacher, here.rgb, deep)
    if here.rgb:
        troubles["rgb"] += roots.frames(here.rgb, deep)
    if here.clouds:
        troubles["clouds"] += roots.clouds(here.clouds, deep)
    if here.state:
        troubles["state"] += roots.states(here.state, _steps_of(pairing), deep)
    if deep:
        troubles["teacher"] += _times(pairing)
    excluded = {t.where: t.said for name, found in troubles.items() for t in found if t.where and t.loses}
    excluded = {k: v for k, v in excluded.items() if k.count("/") == 1 or k.rpartition("/")[0] not in excluded}
    left, usable = _usable(here, pairing, excluded)
    troubles["training"] += _refusals(left)
    findings = [finding for name, found in troubles.items() for finding in _grouped(name, found)]
    fatal = not usable["steps"].gt(0).any() or any(f.root == "training" and f.loses for f in findings)
    status = 2 if fatal else int(any(f.loses for f in findings))
    command = _next(workspace, here, pairing, findings, status, file, bad if excluded else "")
    return Diagnosis(
        workspace, _there(workspace, pairing), findings, excluded, usable, _needs(workspace, pairing), command, status
    )


# -- what is looked at


def _folders(workspace: Workspace, troubles: dict[str, list[Trouble]]) -> Workspace:
    """The workspace without roots that are not there."""
    named = {kind: getattr(workspace, kind) for kind in ROOTS} | workspace.experts
    there = {}
    for name, folder in named.items():
        needed = name == "teacher" or name in workspace.experts
        if folder is None:
            if needed:
                troubles[name].append(Trouble("missing", "the workspace names no teacher root; add it under [roots]"))
        elif not folder.is_dir():
            troubles[name].append(
                Trouble("missing", f"{folder}: there is no such folder; correct the path, or make it")
            )
        else:
            there[name] = folder
            troubles[name] += roots.unread(name if name in ROOTS else "expert", folder)
    if not workspace.experts:
        said = "the workspace names no expert; add one under [experts], name = folder of its packs"
        troubles["training"].append(Trouble("missing", said))
    experts = {name: there[name] for name in workspace.experts if name in there}
    teacher, rgb, clouds, state = (there.get(kind) for kind in ROOTS)
    return dataclasses.replace(workspace, teacher=teacher, rgb=rgb, clouds=clouds, state=state, experts=experts)


def _paired(here: Workspace, troubles: dict[str, list[Trouble]]) -> Pairing:
    """The pairing of what is there. What stops all of it, such as two teachers in one root, is put into `troubles`."""
    for teacher in (True, False):
        use = here if teacher else dataclasses.replace(here, teacher=None)
        try:
            if use.experts:
                return pair(use, teacher=use.teacher is not None)
        except InputError as e:
            troubles["teacher" if teacher and here.teacher else "training"].append(Trouble("names", str(e)))
    columns = ["task", "episode", "step", "time", *here.experts, "teacher"]
    return Pairing(pd.DataFrame(columns=columns), {name: {} for name in here.experts}, {})


def _statuses(pairing: Pairing, troubles: dict[str, list[Trouble]], workspace: Workspace) -> None:
    """What the pairing table tells of every source: files that cannot be read, and steps that it lacks."""
    keys = pairing.table["task"] + "/" + pairing.table["episode"]
    for name in (*pairing.experts, *(["teacher"] if workspace.teacher else [])):
        status = pairing.table[name]
        faults = status[~status.isin([OK, NO_EPISODE, NO_STEP])]
        for key, said in faults.groupby(keys[faults.index]).first().items():
            kind = "sizes" if " differ: " in said else "names" if _NAMES.search(said) else "files"
            troubles[name].append(Trouble(kind, said, str(key)))
        lacking = pairing.table[status.isin([NO_EPISODE, NO_STEP])]
        for key, rows in lacking.groupby(keys[lacking.index], sort=False):
            some = f"{len(rows)} steps, such as {rows['step'].iloc[0]}"
            what = "the episode" if (rows[name] == NO_EPISODE).all() else some
            troubles[name].append(Trouble("missing", f"{key}: {what}; {_make(name, workspace)}"))
    _never_meet(pairing, troubles)
    for note in pairing.notes:
        name, _, said = note.partition(": ")
        remedy = "" if "; " in said else "; if that is wrong, give 'raw_size' and 'box' in the packs' meta"
        troubles[name].append(Trouble("sizes", said + remedy, loses=False))


def _make(name: str, workspace: Workspace) -> str:
    """How the files of a source are made, in words."""
    if name == "teacher":
        return "extract its clouds with tools/extract_teacher.py" if workspace.clouds else "add their teacher files"
    tool = (
        "with tools/extract_features.py"
        if encoder_of(name) in EXPERTS and workspace.frames_of(name)
        else "as the others were"
    )
    return f"extract what is missing {tool}, or train without it"


def _never_meet(pairing: Pairing, troubles: dict[str, list[Trouble]]) -> None:
    """Names that would meet if they were written alike."""
    ours = pairing.teacher
    for name, theirs in pairing.packs.items():
        if not ours or not theirs:
            continue
        if both := ours.keys() & theirs.keys():
            key = min(both)
            a, b = list(theirs[key].copies), list(ours[key])
            what = f"{'/'.join(key)}: no step has a name that the teacher's have"
        else:
            a, b = [episode for _, episode in theirs], [episode for _, episode in ours]
            what = "no episode has a name that the teacher's have"
        if not set(a) & set(b) and (how := roots.alike(a, b)):
            troubles[name].append(Trouble("names", f"{what}, but {how}; name them alike"))


def _steps_of(pairing: Pairing) -> dict[Key, list[str]]:
    table = pairing.table[(pairing.table[[*pairing.experts]] == OK).any(axis=1)]
    return {key: rows["step"].tolist() for key, rows in table.groupby(["task", "episode"], sort=False)}


def _times(pairing: Pairing) -> Iterable[Trouble]:
    """Episodes whose teacher fits better when it is counted some steps later."""
    try:
        found = feature_check(pairing, progress=False).table
    except InputError:  # too few episodes, or none that is whole
        return
    for row in found[found["flagged"]].itertuples():
        yield Trouble(
            "time", f"{row.task}/{row.episode}: its RGB foretells the teacher of {row.shift:+d} steps best; look at it "
            "in notebook 01, then exclude it, or give the shift under [shift] of an exclusion list", loses=False
        )  # fmt: skip


# -- what follows


def _grouped(root: str, troubles: Iterable[Trouble]) -> list[Finding]:
    groups: dict[tuple[str, str, bool], list[str]] = {}
    for trouble in troubles:
        what, remedy = parted(trouble.said)
        groups.setdefault((trouble.kind, remedy, trouble.loses), []).append(what)
    return [
        Finding(root, kind, len(said), tuple(said[:EXAMPLES]), remedy, loses)
        for (kind, remedy, loses), said in groups.items()
    ]


def _usable(here: Workspace, pairing: Pairing, excluded: dict[str, str]) -> tuple[Pairing, pd.DataFrame]:
    """What is left without the excluded, and how much of it each fallback can use."""
    own = here.exclude
    if excluded and pairing.experts:
        out = dataclasses.replace(own, out=own.out | excluded)
        pairing = _paired(dataclasses.replace(here, exclude=out), {"teacher": [], "training": []})
    rows: dict[str, dict[str, Any]] = {}
    for fallback in FALLBACKS:
        try:
            keys = select(pairing, fallback=fallback).keys()
            rows[fallback] = {"steps": len(keys), "episodes": keys.groupby(["task", "episode"]).ngroups, "why not": ""}
        except InputError as e:
            rows[fallback] = {"steps": 0, "episodes": 0, "why not": str(e)[:200]}
    return pairing, pd.DataFrame.from_dict(rows, orient="index").rename_axis("--pairing_fallback")


def _refusals(pairing: Pairing) -> Iterable[Trouble]:
    """What a training with default settings would refuse."""
    settings = Config()
    try:
        keys = select(pairing).keys()
    except InputError as e:
        yield Trouble("settings", str(e))
        return
    try:
        training, _, _ = split(keys, validation=settings.validation, share=settings.held_out)
    except InputError as e:
        yield Trouble("settings", str(e))
        return
    if len(training) < settings.batch_size:
        said = f"{len(training)} training samples are fewer than a batch of {settings.batch_size}"
        yield Trouble("settings", f"{said}; give --batch_size {max(len(training) // 2, 2)}", loses=False)


def _there(workspace: Workspace, pairing: Pairing) -> pd.DataFrame:
    """What is there, one row a root."""
    rows: dict[str, dict[str, Any]] = {}
    for name, folder in ({kind: getattr(workspace, kind) for kind in ROOTS} | workspace.experts).items():
        if name in pairing.packs:
            found = {key: len(pack.copies) for key, pack in pairing.packs[name].items()}
        elif name == "teacher":
            found = {key: len(files) for key, files in (pairing.teacher or _listed(workspace)).items()}
        elif name == "state":
            found = {(p.parent.name, p.stem): 0 for p in folder.glob("*/*.npz")} if folder and folder.is_dir() else {}
        else:
            endings = IMAGES if name == "rgb" else (".ply",)
            found = {k: len(v) for k, v in steps(folder, endings, {}).items()} if folder and folder.is_dir() else {}
        rows[name] = {"folder": str(folder or "-"), "tasks": len({task for task, _ in found}), "episodes": len(found),
                      "steps": sum(found.values())}  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def _listed(workspace: Workspace) -> dict[Key, dict[str, TeacherFile]]:
    """The teacher's files where nothing can be paired."""
    if workspace.teacher is None or not workspace.teacher.is_dir():
        return {}
    with contextlib.suppress(InputError):  # which is told elsewhere
        return list_teacher(workspace.teacher, workspace.teacher_tag, {})
    return {}


def _needs(workspace: Workspace, pairing: Pairing) -> list[str]:
    """Memory and disk that a training takes, in words."""
    said = []
    if any(pairing.packs.values()):
        sizes = pack_sizes(pairing).loc["total"]
        tokens, files = sizes["memory GB"], sizes["file GB"]
        for where, there in memory().items():
            fits = "they fit" if tokens < _SPARE * there else "they are read from disk, batch by batch"
            said.append(f"{where} {there:.1f} GB: tokens of every step take {tokens:.2f} GB, {fits}")
        width = sum(pairing.channels.values()) + len(pairing.packs) * Config().fuse_dim
        weights = 4 * 4 * width * Config().fuse_dim  # fp32: by themselves, and in the checkpoint with both moments
        rows = 4 * 2 * len(pairing.table) * WIDEST
        free = gigabytes(shutil.disk_usage(next(p for p in (RUNS, *RUNS.parents) if p.exists())).free)
        said.append(f"disk: packs {files:.2f} GB, a run at most about {gigabytes(weights + rows)}; {free} free")
    for name, folder in workspace.experts.items():
        encoder, rgb = encoder_of(name), workspace.frames_of(name)
        if not pairing.packs.get(name) and encoder in EXPERTS and rgb and rgb.is_dir():
            with contextlib.suppress(InputError):  # of an encoder whose size only its weights tell
                needed = disk_needs(describe(encoder), rgb, folder, exclude=workspace.exclude)
                said.append(f"disk, extracted: {needed.splitlines()[-1]}")
    return said


def _next(
    workspace: Workspace, here: Workspace, pairing: Pairing, findings: list[Finding], status: int, file: str, bad: str
) -> str:
    """The exact command to run next."""
    at = ["--workspace", file]
    without = [name for name in workspace.experts if not pairing.packs.get(name)]
    make = [name for name in without if name in EXPERTS]
    if make and here.rgb:
        words = ["tools/extract_features.py", "--encoder", *make, *at]
    elif not pairing.teacher and here.clouds:
        words = ["tools/extract_teacher.py", *at]
    elif status == 2:
        words = ["tools/doctor.py", *at]  # once what is said above is mended
    else:
        words = ["tools/train_rgb2pc_distill.py", *at, "--save_dir", f"runs/{workspace.name}"]
        words += ["--exclude", bad] if bad else []
        every = [pack for found in pairing.packs.values() for pack in found.values()]
        only = {pack.meta["frame_copy"] for pack in every if "frame_copy" in pack.meta} - {Config().frame_copy}
        words += ["--frame_copy", *only] if len(only) == 1 else []
        few = [f.remedy.split()[-1] for f in findings if f.remedy.startswith("give --batch_size")]
        words += ["--batch_size", *few] if few else []
    return shlex.join(["python", *words])
