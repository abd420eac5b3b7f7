"""The same head without a simulator: how well each representation tells the actions of held-out episodes.

For anybody's recordings whose state files hold actions. A small error says that a head finds the action in the
representation; only roll-outs say what a robot makes of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.loop.demonstrations import Demonstrations
from rgb2pc_lib.judging.loop.heads import HeadSettings, action_error, action_spread, train_head
from rgb2pc_lib.judging.verdicts import bootstrap, told

_LEVELS = [2.5, 97.5]


def held_out_errors(
    features: dict[str, list[np.ndarray]], demonstrations: Demonstrations, heads: int = 3,
    settings: HeadSettings = HeadSettings(),  # noqa: B008
) -> Iterator[pd.DataFrame]:  # fmt: skip
    """Train every head and yield its errors on held-out episodes, one table a representation.

    `features`: name -> variants `[n, d]` of the demonstrations' steps; head seed k is trained on the k-th, and after
    the last on the first again. One head a task and seed. Columns: representation, head, task, episode, error (the mean
    absolute error of an action, in its standard deviations over the task's training steps). Raises InputError where no
    task has steps on both sides of the split.
    """
    tasks = [task for task in dict.fromkeys(demonstrations.keys["task"]) if _both_sides(demonstrations, task)]
    if heads < 1 or not tasks:
        found = f"{heads} head seeds" if heads < 1 else "none, since whole tasks are held out"
        raise InputError(f"expected a head, and a task with training and held-out episodes, found {found}")
    for name, variants in features.items():
        parts = []
        for head in range(heads):
            known = np.concatenate([variants[head % len(variants)], demonstrations.own], 1)
            for task in tasks:
                of_task = demonstrations.of_task(task)
                fit, rows = of_task & demonstrations.training, of_task & demonstrations.held_out
                actions = demonstrations.actions
                own = demonstrations.own.shape[1]
                policy = train_head(known[fit], actions[fit], head, settings, own)
                error = action_error(policy(known[rows]), actions[rows], action_spread(actions[fit]))
                episodes = demonstrations.episodes[rows]
                mean = pd.Series(error).groupby(episodes).mean()
                parts.append(
                    pd.DataFrame({"head": head, "task": task, "episode": mean.index, "error": mean.to_numpy()})
                )
        yield pd.concat(parts, ignore_index=True).assign(representation=name)


def _both_sides(demonstrations: Demonstrations, task: str) -> bool:
    of_task = demonstrations.of_task(task)
    return bool((of_task & demonstrations.training).any() and (of_task & demonstrations.held_out).any())


def error_table(errors: pd.DataFrame, against: str) -> pd.DataFrame:
    """Mean error of every representation over held-out episodes, and its difference from that of `against`.

    Intervals (95 %) are a bootstrap over head seeds and episodes, drawn within each task and the same for all, so that
    differences are paired; there are none where a task has a single held-out episode, of which nothing can be drawn.
    Columns: representation, error, low, high, difference, difference low, difference high, is (better: a
    smaller error), episodes.
    """
    wide = errors.pivot(index=["task", "episode"], columns=["representation", "head"], values="error")
    names = list(dict.fromkeys(errors["representation"]))
    cube = np.stack([wide[name].to_numpy() for name in names])  # [R, episodes, heads]
    heads = cube.shape[2]

    def figure(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return cube[:, rows][:, :, rng.integers(heads, size=heads)].mean((1, 2))

    task, mean = wide.index.get_level_values("task"), cube.mean((1, 2))
    few = task.value_counts().min() < 2
    drawn = np.full((1, len(names)), np.nan) if few else bootstrap(figure, task.to_numpy())
    base, lines = names.index(against), []
    for i, name in enumerate(names):
        low, high = np.percentile(drawn[:, i], _LEVELS)
        less, most = np.percentile(drawn[:, i] - drawn[:, base], _LEVELS)
        said = "" if i == base else told(-most, -less)
        lines.append((name, mean[i], low, high, mean[i] - mean[base], less, most, said, len(wide)))
    columns = ["representation", "error", "low", "high", "difference", "difference low", "difference high", "is"]
    return pd.DataFrame(lines, columns=[*columns, "episodes"])
