"""Pairing: which step of the teacher belongs to which step of every expert, and why a step is unusable.

The whole question is settled in one table before training, one row per (task, episode, step);
a batch only looks rows up.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from torch import nn

from rgb2pc_lib.data.listing import IMAGES, first, natural_key, timeline
from rgb2pc_lib.data.pack_index import PackIndex
from rgb2pc_lib.data.packs import FeaturePack, LookAhead, list_packs, look_ahead
from rgb2pc_lib.data.pictures import image_size
from rgb2pc_lib.data.teacher import TeacherFile, list_teacher, teacher_table
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError, tell

OK = "ok"
NO_EPISODE, NO_STEP = "no such episode", "step not in the episode"
FALLBACKS = ("random", "skip", "error")
UNITS = ("step", "window")
UNREADABLE = ("refuse", "leave_out")
RESERVED = ("task", "episode", "step", "time", "teacher", "usable")


Value = TypeVar("Value")


@dataclass
class Pairing:
    """What every expert and the teacher have, opened once.

    `table` has the columns task, episode, step, time, one per expert, and teacher; the last ones hold "ok" or the
    reason why that step is missing there. `time` is the number that counts the step, or its rank
    (`listing.timeline`). `notes` tell what was assumed about the packs.
    """

    table: pd.DataFrame
    packs: dict[str, dict[tuple[str, str], FeaturePack]]  # expert -> (task, episode) -> pack
    teacher: dict[tuple[str, str], dict[str, TeacherFile]]  # (task, episode) -> step -> file
    notes: list[str] = field(default_factory=list)
    excluded: dict[str, str] = field(default_factory=dict)  # what the exclusion list left out, of what is there -> why
    unreadable: dict[str, str] = field(default_factory=dict)  # "task/episode" left out by `readable` -> why

    @property
    def experts(self) -> list[str]:
        return list(self.packs)

    def reasons(self) -> pd.DataFrame:
        """Counts of steps by source and by status, the short form of the table."""
        sources = [*self.experts, "teacher"]
        counts = self.table[sources].apply(pd.Series.value_counts).fillna(0).astype(int)
        return counts.T.reindex(sources)

    def look_ahead(self, copy: str = "middle") -> dict[str, LookAhead]:
        """Expert -> how many frames after its own a frame's features have seen, in the copies that are used."""
        return {name: look_ahead(packs.values(), copy) for name, packs in self.packs.items() if packs}

    @property
    def licences(self) -> dict[str, str]:
        """Expert -> under which licence its weights came, as its packs say; nothing where they do not."""
        said = {n: {p.meta.get("licence") for p in packs.values()} for n, packs in self.packs.items()}
        return {n: "; ".join(sorted(w for w in words if isinstance(w, str))) for n, words in said.items()}

    @property
    def channels(self) -> dict[str, int]:
        return {name: next(iter(packs.values())).channels for name, packs in self.packs.items() if packs}

    @property
    def finest_grid(self) -> tuple[int, int]:
        """The largest token grid of any expert, (H, W)."""
        return max((p.grid for packs in self.packs.values() for p in packs.values()), key=lambda g: g[0] * g[1])


