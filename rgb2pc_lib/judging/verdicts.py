"""What a table of judgements says: differences and gaps closed, with intervals, and the sentences that follow."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from rgb2pc_lib.judging.probes import LOWER_IS_BETTER
from rgb2pc_lib.judging.rivals import KNOWN

TEACHER, SHUFFLED, WIDTH = "teacher", "shuffled control", "width"
AHEAD = "frames ahead"  # of a student that saw the future: how many later frames its experts saw, at most
APART = "not told apart"
_ABOVE = {"better": "above the best rival", "worse": "below the best rival", APART: APART}
_DRAWS = 2000  # of a bootstrap


def verdict(long: pd.DataFrame, measure: str = "R@1", against: str = "uniform") -> pd.DataFrame:
    """Every student of a table on one measure, with 95 % t-intervals over seeds, in the order they came.

    Columns: mean, low, high, and the mean difference from `against`, paired by seed: difference, difference low,
    difference high; seeds. Raises KeyError when the student to compare `against` is not in the table.

    >>> long = pd.DataFrame({"model": ["uniform", "moe"] * 2, "seed": [0, 0, 1, 1], "measure": "R@1",
    ...                      "value": [0.5, 0.6, 0.5, 0.8]})
    >>> verdict(long)["difference"].round(2).tolist()
    [0.0, 0.2]
    """
    students = long[(long["measure"] == measure) & (long["seed"] >= 0)]
    by_seed = students.pivot(index="seed", columns="model", values="value")[students["model"].unique()]
    lines = {}
    for name in by_seed:
        values, gain = by_seed[name].to_numpy(), (by_seed[name] - by_seed[against]).to_numpy()
        lines[name] = (values.mean(), *interval(values), gain.mean(), *interval(gain), len(values))
    columns = ["mean", "low", "high", "difference", "difference low", "difference high", "seeds"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns)


def mean_table(long: pd.DataFrame) -> pd.DataFrame:
    """Models by measures, mean over seeds, in the order they came."""
    table = long.pivot_table(index="model", columns="measure", values="value", aggfunc="mean", sort=False)
    return table.reindex(long["model"].unique())


def rivals_of(table: pd.DataFrame, measure: str) -> pd.Series:
    """Values of all that a fused student is compared with on a measure, at the teacher's width or less.

    For retrieval these are the students of single experts; for probes also pooled experts, what the robot knows of
    itself (where the question is not about that) and an untrained student.
    """
    singles = [m for m in table.index if m.endswith(" only")]
    if measure.startswith("R@"):
        return table.loc[singles, measure].dropna()
    ours = {TEACHER, SHUFFLED, "weighted", "moe", "uniform"} | {m for m in table.index if " without " in m}
    told = {rival for rival, known in KNOWN.items() if measure.split(",")[0] in known}
    names = [m for m in table.index if m not in ours | told]
    if WIDTH in table:
        names = [m for m in names if not table.loc[m, WIDTH] > table.loc[TEACHER, WIDTH]]
    return table.loc[names, measure].dropna()


def gap_closed(long: pd.DataFrame, students=("weighted", "moe"), episodes: pd.DataFrame | None = None) -> pd.DataFrame:
    """(student - best rival) / (teacher - best rival) per measure, with a 95 % interval.

    The best rival is the best of all baselines of equal width (see `rivals_of`), which the line names. A teacher finds
    itself, so its retrieval is perfect. With `episodes` (of `Judgement`) intervals of R2 are over seeds *and* held-out
    episodes (bootstrap, episodes drawn within each task); otherwise they are t-intervals over seeds.

    Columns: student, measure, best rival, teacher, best (value), mean (value), closed, low, high, seeds; "a gap" (yes,
    no, or not told apart: whether the teacher is better than the best rival; closed is NaN unless it is); difference,
    difference low, difference high (student from best rival, above 0 where the student is better); and "student is"
    (above the best rival, below it, or not told apart).

    >>> lines = [("teacher", -1, "R2 object", 0.9), ("vggt", -1, "R2 object", 0.5), ("vggt only", 0, "R2 object", 0.4),
    ...          ("moe", 0, "R2 object", 0.8)]
    >>> long = pd.DataFrame(lines, columns=["model", "seed", "measure", "value"])
    >>> gap_closed(long, students=["moe"])[["student", "measure", "best rival", "closed", "student is"]]
      student    measure best rival  closed      student is
    0     moe  R2 object       vggt    0.75  not told apart
    """
    table = mean_table(long)
    lines = []
    for measure in table.columns:
        if not (measure.startswith(("R@", "R2 ")) or " cm" in measure or measure.startswith("task accuracy")):
            continue
        rivals = rivals_of(table, measure).drop(list(students), errors="ignore")
        top = 1.0 if measure.startswith("R@") else table.loc[TEACHER, measure]
        if rivals.empty or not np.isfinite(top):
            continue
        best = rivals.idxmin() if lower_is_better(measure) else rivals.idxmax()
        there = _gap(long, measure, best, top, episodes)
        for student in students:
            values = long[(long["model"] == student) & (long["measure"] == measure)]["value"].to_numpy()
            gap = top - rivals[best] if there == "yes" else np.nan
            closed = (values - rivals[best]) / gap
            low, high = interval(closed)
            if there == "yes" and _by_episodes(measure, episodes):
                low, high = share(episodes, measure, student, best, TEACHER)
            change = gain(long, measure, student, best, episodes)
            lines.append(
                (student, measure, best, top, rivals[best], values.mean(), closed.mean(), low, high, len(values), there)
                + (*change, _ABOVE[told(*change[1:])])
            )
    columns = ["student", "measure", "best rival", "teacher", "best", "mean", "closed", "low", "high", "seeds", "a gap"]
    columns += ["difference", "difference low", "difference high", "student is"]
    return pd.DataFrame(lines, columns=columns)


def _gap(long, measure, best, top, episodes) -> str:
    """Whether the teacher is better than the best rival. Without episodes the sign decides: neither has seeds."""
    if measure.startswith("R@"):
        return "yes"
    if episodes is None or episodes.empty:
        return "yes" if gain(long, measure, TEACHER, best)[0] > 0 else "no"
    return ahead(episodes, measure, TEACHER, best)


# -- a difference, its interval, and what that says


def told(low: float, high: float) -> str:
    """What an interval of a difference says.

    >>> told(0.1, 0.3), told(-0.3, -0.1), told(-0.1, 0.2), told(float("nan"), float("nan"))
    ('better', 'worse', 'not told apart', 'not told apart')
    """
    return "better" if low > 0 else "worse" if high < 0 else APART


def figures(mean: float, low: float, high: float) -> str:
    """A difference as it stands in a sentence.

    >>> figures(-0.048, -0.078, -0.019), figures(0.1, float("nan"), float("nan"))
    ('-0.048 [-0.078, -0.019]', '+0.100, one value: no interval')
    """
    known = np.isfinite([low, high]).all()
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" if known else f"{mean:+.3f}, one value: no interval"


def compared(table: pd.DataFrame, name: str, against: str, measure: str = "R@1") -> str:
    """One line of `verdict` in words, which say no more than the interval allows.

    >>> compared(verdict(long, "R@1", "uniform"), "moe", "uniform")  # doctest: +SKIP
    'moe: R@1 0.520 [0.470, 0.570]; against uniform +0.060 [+0.020, +0.100], better'
    """
    row = table.loc[name]
    change = row[["difference", "difference low", "difference high"]]
    level = f"{name}: {measure} {row['mean']:.3f}" + (f" [{row.low:.3f}, {row.high:.3f}]" if row.seeds > 1 else "")
    return f"{level}; against {against} {figures(*change)}, {told(*change[1:])}"


def against_best(table: pd.DataFrame, by: str, value: str, ours: str) -> str:
    """One of several ways against the best other, in words; each has one row an episode, in the same order.

    >>> table = pd.DataFrame({"way": ["a", "a", "b", "b"], "iou": [0.5, 0.7, 0.3, 0.5]})
    >>> against_best(table, "way", "iou", "a")
    'a 0.60; against b +0.200 [+0.200, +0.200], better'
    """
    means = table.groupby(by, sort=False)[value].mean()
    best = means.drop(ours).idxmax()
    values, others = (table.loc[table[by] == name, value].to_numpy() for name in (ours, best))
    within = interval(values - others)
    return f"{ours} {means[ours]:.2f}; against {best} {figures(means[ours] - means[best], *within)}, {told(*within)}"


def gain(
    long: pd.DataFrame, measure: str, one: str, other: str, episodes: pd.DataFrame | None = None
) -> tuple[float, float, float]:
    """How much better one model is than another: mean and 95 % interval, above 0 also where lower values are better.

    Intervals are those of `difference` where `episodes` are given and the measure is an R2; else over seeds, paired
    where both were trained with the same ones, and NaN where there are fewer than two.
    """
    if _by_episodes(measure, episodes):
        return difference(episodes, measure, one, other)
    of = long[long["measure"] == measure].set_index(["model", "seed"])["value"]
    a, b = of[one], of[other]
    change = (a - b if a.index.equals(b.index) else a - b.mean()).to_numpy() * (-1 if lower_is_better(measure) else 1)
    return (float(change.mean()), *interval(change))


def lower_is_better(measure: str) -> bool:
    return measure.split(",")[0] in LOWER_IS_BETTER


def difference(episodes: pd.DataFrame, measure: str, one: str, other: str) -> tuple[float, float, float]:
    """R2 of one model minus that of another on the same episodes: mean, and a 95 % interval (as `gap_closed`)."""
    (a, b), drawn = _drawn(episodes, measure, one, other)
    return (a - b, *np.percentile(drawn[0] - drawn[1], [2.5, 97.5]).tolist())


def ahead(episodes: pd.DataFrame, measure: str, one: str, other: str) -> str:
    """Whether one model is better than another: yes, no, or not told apart. Errors in cm go by their R2."""
    squared = f"R2 {measure.replace(' cm', '')}" if " cm" in measure else measure
    if not squared.startswith("R2 "):
        return APART  # nothing tells how sure an accuracy is
    return {"better": "yes", "worse": "no"}.get(told(*difference(episodes, squared, one, other)[1:]), APART)


def share(episodes: pd.DataFrame, measure: str, one: str, floor: str, top: str) -> tuple[float, float]:
    """95 % interval of (one - floor) / (top - floor), over seeds and episodes; of draws with no gap nothing is told."""
    ours, low, high = _drawn(episodes, measure, one, floor, top)[1]
    closed = np.where(high > low, (ours - low) / np.where(high > low, high - low, 1), np.nan)
    found = np.nanpercentile(closed, [2.5, 97.5])
    return float(found[0]), float(found[1])


def _by_episodes(measure: str, episodes: pd.DataFrame | None) -> bool:
    return episodes is not None and len(episodes) > 0 and measure.startswith("R2 ")


def _drawn(episodes: pd.DataFrame, measure: str, *models: str) -> tuple[list[float], list[np.ndarray]]:
    """R2 of some models: as it is, and in every draw `[draws]` of seeds and of episodes, the same for all models.

    Each is measured against the spread of its own samples: those of windows are fewer than those of steps.
    """
    name, _, look = measure.removeprefix("R2 ").partition(", ")
    rows = episodes[(episodes["probe"] == name) & (episodes["look"] == look if look else True)]
    means, draws, rng = [], [], np.random.default_rng(0)
    names = pd.Index(sorted(rows["episode"].unique()))
    tasks = names.str.partition("/").get_level_values(0)
    weights = np.zeros((_DRAWS, len(names)))
    for task in tasks.unique():
        of = np.flatnonzero(tasks == task)
        weights[:, of] = rng.multinomial(len(of), np.full(len(of), 1 / len(of)), size=_DRAWS)
    for model in models:
        own = rows[rows["model"] == model]
        error, around = (own.pivot(index="seed", columns="episode", values=v)[names] for v in ("error", "around"))
        n = len(error)
        seeds = rng.multinomial(n, np.full(n, 1 / n), size=_DRAWS) / n
        means.append(float(1 - (error.sum(axis=1) / around.sum(axis=1)).mean()))
        missed, spread = (((seeds @ x.to_numpy()) * weights).sum(1) for x in (error, around))
        draws.append(1 - missed / spread)
    return means, draws


# -- what to do


def answer(long: pd.DataFrame, student: str, episodes: pd.DataFrame | None = None) -> str:
    """Whether a student is as good as its teacher, by every probe: yes, no, or not told apart; and by which ones."""
    probes = [m for m in mean_table(long) if m.startswith("R2 ") and ", " not in m]
    if not probes:
        return "Not asked: without the robot's state there is no probe that both could be given."
    found = {m: gain(long, m, student, TEACHER, episodes) for m in probes}
    said = {m: told(*change[1:]) for m, change in found.items()}
    worse = [f"{m.removeprefix('R2 ')} {figures(*found[m])}" for m in probes if said[m] == "worse"]
    rest = {s: ", ".join(m.removeprefix("R2 ") for m in probes if said[m] == s) for s in ("better", APART)}
    also = "".join(f"; {s} on {names}" for s, names in rest.items() if names)
    if worse:
        return f"No: in R2, {student} is worse than the teacher on {', '.join(worse)}{also}."
    return f"{'Yes' if rest['better'] else 'Not told apart'}: {student} is worse than the teacher on no probe{also}."


def advice(long: pd.DataFrame, measure: str = "R@1", episodes: pd.DataFrame | None = None) -> str:
    """Which student to use, and which experts can go, as far as the intervals of these runs allow.

    >>> lines = [(m, s, "R@1", v + 0.01 * s) for m, v in {"a only": 0.5, "moe": 0.4}.items() for s in range(3)]
    >>> advice(pd.DataFrame(lines, columns=["model", "seed", "measure", "value"]))
    'Use a alone: fusion shows no gain (R@1 -0.100 [-0.100, -0.100]).'
    """
    means = mean_table(long[long["measure"] == measure])[measure]
    alone = [m for m in means.index if m.endswith(" only")]
    fused = [m for m in ("weighted", "moe") if m in means]
    if not alone or not fused:
        return "Nothing is advised: that takes a fusion and the students of single experts."
    sign = -1 if lower_is_better(measure) else 1
    one, best = ((sign * means[names]).idxmax() for names in (alone, fused))
    change = gain(long, measure, best, one, episodes)
    if not np.isfinite(change).all():
        differ = f"{best} differs from {one} by {change[0]:+.3f} in {measure}"
        return f"Nothing is advised yet: {differ}, and one seed tells no interval; train at least two."
    expert, said = one.removesuffix(" only"), f"({measure} {figures(*change)})"
    use = f"use {best}: fusion gains over {expert} alone {said}"
    if told(*change[1:]) != "better":
        use = f"use {expert} alone: fusion shows no gain {said}"
    missed = {m.removeprefix("moe without "): gain(long, measure, "moe", m, episodes) for m in means.index
              if m.startswith("moe without ") and "moe" in means}  # fmt: skip
    spared = [f"{e} can go (moe misses it by {figures(*c)})" for e, c in missed.items()
              if e != expert and told(*c[1:]) != "better"]  # fmt: skip
    return "; ".join([use[0].upper() + use[1:], *spared]) + "."


# -- drawing


def bootstrap(figure, tasks: np.ndarray) -> np.ndarray:
    """`figure(rows of drawn episodes, generator)`, many times; episodes are drawn with replacement within each task."""
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(tasks == t) for t in dict.fromkeys(tasks)]
    return np.array([figure(np.concatenate([rng.choice(g, len(g)) for g in groups]), rng) for _ in range(_DRAWS)])


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """t-interval of the mean; NaN for fewer than two values."""
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan"), float("nan")
    half = stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)
