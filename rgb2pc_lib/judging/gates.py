"""The gates of a trained run: which expert is trusted where and when, and what is lost without it.

A gate is a share: at every place of every step the gates of all experts sum to one. With weighted fusion they are the
same everywhere; with MoE each place has its own. Nothing is drawn here; see `views.gates`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from rgb2pc_lib.data.sampling import Gatherer, embedding_lattice, lattice, ordered_plans
from rgb2pc_lib.errors import InputError
from rgb2pc_lib.judging.verdicts import APART, figures, interval, told
from rgb2pc_lib.learning.metrics import mean_cosine, retrieval
from rgb2pc_lib.learning.models import Student
from rgb2pc_lib.learning.prepare import Data
from rgb2pc_lib.learning.runs import Run

DEAD, SELDOM = 0.05, 0.01  # an expert is dead when its gate is above DEAD at less than the share SELDOM of places
ALIKE = 0.95  # agreement by chance from which on two runs have nothing to agree on
_BATCH = 32


@dataclass(eq=False)
class GateReader:
    """A finished run with its data opened: gates of any step, through the run's own student and packs.

    >>> reader = GateReader.open(Run.open("runs/judge/moe-seed0"))  # doctest: +SKIP
    >>> reader.map("hammer", "episode_0001", "step_0003").shape  # [H, W, M]  # doctest: +SKIP
    (16, 16, 4)
    """

    run: Run
    student: Student
    teacher_mean: torch.Tensor  # [E]
    data: Data
    gatherer: Gatherer
    keys: pd.DataFrame  # task, episode, step, time of every sample

    @classmethod
    def open(cls, run: Run) -> GateReader:
        """Open a run's weights and data; asked again for the same run, the same reader is given.

        Raises InputError for an unfinished run, and where its packs are gone.
        """
        weights = run.file("model.safetensors")
        return _opened(run, weights.stat().st_mtime_ns if weights.exists() else 0)

    @property
    def experts(self) -> list[str]:
        return self.student.experts

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W) of the lattice at which steps are embedded, and at which gates are read."""
        finest = self.data.samples.pairing.finest_grid
        wide = len(np.unique(embedding_lattice(finest)[:, 0]))
        return len(embedding_lattice(finest)) // wide, wide

    @property
    def boxes(self) -> np.ndarray:
        """`[M, 4]` part of the image that each expert covers: x0, y0, x1, y1 as fractions."""
        return np.array([next(iter(self.data.samples.pairing.packs[e].values())).box for e in self.experts])

    def map(self, task: str, episode: str, step: str) -> np.ndarray:
        """Gates of one step at the embedding lattice, float `[H, W, M]` (0 where an expert is absent).

        Raises InputError for a step that the run's data do not hold.
        """
        found = (self.keys[["task", "episode", "step"]] == (task, episode, step)).all(axis=1)
        if not found.any():
            raise InputError(f"{self.run.folder}: its data hold no step {task}/{episode}/{step} that can be embedded")
        return self.maps(np.flatnonzero(found)[:1])[0]

    @torch.no_grad()
    def maps(self, index: np.ndarray, progress: bool = False) -> np.ndarray:
        """Gates of samples, by number, float `[n, H, W, M]`."""
        parts = [
            self.student(batch.tokens, batch.present, batch.positions).gates.numpy()
            for batch in self._batches(index, progress, "gates")
        ]
        return np.concatenate(parts).reshape(len(index), *self.grid, len(self.experts))

    @torch.no_grad()
    def embed_with(self, index: np.ndarray, subsets: Sequence[Sequence[str]], progress: bool = True) -> np.ndarray:
        """Embeddings of samples by each subset of the experts, `[subsets, n, E]`; the gates renormalise over those.

        The student is the trained one: nothing is trained again.
        """
        parts = []
        for batch in self._batches(index, progress, "switching off"):
            hidden = self.student.hidden(batch.tokens, batch.positions)  # once for all subsets
            found = [
                self.student.fuse({k: hidden[k] for k in on}, batch.present, batch.positions).embedding
                for on in subsets
            ]
            parts.append(torch.stack(found).numpy())
        return np.concatenate(parts, axis=1)

    def teacher(self, index: np.ndarray) -> np.ndarray:
        """Centred teacher embeddings of samples, `[n, E]`."""
        rows = self.data.samples.teacher_rows[index]
        return self.gatherer.teacher_embeddings(rows) - self.teacher_mean.numpy()

    def _batches(self, index, progress, said):
        plans = ordered_plans(self.data.samples, index, _BATCH, lattice(self.grid))
        number = -(-len(index) // _BATCH)
        return tqdm(self.gatherer.run(plans), total=number, desc=f"{self.run.name}: {said}", disable=not progress)


@functools.lru_cache(maxsize=8)
def _opened(run: Run, _written: int) -> GateReader:
    student, mean = run.student()
    config = run.config
    data = Data.open(config)
    gatherer = Gatherer(data.samples, config.frame_copy, teacher_pooling=config.teacher_pooling)
    return GateReader(run, student, mean, data, gatherer, data.samples.keys())


def gate_map(run: Run, task: str, episode: str, step: str) -> np.ndarray:
    """Gates of one step at the embedding lattice, float `[H, W, M]`, experts in the order of the run's config.

    Raises InputError for a step that the run's data do not hold.

    >>> gate_map(Run.open("runs/judge/moe-seed0"), "hammer", "episode_0001", "step_0003").sum(-1)  # doctest: +SKIP
    """
    return GateReader.open(run).map(task, episode, step)


# -- statistics


def entropy(gates: np.ndarray) -> np.ndarray:
    """Normalised entropy of gates `[..., M]`: 0 where one expert decides alone, 1 where all have equal shares.

    >>> entropy(np.array([[1.0, 0.0], [0.5, 0.5]])).tolist()
    [0.0, 1.0]
    """
    gates = np.asarray(gates, float)
    nats = -(gates * np.log(np.maximum(gates, 1e-30))).sum(-1)
    return np.abs(nats) / np.log(max(gates.shape[-1], 2))


def health(maps: np.ndarray, experts: Sequence[str]) -> pd.DataFrame:
    """Is every expert used? One row an expert, from gates `[n, H, W, M]` (or any `[..., M]`).

    Columns: mean gate; leads (share of places where its gate is the largest); "99 % below" (the quantile); and dead:
    its gate is above 0.05 at less than 1 % of all places.
    """
    flat = np.asarray(maps, float).reshape(-1, len(experts))
    return pd.DataFrame(
        {
            "mean gate": flat.mean(0),
            "leads": np.bincount(flat.argmax(1), minlength=len(experts)) / len(flat),
            "99 % below": np.quantile(flat, 0.99, axis=0),
            "dead": (flat > DEAD).mean(0) < SELDOM,
        },
        index=list(experts),
    )


def variation(maps: np.ndarray, keys: pd.DataFrame) -> pd.Series:
    """Where the gates change: shares of their variance between tasks, episodes, steps and places, which sum to 1.

    `maps` `[n, H, W, M]` are the gates of the samples that `keys` names. Places: within one image; steps: means of
    images within an episode; and so on. All zero where the gates hardly change (their standard deviation is below
    0.01), as with weighted fusion.
    """
    image = pd.DataFrame(maps.mean((1, 2), dtype=float))  # [n, M]
    episode = image.groupby([keys["task"], keys["episode"]]).transform("mean")
    task = image.groupby(keys["task"]).transform("mean")
    squares = {
        "tasks": np.square(task - task.mean()),
        "episodes of a task": np.square(episode - task),
        "steps of an episode": np.square(image - episode),
        "places of an image": np.square(maps - image.to_numpy()[:, None, None]).mean((1, 2)),
    }  # [n, M] each
    sums = pd.Series({name: float(np.asarray(v).mean(0).sum()) for name, v in squares.items()})
    return sums / sums.sum() if sums.sum() > 1e-4 * maps.shape[-1] else 0 * sums


def same_leader(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Share of places at which two runs (gates `[n, H, W, M]`) have the same leading expert, and by chance.

    Chance: two runs that lead as often with each expert, but independently of the place.

    >>> same_leader(np.eye(2), np.eye(2))
    (1.0, 0.5)
    """
    a, b = ours.argmax(-1).ravel(), theirs.argmax(-1).ravel()
    shares = [np.bincount(x, minlength=ours.shape[-1]) / len(x) for x in (a, b)]
    return float((a == b).mean()), float(shares[0] @ shares[1])


def shared_trust(ours: np.ndarray, theirs: np.ndarray, keys: pd.DataFrame) -> dict[str, float | str]:
    """`same_leader` of two runs over the samples that `keys` names, and whether they agree beyond chance.

    "they agree": more than by chance, less, or not told apart, by a 95 % t-interval over episodes. Where one expert
    leads nearly everywhere in both, agreement says nothing, and so does the line.
    """
    same, chance = same_leader(ours, theirs)
    by_sample = (ours.argmax(-1) == theirs.argmax(-1)).mean((1, 2))  # [n]
    episodes = pd.Series(by_sample).groupby([keys["task"], keys["episode"]]).mean().to_numpy()
    low, high = interval(episodes - chance)
    said = {"better": "more than by chance", "worse": "less than by chance"}.get(told(low, high), APART)
    said = said if chance < ALIKE else "nothing to tell: one expert leads nearly everywhere"
    return {"same leading expert": same, "by chance": chance, "low": chance + low, "high": chance + high,
            "they agree": said}  # fmt: skip


def gate_means(run: Run, by: str = "task", bins: int = 5) -> pd.DataFrame:
    """Mean gate of each expert by "task" or by "progress" (share of the episode that is over), over episodes.

    Columns: group (the task, or the middle of the bin), expert, mean, low, high (95 % t-interval over episodes),
    episodes. Read from the run's embeddings: all samples, training and held-out.
    """
    e = run.embeddings()
    keys = pd.DataFrame({k: e[k] for k in ("task", "episode", "time")})
    if by == "progress":
        last = keys.groupby(["task", "episode"])["time"].transform("max")
        first = keys.groupby(["task", "episode"])["time"].transform("min")
        share = (keys["time"] - first) / (last - first).clip(lower=1)
        keys["group"] = ((share * bins).astype(int).clip(upper=bins - 1) + 0.5) / bins
    else:
        keys["group"] = keys[by]
    experts = [str(name) for name in e["experts"]]
    gates = pd.DataFrame(e["gates"], columns=experts)
    episodes = gates.groupby([keys["group"], keys["task"], keys["episode"]]).mean()  # one value an episode and group
    lines = []
    for group, part in episodes.groupby(level=0):
        for expert in experts:
            values = part[expert].to_numpy(float)
            lines.append((group, expert, values.mean(), *interval(values), len(values)))
    return pd.DataFrame(lines, columns=["group", "expert", "mean", "low", "high", "episodes"])


# -- what an expert is worth to the trained student


def switch_off(run: Run, progress: bool = True) -> pd.DataFrame:
    """Held-out retrieval of a trained student with experts switched off at inference; nothing is trained again.

    One row a case: "all", "without <expert>" and, of three experts or more, "only <expert>". Columns: seed,
    R@1, R@5, R@10, median rank, cosine with the teacher.
    """
    reader = GateReader.open(run)
    experts = reader.experts
    cases = {"all": experts}
    if len(experts) > 1:
        cases |= {f"without {e}": [o for o in experts if o != e] for e in experts}
    if len(experts) > 2:
        cases |= {f"only {e}": [e] for e in experts}
    index = reader.data.held_out
    teacher = reader.teacher(index)
    found = reader.embed_with(index, list(cases.values()), progress)
    rows = [retrieval(x, teacher) | {"cosine": mean_cosine(x, teacher)} for x in found]
    table = pd.DataFrame(rows, index=pd.Index(cases, name="case"))
    table.insert(0, "seed", run.config.seed)
    return table


def switch_off_cost(tables: Sequence[pd.DataFrame], measure: str = "R@1") -> pd.DataFrame:
    """`switch_off` of several seeds -> one row a case: mean, low, high, and the change from "all", paired by seed.

    Columns: mean, low, high, change, change low, change high (95 % t-intervals over seeds, NaN for one seed), seeds.
    """
    values = pd.concat([t[measure].rename(i) for i, t in enumerate(tables)], axis=1)  # cases by seeds
    values = values.loc[tables[0].index]
    changes = values - values.loc["all"]
    lines = {
        case: (v.mean(), *interval(v), c.mean(), *interval(c), len(v))
        for case, v, c in zip(values.index, values.to_numpy(), changes.to_numpy(), strict=True)
    }
    columns = ["mean", "low", "high", "change", "change low", "change high", "seeds"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns)


def needed(cost: pd.DataFrame, measure: str = "R@1") -> str:
    """Which experts a trained student can do without at inference, as far as the intervals of its cost allow."""
    found = {case.removeprefix("without "): row[["change", "change low", "change high"]].tolist()
             for case, row in cost.iterrows() if case.startswith("without ")}  # fmt: skip
    if not found:
        return "it has one expert."
    if not np.isfinite([*found.values()]).all():
        return "one seed decides nothing about its experts; train at least two."
    words = {expert: f"{expert} ({measure} {figures(*change)})" for expert, change in found.items()}
    lost = [words[e] for e, change in found.items() if told(*change[1:]) == "worse"]
    spare = [words[e] for e, change in found.items() if told(*change[1:]) != "worse"]
    return "; ".join(
        [f"keep {', '.join(lost)}"] * bool(lost) + [f"no loss shows without {', '.join(spare)}"] * bool(spare)
    )