def pair(workspace: Workspace, tasks: list[str] | None = None, teacher: bool = True) -> Pairing:
    """Open all packs, list all teacher files, and put every step in one table, but for those that are excluded.

    An unreadable pack does not stop it: its steps (or one row without a step, where no source tells the steps) carry
    the message as their reason, and `select` refuses to train. Entries of the workspace's exclusion list that name
    nothing are told in one line.

    Without `teacher` nothing of it is looked for, which is all that embedding needs.
    Raises InputError for a root that is missing, and a task that is in none of them.

    >>> pairing = pair(workspace)
    >>> pairing.table.iloc[0].to_dict()
    {'task': 'pull', 'episode': 'ep_0', 'step': 'step_0000', 'time': 0, 'dinov3': 'ok', 'vggt': 'ok', 'teacher': 'ok'}
    >>> pairing.reasons()
             ok
    dinov3   96
    vggt     96
    teacher  96
    """
    workspace.require(*["teacher"] * teacher, "experts")
    if bad := [n for n in workspace.experts if n in RESERVED or "." in n or not n or hasattr(nn.ModuleDict, n)]:
        raise InputError(f"an expert cannot be called {', '.join(bad) or 'nothing'}; rename it, without dots")
    broken: dict[tuple[str, tuple[str, str]], str] = {}
    exclude, met = workspace.exclude, set[str]()
    files = _list_teacher(workspace, tasks, broken, met) if teacher else {}
    packs = _open_packs(workspace, tasks, broken, met)
    episodes = sorted(
        {*files, *(k for found in packs.values() for k in found), *(key for _, key in broken)},
        key=lambda k: (natural_key(k[0]), natural_key(k[1])),
    )
    if tasks:
        present = {task for task, _ in episodes} | {name.split("/")[0] for name in met}
        if unknown := sorted(set(tasks) - present):
            raise InputError(f"task(s) {', '.join(unknown)} not found; the roots hold {', '.join(sorted(present))}")
        episodes = [k for k in episodes if k[0] in tasks]
    columns: dict[str, list[Any]] = {c: [] for c in ("task", "episode", "step", "time", *workspace.experts, "teacher")}
    for key in episodes:
        have: dict[str, Collection[str] | None]
        have = {name: found[key].copies if key in found else None for name, found in packs.items()}
        have["teacher"] = files.get(key)
        when = timeline({s for steps in have.values() if steps for s in steps}, one_series=False)
        met |= {"/".join((*key, step)) for step in when} if exclude.out else set()
        when = exclude.steps(key, when)
        if shifted := key in files and exclude.shifted(key, list(when), files[key]):
            have["teacher"] = files[key] = shifted
        when = when or {"": 0}  # nothing of this episode is readable: one row that says why
        steps = list(when)
        columns["task"] += [key[0]] * len(steps)
        columns["episode"] += [key[1]] * len(steps)
        columns["step"] += steps
        columns["time"] += when.values()
        for name, there in have.items():
            missing = broken.get((name, key), NO_EPISODE)
            columns[name] += [missing if there is None else OK if step in there else NO_STEP for step in steps]
    if lost := exclude.unknown(met | {"/".join(key) for key in episodes}, tasks or ()):
        some = ", ".join(lost[:5]) + ", ..." * (len(lost) > 5)
        tell(f"{workspace.name}: {len(lost)} of the exclusion list's entries name nothing here, {some}; check them")
    left_out = {name: why for name, why in exclude.out.items() if name in met}
    return Pairing(pd.DataFrame(columns), packs, files, _doubts(packs), left_out)


def _list_teacher(
    workspace: Workspace, tasks: list[str] | None, broken: dict[tuple[str, tuple[str, str]], str], met: set[str]
) -> dict[tuple[str, str], dict[str, TeacherFile]]:
    """The teacher's files; what is wrong with an episode is put into `broken`, excluded ones into `met`."""
    root, faults = workspace.teacher, dict[tuple[str, str], str]()
    if root is None:
        return {}
    files = list_teacher(root, workspace.teacher_tag, faults)
    files, faults = _wanted(workspace, files, met), _wanted(workspace, faults, met)
    for key in list(files):
        if said := _two_series(root / key[0] / key[1], files[key]):
            faults[key] = said
            del files[key]
    broken |= {("teacher", key): said for key, said in faults.items() if not tasks or key[0] in tasks}
    return files


def _open_packs(
    workspace: Workspace, tasks: list[str] | None, broken: dict[tuple[str, tuple[str, str]], str], met: set[str]
) -> dict[str, dict[tuple[str, str], FeaturePack]]:
    """All packs that can be opened; what is wrong with the others is put into `broken`, excluded ones into `met`."""
    packs: dict[str, dict[tuple[str, str], FeaturePack]] = {name: {} for name in workspace.experts}
    for name, folder in workspace.experts.items():
        raw_size = functools.cache(functools.partial(frame_size, workspace.frames_of(name)))
        index, faults = PackIndex(folder), dict[tuple[str, str], str]()
        found = list_packs(folder, faults)
        found, faults = _wanted(workspace, found, met), _wanted(workspace, faults, met)
        broken |= {(name, key): said for key, said in faults.items() if not tasks or key[0] in tasks}
        for key, path in found.items():
            if tasks and key[0] not in tasks:
                continue
            try:
                pack = index.open(path, name, raw_size(key))
            except InputError as e:
                broken[name, key] = str(e)
                continue
            if said := _two_series(path, pack.copies):
                broken[name, key] = said
            else:
                packs[name][key] = pack
        index.save()
        _set_apart(name, packs[name], broken)
    return packs


