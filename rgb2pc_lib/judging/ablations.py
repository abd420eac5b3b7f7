"""Which choices matter: one setting at a time is changed, over several seeds, and judged on validation episodes.

The held-out episodes take no part: what wins here may become the default, and is then judged there once.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from rgb2pc_lib.data.workspace import portable
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.evaluate import Judgement, judge_students, over_seeds, singles, without_each
from rgb2pc_lib.judging.verdicts import difference, interval
from rgb2pc_lib.learning.config import Config
from rgb2pc_lib.learning.prepare import Data

BASE = "weighted"  # the judged runs' own settings
SETTINGS: dict[str, dict[str, dict]] = {  # question -> answer -> what differs from the base
    "fusion": {"moe": {"fusion": "moe"}, "uniform": {"fusion": "uniform"}},
    "pooling": {
        "mean": {"pooling": "mean"},
        "2 x 2 blocks": {"pooling": "blocks2"},
        "4 x 4 blocks": {"pooling": "blocks4"},
        "attention": {"pooling": "attention"},
    },
    "places": {"128 places": {"student_tokens": 128}},
    "losses": {
        "with MSE": {"loss_mse": 1.0},
        "without MSE": {"loss_mse": 0.0},
        "with relational": {"loss_relational": 1.0},
        "neighbours no negatives": {"exclude_near": 2},
    },
    "centring": {"teacher not centred": {"centre": False}},
    "pairing": {
        "loose pairing": {"strict_pairing": False},
        "windows of 4": {"sample_unit": "window", "window": 4},
        "shuffled pairs": {"shuffle_pairs": True},
    },
    "expert drop": {"no expert drop": {"expert_drop": 0.0}, "expert drop 0.3": {"expert_drop": 0.3}},
    "teacher pooling": {"teacher mean+max": {"teacher_pooling": "mean+max"}},
    "episodes": {},  # half and a quarter of them, see `line_up`
    "steps": {},  # half as many and twice as many, see `line_up`
}
MEASURES = ("R@1", "R2 tcp", "R2 object", "R2 tcp-object", "R2 distance", "R2 progress")


QUESTIONS = (*SETTINGS, "experts", "teachers")


def line_up(
    base: Config, questions: list[str], seeds: int, out: Path, teachers: dict[str, Path] | None = None
) -> list[tuple[str, Config]]:
    """(name, config) of every training behind the answers: the base, each answer, and students with other experts.

    "experts" are a student of each expert alone and one without it; "teachers" students of other teachers' features of
    the same steps, name -> folder; their retrieval is among their own teacher's embeddings, so compare their probes.
    What is the base's own answer already is left out: nothing is trained twice, or compared with itself.
    Raises InputError for a question that is not one of `SETTINGS`, or "experts".
    """
    unknown = set(questions) - set(QUESTIONS)
    if unknown:
        known = ", ".join(QUESTIONS)
        raise InputError(f"--only: expected questions among {known}; found {', '.join(sorted(unknown))}")
    answers: dict[str, dict] = {BASE: {}}
    for question in questions:
        if question == "experts":
            answers |= singles(base) | without_each(base)
        elif question == "teachers":
            answers |= {f"teacher {name}": {"pc_root": portable(root)} for name, root in (teachers or {}).items()}
        elif question == "episodes":
            most = max(Data.open(base).episodes().values())
            answers |= {f"{n} episodes a task": {"train_episodes": n} for n in (most // 4, most // 2) if n}
        elif question == "steps":
            answers |= {"half the steps": {"steps": base.steps // 2}, "twice the steps": {"steps": base.steps * 2}}
        else:
            answers |= SETTINGS[question]
    apart = {k: v for k, v in answers.items() if k == BASE or base.changes(dataclasses.replace(base, **v))}
    return over_seeds(base, apart, seeds, out)


def answers(rows: list[tuple[str, Config]], state_root: Path | None) -> tuple[Judgement, pd.DataFrame]:
    """The finished trainings judged on validation episodes, and a table of differences from the base.

    Columns: answer, measure, mean, difference, low, high (95 %: of R2 over seeds and episodes, else over seeds), seeds.
    """
    found = judge_students(rows, state_root, "validation")
    lines = []
    for measure in [m for m in MEASURES if m in set(found.long["measure"])]:
        values = found.long[found.long["measure"] == measure].pivot(index="seed", columns="model", values="value")
        for name in dict.fromkeys(name for name, _ in rows):
            change = (values[name] - values[BASE]).to_numpy()
            low, high = interval(change)
            if name != BASE and measure.startswith("R2 "):
                _, low, high = difference(found.episodes, measure, name, BASE)
            lines.append((name, measure, values[name].mean(), change.mean(), low, high, int(np.isfinite(change).sum())))
    return found, pd.DataFrame(lines, columns=["answer", "measure", "mean", "difference", "low", "high", "seeds"])
