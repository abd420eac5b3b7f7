"""What a table of judgements says: means, differences and gaps closed, with intervals over seeds and episodes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from rgb2pc_lib.judging.probes import LOWER_IS_BETTER
from rgb2pc_lib.judging.rivals import KNOWN

TEACHER, SHUFFLED, WIDTH = "teacher", "shuffled control", "width"
AHEAD = "frames ahead"  # of a student that saw the future: how many later frames its experts saw, at most
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
    itself, so its retrieval is perfect. Where the teacher is no better than the best rival there is no gap, and the
    line says so with NaN. With `episodes` (of `Judgement`) intervals of R2 are over seeds *and* held-out episodes
    (bootstrap, episodes drawn within each task); otherwise they are t-intervals over seeds.

    Columns: student, measure, best rival, teacher, best (value), mean (value), closed, low, high, seeds.

    >>> lines = [("teacher", -1, "R2 object", 0.9), ("vggt", -1, "R2 object", 0.5), ("vggt only", 0, "R2 object", 0.4),
    ...          ("moe", 0, "R2 object", 0.8)]
    >>> long = pd.DataFrame(lines, columns=["model", "seed", "measure", "value"])
    >>> gap_closed(long, students=["moe"])[["student", "measure", "best rival", "closed"]]
      student    measure best rival  closed
    0     moe  R2 object       vggt    0.75
    """
    table = mean_table(long)
    lines = []
    for measure in table.columns:
        if not (measure.startswith(("R@", "R2 ")) or " cm" in measure or measure.startswith("task accuracy")):
            continue
        rivals, top = rivals_of(table, measure), 1.0 if measure.startswith("R@") else table.loc[TEACHER, measure]
        if rivals.empty or not np.isfinite(top):
            continue
        lower = measure.split(",")[0] in LOWER_IS_BETTER
        best = rivals.idxmin() if lower else rivals.idxmax()
        gap = top - rivals[best]
        real = gap < 0 if lower else gap > 0
        for student in students:
            values = long[(long["model"] == student) & (long["measure"] == measure)]["value"].to_numpy()
            closed = (values - rivals[best]) / gap if real else np.full(len(values), np.nan)
            low, high = interval(closed)
            if real and episodes is not None and measure.startswith("R2 "):
                low, high = _resampled_gap(episodes, measure, student, best)
            lines.append(
                (student, measure, best, top, rivals[best], values.mean(), closed.mean(), low, high, len(values))
            )
    columns = ["student", "measure", "best rival", "teacher", "best", "mean", "closed", "low", "high", "seeds"]
    return pd.DataFrame(lines, columns=columns)


def difference(episodes: pd.DataFrame, measure: str, one: str, other: str) -> tuple[float, float, float]:
    """R2 of one model minus that of another on the same episodes: mean, and a 95 % interval (as `gap_closed`)."""
    a, b = (_by_episode(episodes, measure, model) for model in (one, other))
    drawn = bootstrap(lambda rows, rng: _drawn_r2(a, rows, rng) - _drawn_r2(b, rows, rng), a["task"])
    return (float(_r2(a).mean() - _r2(b).mean()), *np.percentile(drawn, [2.5, 97.5]).tolist())


def _resampled_gap(episodes, measure, student, best) -> tuple[float, float]:
    ours, rival, teacher = (_by_episode(episodes, measure, m) for m in (student, best, TEACHER))

    def closed(rows, rng):
        low, high = _drawn_r2(rival, rows, rng), _drawn_r2(teacher, rows, rng)
        return (_drawn_r2(ours, rows, rng) - low) / (high - low) if high > low else np.nan

    low, high = np.nanpercentile(bootstrap(closed, ours["task"]), [2.5, 97.5])
    return float(low), float(high)


def _by_episode(episodes: pd.DataFrame, measure: str, model: str) -> dict:
    """Squared errors `[seeds, episodes]` and variances `[episodes]` of a model, and the episodes' tasks."""
    name, _, look = measure.removeprefix("R2 ").partition(", ")
    rows = episodes[(episodes["model"] == model) & (episodes["probe"] == name)]
    if look:
        rows = rows[rows["look"] == look]
    errors = rows.pivot(index="seed", columns="episode", values="error")
    around = rows.drop_duplicates("episode").set_index("episode").loc[errors.columns, "around"]
    tasks = np.array([episode.partition("/")[0] for episode in errors.columns])
    return {"error": errors.to_numpy(), "around": around.to_numpy(), "task": tasks}


def _r2(one: dict) -> np.ndarray:
    return 1 - one["error"].sum(1) / one["around"].sum()


def _drawn_r2(one: dict, rows: np.ndarray, rng: np.random.Generator) -> float:
    seeds = rng.integers(len(one["error"]), size=len(one["error"]))
    return float(1 - one["error"][seeds][:, rows].sum(1).mean() / one["around"][rows].sum())


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
