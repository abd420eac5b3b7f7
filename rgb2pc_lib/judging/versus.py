"""Two students, or two groups of them, step by step: on the samples that are held out in all of their runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rgb2pc_lib.data.files.exclusions import NOTHING, Exclusions
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.verdicts import bootstrap, figures, told
from rgb2pc_lib.learning.metrics import own_ranks, unit
from rgb2pc_lib.learning.runs import Run

KEYS = ["task", "episode", "step"]
MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {  # of ranks and errors, higher is better
    "R@1": lambda rank, _: rank <= 1.0,
    "R@5": lambda rank, _: rank <= 5.0,
    "cosine": lambda _, error: 1 - error,
}


@dataclass(frozen=True)
class Versus:
    """How runs A and runs B (seeds of two ways of training) do on the steps that all of them hold out.

    Every step is looked for among these steps alone, by all runs alike, so that runs with other held-out episodes can
    be compared on those they share. `without` leaves out episodes of which something was decided.

    >>> Versus.of([Run.open("runs/judge/weighted-seed0")], [Run.open("runs/judge/moe-seed0")]).table  # doctest: +SKIP
    """

    keys: pd.DataFrame  # task, episode, step of the n common steps
    rank: np.ndarray  # [2, seeds, n] place of the own cloud, 1 = first; A, then B
    error: np.ndarray  # [2, seeds, n] cosine distance of student and centred teacher
    student: tuple[np.ndarray, np.ndarray]  # [n, E] embeddings of the first run of each
    runs: tuple[tuple[Run, ...], tuple[Run, ...]]

    @classmethod
    def of(cls, a: Sequence[Run], b: Sequence[Run], without: Exclusions = NOTHING) -> Versus:
        """Raises InputError for unfinished runs, runs that share no held-out step, and unequal numbers of them."""
        if len(a) != len(b):
            raise InputError(f"{len(a)} runs against {len(b)}: expected as many, seed by seed")
        runs = [*a, *b]
        tables = [_held_out(run) for run in runs]
        shared = tables[0].index
        for other in tables[1:]:
            shared = shared.intersection(other.index, sort=False)
        decided = {*without.out, *without.shift}
        shared = shared[[f"{t}/{e}" not in decided and f"{t}/{e}/{s}" not in decided for t, e, s in shared]]
        if len(shared) < 2:
            raise InputError(
                f"{a[0].folder} and {b[0].folder}: hold out no steps in common, so nothing can be compared; "
                "train them with the same tasks, --held_out and --split_seed"
            )
        rank, error, students = [], [], []
        for run, table in zip(runs, tables, strict=True):
            e = run.embeddings()
            rows = table.loc[shared, "row"].to_numpy()
            student, teacher = e["student"][rows], run.centred(e)[rows]
            rank.append(own_ranks(student, teacher))
            error.append(1 - (unit(student) * unit(teacher)).sum(1))
            students.append(student)
        shape = (2, len(a), len(shared))
        keys = shared.to_frame(index=False)
        return cls(keys, np.reshape(rank, shape), np.reshape(error, shape), (students[0], students[len(a)]),
                   (tuple(a), tuple(b)))  # fmt: skip

    @functools.cached_property
    def steps(self) -> pd.DataFrame:
        """A row for each common step, improved most first: its rank and error in A and in B, medians over seeds.

        "change" counts halvings of the rank: 3 is from rank 8 to 1, or from 80 to 10; below 0 B is worse.
        """
        rank, error = np.median(self.rank, axis=1), np.median(self.error, axis=1)  # [2, n]
        out = self.keys.assign(**{"rank A": rank[0], "rank B": rank[1], "change": np.log2(rank[0] / rank[1])})
        out = out.assign(**{"error A": error[0], "error B": error[1]})
        less = out["error A"] - out["error B"]  # of steps with one change, those that came nearer stand first
        return out.iloc[np.lexsort([-less, -out["change"]])].reset_index(drop=True)

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """One row a measure: A, B, difference, low, high (95 %, over seeds and episodes, drawn again), and B is.

        Seeds are paired: run i of A with run i of B. With one seed the interval is over episodes alone.
        """
        episode = self.keys.groupby(["task", "episode"], sort=False).ngroup().to_numpy()
        tasks = self.keys["task"].groupby(episode).first().to_numpy()
        rows = {}
        for name, of in MEASURES.items():
            value = of(self.rank, self.error).astype(float)  # [2, seeds, n]
            means = np.stack([value[..., episode == i].mean(-1) for i in range(len(tasks))], -1)  # [2, seeds, episodes]
            gain = means[1] - means[0]
            low, high = np.percentile(bootstrap(lambda chosen, rng, gain=gain: _redrawn(gain, chosen, rng), tasks),
                                      [2.5, 97.5]) if len(tasks) > 1 else (np.nan, np.nan)  # fmt: skip
            rows[name] = (*means.mean((1, 2)), gain.mean(), low, high, told(low, high))
        columns = ["A", "B", "difference", "low", "high", "B is"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=columns)

    def words(self, a: str = "A", b: str = "B") -> str:
        """The first line of `table` in a sentence, and on what it was measured."""
        row = self.table.loc["R@1"]
        episodes, seeds = len(self.keys[["task", "episode"]].drop_duplicates()), self.rank.shape[1]
        change = figures(*row[["difference", "low", "high"]])
        on = f"{len(self.keys)} steps of {episodes} episodes that both hold out, {seeds} seed(s) each"
        return f"{b} against {a}: R@1 {row['B']:.3f} and {row['A']:.3f}, {change}, {row['B is']}; {on}."


def _redrawn(gain: np.ndarray, episodes: np.ndarray, rng: np.random.Generator) -> float:
    """Mean of gains `[seeds, all episodes]` over drawn episodes, and seeds drawn likewise."""
    return float(gain[rng.integers(len(gain), size=len(gain))][:, episodes].mean())


def _held_out(run: Run) -> pd.DataFrame:
    """Row of `run.embeddings()` of each held-out step, by task, episode and step."""
    if run.config.route == "geometric":
        raise InputError(f"{run.folder}: its space is its own (--route geometric), so it finds no teacher's cloud")
    e = run.embeddings()
    rows = np.flatnonzero(e["held_out"])
    return pd.DataFrame({"row": rows}, index=pd.MultiIndex.from_arrays([e[k][rows] for k in KEYS], names=KEYS))
