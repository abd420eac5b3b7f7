"""Is an episode's teacher shifted in time against its RGB? Two answers that need no labels.

Both shift every episode's teacher against its RGB and ask where it fits best. `feature_check` asks whether the experts'
tokens foretell the teacher's embedding, and needs nothing but the features. `colour_check` asks whether the points have
the colour of the pixel they were seen at, and needs clouds with colours and uv.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from rgb2pc_lib.checks.sources import pixels_under, rgb_file, step_cloud, usable
from rgb2pc_lib.data.clouds import Cloud
from rgb2pc_lib.data.pairing import Pairing
from rgb2pc_lib.data.pictures import read_image
from rgb2pc_lib.data.sampling import Gatherer, lattice, ordered_plans
from rgb2pc_lib.data.workspace import Workspace
from rgb2pc_lib.errors import InputError

LEAST_PAIRS = 6  # steps that must overlap before a shift is judged
BLOCK = 1024  # steps that are fitted together
DIRECTIONS = 64  # of the teacher's space, strongest first, that RGB is asked to foretell
RIDGE = 0.3  # strength of the ridge regression; the kernel's mean diagonal is 1
LEAST_GAIN = 0.02  # correlation by which another shift must fit better
ROUNDS = 3  # fits: all episodes, then without those that were flagged


@dataclass(frozen=True)
class ShiftCheck:
    """How well each episode's teacher fits its RGB when its steps are counted s later, for s = -2 S .. 2 S.

    A shift of +2 means: the teacher that belongs to a step is filed two steps later. Only |s| <= S is searched; the
    rest tells what planted faults would look like (`power`).
    """

    name: str
    unit: str  # of the fit; higher is better
    episodes: list[tuple[str, str]]
    curves: np.ndarray  # [episodes, 4 S + 1], NaN where too few steps overlap
    least_gain: float  # an episode is flagged when another shift fits better than its own by more than this
    chance: np.ndarray  # [episodes] an episode whose best fit is below this is not judged
    common: np.ndarray  # [2 S + 1] fit of all episodes together, by a measure that learns nothing

    @property
    def reach(self) -> int:
        return self.curves.shape[1] // 4

    @property
    def shifts(self) -> np.ndarray:
        return np.arange(-self.reach, self.reach + 1)

    @property
    def searched(self) -> np.ndarray:
        """The fit at each of `shifts`, `[episodes, 2 S + 1]`."""
        return self.curves[:, self.reach : 3 * self.reach + 1]

    @property
    def table(self) -> pd.DataFrame:
        """One row per episode: task, episode, "fit as filed", "best fit", shift, flagged, verdict."""
        best, shift, flagged = self._search(0)
        fit = self.searched[:, self.reach]
        verdict = [
            f"shifted by {s:+d}" if wrong else "ok" if b >= chance else "cannot tell"  # also where it is NaN
            for b, s, wrong, chance in zip(best, shift, flagged, self.chance, strict=True)
        ]
        rows = pd.DataFrame(self.episodes, columns=["task", "episode"])
        return rows.assign(**{"fit as filed": fit, "best fit": best}, shift=shift, flagged=flagged, verdict=verdict)

    @property
    def common_shift(self) -> int | None:
        """The shift at which all episodes together fit best: not 0 when the whole data set is shifted.

        None where every episode is too short.
        """
        return None if np.isnan(self.common).all() else int(self.shifts[np.nanargmax(self.common)])

    def verdict(self, task: str, episode: str) -> tuple[str, bool]:
        """What is said of one episode, and whether that is an alarm.

        Raises InputError for an episode that was not checked.
        """
        if (task, episode) not in self.episodes:
            raise InputError(f"{task}/{episode}: not among the {len(self.episodes)} episodes that were checked")
        row = self.table.loc[self.episodes.index((task, episode))]
        return row["verdict"], bool(row["flagged"])

    def power(self) -> pd.DataFrame:
        """What the check can do on this data: the share of episodes flagged, were each alone shifted by so many steps.

        One row per planted size (both directions together; size 0 is the data as filed, so "flagged" there are false
        alarms if all is well): flagged, and "right" where the size and direction found are the planted ones.
        """
        rows = []
        for size in range(self.reach + 1):
            found = [(flagged, shift == -k) for k in {size, -size} for _, shift, flagged in [self._search(k)]]
            flagged, right = (np.concatenate(x) for x in zip(*found, strict=True))
            rows.append({"planted": size, "flagged": flagged.mean(), "right": (flagged & right).mean()})
        rows[0]["right"] = 1 - rows[0]["flagged"]
        return pd.DataFrame(rows).set_index("planted")

    def _search(self, planted: int):
        """Per episode, had each been shifted by `planted`: best fit, its shift, and whether it is flagged."""
        seen = self.curves[:, self.reach + planted : 3 * self.reach + 1 + planted]
        filled = np.where(np.isnan(seen), -np.inf, seen)
        at = filled.argmax(1)
        best = np.where(np.isnan(seen[:, self.reach]), np.nan, filled.max(1))
        flagged = (best - seen[:, self.reach] > self.least_gain) & (best >= self.chance)
        return best, at - self.reach, flagged


def summary(checks: list[ShiftCheck]) -> pd.DataFrame:
    """The verdicts in short, one row per check: counts of episodes, the shift of all, and `power` in two numbers.

    Columns: episodes, flagged, "cannot tell", "all together at", "found, 1 step", "found, 2 steps or more".
    """
    rows = {}
    for check in checks:
        verdict, power = check.table["verdict"], check.power()["flagged"]
        rows[check.name] = {
            "episodes": len(verdict),
            "flagged": int(check.table["flagged"].sum()),
            "cannot tell": int((verdict == "cannot tell").sum()),
            "all together at": check.common_shift,
            "found, 1 step": power[1],
            "found, 2 steps or more": power[2:].mean(),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def verdicts(checks: Iterable[ShiftCheck]) -> pd.DataFrame:
    """What all checks say, one row an episode, the most suspicious first.

    Columns: task, episode, "by <check>" with each one's verdict, flagged (by any of them), shift (of the check that is
    surest; 0 where none flags) and suspicion: by how many times the least gain another shift fits better.

    >>> verdicts(checks).query("flagged")  # doctest: +SKIP
    """
    checks = list(checks)
    out = pd.DataFrame([key for check in checks[:1] for key in check.episodes], columns=["task", "episode"])
    out = out.assign(flagged=False, shift=0, suspicion=0.0)
    for number, check in enumerate(checks):
        table = check.table
        gain = ((table["best fit"] - table["fit as filed"]) / check.least_gain).fillna(0.0)
        surer = table["flagged"] & (~out["flagged"] | (gain > out["suspicion"]))
        out.insert(2 + number, f"by {check.name}", table["verdict"])
        out["shift"] = out["shift"].where(~surer, table["shift"])
        out["suspicion"] = out["suspicion"].where(~(surer | (gain > out["suspicion"])), gain)
        out["flagged"] |= table["flagged"]
    return out.sort_values(["flagged", "suspicion"], ascending=False, kind="stable", ignore_index=True)


def what_first(checks: list[ShiftCheck]) -> str:
    """What to do before training, from the verdicts: which episodes to look at, and by which check each is flagged."""
    found = pd.concat([check.table.assign(by=check.name) for check in checks])
    found = found[found["flagged"]]
    if found.empty:
        return "Train: no episode is flagged as shifted."
    words = [
        f"{task}/{episode} (" + ", ".join(f"by {row.by} {row.shift:+d}" for row in rows.itertuples()) + ")"
        for (task, episode), rows in found.groupby(["task", "episode"])
    ]
    return f"Look at {len(words)} flagged episode(s) first, and exclude or shift what is wrong: {', '.join(words)}."


def shift_checks(workspace: Workspace, pairing: Pairing, **options) -> list[ShiftCheck]:
    """Both checks, or `feature_check` alone where there are no images, or no clouds with colours and uv.

    >>> [check.name for check in shift_checks(workspace, pair(workspace))]  # doctest: +SKIP
    ['features', 'colours']
    """
    checks = [feature_check(pairing, **options)]
    key = checks[0].episodes[0]
    found = [step_cloud(workspace, pairing, *key, s) for s in pairing.teacher[key]]
    if workspace.rgb and any(c and c[0].rgb is not None and c[0].uv is not None for c in found):
        checks.append(colour_check(workspace, pairing, **options))
    return checks


def feature_check(pairing: Pairing, reach: int = 4, steps: int = 24, progress: bool = True) -> ShiftCheck:
    """Where in time does each episode's teacher agree best with what other episodes say its RGB should give?

    A ridge regression from the experts' tokens (mean over 4 x 4 regions) to the teacher's embedding foretells every
    episode from the *other* ones. The fit at shift s is the correlation, within the episode, of the foretold embedding
    of step t with the teacher's of step t + s. A shift that all episodes share would be learned, not seen; `common`
    tells it by comparing distances between steps, in RGB and in the teacher, without learning anything. An episode
    whose best fit is no better than what a random order of its steps could give is not judged.

    Args:
        reach: shifts of up to so many steps are searched.
        steps: so many steps of an episode, evenly spread, are foretold; they are compared with all of its steps.
    """
    samples = usable(pairing)
    place = pairing.table.groupby(["task", "episode"], sort=False).cumcount().to_numpy()[samples.members[:, 0]]
    episodes = samples.keys().groupby(["task", "episode"], sort=False).indices
    blocks = max(round(sum(min(len(i), steps) for i in episodes.values()) / BLOCK), 1)
    if len(episodes) < 2 * blocks:
        raise InputError(f"{len(episodes)} usable episode(s): at least two are needed to foretell one from others")
    gatherer = Gatherer(samples)
    teacher = gatherer.teacher_embeddings(samples.teacher_rows)  # [n, E]
    curves: dict[tuple[str, str], list[float]] = {}
    chance: dict[tuple[str, str], float] = {}
    likeness: dict[tuple[str, str], list[float]] = {}
    with tqdm(total=len(episodes), desc="feature check", unit="episode", disable=not progress) as bar:
        for b in range(blocks):  # episodes of a task stand together: dealt out in turn, every block has every task
            keys = list(episodes)[b::blocks]
            looked_at = [_spread_over(episodes[key], steps) for key in keys]
            kernel = _kernel(gatherer, np.concatenate(looked_at))
            ends = np.cumsum([len(i) for i in looked_at])
            groups = [np.arange(end - len(i), end) for i, end in zip(looked_at, ends, strict=True)]
            partners = [_partners(place[i], place[episodes[key]], episodes[key], 2 * reach)
                        for i, key in zip(looked_at, keys, strict=True)]  # fmt: skip
            fits, levels = _fit_curves(kernel, teacher, np.concatenate(looked_at), groups, partners, reach)
            curves |= dict(zip(keys, fits, strict=True))
            chance |= dict(zip(keys, levels, strict=True))
            for key, rows, pairs in zip(keys, groups, partners, strict=True):
                near = kernel[np.ix_(rows, rows)]
                likeness[key] = [_same_distances(near, a, teacher[t]) for a, t in pairs[reach : 3 * reach + 1]]
            bar.update(len(keys))
    found, level = (np.array([values[key] for key in episodes]) for values in (curves, chance))
    common = _mean(likeness.values())
    return ShiftCheck("features", "correlation", list(episodes), found, LEAST_GAIN, level, common)


def _fit_curves(kernel, teacher, index, groups, partners, reach) -> tuple[list[list[float]], list[float]]:
    """Each episode's fit at every shift, and by chance. The regression is redone without episodes that look shifted."""
    to_target = _whitening(teacher[index])
    target, trusted = to_target(teacher[index]), np.ones(len(groups), bool)
    for _ in range(ROUNDS):
        foretold = _foretell(kernel, target, groups, trusted)
        curves = [[_correlation(foretold[rows][a], to_target(teacher[t])) for a, t in pairs]
                  for rows, pairs in zip(groups, partners, strict=True)]  # fmt: skip
        searched = np.nan_to_num(np.array(curves)[:, reach : 3 * reach + 1], nan=-1.0)
        fine = searched.max(1) - searched[:, reach] <= LEAST_GAIN
        if (fine == trusted).all() or fine.mean() < 0.5:
            break
        trusted = fine
    return curves, [_by_chance(foretold[rows], target[rows]) for rows in groups]