def _wanted(workspace: Workspace, found: dict[tuple[str, str], Value], met: set[str]) -> dict[tuple[str, str], Value]:
    """What is known of episodes that are not excluded; names of the excluded ones are added to `met`."""
    kept = workspace.exclude.episodes(found)
    met |= {"/".join(key) for key in found.keys() - kept.keys()}
    return kept


def _two_series(path: Path, steps: Iterable[str]) -> str:
    """What is wrong with a file or folder whose steps are frames of two series."""
    try:
        timeline(steps)
    except InputError as e:
        return f"{path}: {e}"
    return ""


@dataclass(frozen=True)
class Samples:
    """What can be drawn: n samples of S member steps each (S = 1 for steps, up to the window's length otherwise).

    The numbers are rows of the pairing table; -1 fills short windows.
    """

    pairing: Pairing
    members: np.ndarray  # [n, S] the steps the student should see
    expert_rows: dict[str, np.ndarray] = field(repr=False)  # expert -> [n, S] the steps it really sees
    teacher_rows: np.ndarray = field(repr=False)  # [n, S] the steps the teacher embedding comes from

    def __len__(self) -> int:
        return len(self.members)

    def keys(self) -> pd.DataFrame:
        """One row per sample: task, episode, step (the middle one of a window), time."""
        last = (self.members >= 0).sum(1) - 1
        middle = self.members[np.arange(len(self)), last // 2]
        return self.pairing.table.loc[middle, ["task", "episode", "step", "time"]].reset_index(drop=True)

    def take(self, index: np.ndarray) -> Samples:
        return replace(
            self,
            members=self.members[index],
            expert_rows={k: v[index] for k, v in self.expert_rows.items()},
            teacher_rows=self.teacher_rows[index],
        )

    def shuffled(self, seed: int) -> Samples:
        """The control: every sample keeps its RGB and gets the teacher of another sample, for good."""
        if len(self) < 2:
            raise InputError("shuffling needs at least two samples")
        order = np.random.default_rng([seed, 7]).permutation(len(self))
        other = np.empty(len(self), int)
        other[order] = np.roll(order, 1)  # one long cycle: nobody keeps its own
        return replace(self, teacher_rows=self.teacher_rows[other])


def select(
    pairing: Pairing,
    strict: bool = True,
    fallback: str = "skip",
    unit: str = "step",
    window: int = 8,
    seed: int = 0,
) -> Samples:
    """Choose the usable samples. Everything about missing steps is decided here, never during training.

    strict: the teacher's step is the student's step, by name. What a step lacks is settled by `fallback`:
        "skip" leaves the step out, "error" raises, "random" takes another step of the same episode from whichever
        source lacks this one (also when the teacher lacks it).
    not strict: the teacher's step is any step of the same episode (drawn anew for every batch).
    unit "window": `window` consecutive steps are one sample; teacher and tokens are pooled over those present.
        Steps that a source lacks are simply not pooled; a window where a source has none of them is settled by
        `fallback`.

    Raises InputError for an unreadable pack, for "error" with something missing, or when nothing is left.

    >>> len(select(pair(workspace))), len(select(pair(workspace), unit="window", window=6))
    (96, 24)
    """
    table, sources = pairing.table, [*pairing.experts, "teacher"]
    refuse_broken(pairing)
    rng = np.random.default_rng([seed, 3])
    has = {s: (table[s] == OK).to_numpy() for s in sources}
    episodes = [np.asarray(rows) for rows in table.groupby(["task", "episode"], sort=False).indices.values()]
    members = _windows(episodes, window) if unit == "window" else np.arange(len(table))[:, None]
    seen = {s: np.where((members >= 0) & has[s][members], members, -1) for s in sources}
    lacking: dict[str, np.ndarray] = {s: np.all(seen[s] < 0, axis=1) for s in sources}
    substitutes = _substitutes(episodes, has, len(table))
    if not strict and len(members):  # the teacher may be any step of the episode that has one
        seen["teacher"] = _fill(seen["teacher"], lacking["teacher"], members, substitutes["teacher"], rng)
        lacking["teacher"] = np.all(seen["teacher"] < 0, axis=1)
    if fallback == "error" and any(m.any() for m in lacking.values()):
        raise InputError(_missing_message(pairing, members, lacking))
    if fallback == "random":
        for s in sources:
            seen[s] = _fill(seen[s], lacking[s], members, substitutes[s], rng)
    usable = ~np.any([(seen[s] < 0).all(1) for s in sources], axis=0)
    if not usable.any():
        raise InputError("no usable sample: " + _missing_message(pairing, members, lacking))
    everything = Samples(pairing, members, {s: seen[s] for s in pairing.experts}, seen["teacher"])
    return everything.take(np.flatnonzero(usable))


def broken_episodes(pairing: Pairing) -> dict[tuple[str, str], str]:
    """(task, episode) -> what is wrong with a file of it, where that is a fault and not just something missing."""
    table = pairing.table[[*pairing.experts, "teacher"]]
    faults = table.where(~table.isin([OK, NO_EPISODE, NO_STEP]))
    found: dict[tuple[str, str], str] = {}
    for row in faults.index[faults.notna().any(axis=1)]:
        key = pairing.table.at[row, "task"], pairing.table.at[row, "episode"]
        found.setdefault(key, faults.loc[row].dropna().iloc[0])
    return found


def refuse_broken(pairing: Pairing) -> None:
    """Raise InputError with the first reason in the table that is a fault of a file, not just something missing."""
    for said in broken_episodes(pairing).values():
        raise InputError(said)


def readable(pairing: Pairing) -> Pairing:
    """The same without episodes of which a file cannot be read, which `unreadable` tells: packs, and teacher files,
    which are read for that (into the cache, where they are needed anyway).
    """
    broken = broken_episodes(pairing)
    of = {file: key for key, steps in pairing.teacher.items() for file in steps.values()}
    faults: dict[TeacherFile, str] = {}
    teacher_table(list(of), faults=faults)
    for file, said in faults.items():
        broken.setdefault(of[file], said)
    keys = zip(pairing.table["task"], pairing.table["episode"], strict=True)
    kept = pairing.table[[key not in broken for key in keys]].reset_index(drop=True)
    return replace(pairing, table=kept, unreadable={"/".join(key): said for key, said in broken.items()})


def split(
    keys: pd.DataFrame, by: str = "episode", share: float = 0.25, seed: int = 0, validation: float = 0.0,
    train_only: Sequence[str] = (),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """(training, validation, held-out) sample numbers, of whole episodes (shares of every task's) or of whole tasks.

    What is held out does not depend on how much is for validation, which has nothing where too few are left, nor on the
    episodes that are for training alone: those that match a pattern of `train_only`, such as "*/more_*".
    Raises InputError where too little is left to split, and for a pattern that no episode matches.

    >>> training, validation, held_out = split(select(pair(workspace)).keys(), validation=0.125)
    >>> len(training), len(validation), len(held_out)
    (48, 24, 24)
    """
    rng = np.random.default_rng([seed, 5])
    out: set[tuple[str, str]] = set()
    aside: set[tuple[str, str]] = set()
    if by == "task":
        if train_only:
            raise InputError(
                "episodes for training alone: expected a split by episode, found one by task; leave them out"
            )
        names = sorted(keys["task"].unique(), key=natural_key)
        drawn = _draw(names, share, validation, rng)
        of = {t: {(t, e) for e in group["episode"]} for t, group in keys.groupby("task")}
        out, aside = ({e for t in some for e in of[t]} for some in drawn)
    else:
        for task, group in keys[~matching(keys, train_only)].groupby("task", sort=True):
            names = sorted(group["episode"].unique(), key=natural_key)
            for chosen, some in zip((out, aside), _draw(names, share, validation, rng), strict=True):
                chosen |= {(task, e) for e in some}
    episodes = list(zip(keys["task"], keys["episode"], strict=True))
    held_out, chosen_on = (np.array([k in some for k in episodes], bool) for some in (out, aside))
    if held_out.all() or not held_out.any():
        raise InputError(
            f"splitting by {by} with a held-out share of {share} leaves {(~held_out).sum()} training and "
            f"{held_out.sum()} held-out samples; at least two {by}s{' a task' if by == 'episode' else ''} are needed"
        )
    return np.flatnonzero(~held_out & ~chosen_on), np.flatnonzero(chosen_on), np.flatnonzero(held_out)


def matching(keys: pd.DataFrame, patterns: Sequence[str]) -> np.ndarray:
    """Which samples `[n]` are of episodes `<task>/<episode>` that match a pattern."""
    episodes = keys["task"] + "/" + keys["episode"]
    known = episodes.unique()
    found: set[str] = set()
    for pattern in patterns:
        some = fnmatch.filter(known, pattern)
        if not some:
            raise InputError(
                f"train_only: expected a pattern of episodes, such as {known[0]}, found {pattern}; correct it"
            )
        found |= set(some)
    rows: np.ndarray = episodes.isin(found).to_numpy()
    return rows


def _draw(names: list[str], share: float, validation: float, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """About `share` of the names, at least one and never all (none of a single one); and about `validation` of them.

    Of the rest at least one is for neither; three names or fewer have none for validation.
    """
    count = min(max(round(share * len(names)), 1), len(names) - 1)
    aside = min(max(round(validation * len(names)), 1), len(names) - count - 1) if validation and len(names) > 3 else 0
    order = [names[i] for i in rng.permutation(len(names))]
    return order[:count], order[count : count + aside]


def _windows(episodes: list[np.ndarray], size: int) -> np.ndarray:
    """Rows of consecutive steps, `[n, size]`, half overlapping and every step in one; a short episode gives one."""
    rows = []
    for episode in episodes:
        last = max(len(episode) - size, 0)
        starts = [*range(0, last, max(size // 2, 1)), last]
        rows += [np.pad(w := episode[s : s + size], (0, size - len(w)), constant_values=-1) for s in starts]
    return np.array(rows, int).reshape(-1, size)


def _substitutes(episodes: list[np.ndarray], has: dict[str, np.ndarray], n: int) -> dict[str, list[np.ndarray]]:
    """source -> row -> the rows of the same episode that the source has."""
    out = {s: [np.zeros(0, int)] * n for s in has}
    for rows in episodes:
        for s, there in has.items():
            found = rows[there[rows]]
            for r in rows:
                out[s][r] = found
    return out


def _fill(
    seen: np.ndarray, lacking: np.ndarray, members: np.ndarray, substitutes: list[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Where a sample lacks everything, one random row of the same episode, if there is one."""
    seen = seen.copy()
    for i in np.flatnonzero(lacking):
        choice = substitutes[members[i, 0]]
        if len(choice):
            seen[i, 0] = rng.choice(choice)
    return seen


def _missing_message(pairing: Pairing, members: np.ndarray, lacking: dict[str, np.ndarray]) -> str:
    if not len(pairing.table):
        return "the roots hold no <task>/<episode> in common layout; see data/README.md"
    parts = []
    for source, missing in lacking.items():
        if missing.any():
            row = pairing.table.loc[members[np.flatnonzero(missing)[0], 0]]
            parts.append(
                f"{source} lacks {missing.sum()} of {len(missing)} samples "
                f"(first: {row['task']}/{row['episode']}/{row['step']}, {row[source]})"
            )
    return "; ".join(parts) + ". Use --pairing_fallback skip or random, or re-extract what is missing"


def _doubts(packs: dict[str, dict[tuple[str, str], FeaturePack]]) -> list[str]:
    """What was assumed about where grids lie, one line for each expert and reason."""
    found: dict[tuple[str, str], list[Path]] = {}
    for name, by_episode in packs.items():
        for pack in by_episode.values():
            if pack.doubt:
                found.setdefault((name, pack.doubt), []).append(pack.path)
    return [
        f"{name}: {doubt} ({len(paths)} of {len(packs[name])} packs, such as {paths[0]})"
        for (name, doubt), paths in found.items()
    ]


def frame_size(rgb: Path | None, key: tuple[str, str]) -> tuple[int, int] | None:
    """Height and width in pixels of an episode's RGB frames, where there are any that can be read."""
    frame = first(rgb / key[0] / key[1], *IMAGES) if rgb else None
    try:
        return image_size(frame) if frame else None
    except InputError:  # whoever needs this frame is told
        return None


def _set_apart(
    name: str, packs: dict[tuple[str, str], FeaturePack], broken: dict[tuple[str, tuple[str, str]], str]
) -> None:
    """Of an expert's packs, put those into `broken` that differ from most in width or type."""
    kinds = [(pack.channels, pack.dtype) for pack in packs.values()]
    usual = max(kinds, key=kinds.count, default=None)
    example = next((pack for pack in packs.values() if (pack.channels, pack.dtype) == usual), None)
    for (key, pack), kind in zip(list(packs.items()), kinds, strict=True):
        if example and kind != usual:
            listed = ", ".join(f"{p.channels} channels of {p.dtype} in {p.path}" for p in (example, pack))
            said = f"packs of expert '{name}' differ: {listed}; extract all episodes with the same model"
            broken[name, key] = said
            del packs[key]
