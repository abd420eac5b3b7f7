"""What roll-outs say: success with intervals, differences, the share of the gap closed, and whether probes foretell it.

Success over tasks is the mean of the tasks' own. Intervals (95 %) are a bootstrap over tasks, head seeds and roll-outs:
roll-outs are drawn within each task, and tasks and head seeds are drawn anew each time. Every representation met the
same scenes, so all are drawn together and differences are paired. Of a handful of scenes there is no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.probes import LOWER_IS_BETTER
from rgb2pc_lib.judging.verdicts import TEACHER, bootstrap, mean_table, told

_LEVELS = [2.5, 97.5]
_FEWEST = 10  # scenes: of fewer, draws hardly differ, and would tell apart what nobody has seen to differ


@dataclass(frozen=True)
class Drawn:
    """One look's success of R representations over tasks, as it is and in every draw of a bootstrap."""

    names: list[str]
    mean: np.ndarray  # [R]
    draws: np.ndarray  # [draws, R]
    roll_outs: np.ndarray  # [R]

    @classmethod
    def of(cls, table: pd.DataFrame, look: str) -> Drawn:
        """From the roll-outs of one look. Of a table that is not complete, scenes that every representation met.

        Raises InputError where there is no such scene.
        """
        some = table[table["look"] == look]
        names = list(dict.fromkeys(some["representation"]))
        met = _by_scene(some)
        met = met[names].dropna() if len(met) else met
        if met.empty:
            expected = f"scenes of the {look} look that every representation met"
            raise InputError(f"roll-outs: expected {expected}, found none; let `make proof` go on")
        success = met.to_numpy(float)  # [rows, R]
        head_of = some.drop_duplicates(["task", "seed"]).set_index(["task", "seed"])["head"]
        tasks, task = np.unique(met.index.get_level_values("task"), return_inverse=True)
        heads, head = np.unique(head_of.loc[met.index], return_inverse=True)

        def over_tasks(rows: np.ndarray, of_head: np.ndarray, of_task: np.ndarray) -> np.ndarray:
            weight = of_head[head[rows]]
            counted = np.bincount(task[rows], weight, len(tasks))
            sums = np.stack([np.bincount(task[rows], weight * success[rows, r], len(tasks)) for r in range(len(names))])
            there = of_task * (counted > 0)
            return (sums / np.maximum(counted, 1e-9) * there).sum(1) / max(there.sum(), 1e-9)

        def figure(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            drawn_heads, drawn_tasks = (rng.multinomial(n, np.ones(n) / n) for n in (len(heads), len(tasks)))
            return over_tasks(rows, drawn_heads.astype(float), drawn_tasks.astype(float))

        whole = over_tasks(np.arange(len(success)), np.ones(len(heads)), np.ones(len(tasks)))
        return cls(names, whole, bootstrap(figure, task), np.full(len(names), len(success)))

    def success(self, name: str) -> tuple[float, float, float]:
        """Mean and interval of a representation."""
        return self._told(lambda x: x[..., self.names.index(name)])

    def difference(self, one: str, other: str) -> tuple[float, float, float]:
        """Mean and interval of one's success less another's."""
        a, b = self.names.index(one), self.names.index(other)
        return self._told(lambda x: x[..., a] - x[..., b])

    def closed(self, student: str, baseline: str, teacher: str = TEACHER) -> tuple[float, float, float]:
        """(student - baseline) / (teacher - baseline); NaN where the teacher is no better."""
        s, b, t = (self.names.index(name) for name in (student, baseline, teacher))

        def share(x):
            gap = x[..., t] - x[..., b]
            return np.where(gap > 0, (x[..., s] - x[..., b]) / np.where(gap > 0, gap, 1), np.nan)

        return self._told(share)

    def best(self, names: Sequence[str]) -> str | None:
        """Which of some representations succeeds most often; None where none of them was rolled out."""
        there = [name for name in names if name in self.names]
        return max(there, key=lambda name: self.mean[self.names.index(name)], default=None)

    def _told(self, figure) -> tuple[float, float, float]:
        drawn = figure(self.draws)
        enough = self.roll_outs.min() >= _FEWEST and np.isfinite(drawn).any()
        low, high = np.nanpercentile(drawn, _LEVELS) if enough else (np.nan, np.nan)
        return float(figure(self.mean)), float(low), float(high)


def _by_scene(some: pd.DataFrame) -> pd.DataFrame:
    """Success in each scene of one look, a column a representation; NaN where it did not meet it."""
    return some.pivot(index=["task", "seed"], columns="representation", values="success")


def scenes_left_out(table: pd.DataFrame) -> list[str]:
    """A sentence for each look in which not every representation met all scenes: what the other tables are over."""
    lines = []
    for look, some in table.groupby("look", sort=False):
        met = _by_scene(some).notna()
        if not (whole := met.all(axis=1)).all():
            fewest = met.sum().idxmin()
            lines.append(
                f"{look} look: representations are compared on the {whole.sum()} of {len(met)} scenes that all of them "
                f"met; {fewest} met {met[fewest].sum()}. Roll it out in the others, or give it a folder of its own."
            )
    return lines


def success_table(table: pd.DataFrame) -> pd.DataFrame:
    """Every representation over tasks. Columns: look, representation, success, low, high, roll-outs."""
    lines = []
    for look in dict.fromkeys(table["look"]):
        drawn = Drawn.of(table, look)
        lines += [(look, n, *drawn.success(n), int(k)) for n, k in zip(drawn.names, drawn.roll_outs, strict=True)]
    return pd.DataFrame(lines, columns=["look", "representation", "success", "low", "high", "roll-outs"])


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """Every cell, with Wilson's interval over its roll-outs.

    Columns: representation, task, look, success, low, high, roll-outs, length (mean control steps of successes).
    """
    lines = []
    for key, rows in table.groupby(["representation", "task", "look"], sort=False):
        wins = int(rows["success"].sum())
        low, high = stats.binomtest(wins, len(rows)).proportion_ci(method="wilson")
        length = rows.loc[rows["success"], "length"].mean()
        lines.append((*key, wins / len(rows), low, high, len(rows), length))
    columns = ["representation", "task", "look", "success", "low", "high", "roll-outs", "length"]
    return pd.DataFrame(lines, columns=columns)


def comparisons(table: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Pairs of representations on the same scenes. Columns: look, one, other, difference, low, high, one is."""
    lines = []
    for look in dict.fromkeys(table["look"]):
        drawn = Drawn.of(table, look)
        for one, other in pairs:
            if {one, other} <= set(drawn.names):
                found = drawn.difference(one, other)
                lines.append((look, one, other, *found, told(*found[1:])))
    return pd.DataFrame(lines, columns=["look", "one", "other", "difference", "low", "high", "one is"])


def gaps(table: pd.DataFrame, baselines: Sequence[str]) -> pd.DataFrame:
    """How much of the gap between the best RGB baseline and the teacher every other representation closes.

    The best baseline is chosen on the same roll-outs, which flatters it. Columns: look, representation, best baseline,
    baseline (success), teacher, success, closed, low, high (none where there is no gap), said.
    """
    lines = []
    for look in dict.fromkeys(table["look"]):
        drawn = Drawn.of(table, look)
        best = drawn.best(baselines)
        if best is None or TEACHER not in drawn.names:
            continue
        level, top = drawn.success(best)[0], drawn.success(TEACHER)[0]
        gap_is = told(*drawn.difference(TEACHER, best)[1:])
        for name in drawn.names:
            if name not in (TEACHER, *baselines):
                closed, low, high = drawn.closed(name, best) if gap_is == "better" else (np.nan,) * 3
                said = told(*drawn.difference(name, best)[1:]) if gap_is == "better" else f"teacher {gap_is}: no gap"
                lines.append((look, name, best, level, top, drawn.success(name)[0], closed, low, high, said))
    columns = ["look", "representation", "best baseline", "baseline", "teacher", "success", "closed", "low", "high"]
    return pd.DataFrame(lines, columns=[*columns, "said"])


def standard_pairs(names: Sequence[str], baselines: Sequence[str]) -> list[tuple[str, str]]:
    """What is asked: each student against the teacher and every baseline, fusion against single experts, and so on."""
    fused = [n for n in names if n in ("weighted", "moe")]
    singles = [n for n in names if n.endswith(" only")]
    pairs = [(TEACHER, b) for b in baselines] + [(s, b) for s in fused for b in baselines]
    pairs += [(s, one) for s in fused for one in (*singles, TEACHER)]
    return pairs + [(n, s) for n in names if "spatial" in n or n.startswith(("compact", "tuned")) for s in fused]


def foretold(table: pd.DataFrame, long: pd.DataFrame) -> pd.DataFrame:
    """Whether a judgement's probes tell who succeeds: Spearman's rank correlation over representations in both.

    `long` is `judgement.csv`; measures of the same look are taken where there are such. The interval is over the
    roll-outs. Columns: look, measure, correlation, low, high, representations.
    """
    probes, lines = mean_table(long), []
    for look in dict.fromkeys(table["look"]):
        drawn = Drawn.of(table, look)
        names = [n for n in drawn.names if n in probes.index]
        for measure in [m for m in probes if m.startswith(("R2 ", "R@1")) or m.endswith(" cm")]:
            of_look = f"{measure}, {look} look"
            values = probes.loc[names, of_look if of_look in probes else measure].dropna()
            if ", " in measure or len(values) < 4:
                continue
            at = [drawn.names.index(n) for n in values.index]
            ranks = stats.rankdata(values if measure not in LOWER_IS_BETTER else -values)
            every = [x[at] for x in (drawn.mean, *drawn.draws) if np.ptp(x[at])]
            found = [float(np.corrcoef(ranks, stats.rankdata(x))[0, 1]) for x in every if np.ptp(ranks)]
            if found:
                low, high = np.percentile(found[1:] or found, _LEVELS)
                lines.append((look, measure, found[0], low, high, len(values)))
    return pd.DataFrame(lines, columns=["look", "measure", "correlation", "low", "high", "representations"])