def colour_check(
    workspace: Workspace, pairing: Pairing, reach: int = 4, steps: int = 24, progress: bool = True
) -> ShiftCheck:
    """Where in time do each episode's points have the colours of the pixels they were seen at (through uv)?

    The fit is minus the mean difference of colours, in grey levels (0..255); pixels of a moved arm or object differ.
    `steps` consecutive ones from the middle of an episode are looked at. Raises InputError where no step has an image
    and a cloud with colours and uv.
    """
    curves = {}
    grouped = pairing.table[pairing.table["step"] != ""].groupby(["task", "episode"], sort=False)["step"]
    for (task, episode), names in tqdm(grouped, desc="colour check", unit="episode", disable=not progress):
        names = names.tolist()
        names = names[max(0, (len(names) - steps) // 2) :][:steps]
        found_at = [step_cloud(workspace, pairing, task, episode, s) for s in names]
        clouds = [c[0] if c and c[0].rgb is not None and c[0].uv is not None else None for c in found_at]
        files = [rgb_file(workspace, task, episode, s) for s in names]
        images = [read_image(f) if f else None for f in files]
        fit = {s: [-_colour_difference(cloud, image) for t, image in enumerate(images)
                   if image is not None and 0 <= t + s < len(clouds) and (cloud := clouds[t + s]) is not None]
               for s in range(-2 * reach, 2 * reach + 1)}  # fmt: skip
        curves[task, episode] = [np.mean(f) if len(f) >= LEAST_PAIRS else np.nan for f in fit.values()]
    found = np.array(list(curves.values())).reshape(-1, 4 * reach + 1)
    if np.isnan(found[:, 2 * reach]).all():
        raise InputError("no episode has images and clouds with colours and uv; feature_check needs neither")
    common = _mean(found[:, reach : 3 * reach + 1])
    return ShiftCheck("colours", "minus the difference in grey levels", list(curves), found, 1.0,
                      np.full(len(found), -np.inf), common)  # fmt: skip


def _kernel(gatherer: Gatherer, index: np.ndarray, regions: int = 4, per_region: int = 4) -> np.ndarray:
    """Likeness of steps `[n, n]`: centred inner products of the tokens' means over regions, all experts alike."""
    at = lattice((regions * per_region,) * 2)  # [K, 2]
    part = (at * regions).astype(int) @ [1, regions]
    member = torch.from_numpy(part[:, None] == np.arange(regions**2)).float()  # [K, R]
    means: dict[str, list] = {name: [] for name in gatherer.experts}
    for batch in gatherer.run(ordered_plans(gatherer.samples, index, 16, at)):
        for m, (name, tokens) in enumerate(batch.tokens.items()):
            share = batch.present[..., m, None].float() * member  # [B, K, R]
            share = share / share.sum(1, keepdim=True).clamp(min=1)
            means[name].append(torch.einsum("bkc,bkr->brc", tokens.float(), share).flatten(1))
    kernel = np.zeros((len(index),) * 2)
    for found in means.values():
        x = torch.cat(found).numpy()
        x = x - x.mean(0)
        product = (x @ x.T).astype(float)
        kernel += product / max(np.trace(product), 1e-12) * len(x) / len(means)
    return kernel


def _foretell(kernel: np.ndarray, target: np.ndarray, groups: list[np.ndarray], trusted: np.ndarray) -> np.ndarray:
    """Ridge predictions `[n, d]` of each group of rows from all *other* trusted groups.

    Leaving a group out needs no second fit: its residual is a solution with the block of the inverse (the leave-one-out
    formula, by blocks).
    """
    fit = np.concatenate([g for g, t in zip(groups, trusted, strict=True) if t])
    inverse = np.linalg.inv(kernel[np.ix_(fit, fit)] + RIDGE * np.eye(len(fit)))
    weights = inverse @ target[fit]
    foretold = kernel[:, fit] @ weights
    start = 0
    for rows in (g for g, t in zip(groups, trusted, strict=True) if t):
        own = slice(start, start := start + len(rows))
        foretold[rows] = target[rows] - np.linalg.solve(inverse[own, own], weights[own])
    return foretold


def _whitening(x: np.ndarray):
    """The map to the strongest directions of `x [n, E]`, each with variance 1: small motions count like large ones."""
    mean = x.mean(0)
    _, strength, directions = np.linalg.svd(x - mean, full_matrices=False)
    keep = min(DIRECTIONS, max(len(x) // 8, 1), int((strength > 1e-5 * strength[0]).sum()))
    scaled = directions[:keep].T / strength[:keep] * np.sqrt(len(x))
    return lambda y: (y - mean) @ scaled


def _spread_over(index: np.ndarray, count: int) -> np.ndarray:
    return index[np.linspace(0, len(index) - 1, min(count, len(index))).round().astype(int)]


def _partners(looked_at, places, index, reach) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every shift: which looked-at steps have one so much later, and that one's sample number."""
    there = dict(zip(places.tolist(), index.tolist(), strict=True))
    found = []
    for shift in range(-reach, reach + 1):
        pairs = [(i, there[p + shift]) for i, p in enumerate(looked_at.tolist()) if p + shift in there]
        i, at = np.array(pairs, int).reshape(-1, 2).T
        found.append((i, at))
    return found


def _mean(curves) -> np.ndarray:
    """Mean over episodes, of those that are long enough; NaN where none is."""
    x = np.ma.masked_invalid(np.array(list(curves)))
    return x.mean(0).filled(np.nan)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < LEAST_PAIRS:
        return np.nan
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x * y).sum() / max(np.sqrt((x**2).sum() * (y**2).sum()), 1e-12))


def _by_chance(x: np.ndarray, y: np.ndarray, draws: int = 2000, seed: int = 0) -> float:
    """The correlation that one in 1000 random orders of the steps exceeds."""
    x, y = x - x.mean(0), y - y.mean(0)
    rng = np.random.default_rng(seed)
    orders = rng.permuted(np.tile(np.arange(len(x)), (draws, 1)), axis=1)
    products = (x @ y.T)[np.arange(len(x)), orders].sum(1)
    return float(np.quantile(products, 0.999) / max(np.sqrt((x**2).sum() * (y**2).sum()), 1e-12))


def _same_distances(kernel: np.ndarray, a: np.ndarray, teacher: np.ndarray) -> float:
    """Correlation of the distances between steps, in RGB and in the teacher."""
    if len(a) < LEAST_PAIRS:
        return np.nan
    near = kernel[np.ix_(a, a)]
    norm = np.diag(near)
    ours = np.sqrt(np.maximum(norm[:, None] + norm - 2 * near, 0))
    theirs = np.linalg.norm(teacher[:, None] - teacher, axis=-1)
    upper = np.triu_indices(len(a), 1)
    return _correlation(ours[upper], theirs[upper])


def _colour_difference(cloud: Cloud, image: np.ndarray) -> float:
    assert cloud.rgb is not None
    seen, inside = pixels_under(cloud, image)
    return float(np.abs(seen.astype(float) - cloud.rgb[inside]).mean()) if inside.any() else 255.0
